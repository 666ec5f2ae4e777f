"""Data sets in their downloaded layouts, in miniature: real files, a few pixels each."""

import json
import os
import pathlib
import pickle
import struct
import zlib

import numpy as np
import pytest
from conftest import FASSEG, ids_of, needs_fasseg, refusal
from PIL import Image

from datasets import UnknownFolder, celebamask, fasseg, folder, lapa, open_faces
from datasets.faces import MASK_SUFFIXES, Sample, label_info, limit, palette, split_by_group
from datasets.images import read_image
from datasets.masks import read_mask
from datasets.splits import open_any

BG, SKIN, HAIR, EYES, NOSE, MOUTH = fasseg.COLORS


def save(path, pixels, **options):
    """Write an array, (H, W) or (H, W, 3), or an Image, in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.uint8(pixels))
    image.save(path, **options)


def photo(path, width=6, height=2):
    save(path, np.full((height, width, 3), 128))


# ---- FASSEG


def colour_row(*colors, width=None):
    return np.array([[*colors] + [BG] * ((width or len(colors)) - len(colors))] * 2)


@pytest.fixture
def fasseg_v3(tmp_path):
    """Two people of train at two yaws, one of test: labelled at 0 and +30, not at -90."""
    for yaw, end in (("0", "46+0+0"), ("-90", "40+0-90")):
        for person in ("01", "02"):
            photo(tmp_path / f"Train_RGB/{yaw}/personne{person}1{end}.bmp")
            label = colour_row(SKIN, HAIR, EYES, NOSE, MOUTH, BG)
            save(tmp_path / f"Train_labels/{yaw}/personne{person}1{end}.bmp", label)
    for yaw, end in (("0", "46+0+0"), ("+30", "48+0+30"), ("-90", "40+0-90")):
        photo(tmp_path / f"Test_RGB/{yaw}/personne081{end}.bmp")
    save(tmp_path / "Test_labels/0/personne08146+0+0.bmp", colour_row(SKIN, width=6))
    save(tmp_path / "Test_labels/+30/personne08148+0+30.bmp", colour_row(SKIN, MOUTH, EYES))
    photo(tmp_path / "Train_RGB/thumbnails/all.bmp")
    for name in ("Test_RGB", "Test_labels"):
        (tmp_path / name / "README.md").write_text("persons 08 to 15")
    return tmp_path


def test_fasseg_v3(fasseg_v3):
    faces = open_faces(fasseg_v3)
    assert faces.name == "fasseg_v3" and faces.flip_pairs == []
    assert {k: len(v) for k, v in faces.splits.items()} == {"train": 4, "test": 2, "unlabelled": 1}
    assert [(s.group, s.yaw) for s in faces.splits["train"]] == [
        *(("01", -90.0), ("02", -90.0), ("01", 0.0), ("02", 0.0))
    ]
    assert faces.splits["unlabelled"][0].yaw == -90
    assert faces.read_label(faces.splits["train"][0]).tolist() == [[1, 2, 3, 4, 5, 0]] * 2
    resized = next(s for s in faces.splits["test"] if s.yaw == 30)
    assert faces.read_label(resized).tolist() == [[1, 1, 5, 5, 3, 3]] * 2, "no class in between"
    assert any(resized.id in note and "resized" in note for note in faces.notes)


def test_fasseg_colours_off_the_palette(tmp_path):
    almost, blend = (250, 240, 10), (127, 255, 127)  # the skin|nose blend is as near to the mouth
    for k in range(1, 4):
        photo(tmp_path / f"Train_RGB/{k}.bmp", 3, 2)
        save(tmp_path / f"Train_Labels/{k}.bmp", colour_row(almost, blend, BG))
    faces = open_faces(tmp_path)
    assert faces.name == "fasseg" and ids_of(faces) == ["train/1", "train/2", "train/3"]
    assert faces.splits["train"][0].group == "train/1", "nobody knows the person"
    assert faces.read_label(faces.splits["train"][0]).tolist() == [[1, 255, 0]] * 2


def test_fasseg_damaged_label(fasseg_v3):
    sample = open_faces(fasseg_v3).splits["train"][0]
    path = pathlib.Path(sample.label)
    path.write_bytes(path.read_bytes()[:60])
    assert path.name in refusal(fasseg.read_label, sample)


@needs_fasseg
def test_real_fasseg():
    v2, v3 = open_faces(FASSEG / "V2"), open_faces(FASSEG / "V3")
    assert {k: len(v) for k, v in v2.splits.items()} == {"train": 20, "test": 50}
    assert {k: len(v) for k, v in v3.splits.items()} == {"train": 182, "test": 48, "unlabelled": 56}
    assert {s.group for s in v3.splits["train"]} == {f"{p:02d}" for p in range(1, 8)}
    assert {s.group for s in v3.splits["test"]} == {"08", "09", "10", "11"}
    assert {s.yaw for s in v3.splits["train"]} == {float(y) for y in range(-90, 91, 15)}
    assert {s.yaw for s in v3.splits["test"]} == {-60, -30, 0, 30, 60, 90}
    (note,) = [note for note in v3.notes if "resized" in note]
    assert note.count("personne") == 2
    assert "+60/personne10250" in note and "+60/personne11250" in note
    for sample in (v2.splits["test"][0], *v3.splits["test"][::12]):
        ids = v3.read_label(sample)
        assert ids.shape == Image.open(sample.image).size[::-1]
        shares = np.bincount(ids.ravel(), minlength=256) / ids.size
        assert shares[6:255].sum() == 0 and 0 < shares[255] < 0.05
        assert shares[1] > 0.1 and shares[2] > 0.05, "skin and hair"


@needs_fasseg
def test_real_fasseg_one_level_up():
    assert f"did you mean {FASSEG / 'V2'} or {FASSEG / 'V3'}?" == unknown(FASSEG)[1]


# ---- CelebAMask-HQ

MAPPING = """idx     orig_idx     orig_file
0       119613       119614.jpg
1       162769       162770.jpg
2       162770       162771.jpg
10      182636       182637.jpg
2000    182637       182638.jpg
"""


@pytest.fixture
def celeba(tmp_path):
    """Masks of 4x4 pixels in overlapping rows; photo 7 is not in the mapping file."""
    for idx in (0, 1, 2, 7, 10, 2000):
        photo(tmp_path / f"CelebA-HQ-img/{idx}.jpg", 8, 8)
        rows = {"skin": slice(0, 4), "l_eye": (1,), "eye_g": (1, 2), "neck": (3,), "neck_l": (3,)}
        for part, where in rows.items():
            white = np.zeros((4, 4, 3))
            white[where if isinstance(where, slice) else list(where)] = 255
            save(part_file(tmp_path, idx, part), white)
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(MAPPING)
    pose = "6\nYaw Pitch Roll\n0.jpg -12.5 3.0 1.0\n2000.jpg 40.25 0 0\n"
    (tmp_path / "CelebAMask-HQ-pose-anno.txt").write_text(pose)
    return tmp_path


def part_file(root, idx, part):
    return root / f"CelebAMask-HQ-mask-anno/{idx // 2000}/{idx:05d}_{part}.png"


def test_celebamask_split_and_yaw(celeba):
    faces = open_faces(celeba)
    numbers = {split: [i.split("/")[1] for i in ids_of(faces, split)] for split in faces.splits}
    assert numbers == {"train": ["0", "1"], "val": ["2", "10"], "test": ["2000"]}
    yaws = [sample.yaw for split in faces.splits.values() for sample in split]
    assert yaws == [-12.5, None, None, None, 40.25]
    assert any(note.startswith("1 photos are not in the mapping") for note in faces.notes)
    (celeba / "CelebAMask-HQ-pose-anno.txt").unlink()
    assert open_faces(celeba).splits["train"][0].yaw is None


def test_celebamask_overlaps_follow_the_order(celeba):
    canonical, farl = open_faces(celeba), open_faces(celeba, "farl")
    # skin; eye against glasses; glasses alone; neck against necklace
    assert canonical.read_label(canonical.splits["train"][0])[:, 0].tolist() == [1, 4, 3, 17]
    assert farl.read_label(farl.splits["train"][0])[:, 0].tolist() == [1, 3, 3, 16]
    assert label_info(canonical)["options"] == {"part_order": "canonical"}
    assert label_info(farl)["options"] == {"part_order": "farl"} and farl.classes == canonical.classes
    for order in celebamask.PART_ORDERS.values():
        assert sorted(order) == sorted(celebamask.CLASSES[1:])
    assert "part order zll" in refusal(open_faces, celeba, "zll")


def test_celebamask_kinds_of_white(celeba):
    path = part_file(celeba, 0, "l_eye")
    white = np.zeros((4, 4), np.uint8)
    white[1] = 255
    for image in (Image.fromarray(white), Image.fromarray(white).convert("1").convert("P")):
        image.save(path)
        faces = open_faces(celeba)
        assert faces.read_label(faces.splits["train"][0])[:, 0].tolist() == [1, 4, 3, 17]


def test_celebamask_absent_parts(celeba):
    part_file(celeba, 0, "eye_g").unlink()  # an absent part is an absent file
    faces = open_faces(celeba)
    assert faces.read_label(faces.splits["train"][0])[:, 0].tolist() == [1, 4, 1, 17]
    for path in part_file(celeba, 2000, "skin").parent.iterdir():
        path.unlink()  # but a photo of an empty folder would be background throughout
    assert "1 photos have no part mask at all: 2000" in refusal(open_faces, celeba)


def test_celebamask_incomplete(celeba):
    save(part_file(celeba, 0, "beard"), np.zeros((4, 4)))
    assert "beard is no known part" in refusal(open_faces, celeba)
    part_file(celeba, 0, "beard").unlink()
    save(part_file(celeba, 0, "nose"), np.zeros((5, 5)))
    assert "differ in size" in refusal(celebamask.read_label, open_faces(celeba).splits["train"][0])
    masks = celeba / "CelebAMask-HQ-mask-anno"
    masks.rename(celeba / "CelebAMaskHQ-mask-anno")  # the spelling of the official scripts
    assert "CelebAMask-HQ-mask-anno is not" in refusal(open_faces, celeba)


def test_sides():
    """CelebAMask-HQ's left is the person's, that of LaPa and its kin the viewer's. A flip swaps
    both alike; the names differ, so that a model of one is never taken for one of the other."""
    for module, pairs in ((celebamask, "eye brow ear"), (lapa, "eyebrow eye")):
        named = [{module.CLASSES[i] for i in pair} for pair in module.FLIP_PAIRS]
        left, right = ("l_", "r_") if module is celebamask else ("left_", "right_")
        assert named == [{left + part, right + part} for part in pairs.split()]
        assert len(module.COLORS) == len(set(module.COLORS)) == len(module.CLASSES)
    assert not {"l_eye", "r_eye"} & set(lapa.CLASSES)


# ---- LaPa, HELEN, iBugMask

LAPA_IDS = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]] * 2)


def make_lapa(root):
    train = ("HELEN_1629243_1_0", "HELEN_1629243_1_3", "10009865324_0", "10009865324_1")
    for split, names in (("train", train), ("val", ("11_0",)), ("test", ("HELEN_1629243_1_5",))):
        for name in names:
            photo(root / split / f"images/{name}.jpg", 11, 2)
            save(root / split / f"labels/{name}.png", LAPA_IDS)
            (root / split / "landmarks").mkdir(exist_ok=True)
            (root / split / f"landmarks/{name}.txt").write_text("106\n1.0 2.0\n")


def test_lapa(tmp_path):
    make_lapa(tmp_path)
    faces = open_faces(tmp_path)
    assert faces.name == "lapa" and {k: len(v) for k, v in faces.splits.items()} == {
        "train": 4,
        "val": 1,
        "test": 1,
    }
    sample = faces.splits["train"][0]
    assert (faces.read_label(sample) == LAPA_IDS).all()
    assert faces.classes[2] == "left_eyebrow" and faces.classes[10] == "hair"
    # one photograph in two poses is one group, two faces of one photograph are two
    assert [s.group for s in faces.splits["train"]] == [
        "train/10009865324_0",
        "train/10009865324_1",
        "HELEN_1629243_1",
        "HELEN_1629243_1",
    ]
    assert "in train and in test alike: HELEN_1629243_1" in faces.notes
    assert "only CelebAMask-HQ" in refusal(open_faces, tmp_path, "farl")
    (tmp_path / "train/labels/10009865324_1.png").unlink()
    assert "1 photos without a label: 10009865324_1" in refusal(open_faces, tmp_path)


def test_lapa_without_landmarks_goes_by_its_name(tmp_path):
    for name, format in (("LaPa", "lapa"), ("mine", "folder")):
        make_lapa(tmp_path / name)
        for path in (tmp_path / name).glob("*/landmarks/*.txt"):
            path.unlink()
        for path in (tmp_path / name).glob("*/landmarks"):
            path.rmdir()
        assert open_faces(tmp_path / name).name == format


def test_helen_relabelled(tmp_path):
    for split, name in (("train", "100032540_1"), ("test", "30427236_1"), ("test_resize", "3_1")):
        for end in ("image.jpg", "viz.jpg"):
            photo(tmp_path / split / f"{name}_{end}", 11, 2)
        save(tmp_path / split / f"{name}_label.png", LAPA_IDS)
    faces = open_faces(tmp_path)
    assert faces.name == "helen" and list(faces.splits) == ["train", "test"]
    assert ids_of(faces, "test") == ["test/30427236_1"]
    assert faces.splits["test"][0].image.endswith("30427236_1_image.jpg"), "not _viz"
    assert (faces.read_label(faces.splits["train"][0]) == LAPA_IDS).all()
    assert any("test_resize/ ignored" in note for note in faces.notes)


@pytest.fixture
def helen_smith(tmp_path):
    names = {"exemplars": ["100032540_1", "2_1"], "tuning": ["3_1"], "testing": ["4_1"]}
    for listed, members in names.items():
        lines = [f"{i} , {name}\n" for i, name in enumerate(members)]
        (tmp_path / f"{listed}.txt").write_text("".join(lines))
    for name in (*sum(names.values(), []), "5_1"):
        photo(tmp_path / f"images/{name}.jpg", 11, 1)
        for i in range(11):
            soft = np.full((1, 11), 20)
            soft[0, i] = 90  # far below 255, yet the largest
            save(tmp_path / f"labels/{name}/{name}_lbl{i:02d}.png", soft)
    return tmp_path


def test_helen_smith(helen_smith):
    faces = open_faces(helen_smith)
    assert faces.name == "helen_smith"
    assert {k: [i[7:] for i in ids_of(faces, k)] for k in faces.splits} == {
        "train": ["100032540_1", "2_1"],
        "val": ["3_1"],
        "test": ["4_1"],
    }
    assert faces.read_label(faces.splits["train"][0]).tolist() == [list(range(11))]
    assert any("1 photos are in no list: 5_1" in note for note in faces.notes)


def test_helen_smith_incomplete(helen_smith):
    (helen_smith / "labels/3_1/3_1_lbl10.png").unlink()
    assert "soft maps missing: 3_1_lbl10" in refusal(open_faces, helen_smith)
    (helen_smith / "images/3_1.jpg").unlink()
    assert "tuning.txt: 1 have no photo" in refusal(open_faces, helen_smith)


def test_ibugmask(tmp_path):
    for name in ("train/7_1_00", "train/7_1_01", "train/8_1_00", "test/image_12"):
        photo(tmp_path / f"{name}.jpg", 11, 2)
        save(tmp_path / f"{name}.png", LAPA_IDS)
    faces = open_faces(tmp_path)
    assert faces.name == "ibugmask" and faces.classes == lapa.CLASSES
    assert [s.group for s in faces.splits["train"]] == ["train/7_1", "train/7_1", "train/8_1"]
    assert faces.splits["test"][0].group == "test/image_12", "only train holds poses"
    assert (faces.read_label(faces.splits["test"][0]) == LAPA_IDS).all()
    (tmp_path / "train/8_1_00.jpg").unlink()
    assert "1 labels without a photo: 8_1_00" in refusal(open_faces, tmp_path)


# ---- your own

INFO = {
    "classes": ["background", "skin", "left eye", "right eye"],
    "colors": [[0, 0, 0], [255, 200, 0], [0, 0, 255], [0, 255, 0]],
    "flip_pairs": [["left eye", "right eye"]],
}


def own(root, info=None, names=("a", "b"), below="", label=((0, 1, 2, 3),)):
    for name in names:
        photo(root / below / f"images/{name}.jpg", 4, 1)
        save(root / below / f"labels/{name}.png", label)
    if info:
        (root / "classes.json").write_text(json.dumps(info))
    return root


def test_folder_with_classes(tmp_path):
    info = INFO | {"groups": {"a": "anna", "b": "anna"}, "yaw": {"a": -30}}
    own(tmp_path, info)
    photo(tmp_path / "unlabelled/c.JPG")
    faces = open_faces(tmp_path)
    assert {k: len(v) for k, v in faces.splits.items()} == {"train": 2, "unlabelled": 1}
    assert faces.flip_pairs == [(2, 3)] and faces.colors[1] == (255, 200, 0) and not faces.notes
    assert [(s.group, s.yaw) for s in faces.splits["train"]] == [("anna", -30.0), ("anna", None)]
    assert faces.splits["unlabelled"][0].label is None
    assert faces.read_label(faces.splits["train"][0]).tolist() == [[0, 1, 2, 3]]
    assert pickle.loads(pickle.dumps(faces)).classes == INFO["classes"], "workers get a copy"
    assert json.loads(json.dumps(label_info(faces)))["flip_pairs"] == [[2, 3]]


def test_folder_with_splits_and_a_person_on_both_sides(tmp_path):
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        own(tmp_path, INFO | {"groups": {"a": "anna", "c": "anna"}}, [name], below=split)
    photo(tmp_path / "unlabelled/images/d.jpg")
    faces = open_faces(tmp_path)
    assert list(faces.splits) == ["train", "val", "test", "unlabelled"]
    assert faces.notes == ["in train and in test alike: anna"]
    own(tmp_path)
    assert "keep one of the two" in refusal(open_faces, tmp_path)


def test_folder_coloured_masks(tmp_path):
    label = [[(0, 0, 0), (255, 200, 0), (10, 10, 250), (128, 128, 128)]]
    faces = open_faces(own(tmp_path, INFO, label=label))
    assert faces.read_label(faces.splits["train"][0]).tolist() == [[0, 1, 2, 255]]
    (tmp_path / "classes.json").unlink()
    assert "a.png: coloured mask" in refusal(open_faces, tmp_path)


def test_folder_counts_classes(tmp_path):
    faces = open_faces(own(tmp_path, label=[[0, 1, 4, 255]]))
    assert faces.classes == ["class 0", "class 1", "class 2", "class 3", "class 4"]
    assert len(set(faces.colors)) == 5 and faces.flip_pairs == []
    assert "5 classes counted from 2 masks (ids 0, 1, 4)" in faces.notes[0]
    assert len(set(palette(255))) == 255
    own(tmp_path, label=[[0, 255, 0, 255]])  # black and white: 255 does not count
    assert "save ids 0, 1, 2" in refusal(open_faces, tmp_path)


@pytest.mark.parametrize("orphan", ["images/lonely.jpg", "labels/lonely.png"])
def test_folder_orphans(tmp_path, orphan):
    save(own(tmp_path, INFO) / orphan, np.zeros((2, 2)))
    assert "1 " in (line := refusal(open_faces, tmp_path)) and "without a" in line
    assert "lonely" in line


@pytest.mark.parametrize(
    "change, said",
    [
        ({"classes": ["eye", "skin", "skin", "eye"], "flip_pairs": []}, "different names"),
        ({"colors": [[0, 0, 0]]}, "need 4 different"),
        ({"flip_pairs": [["left eye", "nose"]]}, "flip_pairs"),
        ({"flip_pairs": [[2, 3], [3, 1]]}, "flip_pairs"),
        ({"flip_pairs": [[2, 9]]}, "flip_pairs"),
        ({"flip_pair": []}, "flip_pair: not among"),
        ({"groups": {"nobody": "x"}}, "groups of no photo here: nobody"),
        ({"yaw": {"a": "left"}}, 'yaw of a: "left": need degrees'),
        *(
            ({"yaw": {"a": v}}, f"yaw of a: {json.dumps(v)}: need")
            for v in (float("nan"), "30", True, None, 1e9)
        ),
        ({"yaw": [1]}, "yaw: [1]: need {"),
        *(({"groups": {"a": v}}, f"groups of a: {json.dumps(v)}: need") for v in (["b"], {}, None, " ", 1.5)),
        ({"groups": []}, "groups: []: need {"),
        *(({"classes": v}, "need a list of names") for v in ({"skin": 1, "background": 0}, "abcd", None)),
        *(({"classes": v}, "need a name in one line") for v in ([{"name": "skin"}], [1, 2], ["a", ""])),
        *(({"classes": ["a", v]}, "without spaces") for v in ("skin ", "left\neye", "a\ud800", "\x07")),
        ({"classes": ["bg", "skin", "Skin", "x"]}, "skin and Skin differ in capitals alone"),
        ({"classes": ["a"]}, 'classes: ["a"]: need 2 to 255 different names'),
        ({"colors": ["#000000", "#ff0000"]}, 'colors: "#000000": need [r, g, b] of 0..255'),
        ({"colors": [[0, 0, 0], [0.5, 0, 0]]}, "colors: [0.5, 0, 0]: need"),
        ({"colors": [[0, 0, 0], [256, 0, 0]]}, "colors: [256, 0, 0]: need"),
        ({"colors": 3}, "colors: 3: need 4 different"),
        ({"flip_pairs": None}, "flip_pairs: null: need [["),
        ({"flip_pairs": ["left eye", "right eye"]}, 'flip_pairs: "left eye": need [['),
        ({"flip_pairs": [["skin", "left eye", "right eye"]]}, "flip_pairs: ["),
    ],
)
def test_folder_faulty_classes_json(tmp_path, change, said):
    line = refusal(open_faces, own(tmp_path, INFO | change))
    assert said in line and "classes.json" in line


@pytest.mark.parametrize(
    "content, said",
    [
        (json.dumps(["background", "skin"]), 'need {"classes": ['),
        ("null", 'need {"classes": ['),
        ('{"classes": ["a", "b"], "classes": ["background", "skin"]}', "the key 'classes' twice"),
        (json.dumps(INFO).encode("utf-16"), "save it as UTF-8"),
        (None, "a folder, pipe or device"),  # to open a named pipe would wait for ever
    ],
)
def test_classes_json_that_is_none(tmp_path, content, said):
    path = own(tmp_path) / "classes.json"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refusal(open_faces, tmp_path)
    assert said in line and "classes.json" in line


def test_classes_json_as_windows_saves_it(tmp_path):
    (own(tmp_path) / "classes.json").write_text(json.dumps(INFO), encoding="utf-8-sig")
    assert open_faces(tmp_path).classes == INFO["classes"]


LAYOUTS = {  # where a photo and its mask lie, for each split that they are then in
    "other names": {"train": ("imgs/a.jpg", "masks/a.png")},
    "capitals": {"train": ("Images/a.JPG", "Labels/a.PNG")},
    "segmentations": {"train": ("photos/a.jpg", "segmentations/a.png")},
    "photos above": {"train": ("a.jpg", "masks/a.png")},
    "valid": {
        "train": ("train/images/a.jpg", "train/labels/a.png"),
        "val": ("valid/images/b.jpg", "valid/labels/b.png"),
    },
    "validation": {"val": ("Validation/imgs/b.jpg", "Validation/annotations/b.png")},
    "splits below": {
        "train": ("images/train/a.jpg", "masks/train/a.png"),
        "val": ("images/val/b.jpg", "masks/val/b.png"),
    },
    "side by side": {"train": ("a.jpg", "a_mask.png")},
    "side by side in splits": {
        "train": ("train/a.jpg", "train/a_label.png"),
        "test": ("test/c.jpg", "test/c_label.png"),
    },
    **{end: {"train": ("images/a.jpg", f"labels/a{end}.png")} for end in MASK_SUFFIXES},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder_layouts(tmp_path, layout):
    for image, mask in LAYOUTS[layout].values():
        photo(tmp_path / image, 4, 1)
        save(tmp_path / mask, [[0, 1, 2, 3]])
    (tmp_path / "classes.json").write_text(json.dumps(INFO))
    faces = open_faces(tmp_path)
    stems = {split: pathlib.Path(image).stem for split, (image, _) in LAYOUTS[layout].items()}
    assert {split: ids_of(faces, split) for split in faces.splits} == {s: [f"{s}/{stems[s]}"] for s in stems}
    for split, (image, _) in LAYOUTS[layout].items():
        (sample,) = faces.splits[split]
        assert sample.image == str(tmp_path / image) and faces.read_label(sample).tolist() == [[0, 1, 2, 3]]
    assert faces.notes == []


def test_masks_that_predict_wrote_into_the_folder_of_photos(tmp_path):
    for end in (".jpg", "_mask.png", "_overlay.png", "_faces.png"):
        save(tmp_path / f"a{end}", np.ones((2, 2)))
    (tmp_path / "classes.json").write_text(json.dumps(INFO))
    faces = open_faces(tmp_path)
    assert ids_of(faces) == ["train/a"] and faces.notes == ["not read: a_faces.png, a_overlay.png"]


def test_background_that_is_not_the_first_class(tmp_path):
    own(tmp_path, {**INFO, "classes": ["skin", "Background", *INFO["classes"][2:]]})
    said = "class 0 is skin, not Background: mean F1 leaves skin out, as background"
    assert said in open_faces(tmp_path).notes


def test_the_case_of_names_does_not_matter(tmp_path):
    for name in ("F1.JPG", "f2.jpg"):
        photo(tmp_path / "images" / name)
    for name in ("f1_Mask.PNG", "F2_mask.png"):
        save(tmp_path / "labels" / name, [[0, 1]])
    faces = open_faces(tmp_path)
    labels = [sample.label for sample in faces.splits["train"]]
    assert labels == [str(tmp_path / "labels" / name) for name in ("f1_Mask.PNG", "F2_mask.png")]
    assert ids_of(faces) == ["train/F1", "train/f2"]
    save(tmp_path / "labels/F1_mask.png", [[0, 1]])  # now either could be meant
    assert "2 labels without a photo" in refusal(open_faces, tmp_path)


def test_accents_of_names_may_be_written_in_either_way(tmp_path):
    """macOS writes é as two characters."""
    photo(tmp_path / "images/é.jpg")
    save(tmp_path / "labels/e\u0301-mask.png", [[0, 1]])
    assert ids_of(open_faces(tmp_path)) == ["train/é"]


@pytest.mark.parametrize(
    "image, mask, said",
    [
        (
            "images/a.jpg",
            "gt/a.png",
            "1 photo, and no masks in labels/ or masks/ beside it; there is gt/ (a.png)",
        ),
        ("images/a.jpg", "labels_png/a.png", "call labels_png/ labels/"),
        ("imagess/a.jpg", "labels/a.png", "1 mask, and no photos in images/ beside it"),
        ("imagess/a.jpg", "labels/a.png", "call imagess/ images/"),
        ("images/a.jpg", "labels/a.npy", "labels/ (a.npy): masks are PNG files"),
        ("images/a.jpg", "json/a.json", "json/ (a.json): masks are PNG files"),
    ],
)
def test_what_lies_beside_is_named(tmp_path, image, mask, said):
    for name in (image, mask):
        photo(tmp_path / name) if name.endswith("g") else touch(tmp_path / name)
    assert said in refusal(open_faces, tmp_path)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_a_mask_whose_photo_is_of_a_kind_that_is_not_read(tmp_path):
    photo(tmp_path / "images/a.jpg")
    (tmp_path / "images/b.heic").touch()
    for name in "ab":
        save(tmp_path / f"labels/{name}.png", [[0, 1]])
    line = refusal(open_faces, tmp_path)
    assert "1 labels without a photo: b; b.heic: HEIC is not read; convert it" in line


def test_folder_where_two_could_be_meant(tmp_path):
    save(own(tmp_path, INFO) / "masks/a.png", [[0, 1]])
    assert "labels/ and masks/ both hold pictures" in refusal(open_faces, tmp_path)
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_suffix(".txt"))
    assert ids_of(open_faces(tmp_path)) == ["train/a", "train/b"], "no masks there"
    own(tmp_path, INFO, ["a"], below="valid")
    own(tmp_path, INFO, ["a"], below="val")
    assert "val/ and valid/ are both val; keep one" in refusal(open_faces, tmp_path)


def test_folder_without_masks(tmp_path):
    for name in ("a", "b"):
        photo(tmp_path / f"images/{name}.jpg")
    assert "images: 2 photos, and no masks" in refusal(open_faces, tmp_path)
    for name in ("a", "c_mask", "c_mask_overlay", "c_mask_faces"):
        save(tmp_path / f"masks/{name}.png", [[0, 1]])
    line = refusal(open_faces, tmp_path)
    assert "1 photos without a label: b; 1 labels without a photo: c_mask; add, move or rename" in line


def test_what_is_not_read_is_said(tmp_path):
    """Of what predict.py writes, the masks are read; what belongs to a data set is not worth a word."""
    own(tmp_path, INFO, names=())
    for name in ("a", "b", "c"):
        photo(tmp_path / f"images/{name}.jpg", 4, 1)
        save(tmp_path / f"labels/{name}_mask.png", [[0, 1, 2, 3]])
        photo(tmp_path / f"labels/{name}_overlay.png", 4, 1)
        for kind in ("images", "landmarks"):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{name}.npy").write_text("")
    for name in ("README.md", "LICENSE", ".DS_Store", "images/Thumbs.db", "notes.txt", "images/b.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "old").mkdir()
    faces = open_faces(tmp_path)
    assert ids_of(faces) == ["train/a", "train/b", "train/c"]
    said = "3 .npy files in images/, b.csv in images/, 3 .png files in labels/"
    assert faces.notes == [f"not read: notes.txt, old/, {said}"]


def test_folder_two_photos_of_one_name(tmp_path):
    photo(own(tmp_path, INFO) / "images/a.png")
    photo(tmp_path / "images/._b.jpg")  # of macOS, and no picture
    assert "a.jpg and a.png share a name" in refusal(open_faces, tmp_path)
    (tmp_path / "images/a.png").unlink()
    assert len(open_faces(tmp_path).splits["train"]) == 2


# ---- what is no data set


def unknown(root):
    """The three lines about a folder that nothing recognises."""
    with pytest.raises(UnknownFolder) as caught:
        open_faces(root)
    here, nearest, more = str(caught.value).splitlines()
    assert here.startswith(f"{root}: ") and "docs/data.md" in more
    return here, nearest.strip()


def test_unknown_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "lables").mkdir()
    (tmp_path / "notes.txt").write_text("")
    here, nearest = unknown(tmp_path)
    assert here.endswith("there is: 2 folders (lables/, pictures/), 1 other files (notes.txt)")
    assert folder.LOOKS_FOR in nearest and "it lacks images/, labels/ (here is lables)" in nearest
    (tmp_path / "CelebAMask-HQ-mask-anno").mkdir()
    assert unknown(tmp_path)[1].endswith(f"{celebamask.LOOKS_FOR}; it lacks CelebA-HQ-img/")
    (tmp_path / "faces.zip").write_text("")
    assert unknown(tmp_path)[1] == "unpack faces.zip and give the folder"
    own(tmp_path / "faces")
    assert unknown(tmp_path)[1] == f"did you mean {tmp_path / 'faces'}?"


def test_a_folder_of_photos_is_called_what_it_is(tmp_path):
    for i in range(12):
        photo(tmp_path / f"photo{i:02d}.jpg")
    here, nearest = unknown(tmp_path)
    assert here.endswith("a folder of 12 photos and no masks")
    assert "predict.py" in nearest and "train_scores.py --unlabelled" in nearest
    assert len(open_any(tmp_path).splits["train"]) == 12
    own(tmp_path / "set", INFO)
    photo(tmp_path / "set/stray.jpg")
    (tmp_path / "set/labels/a.png").unlink()
    assert "1 photos without a label: a" in refusal(open_any, tmp_path / "set"), "no folder of one photo"


def test_absent_file_and_empty(tmp_path):
    assert "no such folder" in refusal(open_faces, tmp_path / "nowhere")
    photo(tmp_path / "faces.jpg")
    assert "unpack it" in refusal(open_faces, tmp_path / "faces.jpg")
    (tmp_path / "empty/images").mkdir(parents=True)
    (tmp_path / "empty/classes.json").write_text(json.dumps(INFO))
    assert "without a single photo" in refusal(open_faces, tmp_path / "empty")


# ---- masks and photos


def test_masks_that_hold_ids(tmp_path):
    ids = np.uint8([[0, 1, 2, 255]])
    indexed = Image.fromarray(ids).convert("P")
    indexed.putpalette([v for color in palette(256)[::-1] for v in color])
    save(tmp_path / "palette.png", indexed)
    save(tmp_path / "grey.png", ids)
    save(tmp_path / "grey.bmp", ids)
    save(tmp_path / "three.png", np.stack([ids] * 3, -1))
    for name in ("palette.png", "grey.png", "grey.bmp", "three.png"):
        assert read_mask(tmp_path / name).tolist() == ids.tolist(), name
    few = Image.fromarray(np.uint8([[0, 1, 2, 3]])).convert("P")
    few.putpalette([0, 0, 0, 90, 0, 0, 0, 90, 0, 0, 0, 90])
    save(tmp_path / "few.png", few, bits=2)  # annotation tools pack palettes: still ids
    assert read_mask(tmp_path / "few.png").tolist() == [[0, 1, 2, 3]]


def test_masks_that_cannot(tmp_path):
    ids = np.uint8([[0, 1, 2, 1]])
    save(tmp_path / "one_bit.png", Image.fromarray(ids).convert("1"))
    save(tmp_path / "grey.jpg", ids)
    (tmp_path / "text.png").write_text("no picture")
    for name in ("one_bit.png", "grey.jpg", "text.png"):
        assert name in refusal(read_mask, tmp_path / name)


def test_grey_masks_of_four_bits(tmp_path):
    """Pillow would stretch their 0..15 to 0..255, and every id with them."""
    path = tmp_path / "four.png"
    save(path, Image.fromarray(np.uint8([[0, 17, 34, 51]])).convert("P"), bits=4)
    data = bytearray(path.read_bytes())
    data[25] = 0  # IHDR's colour type: grey instead of palette
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    assert Image.open(path).mode == "L"
    assert "fewer than 8 bits" in refusal(read_mask, path)


def test_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    pixels = np.zeros((8, 16, 3))
    pixels[:, :8] = 255
    save(tmp_path / "a.jpg", pixels, exif=exif, quality=100)
    upright = np.asarray(read_image(tmp_path / "a.jpg"))
    assert upright.shape == (16, 8, 3) and upright[0].min() > 200 and upright[-1].max() < 50


# ---- choosing samples


def crowd(people=6, yaws=(-90, -30, 0, 30, 90), each=2):
    return [
        Sample(f"{p}/{y}/{i}", "", "", f"p{p}", float(y))
        for p in range(people)
        for y in yaws
        for i in range(each)
    ]


def test_limit_is_nested_and_spread():
    samples = crowd()
    largest = limit(samples, 30, seed=1)
    for n in (1, 6, 13, 29):
        assert limit(samples[::-1], n, seed=1) == largest[:n], "whatever the order on disk"
    assert len(set(largest)) == 30
    for n in (6, 12, 18):
        people = [s.group for s in largest[:n]]
        assert {people.count(p) for p in set(people)} == {n // 6}
    assert {abs(s.yaw) for s in largest[:3]} == {0, 30, 90}
    assert {s.yaw for s in largest[:6]} == {-90, -30, 0, 30, 90}
    assert limit(samples, 6, seed=2) != largest[:6]
    assert "there are only 60 photos" in refusal(limit, samples, 61, 0)


def test_split_by_group():
    samples = crowd()
    rest, held = split_by_group(samples, 0.34)
    assert len({s.group for s in held}) == 2 and len(rest) + len(held) == len(samples)
    assert not {s.group for s in rest} & {s.group for s in held}
    fewer = [s for s in samples if s.yaw != 0][::-1]
    assert {s.group for s in split_by_group(fewer, 0.34)[1]} == {s.group for s in held}
    assert {s.group for s in split_by_group(samples, 0.0)[1]}, "one group at least"
    assert {s.group for s in split_by_group(samples, 1.0)[0]}, "and never all of them"
    assert len({frozenset(s.group for s in split_by_group(samples, 0.34, k)[1]) for k in range(9)}) > 1
    assert "at least two people" in refusal(split_by_group, samples[:10], 0.5)
