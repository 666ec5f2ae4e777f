"""Who trains and who validates: files of ids, limits, people who were trained on."""

import json

import numpy as np
import pytest
from conftest import ids_of, refusal
from PIL import Image

from datasets import batches, cache, splits
from datasets.sides import trained_on
from utils import checkpoint


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(pixels)).save(path)


@pytest.fixture
def named(tmp_path):
    """Two photos of each of three people in train, one of a fourth in val, a fifth in test, and a sixth that
    nobody labelled."""
    root, groups = tmp_path / "faces", {}
    for split, names in {"train": "a1 a2 b1 b2 c1 c2", "val": "d1", "test": "e1"}.items():
        for name in names.split():
            save(root / split / f"images/{name}.png", np.full((2, 6, 3), 128))
            save(root / split / f"labels/{name}.png", np.ones((2, 6)))
            groups[name] = name[0]
    save(root / "unlabelled/f1.png", np.full((2, 6, 3), 128))
    (root / "classes.json").write_text(json.dumps({"classes": ["background", "skin"], "groups": groups}))
    return root


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_ids_say_who_trains_and_who_validates(named, tmp_path):
    ids = {"train": ["val/d1", "train/c1", "train/a2"], "val": ["train/b2"]}
    faces = splits.open_data(named, val_fraction=0.5, ids=write(tmp_path / "ids.json", ids))
    assert ids_of(faces) == ids["train"] and ids_of(faces, "val") == ids["val"]  # in the order of the file
    assert ids_of(faces, "test") == ["test/e1"] and ids_of(faces, "unlabelled") == ["unlabelled/f1"]
    assert any("4 of 7 labelled photos; 1 images of 1 people validate" in note for note in faces.notes)
    alone = write(tmp_path / "alone.json", {"train": ids["train"]})
    assert list(splits.open_data(named, ids=alone).splits) == ["train", "test", "unlabelled"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        (["train/a1"], "need"),
        ({"val": ["train/a1"]}, "need"),
        ({"train": ["train/a1"], "test": ["train/b1"]}, "no other keys"),
        ({"train": [], "val": ["train/a1"]}, "train needs a list"),
        ({"train": ["train/a1"], "val": []}, "val needs a list"),
        ({"train": "train/a1"}, "train needs a list"),
        ({"train": [["train/a1"]]}, "train needs a list"),
        (
            {"train": ["train/a1", "train/z1"], "val": ["train/b1"]},
            "outside of test: train/z1; ids here are like",
        ),
        ({"train": ["train/a1"], "val": ["test/e1"]}, "outside of test: test/e1"),
        ({"train": ["train/a1"], "val": ["unlabelled/f1"]}, "outside of test: unlabelled/f1"),
        ({"train": ["train/a1"], "val": ["train/a1"]}, "named twice, on one side or on both: train/a1"),
        ({"train": ["train/a1", "train/a1"], "val": ["train/b1"]}, "named twice"),
        ({"train": ["train/a1", "train/b1"], "val": ["train/a2"]}, "people in train and in val alike: a"),
    ],
)
def test_ids_that_cannot_be(named, tmp_path, content, said):
    path = str(tmp_path / "ids.json") if content is None else write(tmp_path / "ids.json", content)
    message = refusal(lambda: splits.open_data(named, ids=path))
    assert said in message and f"{path}: " in message


def test_the_file_of_ids_that_holds():
    saved = {"data": "faces", "ids": "a.json"}
    assert splits.ids_file(None, None, saved) == splits.ids_file(None, "./faces", saved) == "a.json"
    assert splits.ids_file("b.json", None, saved) == "b.json"
    assert splits.ids_file(None, "others", saved) is None and splits.ids_file(None, None, None) is None
    assert splits.ids_file(None, None, {"data": "faces"}, 8) is None  # a checkpoint older than the flag
    for given in ("b.json", None):
        assert refusal(splits.ids_file, given, None, saved, 8).startswith("limit 8: ")
    assert "synthetic" in refusal(lambda: splits.open_data("synthetic", ids="a.json"))


def test_a_batch_names_its_labels_as_the_data_set_does(named, tmp_path, monkeypatch):
    """The cache knows no key of its own."""
    monkeypatch.setattr(cache, "ROOT", tmp_path / "cache")
    faces = splits.open_data(named)
    assert set(batches.load(faces, "train", 4)[[0, 1]]) == {"image", "semantic", "index"}
    faces.target = "regions"
    batch = batches.load(faces, "train", 4)[[0, 1]]
    assert set(batch) == {"image", "regions", "index"} and (batch["regions"] == 1).all()


def test_a_limit_takes_so_many(named, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ROOT", tmp_path / "cache")
    faces = splits.open_data(named)
    assert len({i[6] for i in batches.load(faces, "train", 4, 0, 3).ids}) == 3  # one photo of each person
    assert "limit 7: there are only 6 photos" in refusal(batches.load, faces, "train", 4, 0, 7)
    assert "no split dev; it has train (6)" in refusal(batches.load, faces, "dev", 4)
    del faces.splits["val"]
    assert "nobody is held out" in refusal(batches.load, faces, "val", 4)
    faces.splits["train"] = [s for s in faces.splits["train"] if s.group == "a"]
    said = refusal(batches.load, faces, "val", 4)
    assert "all photos of train (2) are of one person" in said and "--val-fraction 0" in said


def test_a_parser_was_trained_on_the_people_of_its_ids(named, tmp_path):
    ids = write(tmp_path / "ids.json", {"train": ["val/d1", "train/c1"], "val": ["train/b2"]})
    args = {"data": str(named), "val_fraction": 0.0, "limit": None, "seed": 0}

    def people(**more):
        checkpoint.save(tmp_path / "best.pt", args=args | more)
        return {person for _, person in trained_on(str(tmp_path / "best.pt"))[0]}

    assert people(ids=ids) == {"c", "d"} and people(ids=None) == people() == {"a", "b", "c"}
    # of train_scores.py: photos without masks, which its limit is of; it keeps the --data of its start
    assert people(unlabelled=str(named), limit=1, data="synthetic") == {"unlabelled/f1"}


def test_a_student_was_trained_on_both_and_its_teachers_on_theirs(named, tmp_path):
    best, *teachers = (str(tmp_path / f"{name}.pt") for name in ("best", "one", "two"))
    ids = write(tmp_path / "ids.json", {"train": ["train/a1"]})
    flags = {"data": str(named), "val_fraction": 0.0, "ids": ids, "limit": None, "seed": 0}
    plain = tmp_path / "plain"
    for name in ("p", "q"):
        save(plain / f"{name}.png", np.full((2, 6, 3), 128))
    student = flags | {"teacher": teachers, "unlabelled": str(plain), "val_fraction": 0.5, "limit": 1}
    checkpoint.save(best, args=student | {"ids": None, "limit": 1})
    checkpoint.save(teachers[0], args=flags)
    checkpoint.save(teachers[1], args=flags | {"data": "synthetic"})
    seen, notes = trained_on(best)
    people = {person for _, person in seen}
    assert people >= {"a", "p", "q"} and len(people) <= 4 and not notes
    checkpoint.save(best, args=student | {"data": "synthetic", "ids": None})
    checkpoint.save(teachers[1], args=flags | {"data": "gone"})
    seen, notes = trained_on(best)
    assert {person for _, person in seen} == {"a", "p", "q"}
    assert notes == [f"people who trained {teachers[1]} are not known: gone is not there"]


def test_people_who_trained_a_start_that_is_gone_are_said_to_be_unknown(named, tmp_path):
    best, start = (str(tmp_path / name) for name in ("best.pt", "start.pt"))
    args = {"data": str(named), "val_fraction": 0.0, "ids": None, "limit": None, "seed": 0, "init": start}
    checkpoint.save(best, args=args)
    seen, notes = trained_on(best)
    assert len(seen) == 3 and notes == [
        f"people who trained the start of {best} are not known: {start} is not there"
    ]
    checkpoint.save(start, args=args | {"data": "gone"})  # and names itself as its start
    seen, notes = trained_on(best)
    assert len(seen) == 3 and notes == [f"people who trained {start} are not known: gone is not there"]
    assert trained_on(None) == (set(), [])
