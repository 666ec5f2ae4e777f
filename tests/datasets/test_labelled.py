"""Images with classes and domains: what is recognised, who is in which split, what is read, what is said."""

import collections
import gzip
import hashlib
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
import torch
from conftest import ROOT, refusal
from PIL import Image

from datasets import UnknownFolder, cifar, labelled, open_faces, shapes, summary
from datasets.faces import Sample
from utils.errors import UserError
from utils.files import sha256

DATA = pathlib.Path(os.environ.get("FACES_DATA", ROOT.parent / "shared/data"))


def real(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA}; FACES_DATA")
    return DATA / name


def picture(path, seed, mode="RGB", **options):
    """A picture of 6 x 4 pixels at `path`; a name says nothing about its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path, options.pop("format", "PNG"), **options)


def tree(root, parts, names=("cat", "dog"), each=20):
    """{part}/{class}/{i}.png of different pictures, `each` of every class."""
    for p, part in enumerate(parts):
        for c, name in enumerate(names):
            for i in range(each):
                picture(root / part / name / f"{i}.png", (p * 10 + c) * 1000 + i)
    return root


def sizes(images):
    return {split: len(samples) for split, samples in images.splits.items()}


def inspected(images, size=8, **options):
    data = {split: labelled.load(images, split, size, **options) for split in images.splits}
    return summary.inspect(data, images.classes, "class")


# ---- layouts


def test_folders_of_splits_whatever_their_case(tmp_path):
    tree(tmp_path, ["TRAIN", "Test"], each=3)
    images = labelled.open_images(tmp_path, val_fraction=0)
    assert (
        images.classes == ["cat", "dog"] and images.domains == [] and sizes(images) == {"train": 6, "test": 6}
    )
    assert [s.label for s in images.splits["train"]] == [(0, None)] * 3 + [(1, None)] * 3
    assert images.notes == []
    tree(tmp_path, ["valid"], each=1)
    assert "3 images of val" not in str(images.notes) and sizes(labelled.open_images(tmp_path))["val"] == 2
    data = labelled.load(images, "test", 5)
    batch = data[[4, 0]]
    assert batch["image"].shape == (2, 3, 5, 5) and batch["image"].dtype == torch.uint8
    assert batch["class"].tolist() == [1, 0] and batch["index"].tolist() == [4, 0] and "domain" not in batch
    whole = labelled.load(images, "test", 6)[[0]]["image"][0].permute(1, 2, 0).numpy()
    alone = np.asarray(Image.open(data.paths[0]).resize((6, 6), Image.BILINEAR))
    assert (whole == alone).all(), "stretched to the square, as faces are"
    assert data.memory.shape == (6, 3, 5, 5), "no masks in the cache"
    assert data.sizes.tolist() == [[6, 4]] * 6 and data.counts.tolist()[3] == [0, 1, 0]


def test_one_level_of_classes_is_split(tmp_path):
    images = labelled.open_images(tree(tmp_path, ["."], each=40), val_fraction=0.2)
    assert list(images.splits) == ["train", "val", "test"] and sum(sizes(images).values()) == 80
    for samples in images.splits.values():
        assert {s.label for s in samples} == {(0, None), (1, None)}
    assert 4 <= sizes(images)["val"] <= 28 and 4 <= sizes(images)["test"] <= 28
    assert "no test split" in images.notes[0] and "of each class" in images.notes[1]
    assert sizes(labelled.open_images(tmp_path, val_fraction=0)) == {"train": 80}


def test_held_out_images_do_not_move(tmp_path):
    def held(count):
        samples = [Sample(f"dog/{i}", "", (i % 2, None), "") for i in range(count)]
        rest, out = labelled.hold_out(samples, 0.25)
        assert len(rest) + len(out) == count and not {s.id for s in rest} & {s.id for s in out}
        return {s.id for s in out}

    few, many = held(100), held(300)
    assert few == {i for i in many if int(i[4:]) < 100} and 50 < len(many) < 100
    assert len(held(4)) == 2 and len(held(2)) == 0, "one of each class that has two; never all of it"


def test_domains_and_one_left_out(tmp_path):
    tree(tmp_path, ["Art", "Clip", "Real World"], each=10)
    images = labelled.open_images(tmp_path)
    assert images.domains == ["Art", "Clip", "Real World"] and list(images.splits) == ["train", "val", "test"]
    for samples in images.splits.values():
        assert len({s.label for s in samples}) == 6, "each domain of each class"
    out = labelled.open_images(tmp_path, leave_out="Real World")
    assert {s.label[1] for s in out.splits["test"]} == {2} and len(out.splits["test"]) == 20
    assert {s.label[1] for split in ("train", "val") for s in out.splits[split]} == {0, 1}
    batch = labelled.load(out, "test", 4)[[11]]
    assert batch["domain"].tolist() == [2] and batch["class"].tolist() == [1]
    assert labelled.label_info(out) == {
        **{"name": "folder", "target": "class"},
        **{"classes": ["cat", "dog"], "domains": ["Art", "Clip", "Real World"]},
    }
    said = refusal(labelled.open_images, tmp_path, 0.15, "real world")
    assert "no such domain; it has Art, Clip, Real World" in said
    assert "no domains" in refusal(labelled.open_images, tmp_path / "Art", 0.15, "Art")
    assert sizes(labelled.open_images(tmp_path, 0, "Art")) == {"train": 40, "test": 20}


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.mark.parametrize("place, zipped", [("MNIST/raw", True), ("raw", False), (".", True)])
def test_mnist(tmp_path, place, zipped, monkeypatch):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pixels, labels = {}, {}
    for name, count in (("train", 40), ("t10k", 10)):
        pixels[name] = rng.integers(0, 256, (count, 4, 4), np.uint8)
        labels[name] = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", pixels[name]), ("labels-idx1", labels[name])):
            path = folder / f"{name}-{kind}-ubyte{'.gz' * zipped}"
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    images = labelled.open_images(tmp_path)
    assert images.name == "mnist" and images.classes == list("0123456789")
    assert sizes(images) == {"train": 28, "val": 12, "test": 10}
    assert {s.label[0] for s in images.splits["val"]} == set(range(10)), "of each class"
    data = labelled.load(images, "val", 4)
    known = summary.identify(data, images.classes)
    assert len(known["sha256"]) == 64 and len(set(known["contents"])) == 12, "of pixels, since no file is"
    for i, name in enumerate(data.ids):
        row = int(name.split("/")[1])
        batch = data[[i]]
        assert (batch["image"].numpy() == pixels["train"][row]).all() and batch["image"].shape == (1, 3, 4, 4)
        assert batch["class"] == labels["train"][row]
    assert (labelled.load(images, "test", 4)[[3]]["image"].numpy() == pixels["t10k"][3]).all()
    small = labelled.load(images, "test", 2)[[0]]["image"][0, 0].numpy()
    one = Image.fromarray(pixels["t10k"][0]).resize((2, 2), Image.BILINEAR)
    assert abs(small.astype(int) - np.asarray(one)).max() <= 1, "antialiased, as pictures are"
    monkeypatch.setattr(cifar, "recognise", lambda root: {"name": "cifar10"})
    assert "both mnist and cifar10; give the folder of one" in refusal(labelled.open_images, tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    assert "download it again" in refusal(labelled.open_images, tmp_path)
    path.unlink()
    assert "no t10k-labels-idx1-ubyte, nor" in refusal(labelled.open_images, tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path, name, monkeypatch):
    import torchvision

    kind = getattr(torchvision.datasets, name.upper())
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    key = "labels" if name == "cifar10" else "fine_labels"
    pixels = {split: rng.integers(0, 256, (20, 3072), np.uint8) for split in ("train", "test")}
    content = {split: {"data": rows, key: [0, 1] * 10} for split, rows in pixels.items()}
    content[kind.meta["filename"]] = {kind.meta["key"]: ["apple", "baby"]}
    sums = {}
    for file, what in content.items():
        (folder / file).write_bytes(pickle.dumps(what))
        sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
    assert "by their MD5" in refusal(labelled.open_images, tmp_path)
    monkeypatch.setattr(kind, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    for root in (tmp_path, folder):
        images = labelled.open_images(root, val_fraction=0)
        assert images.name == name and images.classes == ["apple", "baby"]
        assert sizes(images) == {"train": 20, "test": 20}
    batch = labelled.load(images, "test", 32)[[7]]
    assert (batch["image"][0].flatten().numpy() == pixels["test"][7]).all() and batch["class"] == 1
    (tmp_path / "cifar-10-batches-py").mkdir(exist_ok=True)
    (tmp_path / "cifar-100-python").mkdir(exist_ok=True)
    assert "give the folder of one" in refusal(labelled.open_images, tmp_path)


# ---- what is odd


def test_odd_pictures_are_read_and_odd_files_named(tmp_path):
    root = tree(tmp_path / "pets", ["train"], each=2)
    cats = root / "train" / "cat"
    picture(cats / "webp.jpg", 50, format="WEBP", lossless=True)
    picture(cats / "palette.png", 51, "P")
    picture(cats / "clear.png", 52, "RGBA")
    picture(cats / "grey.JPG", 53, "L", format="JPEG")
    picture(cats / "0.bmp", 54, format="BMP")  # one stem, two files
    for name in ("._0.png", "notes.txt", "a.heic", ".hidden.png"):
        (cats / name).write_bytes(b"text")
    picture(cats / "more" / "below.png", 55)
    (root / "train" / "fish").mkdir()
    images = labelled.open_images(root, val_fraction=0)
    assert sizes(images) == {"train": 9} and images.classes == ["cat", "dog"]
    assert len({s.id for s in images.splits["train"]}) == 9
    notes = "; ".join(images.notes)
    for said in (
        "a.heic: HEIC is not read",
        "notes.txt in train/cat/",
        "more/ in train/cat/",
        "fish/ in train/",
    ):
        assert said in notes
    assert "hidden" not in notes and "._0" not in notes
    data = labelled.load(images, "train", 4)
    grey = data[[data.ids.index("train/cat/grey.JPG")]]["image"][0]
    assert (grey[0] == grey[2]).all()

    (cats / "page.jpg").write_text("<!DOCTYPE html><html>no such page</html>")
    (cats / "cut.png").write_bytes((cats / "0.png").read_bytes()[:60])
    with pytest.raises(UserError, match="2 of 11 samples are faulty") as caught:
        labelled.load(labelled.open_images(root, 0), "train", 4)
    for said in ("page.jpg: not a readable picture (a web page", "cut.png"):
        assert said in str(caught.value)


def test_copies_are_told(tmp_path):
    root = tree(tmp_path, ["train", "val", "test"], each=3)
    for split in ("val", "test"):
        (root / split / "dog" / "copy.png").write_bytes((root / "train/dog/1.png").read_bytes())
    (root / "train" / "cat" / "same.png").write_bytes((root / "train/dog/2.png").read_bytes())
    images = labelled.open_images(root)
    assert len(images.notes) == 3
    assert "1 image of train under two classes" in images.notes[0] and "cat/same.png" in images.notes[0]
    for note, split in zip(images.notes[1:], ("val", "test"), strict=True):
        assert (
            f"1 image of {split} in train, too" in note and f"{split}/dog/copy.png = train/dog/1.png" in note
        )
    assert not any(facts["notes"] for facts in inspected(images).values()), "said once"


def test_a_class_without_images_that_train(tmp_path):
    root = tree(tmp_path, ["train", "test"], each=2)
    picture(root / "test" / "fish" / "1.png", 7)
    images = labelled.open_images(root, 0)
    assert images.classes == ["cat", "dog", "fish"] and images.notes == ["train has no fish"]
    said = refusal(labelled.refuse_empty, inspected(images))
    assert "train: no image of fish among 4 images" in said and "--limit" in said
    picture(root / "train" / "fish" / "1.png", 8)
    images = labelled.open_images(root, 0)
    labelled.refuse_empty(inspected(images))
    assert "no image of" in refusal(labelled.refuse_empty, inspected(images, count=2))
    picture(root / "train" / "Dog" / "1.png", 8)
    assert "differ in capitals alone" in refusal(labelled.open_images, root)


def test_what_holds_no_classes_is_refused_in_one_line(tmp_path, folder):
    say = lambda place: refusal(labelled.open_images, place)
    assert "no such folder" in say(tmp_path / "nowhere")
    (tmp_path / "a.zip").write_bytes(b"")
    assert "unpack it" in say(tmp_path / "a.zip")
    (tmp_path / "empty").mkdir()
    for looked_for in ("MNIST", "cifar-10-batches-py", "DOMAIN/CLASS/x.jpg", "there is: nothing"):
        assert looked_for in say(tmp_path / "empty")
    assert "photos with masks (folder): train_finetune.py" in say(folder)
    picture(tmp_path / "half" / "images" / "1.png", 0)
    picture(tmp_path / "half" / "labels" / "2.png", 0)
    assert "like photos with masks" in say(tmp_path / "half"), "no classes images and labels"
    tree(tmp_path / "one", ["."], names=["cat"], each=1)
    assert "one class alone, cat" in say(tmp_path / "one")
    tree(tmp_path / "inside", ["pets"], each=1)
    assert f"give {tmp_path}/inside/pets" in say(tmp_path / "inside")
    tree(tmp_path / "deep", ["x/train"], each=1)
    assert f"did you mean {tmp_path}/deep/x?" in say(tmp_path / "deep")
    tree(tmp_path / "mixed", ["art", "photo"], each=1)
    picture(tmp_path / "mixed" / "cat" / "1.png", 0)
    assert "cat hold pictures, art, photo hold folders" in say(tmp_path / "mixed")
    tree(tmp_path / "tests", ["test"], each=1)
    assert "there is no train/" in say(tmp_path / "tests")
    tree(tmp_path / "flat", ["."], names=["train", "test"], each=1)
    assert "no folders of classes" in say(tmp_path / "flat")
    vehicles = tree(tmp_path / "vehicles", ["."], names=["bus", "train"], each=1)
    assert labelled.open_images(vehicles, 0).classes == ["bus", "train"], "a train may be a class"
    with pytest.raises(UnknownFolder, match=r"train_classify\.py"):
        open_faces(tmp_path / "inside" / "pets")


# ---- a few of them, and the data of a resumed run


@pytest.mark.parametrize("domains", [0, 4])
def test_limits_are_nested_and_even(domains):
    labels = [(c, d if domains else None) for c in range(7) for d in range(domains or 1)]
    samples = [Sample(f"{n}/{label}", "", label, "") for n in range(30) for label in labels]
    before = []
    for n in (1, 5, 12, 28, 29, 70, 168):
        chosen = [s.id for s in labelled.limit(samples, n, seed=3)]
        assert chosen[: len(before)] == before and len(set(chosen)) == n
        before = chosen
        for key in (lambda label: label[0], lambda label: label[1], lambda label: label):
            counts = collections.Counter(key(s.label) for s in samples if s.id in chosen)
            kinds = len({key(label) for label in labels})
            assert max(counts.values()) - (min(counts.values()) if len(counts) == kinds else 0) <= 1
    assert set(before) != {s.id for s in labelled.limit(samples, 168, seed=4)}
    assert "there are only" in refusal(labelled.limit, samples, 10_000, 0)
    few = [s for s in samples if s.label[0] or s.id[0] == "1"]  # class 0 has fewer
    counts = collections.Counter(s.label[0] for s in labelled.limit(few, len(few), 0))
    assert counts == collections.Counter(s.label[0] for s in few)


def test_a_resumed_run_notices(tmp_path):
    root = tree(tmp_path / "pets", ["art", "photo"], each=4)
    images = labelled.open_images(root, 0)
    first = inspected(images)
    path = tmp_path / "data.json"
    path.write_text(json.dumps(first))
    last = {"data": summary.kept(first)}
    resume = lambda: summary.refuse_changed(inspected(labelled.open_images(root, 0)), last, path)
    resume()
    (root / "art/cat/1.png").rename(root / "art/dog/moved.png")
    said = refusal(resume)
    assert "1 gone (art/cat/1.png), 1 new (art/dog/moved.png)" in said
    (root / "art/dog/moved.png").rename(root / "art/cat/1.png")
    resume()
    (root / "art" / "cat" / "2.png").write_bytes((root / "art/cat/3.png").read_bytes())
    assert "1 with another photo, mask or class (art/cat/2.png)" in refusal(resume)
    relabelled = labelled.Images(images.name, images.classes, images.domains, dict(images.splits))
    samples = images.splits["train"]
    for label in ((1, 0), (0, 1)):
        relabelled.splits["train"] = [samples[0]._replace(label=label), *samples[1:]]
        again = labelled.load(relabelled, "train", 8)
        assert again.digests[0] != first["train"]["digests"][0]
        assert again.digest != first["train"]["digest"]
        known = summary.identify(again, images.classes)
        assert known["sha256"] != first["train"]["sha256"] and len(known["sha256"]) == 64
    assert first["train"]["contents"][0] == sha256(root / "art/cat/0.png")[:16]


def test_tables(tmp_path):
    images = labelled.open_images(tree(tmp_path, ["art", "photo"], each=4), leave_out="art")
    found = inspected(images)
    rows = [line.split() for line in labelled.table(found).splitlines()]
    assert ["images", "6", "2", "8"] in rows and ["dog", "3", "1", "4"] in rows
    assert ["art", "0", "0", "8"] in rows and ["photo", "6", "2", "0"] in rows
    names = [f"class {i}" for i in range(30)]
    samples = [Sample(f"{i}", i, (i % 30, None), "") for i in range(31)]
    many = labelled.Images("made", names, [], {"train": samples}, pixels=np.zeros((31, 1, 4, 4), np.uint8))
    text = labelled.table(inspected(many))
    rows = [line.split() for line in text.splitlines()]
    assert ["smallest", "1"] in rows and ["largest", "2"] in rows and "class 3" not in text


# ---- shapes


def test_shapes():
    images = labelled.open_images("shapes")
    assert (len(images.classes), len(images.domains)) == (10, 4)
    for split, samples in images.splits.items():
        counts = collections.Counter(s.label for s in samples)
        assert len(counts) == 40 and set(counts.values()) == {shapes.SPLITS[split] // 40}
    val = [labelled.load(images, "val", 16, seed, count=80) for seed in (0, 1)]
    assert val[0].ids != val[1].ids, "the choice is the seed's"
    both = [labelled.load(images, "val", 16, seed) for seed in (0, 1)]
    assert (both[0].memory == both[1].memory).all() and both[0].digest == both[1].digest
    train = [labelled.load(images, "train", 16, seed, count=40) for seed in (0, 1)]
    assert (train[0].memory != train[1].memory).any() and train[0].digest != train[1].digest
    alone = shapes.render(0, [7], 16)
    assert torch.equal(shapes.render(0, [3, 7], 16)[1:], alone), "a function of seed and index"
    batch = both[0][[13]]
    assert images.classes[batch["class"]] == "cross" and images.domains[batch["domain"]] == "noise"
    out = labelled.open_images("shapes", leave_out="outline")
    assert sizes(out) == {"train": 3000, "val": 300, "test": 200}


def test_shapes_look_like_their_class():
    """By their areas: where the distance from the border is negative."""
    y, x = torch.meshgrid(*[(torch.arange(200) + 0.5) / 100 - 1] * 2, indexing="ij")
    areas = {name: 4 * (form(x, y) < 0).float().mean().item() for name, form in shapes.FORMS.items()}
    assert list(areas) == shapes.CLASSES
    assert areas["circle"] == pytest.approx(3.1416 * 0.85**2, rel=0.03)
    assert areas["square"] == pytest.approx(1.5**2, rel=0.03)
    assert areas["cross"] == pytest.approx(4 * 0.9 * 0.3 * 2 - 0.6**2, rel=0.05)
    assert areas["star"] == pytest.approx(10 * 0.5 * 0.45 * np.sin(np.pi / 5), rel=0.05)
    assert areas["ring"] == pytest.approx(3.1416 * (0.92**2 - 0.48**2), rel=0.05)


# ---- real packagings


def test_real_pacs_and_yoga():
    pacs = labelled.open_images(real("pacs"), leave_out="sketch")
    assert pacs.domains == ["art_painting", "cartoon", "photo", "sketch"] and len(pacs.classes) == 7
    assert sum(sizes(pacs).values()) == 4115 and sizes(pacs)["test"] == 980
    data = labelled.load(pacs, "train", 16, count=21)
    assert [data.targets["class"].tolist().count(c) for c in range(7)] == [3] * 7
    assert [data.targets["domain"].tolist().count(d) for d in range(4)] == [7, 7, 7, 0]
    yoga = labelled.open_images(real("yoga5"))
    assert yoga.classes == ["downdog", "goddess", "natarajasana", "tree", "warrior2"]
    assert sizes(yoga)["test"] == 72 and sizes(yoga)["train"] + sizes(yoga)["val"] == 224


def test_real_mnist():
    images = labelled.open_images(real("mnist"))
    assert sizes(images)["test"] == 10000 and sizes(images)["train"] + sizes(images)["val"] == 60000
    data = labelled.load(images, "train", 28, count=1000)
    assert np.bincount(data.targets["class"]).tolist() == [100] * 10
    assert images.splits["test"][0].label == (7, None) and data.memory.strides[1] == 0, "grey is kept once"
