"""iBugMask as downloaded (ibugmask_release.zip): 21,866 / 1,000 faces with the classes of LaPa.

    {train,test}/{name}.jpg    {name}.png (8-bit ids); landmarks and boxes beside them are not used

Train is Helen-LP: each HELEN photo turned to several head poses by a 3D model, {photo}_00.jpg,
{photo}_01.jpg, ...; these are one group, so that no split parts them. Test is in the wild, labelled
by hand, and often shows several people of whom one is labelled: it asks for a crop around the face.
Skin includes the scalp. Left and right are taken to be LaPa's, the image's.
Source: Lin, Shen, Wang, Pantic, "RoI Tanh-polar Transformer Network for Face Parsing", 2021.
"""

import os
import re

from datasets.faces import Faces, Sample, pair
from datasets.images import pictures
from datasets.lapa import CLASSES, COLORS, FLIP_PAIRS, read_label

LOOKS_FOR = "iBugMask: train/ and test/ with {name}.jpg beside {name}.png"


def recognise(root):
    """`Faces` if `root` is iBugMask, else None."""
    if os.path.exists(os.path.join(root, "classes.json")):
        return None  # somebody's own
    splits = {}
    for split in ("train", "test"):
        folder = os.path.join(root, split)
        photos = pictures(folder, (".jpg",))
        labels = pictures(folder, (".png",))
        if photos.keys() & labels.keys():
            splits[split] = [_sample(split, *found) for found in pair(photos, labels, folder)]
    if not splits:
        return None
    notes = ["read as iBugMask: the ids are taken to be LaPa's 11 classes"]
    return Faces("ibugmask", CLASSES, COLORS, FLIP_PAIRS, splits, read_label, notes)


def _sample(split, stem, image, label):
    sample_id = f"{split}/{stem}"
    group = re.sub(r"_\d\d$", "", sample_id) if split == "train" else sample_id
    return Sample(sample_id, image, label, group)
