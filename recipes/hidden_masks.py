"""Scorers that hide a data set's masks: they know them, and tell only how good a mask is.

For --reward recipes/hidden_masks.py:f1 of train_scores.py, with the photos of any labelled data set.
"""

import functools
import os

import numpy as np
import torch

from datasets import open_faces
from datasets.cache import CachedFaces
from utils import metrics
from utils.errors import UserError


@functools.cache
def masks_of(folder, size):
    """Of the data set around a folder of photos: {path: row}, its masks as data, how many classes."""
    faces = None
    while folder != os.path.dirname(folder):  # the outermost: a part of a data set may look like another
        try:
            faces = open_faces(folder)
        except UserError:
            pass
        folder = os.path.dirname(folder)
    if faces is None:
        raise UserError("hidden_masks.py: the photos are of no data set of README.md, so there are no masks")
    samples = [s for split in faces.splits.values() for s in split if s.label is not None]
    rows = {os.path.abspath(s.image): i for i, s in enumerate(samples)}
    return rows, CachedFaces(faces, samples, size), len(faces.classes)


def f1_per_class(preds, photos):
    """(B, H, W) uint8 -> (B, K): F1 of each class but background, NaN where neither mask has it."""
    rows, data, num_classes = masks_of(os.path.dirname(os.path.abspath(photos[0])), preds.shape[-1])
    labels = data[[rows[os.path.abspath(photo)] for photo in photos]]["semantic"]
    f1 = metrics.f1_per_class(metrics.confusion(torch.from_numpy(preds), labels, num_classes))
    f1[:, 0] = torch.nan
    return f1.numpy()


def f1(preds, photos):
    """(B, H, W) uint8 -> (B,): one number, the mean over those classes."""
    return np.nanmean(f1_per_class(preds, photos), 1)
