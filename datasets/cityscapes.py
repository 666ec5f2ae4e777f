"""Street scenes with the 19 classes of Cityscapes: Cityscapes itself, and ACDC.

Cityscapes (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip), 2,975 / 500 / 1,525 photos:

    leftImg8bit/{train,val,test}/{city}/{x}_leftImg8bit.png
    gtFine/{train,val,test}/{city}/{x}_gtFine_labelIds.png        or, where it is missing, _labelTrainIds.png
    gtFine/{train,val,test}/{city}/{x}_gtFine_instanceIds.png     16 bit; all photos have one, or none has

ACDC (rgb_anon_trainvaltest.zip, gt_trainval.zip), 1,600 / 406 / 2,000 photos:

    rgb_anon/{fog,night,rain,snow}/{train,val,test}/{sequence}/{x}_rgb_anon.png
    gt/{fog,night,rain,snow}/{train,val}/{sequence}/{x}_gt_labelTrainIds.png    or _labelIds.png

Masks of test are not published (those of Cityscapes are there, and void): its photos are the split
`unlabelled`. A group is a city, or a sequence. Not read: gtCoarse/, and of ACDC the photos in good weather
(train_ref/ ...) and the panoptic masks.

labelIds are 0 to 33, of which 19 are classes, and all others are void. instanceIds hold id * 1000 + n where
instances were told apart, and the id alone where they were not: stuff, and groups of things.

Sources: Cordts et al., "The Cityscapes Dataset", 2016 (1604.01685); github.com/mcordts/cityscapesScripts, its
README and helpers/labels.py. Sakaridis et al., "ACDC", 2021 (2104.13395); acdc.vision.ee.ethz.ch.
"""

import os

import numpy as np

from datasets.faces import Faces, Sample, not_read, some
from datasets.images import decode, open_image, pictures
from datasets.masks import read_mask
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX

LOOKS_FOR = "Cityscapes: leftImg8bit/ and gtFine/; ACDC: rgb_anon/ and gt/"
ROWS = (  # name, its id in labelIds, colour; those without a row are void
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES = [name for name, _, _ in ROWS]
COLORS = [color for _, _, color in ROWS]
FIRST_THING = CLASSES.index("person")  # this class and those after it have instances
THINGS = {name: [i] for i, name in enumerate(CLASSES) if i >= FIRST_THING}
IDS = 34  # labelIds are 0 to 33
# the class of each of labelIds; ids that these do not define stay, so that they are refused
TRAIN_IDS = np.arange(256, dtype=np.uint8)
TRAIN_IDS[:IDS] = IGNORE_INDEX
TRAIN_IDS[[raw for _, raw, _ in ROWS]] = range(len(ROWS))
MOST = 254  # instances of one image that have an id here
WEATHERS = ("fog", "night", "rain", "snow")
# what comes with both, and is not read
BESIDE = "color labelColor labelIds labelTrainIds instanceIds instanceTrainIds invIds polygons".split()
COMPANIONS = set("gtCoarse gt_panoptic gt_detection train_extra train_ref val_ref test_ref test".split())


def recognise(root):
    """`Faces` if `root` holds Cityscapes or ACDC, else None."""
    for photos, masks in (("leftImg8bit", "gtFine"), ("rgb_anon", "gt")):
        if os.path.isdir(os.path.join(root, photos)):
            return _open(root, photos, masks)
    return None


def read_label(sample):
    """Ids of the 19 classes; ids that labelIds do not define stay as they are, and so are refused."""
    ids = read_mask(sample.label)
    return ids if sample.label.endswith("TrainIds.png") else TRAIN_IDS[ids]


def read_instance(sample):
    """(H, W) uint8: 0 stuff, 1 to 254 the instances of this image, largest first, 255 void, groups that
    nobody parted, and instances beyond the 254th. None without a mask. UserError where a value is none of
    instanceIds."""
    if sample.instance is None:
        return None
    ids = decode(open_image(sample.instance), sample.instance).astype(np.int64)
    parted = ids >= 1000
    labels = np.where(parted, ids // 1000, ids)
    if ids.ndim != 2 or labels.min() < 0 or labels.max() >= IDS:
        raise UserError(
            f"{sample.instance}: need ids 0 to {IDS - 1}, or those times 1000 + n, in grey of 16 bits"
        )
    classes = TRAIN_IDS[labels]
    thing = (classes >= FIRST_THING) & (classes != IGNORE_INDEX)
    instances = np.where(thing | (classes == IGNORE_INDEX), np.uint8(IGNORE_INDEX), np.uint8(0))
    _, index, counts = np.unique(ids[thing & parted], return_inverse=True, return_counts=True)
    number = np.full(len(counts), IGNORE_INDEX, np.uint8)
    largest = np.argsort(-counts, kind="stable")[:MOST]
    number[largest] = np.arange(1, len(largest) + 1)
    instances[thing & parted] = number[index]
    return instances


def _open(root, photos, masks):
    """photos, masks: the two folders, which their files are called after, too: x_leftImg8bit.png,
    x_gtFine_labelIds.png."""
    if not os.path.isdir(os.path.join(root, masks)):
        raise UserError(
            f"{root}: {photos}/ without {masks}/: unpack the archive of masks into the same folder"
        )
    acdc = masks == "gt"
    splits = {"train": [], "val": [], "unlabelled": []}
    for weather in WEATHERS if acdc else ("",):
        for split in ("train", "val", "test"):
            sides = [os.path.join(root, side, weather, split) for side in (photos, masks)]
            for place in sorted({name for side in sides for name in _folders(side)}):
                above = "/".join(filter(None, (weather, split, place)))
                images = _called(os.path.join(sides[0], place), f"_{photos}")
                if split == "test":
                    rows = [(stem, path, None, None) for stem, path in images.items()]
                else:
                    rows = _labelled(images, os.path.join(sides[1], place), f"_{masks}")
                samples = [Sample(f"{above}/{s}", i, m, place, instance=ids) for s, i, m, ids in rows]
                splits["unlabelled" if split == "test" else split] += samples
    labelled = splits["train"] + splits["val"]
    lone = [s.id for s in labelled if s.instance is None]
    if 0 < len(lone) < len(labelled):
        raise UserError(
            f"{root}: {len(lone)} masks without instanceIds beside them, others have: {some(lone)}"
        )
    notes = [f"class 0 is {CLASSES[0]}, no background: mIoU counts it, mean F1 leaves it out"]
    if bare := splits["unlabelled"]:
        notes.append(f"{len(bare)} photos of test, whose masks are not published: split `unlabelled`")
    stems = {os.path.basename(s.label).rpartition("_")[0] for s in labelled}
    beside = {f"{stem}_{end}{suffix}" for stem in stems for end in BESIDE for suffix in (".png", ".json")}
    notes += not_read(root, labelled + bare, COMPANIONS | beside)
    things = {} if lone or not labelled else THINGS
    splits = {split: samples for split, samples in splits.items() if samples}
    read = read_instance if things else None
    name = "acdc" if acdc else "cityscapes"
    return Faces(name, CLASSES, COLORS, [], splits, read_label, notes, things=things, read_instance=read)


def _labelled(images, folder, ending):
    """[(stem, photo, mask, mask of instances or None)] of {stem: photo} and the folder of their masks."""
    masks = _called(folder, f"{ending}_labelTrainIds") | _called(folder, f"{ending}_labelIds")
    instances = _called(folder, f"{ending}_instanceIds")
    if lone := sorted(images.keys() ^ masks.keys()):
        raise UserError(f"{folder}: not both photo and mask of {some(lone, 3)}; unpack both archives in full")
    return [(stem, path, masks[stem], instances.get(stem)) for stem, path in images.items()]


def _folders(path):
    return [entry.name for entry in os.scandir(path) if entry.is_dir()] if os.path.isdir(path) else []


def _called(folder, ending):
    """{stem without `ending`: path} of the pictures that are called so."""
    found = pictures(folder, (".png",))
    return {stem.removesuffix(ending): path for stem, path in found.items() if stem.endswith(ending)}
