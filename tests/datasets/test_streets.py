"""Cityscapes, ACDC and CamVid in miniature, laid out as they are downloaded, and the real CamVid."""

import os
import pathlib

import numpy as np
import pytest
from conftest import ROOT, ids_of, refusal
from PIL import Image
from torchvision.datasets import Cityscapes

from datasets import camvid, cityscapes, open_faces
from datasets.faces import files_of
from datasets.splits import open_data
from recipes import camvid_dusk

CAMVID = pathlib.Path(os.environ.get("FACES_DATA", ROOT.parent / "shared/data")) / "camvid"
LABEL_IDS = np.array([[7, 7, 0, 3], [23, 26, 26, 33], [11, 29, 24, 25]])  # road, void, sky, cars, ...
TRAIN_IDS = [[0, 0, 255, 255], [10, 13, 13, 18], [2, 255, 11, 12]]
INSTANCE_IDS = np.array([[7, 7, 0, 3], [23, 26001, 26001, 33], [11, 29000, 24000, 25007]])


def save(path, pixels, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype)).save(path)
    return path


def photo(path):
    save(path, np.full((3, 4, 3), 128))


def counts(faces):
    return {split: len(samples) for split, samples in faces.splits.items()}


@pytest.fixture
def streets(tmp_path):
    """Cityscapes with a photo of each of two cities in train, one in val, one in test."""
    for place in ("train/aachen", "train/bremen", "val/lindau", "test/bonn"):
        split, city = place.split("/")
        stem = f"{city}_000000_000019"
        photo(tmp_path / f"leftImg8bit/{place}/{stem}_leftImg8bit.png")
        beside = tmp_path / f"gtFine/{place}"
        ids = LABEL_IDS if split != "test" else np.ones_like(LABEL_IDS)  # as published: void
        save(beside / f"{stem}_gtFine_labelIds.png", ids)
        save(beside / f"{stem}_gtFine_instanceIds.png", INSTANCE_IDS, np.uint16)
        photo(beside / f"{stem}_gtFine_color.png")
        (beside / f"{stem}_gtFine_polygons.json").write_text("{}")
    (tmp_path / "README").write_text("")
    return tmp_path


def acdc(root, kind, table):
    for place in ("fog/train/GOPR0475", "night/train/GOPR0351", "night/val/GOPR0356", "snow/test/GOPR0606"):
        stem = f"{place.rpartition('/')[2]}_frame_000041"
        photo(root / f"rgb_anon/{place}/{stem}_rgb_anon.png")
        weather, split, sequence = place.split("/")
        photo(root / f"rgb_anon/{weather}/{split}_ref/{sequence}/{stem}_rgb_ref_anon.png")
        if split != "test":
            save(root / f"gt/{place}/{stem}_gt_{kind}.png", table)
            photo(root / f"gt/{place}/{stem}_gt_labelColor.png")
            save(root / f"gt/{place}/{stem}_gt_invIds.png", np.zeros((3, 4)))
    return root


# ---- Cityscapes


def test_cityscapes(streets):
    faces = open_faces(streets)
    assert faces.name == "cityscapes" and counts(faces) == {"train": 2, "val": 1, "unlabelled": 1}
    assert ids_of(faces) == ["train/aachen/aachen_000000_000019", "train/bremen/bremen_000000_000019"]
    assert [s.group for s in faces.splits["train"]] == ["aachen", "bremen"]
    assert faces.read_label(faces.splits["train"][0]).tolist() == TRAIN_IDS
    assert faces.classes[:3] == ["road", "sidewalk", "building"] and len(faces.colors) == 19
    assert faces.things["person"] == [11] and faces.things["bicycle"] == [18] and len(faces.things) == 8
    [bare] = faces.splits["unlabelled"]
    assert (bare.id, bare.label, bare.instance) == ("test/bonn/bonn_000000_000019", None, None)
    assert faces.notes == [
        "class 0 is road, no background: mIoU counts it, mean F1 leaves it out",
        "1 photos of test, whose masks are not published: split `unlabelled`",
    ]


def test_classes_are_those_of_cityscapes():
    """Names, train ids, colours and which can be counted, as torchvision has them."""
    rows = [row for row in Cityscapes.classes if row.id >= 0]
    assert cityscapes.TRAIN_IDS[: len(rows)].tolist() == [row.train_id for row in rows]
    assert cityscapes.TRAIN_IDS[len(rows) :].tolist() == list(range(len(rows), 256)), "no ids: refused"
    rows = [row for row in rows if row.train_id < 255]
    assert cityscapes.CLASSES == [row.name for row in rows]
    assert cityscapes.COLORS == [row.color for row in rows]
    assert cityscapes.THINGS == {row.name: [row.train_id] for row in rows if row.has_instances}


def test_instances_of_cityscapes(streets):
    """26001 is a car, 24000 a person, 25007 a rider; 33 a group of bicycles, 29000 a caravan, void."""
    faces = open_faces(streets)
    sample = faces.splits["train"][0]
    assert Image.open(sample.instance).mode.startswith("I")
    found = faces.read_instance(sample)
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 0, 255, 255], [0, 1, 1, 255], [0, 255, 2, 3]]
    assert faces.read_instance(faces.splits["unlabelled"][0]) is None


def test_more_instances_than_have_an_id(streets):
    """Of 300 cars those from the 255th on, by their areas, are unknown."""
    ids = np.repeat(26000 + np.arange(300), np.r_[np.full(20, 2), np.full(270, 4), np.full(10, 3)])
    path = save(streets / "many.png", ids[None], np.uint16)
    sample = cityscapes.Sample("many", "", None, "", instance=str(path))
    found = cityscapes.read_instance(sample)[0]
    of = {int(car) - 26000: set(found[ids == car].tolist()) for car in np.unique(ids)}
    assert all(len(numbers) == 1 for numbers in of.values())
    numbers = [of[car].pop() for car in range(300)]
    assert numbers[20 : 20 + 254] == list(range(1, 255))
    assert set(numbers[:20] + numbers[274:]) == {255}


def test_cityscapes_without_instances(streets):
    for path in streets.glob("gtFine/*/*/*_instanceIds.png"):
        path.unlink()
    faces = open_faces(streets)
    assert faces.things == {} and faces.read_instance is None
    assert all(sample.instance is None for sample in faces.splits["train"])


def test_train_ids_are_read_where_label_ids_are_missing(streets):
    [path] = streets.glob("gtFine/train/aachen/*_labelIds.png")
    path.unlink()
    save(path.with_name("aachen_000000_000019_gtFine_labelTrainIds.png"), TRAIN_IDS)
    [path] = streets.glob("gtFine/train/bremen/*_labelIds.png")  # here they are beside these, and not read
    save(path.with_name("bremen_000000_000019_gtFine_labelTrainIds.png"), np.zeros((3, 4)))
    faces = open_faces(streets)
    for sample in faces.splits["train"]:
        assert faces.read_label(sample).tolist() == TRAIN_IDS
    assert len(faces.notes) == 2, "what comes with the data set needs no word"


def test_faults_of_cityscapes(streets):
    [path] = streets.glob("gtFine/val/lindau/*_instanceIds.png")
    kept = path.read_bytes()
    path.unlink()
    said = refusal(open_faces, streets)
    assert "1 masks without instanceIds beside them, others have: val/lindau/lindau_000000_000019" in said
    save(path, np.full((3, 4), 34), np.uint16)
    sample = open_faces(streets).splits["val"][0]
    assert refusal(cityscapes.read_instance, sample).startswith(f"{path}: need ids 0 to 33, or")
    path.write_bytes(kept)
    save(pathlib.Path(sample.label), np.full((3, 4), 40))
    assert (cityscapes.read_label(sample) == 40).all(), "which the scan refuses"
    os.remove(sample.label)
    said = refusal(open_faces, streets)
    assert said.endswith(
        "gtFine/val/lindau: not both photo and mask of lindau_000000_000019; unpack both archives in full"
    )
    (streets / "gtFine").rename(streets / "gtfine_")
    assert "leftImg8bit/ without gtFine/: unpack" in refusal(open_faces, streets)


# ---- ACDC


@pytest.mark.parametrize(("kind", "table"), [("labelTrainIds", TRAIN_IDS), ("labelIds", LABEL_IDS)])
def test_acdc(tmp_path, kind, table):
    faces = open_faces(acdc(tmp_path, kind, table))
    assert faces.name == "acdc" and counts(faces) == {"train": 2, "val": 1, "unlabelled": 1}
    names = ["fog/train/GOPR0475/GOPR0475_frame_000041", "night/train/GOPR0351/GOPR0351_frame_000041"]
    assert ids_of(faces) == names
    assert [s.group for s in faces.splits["train"]] == ["GOPR0475", "GOPR0351"]
    assert faces.read_label(faces.splits["val"][0]).tolist() == TRAIN_IDS
    assert faces.things == {} and faces.classes == cityscapes.CLASSES
    assert len(faces.notes) == 2, "photos in good weather need no word"


# ---- CamVid


@pytest.fixture
def drive(tmp_path):
    rows = {"train": ("0001TP_006690", "0016E5_00390"), "test": ("0001TP_008550", "Seq05VD_f00000")}
    for split, stems in rows.items():
        for stem in stems:
            photo(tmp_path / f"{split}/{stem}.png")
            save(tmp_path / f"{split}annot/{stem}.png", [[0, 10, 11, 3]] * 3)
        pairs = [f"/SegNet/CamVid/{split}/{s}.png /SegNet/CamVid/{split}annot/{s}.png" for s in stems]
        (tmp_path / f"{split}.txt").write_text("\n".join(pairs) + "\n")
    return tmp_path


def test_camvid(drive):
    photo(drive / "train/0016E5_00420.png")  # in no list
    faces = open_data(drive, val_fraction=0)
    assert faces.name == "camvid" and counts(faces) == {"train": 2, "test": 2}
    assert ids_of(faces) == ["train/0001TP_006690", "train/0016E5_00390"]
    assert [s.group for s in faces.splits["test"]] == ["0001TP", "Seq05VD"]
    assert faces.read_label(faces.splits["train"][0]).tolist() == [[0, 10, 255, 3]] * 3
    assert faces.colors[faces.classes.index("road")] == (128, 64, 128)
    assert faces.notes == [
        "class 0 is sky, no background: mIoU counts it, mean F1 leaves it out",
        "not read: 0016E5_00420.png in train/",
        "in train and in test alike: 0001TP",
    ]


def test_camvid_with_val_in_one_line(drive):
    """As some copies of the tutorial have their lists."""
    photo(drive / "val/0016E5_07959.png")
    save(drive / "valannot/0016E5_07959.png", np.zeros((3, 4)))
    (drive / "val.txt").write_text("CamVid/val/0016E5_07959.png CamVid/valannot/0016E5_07959.png")
    train = drive / "train.txt"
    train.write_text(train.read_text().replace("\n", " "))
    faces = open_faces(drive)
    assert counts(faces) == {"train": 2, "val": 1, "test": 2}
    assert "in train and in val alike: 0016E5" in faces.notes


def test_faults_of_camvid(drive):
    path = drive / "train.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0]]))
    assert "the lists name photos more than once: train/0001TP_006690" in refusal(open_faces, drive)
    path.write_text(lines[0].split()[0])
    assert refusal(open_faces, drive) == f"{path}: 1 paths; need pairs, of a photo and its mask"
    path.write_text(lines[0].replace("0001TP", "0002TP"))
    said = refusal(open_faces, drive)
    assert said.startswith(f"{path}: 2 of its 2 files are not there: {drive}/train/0002TP_006690.png, ")


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"no {CAMVID}; FACES_DATA=FOLDER, with camvid/ in it")
def test_the_real_camvid():
    faces = open_faces(CAMVID)
    assert counts(faces) == {"train": 367, "test": 233}
    assert {s.group for s in faces.splits["train"]} == {"0001TP", "0006R0", "0016E5"}
    ids = np.concatenate([faces.read_label(s).ravel() for s in faces.splits["train"][::20]])
    assert set(ids.tolist()) == {*range(11), 255}
    upper = np.mean(
        [faces.read_label(s)[:20] == camvid.CLASSES.index("sky") for s in faces.splits["test"][::20]]
    )
    lower = np.mean(
        [faces.read_label(s)[-20:] == camvid.CLASSES.index("road") for s in faces.splits["test"][::20]]
    )
    assert upper > 0.3 and lower > 0.5
    assert all(os.path.isfile(path) for sample in faces.splits["test"] for path in files_of(sample))


def test_camvid_from_day_to_dusk(drive, complaint, capsys, tmp_path):
    """By day, whichever list; at dusk those of test.txt test. No picture is copied."""
    for stem in ("0001TP_006720", "0001TP_006750"):
        photo(drive / f"train/{stem}.png")
        save(drive / f"trainannot/{stem}.png", [[0, 10, 11, 3]] * 3)
        with open(drive / "train.txt", "a") as file:
            file.write(f"train/{stem}.png trainannot/{stem}.png\n")
    out = tmp_path / "dusk"
    camvid_dusk.main(camvid_dusk.get_parser().parse_args([str(drive), str(out)]))
    assert (out / "photo.txt").read_text() == f"{drive}/train/0001TP_006720.png\n", "the middle one of three"
    assert "2 photos by day, 3 at dusk to train on, 1 to test" in capsys.readouterr().out
    day, labels = open_faces(out / "day"), open_faces(out / "labels")
    assert ids_of(day) == ["train/0016E5_00390", "test/Seq05VD_f00000"]
    assert ids_of(day, "test") == ids_of(labels, "test") == ["test/0001TP_008550"]
    dusk = [f"train/0001TP_00{number}" for number in (6690, 6720, 6750)]
    assert ids_of(labels) == [*ids_of(day), *dusk]
    assert day.read_label(day.splits["train"][0]).tolist() == [[0, 10, 255, 3]] * 3
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".txt"}
    assert "dusk: is there already; move it, or name another folder" in complaint(camvid_dusk, drive, out)
    other = tmp_path / "other"
    (drive / "test.txt").write_text("test/Seq05VD_f00000.png testannot/Seq05VD_f00000.png\n")
    assert "no photo of dusk test; dusk is sequence 0001TP" in complaint(camvid_dusk, drive, other)
    said = complaint(camvid_dusk, tmp_path / "none", other)
    assert "none: no CamVid: train/, trainannot/ and train.txt in it" in said
    assert not other.exists()
