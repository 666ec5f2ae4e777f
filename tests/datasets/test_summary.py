"""What a split holds is counted, and what could only train wrong is refused."""

import json
import shutil

import numpy as np
import pytest
from conftest import refusal, write
from PIL import Image

from datasets import batches, labelled, open_faces, splits, summary
from datasets.cache import CachedFaces
from datasets.sides import open_side
from utils.files import sha256

CLASSES = ["background", "skin", "nose"]


class Data:
    """Two photos of 4 x 2 pixels by one person, as `CachedFaces` describes them."""

    counts = np.array([[5, 2, 1, 0], [4, 2, 0, 2]])  # background, skin, nose, 255
    sizes = np.array([[4, 2], [2, 4]])
    groups = ["ann", "ann"]
    ids = ["a", "b"]
    digests = ["11", "22"]
    digest = "1122"

    def __len__(self):
        return 2


def found_in(**splits):
    return summary.inspect(splits, CLASSES)


def with_(**values):
    return type("Changed", (Data,), values)()


def test_facts():
    facts = found_in(train=Data())["train"]
    assert facts["pixels"] == {"background": 9, "skin": 4, "nose": 1}
    assert facts["photos_with"] == {"background": 2, "skin": 2, "nose": 1}
    assert facts["pixels_ignored"] == 2 and facts["photos"] == 2 and facts["people"] == 1
    assert facts["sizes"] == {"4x2": 1, "2x4": 1} and facts["aspects"] == [0.5, 1.25, 2.0]
    assert json.loads(json.dumps(facts)) == facts, "plain data"


def test_the_table_has_a_row_for_each_class():
    text = summary.table(found_in(train=Data(), val=Data()))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["nose"] == ["7.14%", "1", "7.14%", "1"] and rows["people"] == ["1", "1"]
    assert "12.50%" in text and "sizes of val: 4x2 (1), 2x4 (1)" in text


def test_photos_without_masks_have_no_rows_of_classes():
    text = summary.table(found_in(train=with_(counts=np.zeros((2, 4), int))))
    assert "nose" not in text and "photos" in text


def test_synthetic_faces_are_counted_in_part():
    from datasets import synthetic

    faces = synthetic.SyntheticFaces(1000, 0, 16, "fasseg")
    facts = summary.inspect({"train": faces}, synthetic.SCHEMES["fasseg"].classes)["train"]
    assert facts["counted"] == summary.SYNTHETIC and facts["photos"] == 1000
    assert sum(facts["pixels"].values()) == summary.SYNTHETIC * 16 * 16 and facts["aspects"] == [1.0] * 3


def test_a_class_that_no_mask_holds_is_refused():
    found = found_in(train=with_(counts=np.array([[5, 2, 0, 1]])))
    said = refusal(summary.refuse_empty, found)
    assert said.startswith("train: nose in no mask") and "skin 28.57%" in said
    assert "--allow-empty nose" in said
    summary.refuse_empty(found, ["nose"])
    summary.refuse_empty(found_in(train=Data(), val=with_(counts=np.array([[5, 2, 0, 1]]))))


def test_a_split_without_a_labelled_pixel_is_refused():
    found = found_in(train=Data(), val=with_(counts=np.array([[0, 0, 0, 8]])))
    assert refusal(summary.refuse_empty, found) == "val: no labelled pixel in 2 masks, all are 255"


def test_photos_that_are_in_train_and_in_val_are_told():
    train, val = with_(ids="ab", contents=["1", "2"]), with_(ids="cd", contents=["1", "3"])
    found = found_in(train=train, val=val)
    said = "1 of its photos are in train, too, byte for byte: its figures flatter (c = a)"
    assert found["val"]["notes"] == [said] and said in summary.table(found)
    assert not found_in(train=train, val=Data())["val"]["notes"]
    assert not found_in(train=val, val=None)["train"]["notes"]


CHANGES = [
    ({"ids": ["a", "c"], "digest": "x"}, ["1 gone (b)", "1 new (c)"]),
    ({"digests": ["11", "33"], "digest": "x"}, ["1 with another photo, mask or class (b)"]),
    ({"digest": "x"}, ["mean something else"]),
]


@pytest.mark.parametrize(("values", "words"), CHANGES)
def test_what_changed_is_said(values, words, tmp_path):
    before = found_in(train=Data(), val=Data())
    path = tmp_path / "data.json"
    path.write_text(json.dumps(before))
    last = {"data": summary.kept(before)}
    summary.refuse_changed(before, last, path)
    summary.refuse_changed(before, None, path)
    said = refusal(summary.refuse_changed, found_in(train=Data(), val=with_(**values)), last, path)
    assert all(word in said for word in words) and "val: " in said and "train" not in said
    assert "val: is gone" in refusal(summary.refuse_changed, found_in(train=Data()), last, path)
    path.write_text("torn")
    assert "(val)" in refusal(summary.refuse_changed, found_in(train=Data()), last, path)


# ---- what data is, for the lineage of runs


def identified(root, order=1):
    faces = open_faces(root)
    return summary.identify(CachedFaces(faces, faces.splits["train"][::order], 8), faces.classes)


def change_a_pixel(root):
    mask = np.array(Image.open(root / "labels/3.png"))
    mask[0, 0] ^= 1
    Image.fromarray(mask).save(root / "labels/3.png")


def rename_a_class(root):
    text = (root / "classes.json").read_text()
    assert '"nose"' in text
    (root / "classes.json").write_text(text.replace('"nose"', '"snout"'))


def give_a_photo_to_another(root):
    info = json.loads((root / "classes.json").read_text())
    write(root / "classes.json", info | {"groups": info["groups"] | {"3": info["groups"]["20"]}})


def replace_a_photo(root):
    (root / "images/3.png").write_bytes((root / "images/4.png").read_bytes())


@pytest.mark.parametrize("change", [change_a_pixel, rename_a_class, give_a_photo_to_another, replace_a_photo])
def test_each_change_of_data_changes_its_digest(change, folder, tmp_path):
    first, root = identified(folder), shutil.copytree(folder, tmp_path / "moved")
    assert first["photos"] == 24 and first["people"] == 12
    assert first["contents"][5] == sha256(open_faces(folder).splits["train"][5].image)[:16]
    other = identified(root, -1)
    assert other["sha256"] == first["sha256"] and other["contents"] == first["contents"][::-1], "in any order"
    change(root)
    again = identified(root)
    assert again["sha256"] != first["sha256"] and len(again["sha256"]) == 64
    assert (again["contents"] == first["contents"]) == (change != replace_a_photo)


def test_rows_of_data_and_photos_alone(folder):
    data = batches.load(splits.open_data(folder), "train", 8)
    some = summary.identify(data, [], [4, 2])
    assert some["photos"] == 2 and some["contents"] == [data.contents[4], data.contents[2]]
    photos = summary.identify_photos({"a": str(folder / "images/1.png"), "gone": "nowhere.png"})
    assert photos["photos"] == photos["people"] == 2
    assert photos["contents"] == [sha256(folder / "images/1.png")[:16]]


def test_sides_of_a_test_know_their_photos_apart_from_the_masks(folder):
    side, _ = open_side(str(folder), None, None, 2, 8, 0)
    of_photos = {sha256(path)[:16] for path in (folder / "images").iterdir()}
    assert len(side.ids) > 4 and {*summary.identify(side, [])["contents"]} < of_photos
    assert summary.identify(side.keep([2]), [])["contents"] == [side.contents[2]]
    assert side.join(side).contents == side.contents * 2
    rendered, _ = open_side("synthetic", None, None, 1, 8, 0)
    for each in (rendered, rendered.keep([0, 1]), side.join(rendered)):
        assert summary.identify(each, [])["sha256"] is None


def test_what_is_rendered_has_no_digest():
    faces = batches.load(splits.open_data("synthetic"), "train", 8)
    shapes = labelled.load(labelled.open_images("shapes"), "val", 28, count=8)
    for data, count in ((faces, 100_000), (shapes, 8)):
        nothing = {"sha256": None, "contents": []}
        assert summary.identify(data, []) == {"photos": count, "people": count, **nothing}
    assert summary.identify(faces, [], [1, 2])["photos"] == 2
