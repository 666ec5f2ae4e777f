"""Exports of labelling tools that are recognised but not read, and which export to choose instead."""

import os
import re

DEPTH = 2  # folders below folders that are looked into
FEW = 200  # names of one folder that are looked at: an export is all of one kind
COCO_OR_MASKS = "COCO with segmentations, or masks"
# what it is, what gives it away: a path below the root, in lower case; what to export instead
KINDS = (
    ("CVAT for images", r"annotations\.xml", "'Segmentation mask 1.1' or 'COCO 1.0', with 'Save images' on"),
    ("Supervisely", r"(.*/)?ann/.*\.json", "'Export to COCO'"),
    ("VGG Image Annotator", r"via_.*\.(json|csv)", "'COCO format'"),
    (
        "Label Studio",
        r"project-\d+-at-.*\.json",
        "'COCO'; brushes that it leaves out must be drawn as polygons",
    ),
    ("Label Studio's brushes", r"task-\d+-annotation-.*\.(png|npy)", "'COCO' (polygons)"),
    (
        "YOLO",
        r"(.*/)?(data\.ya?ml|obj\.data|_darknet\.labels|classes\.txt|labels/(.*/)?.*\.txt)",
        COCO_OR_MASKS,
    ),
    ("CreateML", r"(.*/)?_annotations\.createml\.json", COCO_OR_MASKS),
    ("TFRecord", r"(.*/)?.*\.tfrecords?", COCO_OR_MASKS),
    ("Labelbox", r".*\.ndjson", COCO_OR_MASKS),
    ("boxes or polygons in XML", r"(.*/)?.*\.xml", COCO_OR_MASKS),
)


def advice(root):
    """One line about the export in the folder `root`, or None where it is none of `KINDS`."""
    paths = []
    for folder, below, names in os.walk(root):
        inside = os.path.relpath(folder, root).replace(os.sep, "/").lower()
        paths += [
            name if inside == "." else f"{inside}/{name}" for name in map(str.lower, sorted(names)[:FEW])
        ]
        below[:] = sorted(below)[:FEW] if inside == "." or inside.count("/") < DEPTH - 1 else []
    for kind, pattern, instead in KINDS:
        if seen := [path for path in paths if re.fullmatch(pattern, path)]:
            return f"{root}: an export of {kind} ({seen[0]}), which is not read; export {instead}"
    return None
