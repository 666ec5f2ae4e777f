"""Microsoft FaceSynthetics as downloaded: 100,000 rendered faces of 512 pixels, or packages of 1,000 and 100.

    {000000}.png    {000000}_seg.png (8-bit ids)    {000000}_ldmks.txt (70 points, not used)

All in one folder, and no split: hold out a part. 255 is the data set's own mark of pixels to ignore. Left and
right are the image's: in its masks right_eye, right_brow and right_ear lie right of their other halves.
Source: Wood et al., "Fake it till you make it", ICCV 2021; github.com/microsoft/FaceSynthetics;
non-commercial.
"""

import os
import re

from datasets.faces import Faces, Sample, not_read, pair, palette, side_pairs
from datasets.masks import read_mask

LOOKS_FOR = "FaceSynthetics: 000000.png, 000000_seg.png, 000000_ldmks.txt"
CLASSES = (
    "background skin nose right_eye left_eye right_brow left_brow right_ear left_ear mouth_interior "
    "top_lip bottom_lip neck hair beard clothing glasses headwear facewear"
).split()
COLORS = palette(len(CLASSES))
FLIP_PAIRS = side_pairs(CLASSES)


def recognise(root):
    """`Faces` if `root` is FaceSynthetics, else None. The landmarks tell it from somebody's own photos and
    masks in one folder; a classes.json always means the latter."""
    names = set(os.listdir(root))
    found = {end: {} for end in (".png", "_seg.png", "_ldmks.txt")}
    for name in sorted(names):
        if match := re.fullmatch(r"(\d{6})(\.png|_seg\.png|_ldmks\.txt)", name):
            found[match[2]][match[1]] = os.path.join(root, name)
    if "classes.json" in names or not all(found.values()):
        return None
    rows = pair(found[".png"], found["_seg.png"], root)
    samples = [Sample(stem, image, label, stem) for stem, image, label in rows]
    notes = not_read(root, samples)
    return Faces("facesynthetics", CLASSES, COLORS, FLIP_PAIRS, {"train": samples}, read_label, notes)


def read_label(sample):
    return read_mask(sample.label)
