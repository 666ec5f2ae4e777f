"""Exports of labelling tools in miniature, each laid out as the tool's documentation says."""

import base64
import io
import json
import os
import pathlib

import numpy as np
import pytest
from conftest import ROOT, TINY, ids_of, logged, refusal
from PIL import Image

from datasets import UnknownFolder, coco, open_faces
from datasets.cache import CachedFaces
from datasets.faces import label_info, palette
from datasets.splits import open_any

DATA = pathlib.Path(os.environ.get("FACES_DATA", ROOT.parent / "shared/data"))


def save(path, pixels, colors=None):
    """An array as a picture; of ids (H, W) with colours, a palette mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.uint8(pixels))
    if colors:
        image = image.convert("P")
        image.putpalette([value for color in colors for value in color])
    image.save(path)


def photo(path, width=6, height=4):
    save(path, np.full((height, width, 3), 128))


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def as_json(path, content):
    text(path, json.dumps(content))


def counts(faces):
    return {split: len(samples) for split, samples in faces.splits.items()}


def label(faces, split="train", row=0):
    return faces.read_label(faces.splits[split][row]).tolist()


# ---- Pascal VOC, labelme2voc, CVAT's masks


def test_voc(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    for name in ("2007_000032", "2007_000039", "2008_000001", "2008_000002"):
        photo(root / f"JPEGImages/{name}.jpg")
        text(root / f"Annotations/{name}.xml", "<annotation/>")
    for name in ("2007_000032", "2007_000039"):
        mask = np.zeros((4, 6))
        mask[1, 1:4] = 15, 255, 20
        for folder in ("SegmentationClass", "SegmentationObject"):
            save(root / f"{folder}/{name}.png", mask, palette(256))
    for name, members in (("train", ["2007_000032"]), ("val", ["2007_000039"])):
        text(root / f"ImageSets/Segmentation/{name}.txt", *members)
    text(root / "ImageSets/Segmentation/trainval.txt", "2007_000032", "2007_000039")
    text(root / "ImageSets/Main/train.txt", "2008_000001")
    for given in (tmp_path, root.parent, root):
        faces = open_faces(given)
        assert faces.name == "voc" and counts(faces) == {"train": 1, "val": 1, "unlabelled": 2}
        assert ids_of(faces) == ["train/2007_000032"] and ids_of(faces, "val") == ["val/2007_000039"]
        assert label(faces)[1] == [0, 15, 255, 20, 0, 0]
        assert len(faces.classes) == 21 and faces.classes[15] == "person" and not faces.flip_pairs
        assert faces.notes == ["2 photos have no mask: split `unlabelled`"]
        assert faces.read_instance(faces.splits["val"][0])[1].tolist() == [0, 15, 255, 20, 0, 0]
        assert label_info(faces)["things"]["tvmonitor"] == [20]
    (root / "SegmentationObject/2007_000032.png").unlink()
    faces = open_faces(root)
    said = refusal(lambda: CachedFaces(faces, faces.splits["train"], 8, instances=True))
    assert said.startswith("voc: 1 of 1 photo without a mask of instance ids (train/2007_000032)")
    (root / "SegmentationObject/2007_000039.png").unlink()
    assert "things" not in label_info(open_faces(root))
    text(root / "ImageSets/Segmentation/val.txt", "2007_000032")
    assert "2007_000032 is in train already" in refusal(open_faces, root)
    (root.parent / "VOC2007/SegmentationClass").mkdir(parents=True)
    assert "VOC2007" in refusal(open_faces, root.parent)


def test_masks_of_a_tool_without_their_list_of_classes_are_not_pascals(tmp_path):
    photo(tmp_path / "JPEGImages/a.jpg")
    save(tmp_path / "SegmentationClass/a.png", [[0, 1]])
    text(tmp_path / "ImageSets/Segmentation/default.txt", "a")
    assert "no labelmap.txt (CVAT) or class_names.txt (labelme2voc) says" in refusal(open_faces, tmp_path)
    as_json(tmp_path / "classes.json", {"classes": ["background", "skin"]})
    assert open_faces(tmp_path).classes == ["background", "skin"]
    (tmp_path / "classes.json").unlink()
    (tmp_path / "Annotations").mkdir()
    assert open_faces(tmp_path).name == "voc"


@pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationClassPNG"])
def test_labelme2voc(tmp_path, folder):
    for name in ("a", "b"):
        photo(tmp_path / f"JPEGImages/{name}.jpg")
        save(tmp_path / f"{folder}/{name}.png", [[0, 1, 2, 3, 255, 0]] * 4, palette(256))
        text(tmp_path / f"SegmentationClass/{name}.npy")
        photo(tmp_path / f"SegmentationClassVisualization/{name}.jpg")
    text(tmp_path / "class_names.txt", "_background_", "skin", "left eye", "right eye")
    faces = open_faces(tmp_path)
    assert faces.name == "labelme2voc" and faces.classes == ["_background_", "skin", "left eye", "right eye"]
    assert label(faces)[0] == [0, 1, 2, 3, 255, 0] and faces.flip_pairs == [(2, 3)]
    assert counts(faces) == {"train": 2}
    assert faces.notes == (
        []
        if folder.endswith("PNG")
        else ["not read: a.npy in SegmentationClass/, b.npy in SegmentationClass/"]
    )
    text(tmp_path / "class_names.txt", "__ignore__", "_background_", "skin", "left eye", "right eye")
    assert open_faces(tmp_path).classes[0] == "_background_", "-1, which is 255 in the masks"


CVAT = [(0, 0, 0), (250, 50, 83), (10, 128, 0), (10, 10, 128)]


def test_cvat_segmentation_mask(tmp_path):
    text(
        tmp_path / "labelmap.txt",
        "# label:color_rgb:parts:actions",
        "background:0,0,0::",
        "skin:250,50,83::",
        "l_eye:10,128,0::",
        "r_eye:10,10,128::",
    )
    text(tmp_path / "ImageSets/Segmentation/default.txt", "one", '"day 2/two"')
    for name in ("one", "day 2/two"):
        photo(tmp_path / f"JPEGImages/{name}.png")
        colours = [*CVAT, (250, 50, 83), (250, 50, 83)]
        save(tmp_path / f"SegmentationClass/{name}.png", [colours] * 4)
        save(tmp_path / f"SegmentationObject/{name}.png", [colours] * 4)
    faces = open_faces(tmp_path)
    assert faces.name == "cvat" and faces.classes == ["background", "skin", "l_eye", "r_eye"]
    assert ids_of(faces) == ["train/one", "train/day 2/two"] and faces.colors == CVAT
    assert label(faces, row=1) == [[0, 1, 2, 3, 1, 1]] * 4 and faces.flip_pairs == [(2, 3)]
    text(tmp_path / "labelmap.txt", "skin:250,50,83::", "l_eye:10,128,0::", "r_eye:10,10,128::")
    assert label(open_faces(tmp_path)) == label(faces), "black is background, named or not"
    text(tmp_path / "labelmap.txt", "background:0,0,0::", "skin:250,50::")
    assert "labelmap.txt: need lines name:r,g,b::" in refusal(open_faces, tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "elsewhere")
    assert "2 masks without a photo" in (line := refusal(open_faces, tmp_path)) and "Save images" in line


# ---- Roboflow


def test_roboflow_masks(tmp_path):
    files = {"train": ["ann_jpg.rf.a1b2", "ann_jpg.rf.c3d4"], "valid": ["bob_jpg.rf.e5f6"], "test": ["cid"]}
    for split, names in files.items():
        text(
            tmp_path / split / "_classes.csv",
            "Pixel Value, Class",
            "0, background",
            "1, left_eye",
            "3, right_eye",
        )
        for name in names:
            photo(tmp_path / split / f"{name}.jpg")
            save(tmp_path / split / f"{name}_mask.png", [[0, 1, 3, 3, 0, 0]] * 4)
    text(tmp_path / "README.roboflow.txt", "")
    faces = open_faces(tmp_path)
    assert faces.name == "roboflow" and faces.classes == ["background", "left_eye", "right_eye"]
    assert counts(faces) == {"train": 2, "val": 1, "test": 1} and faces.flip_pairs == [(1, 2)]
    assert label(faces) == [[0, 1, 2, 2, 0, 0]] * 4, "the value 3 is the third class"
    assert [s.group for s in faces.splits["train"]] == ["ann_jpg", "ann_jpg"], "two versions of one photo"
    assert faces.splits["test"][0].group == "test/cid" and faces.notes == []
    before = label_info(faces)
    for split in files:
        text(
            tmp_path / split / "_classes.csv",
            "Pixel Value, Class",
            "0, background",
            "1, left_eye",
            "4, right_eye",
        )
    assert label_info(open_faces(tmp_path)) != before, "a cache of other values would be taken for this one"
    save(tmp_path / "test/cid_mask.png", [[0, 1, 2, 3, 0, 0]] * 4)
    assert "cid_mask.png: pixel values 2 are not in _classes.csv" in refusal(label, faces, "test")
    text(tmp_path / "test/_classes.csv", "Pixel Value, Class", "0, background", "1, right_eye", "3, left_eye")
    assert "test/_classes.csv: other classes" in refusal(open_faces, tmp_path)
    text(tmp_path / "test/_classes.csv", "filename, left_eye", "cid.jpg, 1")
    assert "test/_classes.csv: need lines" in refusal(open_faces, tmp_path)


# ---- COCO


def square(x, y, side):
    """A polygon of side x side pixels."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def region(category, segmentation, area, image=1, **more):
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "area": area, **more}


def compress(runs):
    """COCO's own way to write run lengths, after maskApi.c."""
    written = ""
    for i, run in enumerate(runs):
        value = run - (runs[i - 2] if i > 2 else 0)
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            written += chr(48 + bits + (32 if more else 0))
    return written


CATEGORIES = [  # ids with a gap, the face on the left of the photo's eyes last
    {"id": 3, "name": "skin", "supercategory": ""},
    {"id": 7, "name": "right eye", "supercategory": ""},
    {"id": 5, "name": "left eye", "supercategory": ""},
]
EYE_RUNS = [6, 2, 2, 2, 12]  # 4 rows, 6 columns: rows 2 and 3 of column 1, rows 2 and 3 of column 2
REGIONS = [
    region(7, [square(4, 1, 1)], 1),  # listed first, and yet on top of the skin
    region(5, {"size": [4, 6], "counts": EYE_RUNS}, 4, iscrowd=1),  # how many eyes, nobody knows
    region(3, [square(0, 0, 2), square(3, 0, 3)], 13),
    region(3, {"size": [4, 6], "counts": compress([20, 4])}, 4, ignore=1),
]
PAINTED = [[1, 1, 0, 1, 1, 255], [1, 1, 0, 1, 3, 255], [0, 2, 2, 1, 1, 255], [0, 2, 2, 0, 0, 255]]


def coco_json(name="a.jpg", regions=REGIONS, categories=CATEGORIES):
    images = [{"id": 1, "file_name": name, "width": 6, "height": 4}]
    return {"images": images, "annotations": regions, "categories": categories}


COCO_TREES = {  # JSON file -> its photo, and how the photo is called
    "coco": {
        "annotations/instances_train2017.json": ("train2017/a.jpg", "a.jpg"),
        "annotations/instances_val2017.json": ("val2017/b.jpg", "b.jpg"),
    },
    "cvat": {"annotations/instances_default.json": ("images/day 1/a.jpg", "day 1/a.jpg")},
    "cvat with subsets": {
        "annotations/instances_Train.json": ("images/Train/a.jpg", "a.jpg"),
        "annotations/instances_Validation.json": ("images/Validation/b.jpg", "b.jpg"),
    },
    "roboflow": {
        "train/_annotations.coco.json": ("train/a_jpg.rf.d4c3.jpg", "a_jpg.rf.d4c3.jpg"),
        "valid/_annotations.coco.json": ("valid/b.jpg", "b.jpg"),
    },
    "label studio": {"result.json": ("images/a.jpg", "images\\a.jpg")},
}


@pytest.mark.parametrize("tool", COCO_TREES)
def test_coco_where_tools_put_it(tmp_path, tool):
    for path, (where, name) in COCO_TREES[tool].items():
        photo(tmp_path / where)
        as_json(tmp_path / path, coco_json(name))
    as_json(tmp_path / "annotations/captions_train2017.json", {})
    faces = open_faces(tmp_path)
    assert faces.name == "coco" and faces.classes == ["background", "skin", "left eye", "right eye"]
    assert list(faces.splits) == ["train", "val"][: len(COCO_TREES[tool])] and faces.flip_pairs == [(2, 3)]
    for split in faces.splits:
        assert label(faces, split) == PAINTED
    assert faces.splits["train"][0].group == ("a_jpg" if tool == "roboflow" else ids_of(faces)[0])
    assert faces.notes[0] == f"{len(faces.splits)} regions are marked to be ignored: 255"


def test_coco_two_photos_of_one_name(tmp_path):
    """An id is the name without its suffix: the one must not get the other's mask."""
    for name in ("a.jpg", "a.png"):
        photo(tmp_path / "images" / name)
    content = coco_json("a.jpg")
    content["images"].append({"id": 2, "file_name": "a.png", "width": 6, "height": 4})
    as_json(tmp_path / "annotations/instances_default.json", content)
    assert "two photos are called a; rename one" in refusal(open_faces, tmp_path)


def test_classes_json_means_somebodys_own(tmp_path):
    photo(tmp_path / "images/a.jpg")
    save(tmp_path / "labels/a.png", np.ones((4, 6), np.uint8))
    as_json(tmp_path / "annotations.json", coco_json())
    as_json(tmp_path / "classes.json", {"classes": ["background", "skin"]})
    assert open_faces(tmp_path).name == "folder"


def test_coco_categories(tmp_path):
    """Roboflow's first category is the group of the others; tools may list background as one of them."""
    photo(tmp_path / "a.jpg")
    categories = [
        {"id": 0, "name": "face-parts", "supercategory": "none"},
        {"id": 1, "name": "skin", "supercategory": "face-parts"},
        {"id": 2, "name": "Background", "supercategory": "face-parts"},
        {"id": 4, "name": "__ignore__", "supercategory": "face-parts"},
        {"id": 9, "name": "hat", "supercategory": "face-parts"},
    ]
    regions = [
        region(1, [square(0, 0, 4)], 16),
        region(2, [square(0, 0, 1)], 1),
        region(4, [square(1, 0, 1)], 1),
        {"image_id": 1, "category_id": 9, "segmentation": [], "bbox": [0, 0, 2, 2]},
    ]
    as_json(tmp_path / "_annotations.coco.json", coco_json(regions=regions, categories=categories))
    faces = open_faces(tmp_path)
    assert faces.classes == ["background", "skin", "hat"] and label(faces)[0] == [0, 255, 1, 1, 0, 0]
    assert any("1 annotations are boxes" in note for note in faces.notes)
    regions = [dict(r, segmentation=[]) for r in regions]
    as_json(tmp_path / "_annotations.coco.json", coco_json(regions=regions, categories=categories))
    assert "4 boxes and no segmentation" in refusal(open_faces, tmp_path)


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "not JSON"),
        (coco_json("gone.jpg"), "1 photo of the annotations, gone.jpg; export with 'Save images' on"),
        (coco_json(regions=[region(4, [square(0, 0, 2)], 4, id=7)]), "annotation 7: no category of this"),
        (coco_json(regions=[region(3, [square(0, 0, 2)], 4, image=8)]), "no image of this file has the id 8"),
        (coco_json(regions=[region(3, [square(0, 0, 2)], 4, image="1")]), 'has the id "1"'),
        (coco_json(regions=[region("3", [square(0, 0, 2)], 4)]), "category_id: need a whole number"),
        (coco_json(regions={}), "annotations: need a list, not {}"),
        (coco_json() | {"images": {}}, "images: need a list, not {}"),
        (coco_json() | {"images": coco_json()["images"] * 2}, "images: the id 1 is there twice"),
        (
            coco_json(categories=[*CATEGORIES, {"id": 3, "name": "hat"}]),
            "categories: the id 3 is there twice",
        ),
        (
            coco_json(categories=[*CATEGORIES, {"id": 9, "name": 5}]),
            '{"id": 9, "name": 5}: name: need a text',
        ),
        *(
            (coco_json(regions=[region(3, wrong, 4, id=7)]), "annotation 7: " + why)
            for wrong, why in (
                ("x", "segmentation: need polygons or run lengths"),
                ([[1, 2, 3]], "a polygon cannot be painted: its points are no pairs of numbers"),
                ([["1", "2", "3", "4", "5", "6"]], "a polygon cannot be painted: its points are no pairs"),
                ([1, 2, 3, 4, 5, 6], "a polygon cannot be painted: its points are no pairs of numbers"),
                ([[float("nan")] * 8], "a polygon cannot be painted: it has points far outside of 6x4"),
                ([[1e30, 1, 2, 2, 3, 3]], "a polygon cannot be painted: it has points far outside of 6x4"),
            )
        ),
        (coco_json(regions=[region(3, [square(0, 0, 2)], None)]), "need a number as area, or a bbox"),
        (coco_json(categories=CATEGORIES + [{"id": 9, "name": "skin"}]), "two categories of one name"),
        (coco_json(regions=[region(3, {"size": [4, 6], "counts": [6, 4]}, 4)]), "10 pixels for 6x4"),
        (coco_json(regions=[region(3, [[1, 2, 3, 4, 5, 6, 7]], 4)]), "annotation number 1: a polygon"),
    ],
)
def test_coco_with_a_fault(tmp_path, content, said):
    photo(tmp_path / "images/a.jpg")
    path = tmp_path / "annotations/instances_default.json"
    text(path, content if isinstance(content, str) else json.dumps(content))
    assert said in refusal(lambda: label(open_faces(tmp_path)))
    as_json(tmp_path / "annotations/instances_train.json", coco_json())
    as_json(path, coco_json())
    assert "are both train" in refusal(open_faces, tmp_path)


def test_coco_with_photos_elsewhere_or_of_another_size(tmp_path):
    """Label Studio writes paths on its server. Polygons with two points have no area."""
    photo(tmp_path / "images/a.jpg")
    regions = [*REGIONS, region(3, [[0, 0, 5, 3]], 9)]
    content = coco_json("/data/upload/1/a.jpg", regions)
    as_json(tmp_path / "result.json", content)
    faces = open_faces(tmp_path)
    assert ids_of(faces) == ["train/a"] and label(faces) == PAINTED
    assert "1 polygons of fewer than three points have no area, and are not painted" in faces.notes
    other = dict(content["images"][0], id=2, file_name="/data/upload/2/a.jpg")
    as_json(tmp_path / "result.json", content | {"images": [*content["images"], other]})
    assert "two photos are called a" in refusal(open_faces, tmp_path)
    as_json(tmp_path / "result.json", content)
    photo(tmp_path / "images/a.jpg", 60, 40)
    assert "result.json: train/a: drawn on 6x4 pixels, but" in refusal(label, open_faces(tmp_path))


def test_rle():
    """Decoded runs are those that an encoder wrote: short and long, rising and falling."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        runs = [int(2**power) for power in generator.uniform(0, 13, generator.integers(1, 9))]
        size = (1, sum(runs))
        inside = coco.decode_rle({"size": [size[1], 1], "counts": compress(runs)}, size)[:, 0]
        changes = np.flatnonzero(np.diff(inside)) + 1
        assert np.diff([0, *changes, len(inside)]).tolist() == runs and not inside[0]
    with pytest.raises(ValueError, match="pixels for 1x"):
        coco.decode_rle({"size": [size[1], 1], "counts": compress(runs)[:-1]}, size)


# ---- labelme


def shape(name, points, kind="polygon", **more):
    return {"label": name, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def labelme_file(path, shapes, image, size=(9, 9)):
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": "AAAA"}
    as_json(path, content | {"imageHeight": size[1], "imageWidth": size[0]})


def test_labelme(tmp_path):
    photo(tmp_path / "a.jpg", 9, 9)
    png = io.BytesIO()
    Image.fromarray(np.array([[True, False], [False, True]])).save(png, "PNG")
    shapes = [
        shape("skin", [[8, 8], [0, 0]], "rectangle"),  # from its lower right corner
        shape("r_eye", [[1, 1], [3, 1], [3, 3], [1, 3]]),
        shape("l_eye", [[6, 2], [6, 3]], "circle"),
        shape("_background_", [[3, 3], [4, 3], [4, 4], [3, 4]]),  # later shapes lie on top
        shape("__ignore__", [[0, 7], [8, 7], [8, 8], [0, 8]]),
        shape("mouth", [[4, 5], [5, 6]], "mask", mask=base64.b64encode(png.getvalue()).decode()),
        shape("nose", [[4, 4]], "point"),
    ]
    labelme_file(tmp_path / "z.json", shapes, "a.jpg")
    as_json(tmp_path / "lineage.json", {"script": "predict.py"})  # which wrote masks beside the photos
    photo(tmp_path / "b.jpg", 9, 9)
    faces = open_faces(tmp_path)
    assert faces.name == "labelme" and faces.classes == ["_background_", "l_eye", "mouth", "r_eye", "skin"]
    assert label(faces) == [
        [4, 4, 4, 4, 4, 4, 4, 4, 4],
        [4, 3, 3, 3, 4, 4, 1, 4, 4],
        [4, 3, 3, 3, 4, 1, 1, 1, 4],
        [4, 3, 3, 0, 0, 4, 1, 4, 4],
        [4, 4, 4, 0, 0, 4, 4, 4, 4],
        [4, 4, 4, 4, 2, 4, 4, 4, 4],
        [4, 4, 4, 4, 4, 2, 4, 4, 4],
        [255] * 9,
        [255] * 9,
    ]
    assert faces.flip_pairs == [(1, 3)] and counts(faces) == {"train": 1, "unlabelled": 1}
    assert faces.notes == [
        "1 points and lines have no area, and are not drawn",
        "1 photos have no file of labelme: split `unlabelled`",
        "not read: lineage.json",
    ]
    text(tmp_path / "labels.txt", "__ignore__", "_background_", "skin", "mouth", "l_eye", "r_eye")
    faces = open_faces(tmp_path)
    assert faces.classes == ["_background_", "skin", "mouth", "l_eye", "r_eye"] and label(faces)[0] == [1] * 9
    text(tmp_path / "labels.txt", "_background_", "skin", "mouth")
    assert "labels.txt: lacks the labels l_eye, r_eye" in refusal(open_faces, tmp_path)


def test_labelme_in_splits_and_away_from_its_photos(tmp_path):
    for split, name in (("train", "a"), ("valid", "b")):
        photo(tmp_path / f"photos of {split}/{name}.jpg", 9, 9)
        shapes = [shape("skin", [[0, 0], [4, 4]], "rectangle")]
        labelme_file(tmp_path / split / f"{name}.json", shapes, f"..\\photos of {split}\\{name}.jpg")
    faces = open_faces(tmp_path)
    assert ids_of(faces) == ["train/a"] and ids_of(faces, "val") == ["val/b"]
    assert np.unique(label(faces, "val")).tolist() == [0, 1]
    (tmp_path / "photos of valid/b.jpg").unlink()
    assert "b.json: its photo is not there" in refusal(open_faces, tmp_path)
    as_json(tmp_path / "valid/b.json", {"shapes": [], "imagePath": "b.jpg"})
    assert "b.json: not as labelme writes it: imageWidth is null" in refusal(open_faces, tmp_path)


@pytest.mark.parametrize(
    "shapes, said",
    [
        ({}, "not as labelme writes it: shapes is {}"),
        ([shape("skin", [[1, 1]], "circle")], "shape 1: skin: a circle of 1 point; need 2"),
        ([shape("skin", [[1, 1], [2, 2]])], "shape 1: skin: a polygon of 2 points; need 3"),
        ([shape(3, [[1, 1], [2, 2], [3, 1]])], "shape 1: need a label that is a text"),
        ([shape("skin", [[0, 0], [4, 4]], "rectangle"), {"label": "skin"}], "shape 2: skin: need points"),
        ([shape("skin", [[float("nan"), 1], [2, 2], [3, 1]])], "shape 1: it has points far outside of 9x9"),
        ([shape("skin", [[1e30, 1], [2, 2], [3, 1]])], "shape 1: it has points far outside of 9x9"),
        ([shape("skin", [["1", 1], [2, 2], [3, 1]])], "shape 1: its points are no pairs of numbers"),
        ([shape("skin", [[1, 1], [2, 2]], "mask", mask="!")], "a mask of skin cannot be drawn"),
    ],
)
def test_labelme_shape_that_cannot_be_drawn(tmp_path, shapes, said):
    photo(tmp_path / "a.jpg", 9, 9)
    labelme_file(tmp_path / "a.json", shapes, "a.jpg")
    line = refusal(lambda: label(open_faces(tmp_path)))
    assert "a.json: " in line and said in line


def test_labelme_on_a_photo_of_another_size(tmp_path):
    photo(tmp_path / "a.jpg", 18, 18)
    labelme_file(tmp_path / "a.json", [shape("skin", [[0, 0], [4, 4]], "rectangle")], "a.jpg")
    assert "a.json: drawn on 9x9 pixels, but " in refusal(label, open_faces(tmp_path))
    labelme_file(tmp_path / "b.json", [shape("Skin", [[0, 0], [4, 4]], "rectangle")], "a.jpg")
    assert "skin and Skin differ" in (said := refusal(open_faces, tmp_path)) or "Skin and skin" in said


# ---- FaceSynthetics


def test_facesynthetics(tmp_path):
    for i in range(2):
        photo(tmp_path / f"{i:06d}.png")
        save(tmp_path / f"{i:06d}_seg.png", [[0, 1, 3, 4, 18, 255]] * 4)
        text(tmp_path / f"{i:06d}_ldmks.txt", "1.0 2.0")
    faces = open_faces(tmp_path)
    assert faces.name == "facesynthetics" and counts(faces) == {"train": 2} and faces.notes == []
    assert label(faces)[0] == [0, 1, 3, 4, 18, 255] and len(faces.classes) == 19
    sided = {frozenset(faces.classes[i] for i in pair) for pair in faces.flip_pairs}
    assert sided == {frozenset({f"left_{part}", f"right_{part}"}) for part in ("eye", "brow", "ear")}
    for i in range(2):
        (tmp_path / f"{i:06d}_ldmks.txt").unlink()
    assert open_faces(tmp_path).name == "folder", "without landmarks it may be anybody's"


@pytest.mark.skipif(not (DATA / "facesynthetics").is_dir(), reason=f"no facesynthetics in {DATA}; FACES_DATA")
def test_real_facesynthetics():
    faces = open_faces(DATA / "facesynthetics")
    assert counts(faces) == {"train": 50} and faces.notes == []
    both = 0
    for sample in faces.splits["train"]:
        ids = faces.read_label(sample)
        assert set(np.unique(ids)) <= {*range(19), 255} and (ids > 0).mean() > 0.1
        for part in ("eye", "brow", "ear"):
            sides = [np.nonzero(ids == faces.classes.index(f"{s}_{part}"))[1] for s in ("left", "right")]
            if all(side.size for side in sides):
                assert sides[0].mean() < sides[1].mean(), "sides of the image"
                both += 1
    assert both > 60


@pytest.mark.parametrize("name, pairs", [("coco128_voc", 97), ("voc2007mini", 44)])
def test_real_voc(name, pairs):
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA}; FACES_DATA")
    faces = open_faces(DATA / name)
    assert (
        faces.name == "voc"
        and sum(counts(faces).values()) == pairs
        and list(counts(faces)) == ["train", "val"]
    )
    for sample in faces.splits["val"][:5]:
        with Image.open(sample.label) as mask:
            assert (faces.read_label(sample) == np.asarray(mask)).all()
    assert faces.things["person"] == [15] and len(faces.things) == 20
    data = CachedFaces(faces, faces.splits["val"], 48, instances=True)
    assert data.notes == [], "classes and instances agree"
    for i, sample in enumerate(faces.splits["val"]):
        batch = data[[i]]
        with Image.open(sample.instance) as mask:
            ids = np.asarray(mask.resize((48, 48), Image.NEAREST))
        assert (batch["instance"][0].numpy() == ids).all()
        assert ((batch["instance"] > 0) == (batch["semantic"] > 0)).all(), "255 where 255 is"
    assert (data.memory[:, 4] == 2).any()


# ---- through a script


def test_training_on_an_export(call, tmp_path):
    generator = np.random.default_rng(0)
    images, regions = [], []
    for i in range(8):
        (tmp_path / "images").mkdir(exist_ok=True)
        save(tmp_path / f"images/{i}.png", generator.integers(0, 255, (32, 32, 3)))
        images.append({"id": i, "file_name": f"{i}.png", "width": 32, "height": 32})
        regions.append(region(3, [square(4, 4, 24)], 576, image=i))
        regions.append(region(5, [square(8, 8, 6)], 36, image=i))
        regions.append(region(7, [square(18, 8, 6)], 36, image=i))
    content = {"images": images, "annotations": regions, "categories": CATEGORIES}
    as_json(tmp_path / "annotations/instances_default.json", content)
    out = tmp_path / "run"
    said = call("train_finetune.py", "--data", tmp_path, "--steps", 2, "--out", out, *TINY).stdout
    assert f"coco ({tmp_path}): 7 train, 1 val" in said
    assert all(f"\n  {name} " in said for name in ("background", "skin", "left eye", "right eye"))
    assert "val/f1/left eye" in logged(out)[-1]


# ---- exports that are not read


@pytest.mark.parametrize(
    "tool, paths",
    [
        ("YOLO", ["data.yaml", "train/images/a.jpg", "train/labels/a.txt"]),
        ("YOLO", ["images/a.jpg", "labels/a.txt", "notes.json"]),
        ("YOLO", ["images/train/a.jpg", "images/val/b.jpg", "labels/train/a.txt", "labels/val/b.txt"]),
        ("YOLO", ["obj.data", "obj.names", "obj_train_data/a.jpg", "obj_train_data/a.txt", "train.txt"]),
        ("Supervisely", ["meta.json", "ds0/ann/a.jpg.json", "ds0/img/a.jpg"]),
        ("Label Studio", ["project-1-at-2025-01-31-10-20-ab12cd34.json"]),
        ("Label Studio's brushes", ["task-1-annotation-2-by-1-tag-skin-0.png"]),
        ("CVAT for images", ["annotations.xml", "images/a.jpg"]),
        ("VGG Image Annotator", ["via_region_data.json", "a.jpg"]),
        ("boxes or polygons in XML", ["JPEGImages/a.jpg", "Annotations/a.xml", "ImageSets/Main/default.txt"]),
    ],
)
def test_what_is_not_read_says_what_to_export(tmp_path, tool, paths):
    for path in paths:
        photo(tmp_path / path) if path.endswith("jpg") else text(tmp_path / path, "[]")
    line = refusal(open_faces, tmp_path)
    assert f"an export of {tool} (" in line and "which is not read; export " in line and "COCO" in line


def test_photos_beside_other_labels_are_photos(tmp_path):
    """Of an export that is not read, the photos serve where photos are asked for."""
    photo(tmp_path / "a.jpg")
    text(tmp_path / "classes.txt", "skin")
    text(tmp_path / "a.txt", "0 0.5 0.5 0.1 0.1")
    with pytest.raises(UnknownFolder, match="YOLO"):
        open_faces(tmp_path)
    assert ids_of(open_any(tmp_path)) == ["a"]
