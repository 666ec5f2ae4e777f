"""Photos that come in, before anything is asked of them: who is on them, which train, what names they get."""

import json
import shutil

import numpy as np
import pytest
from conftest import refusal, write
from PIL import Image

from datasets import incoming, splits
from datasets.faces import Faces, Sample, limit
from datasets.pairs import write_samples
from utils import lineage


@pytest.fixture
def photo(tmp_path):
    """photo(name) -> its path: a small picture."""

    def photo(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            pixels = np.random.default_rng(len(str(name))).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
        return str(path)

    return photo


def test_samples_keep_people_and_yaw_whatever_they_are_called(photo, tmp_path):
    faces = Faces("folder", ["background", "skin"], [], [], {}, None)
    names = ["train/a", "val/a", "a b", "ü", "\udcff"]  # stems that are equal, and no text in any encoding
    samples = [
        Sample(name, photo(f"from/{name}.png"), None, f"who {name}", 10.0 * i or None)
        for i, name in enumerate(names)
    ]
    write_samples(tmp_path / "to", samples, faces)
    found = splits.open_any(tmp_path / "to").splits["unlabelled"]
    assert {(s.group, s.yaw) for s in found} == {
        *((f"who {name}", 10.0 * i or None) for i, name in enumerate(names[:4])),
        ("who \\udcff", 40.0),
    }
    assert sorted(s.id for s in found)[:2] == ["unlabelled/\\udcff", "unlabelled/a b"]
    assert {*incoming.short_digests(found).values()} == {*incoming.short_digests(samples).values()}
    same = [Sample(name, samples[0].image, None, "a", None) for name in ("a/b", "a__b")]
    assert "two photos would be called a__b" in refusal(write_samples, tmp_path / "twice", same, faces)
    assert not (tmp_path / "twice").exists()


def test_ids_are_those_that_a_run_trained_on(folder, split_of, tmp_path):
    flags = {"data": str(folder), "val_fraction": 0.15, "seed": 3, "limit": None, "ids": None}
    assert incoming.ids_of(flags) is None
    faces = splits.open_data(folder)
    found = incoming.ids_of(flags | {"limit": 5})
    assert found == {
        "train": [s.id for s in limit(faces.splits["train"], 5, 3)],
        "val": split_of["val"],
    }
    assert found["train"] != incoming.ids_of(flags | {"limit": 5, "seed": 4})["train"]
    some = {"train": split_of["train"][3:7], "val": split_of["val"][:1]}
    path = write(tmp_path / "ids.json", some)
    assert incoming.ids_of(flags | {"ids": str(path)}) == some
    write(path, {"train": some["train"]})
    assert incoming.ids_of(flags | {"ids": str(path)}) == {"train": some["train"]}, "nobody validates"
    path.unlink()
    assert str(path) in refusal(incoming.ids_of, flags | {"ids": str(path)})


def test_people_who_test_are_left_out_and_a_changed_pixel_is_noticed(folder, tmp_path):
    home = tmp_path / "faces"
    shutil.copytree(folder, home)
    for kind in ("images", "labels"):
        for split, numbers in {"train": range(6), "test": (6, 7)}.items():
            (home / split / kind).mkdir(parents=True)
            for i in numbers:
                shutil.move(home / kind / f"{i}.png", home / split / kind)
        shutil.rmtree(home / kind)
    info = json.loads((home / "classes.json").read_text())
    info["groups"] = {str(i): f"person {i // 2}" for i in range(8)} | {"0": "person 3"}
    write(home / "classes.json", info)
    faces = splits.open_any(home)
    assert [s.id for s in incoming.without_test(faces)] == [f"train/{i}" for i in range(1, 6)]
    everybody = incoming.labelled_photos(home, faces.classes)[1]
    assert len(everybody) == 8
    before = incoming.digests(everybody)
    mask = np.array(Image.open(home / "train/labels/2.png"))
    mask[0, 0] += 1
    Image.fromarray(mask).save(home / "train/labels/2.png")
    after = incoming.digests(everybody)
    assert [name for name in before if before[name] != after[name]] == ["train/2"]
    assert "the classes are" in refusal(incoming.labelled_photos, home, ["background", "skin"])


def test_who_is_labelled_is_spread_over_people_and_leaves_most_to_train_on():
    def people(count, each):
        return [Sample(f"{p}/{i}", "", None, str(p), None) for p in range(count) for i in range(each)]

    for count, each, wanted in [(7, 8, 14), (3, 2, 1), (40, 8, 32), (1, 1, 1), (0, 0, 0)]:
        chosen = incoming.to_label(people(count, each))
        assert len(chosen) == wanted == len({s.id for s in chosen})
        assert len({s.group for s in chosen}) == min(count, wanted)


def test_photos_that_a_checkpoint_has_seen_are_refused_under_any_name(folder, photo, tmp_path):
    samples = splits.open_data(folder).splits["train"][:3]
    known = incoming.short_digests(samples)
    facts = {"photos": 1, "people": 1, "sha256": "0" * 64, "contents": [known[samples[1].image]]}
    state = {"lineage": lineage.origin("x.py", "out", {"train": facts}, {"train": "here"}, {}, {})}
    other = str(shutil.copy(samples[1].image, tmp_path / "other.png"))
    renamed = [Sample("a", other, None, "a", None)]
    said = refusal(incoming.refuse_seen, renamed, state, "run/last.pt")
    assert "1 of 1 photos trained or validated run/last.pt" in said and "other.png" in said
    incoming.refuse_seen([samples[0], samples[2]], state, "run/last.pt")
    said = refusal(incoming.refuse_seen, samples, {"script": "train_finetune.py"}, "old.pt")
    assert said.startswith("old.pt: which photos it has seen is not known") and "train it again" in said
