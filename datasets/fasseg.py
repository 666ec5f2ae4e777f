"""FASSEG: V1 (frontal, rough), V2 (frontal, precise) and V3 (13 head poses), as downloaded.

    V1|V2/{Train,Test}_RGB/{k}.bmp        {Train,Test}_Labels/{k}.bmp
    V3/{Train,Test}_RGB/{yaw}/personne{person}{series}{nn}+0{yaw}.bmp     {Train,Test}_labels/{yaw}/

Labels are colours, anti-aliased at class borders. Ears and neck are skin, eyebrows are hair,
clothing is background, clear spectacles are labelled as what is behind them. V1's nose is only the
nostrils.
Source: Khan, Mauro, Leonardi, ICIP 2015; Khan, Mauro, Migliorati, Leonardi, ICME 2017.
"""

import os
import re

import numpy as np
from PIL import Image

from datasets.faces import Faces, Sample
from datasets.images import decode, open_image, pictures, size_of
from datasets.masks import nearest_class

LOOKS_FOR = "FASSEG: Train_RGB/ with Train_Labels/ (V1, V2) or Train_labels/<yaw>/ (V3)"
CLASSES = ["background", "skin", "hair", "eyes", "nose", "mouth"]
COLORS = [(255, 0, 0), (255, 255, 0), (127, 0, 0), (0, 0, 255), (0, 255, 255), (0, 255, 0)]
FAR = 40  # RGB distance beyond which an anti-aliased pixel is nobody's: a skin|nose blend is green


def recognise(root):
    """`Faces` if `root` is one of the three FASSEG sets, else None."""
    folders = {name.lower(): name for name in os.listdir(root)}
    if not {"train_rgb", "train_labels"} <= folders.keys():
        return None
    pose = any(os.path.isdir(os.path.join(root, folders["train_rgb"], y)) for y in ("0", "+90"))
    splits, notes = {}, []
    for split in ("train", "test"):
        if f"{split}_rgb" in folders:
            rgb = os.path.join(root, folders[f"{split}_rgb"])
            labels = os.path.join(root, folders.get(f"{split}_labels", "absent"))
            yaws = [y for y in sorted(os.listdir(rgb)) if re.fullmatch(r"[+-]?\d+", y)]
            yaws = yaws if pose else [""]
            found = [s for yaw in yaws for s in _samples(rgb, labels, yaw, split)]
            splits[split] = [s for s in found if s.label]
            if unlabelled := [s for s in found if not s.label]:
                splits["unlabelled"] = splits.get("unlabelled", []) + unlabelled
                notes.append(f"{len(unlabelled)} {split} photos have no label: split `unlabelled`")
    odd = [s.id for name in ("train", "test") for s in splits.get(name, []) if _sizes_differ(s)]
    if odd:
        notes.append(f"label resized to its photo (nearest), sizes differ: {', '.join(odd)}")
    name = "fasseg_v3" if pose else "fasseg"
    return Faces(name, CLASSES, COLORS, [], splits, read_label, notes)


def read_label(sample):
    """Nearest colour, 255 if that is farther than `FAR`; resized to the photo if sizes differ."""
    label = open_image(sample.label)
    ids = nearest_class(decode(label, sample.label, "RGB"), COLORS, FAR)
    size = size_of(sample.image)
    return ids if label.size == size else np.asarray(Image.fromarray(ids).resize(size, 0))


def _samples(rgb, labels, yaw, split):
    found = pictures(os.path.join(labels, yaw))
    for stem, image in pictures(os.path.join(rgb, yaw)).items():
        person = re.match(r"personne(\d\d)", stem)
        sample_id = "/".join(p for p in (split, yaw, stem) if p)
        group = person.group(1) if person else sample_id
        yield Sample(sample_id, image, found.get(stem), group, float(yaw) if yaw else None)


def _sizes_differ(sample):
    return size_of(sample.image) != size_of(sample.label)
