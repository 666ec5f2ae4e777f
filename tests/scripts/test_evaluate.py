"""evaluate.py: which split is scored, how several networks vote, and where the figures go."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, weights
from PIL import Image

import evaluate
import predict
import train_finetune
import train_student
from datasets import batches, labelled, splits
from datasets.batches import load
from models import build_model, restore
from models.classifier import build_classifier
from utils import checkpoint, class_metrics, metrics
from utils.instances import targets


def run(*flags):
    evaluate.main(evaluate.get_parser().parse_args([str(flag) for flag in flags]))


def test_without_a_test_split_val_is_scored(finetuned, tmp_path, capsys):
    """As README has it for photos of one's own; the figures are those of --split val, and say so."""
    figures = {}
    for split in ("test", "val"):
        flags = ["--init", finetuned / "best.pt", "--device", "cpu", "--json", tmp_path / "a/b.json"]
        run(*flags, *(["--split", "val"] if split == "val" else []))
        figures[split] = json.loads((tmp_path / "a/b.json").read_text())
        assert figures[split].pop("lineage")["args"]["split"] == split
        assert ("no split test: these are figures of val" in capsys.readouterr().out) == (split == "test")
    assert figures["test"] == figures["val"] and figures["val"]["split"] == "val"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_a_run_that_was_not_at_its_end_is_named(finetuned, tmp_path, capsys):
    """best.pt is of an earlier step by choice, but where nobody validates."""
    last = weights(finetuned / "last.pt")
    stopped = {**last, "step": 6, "best": {"step": 6, "mean_f1": 0.1}}
    best = {key: value for key, value in stopped.items() if key != "optimizer"}
    states = {
        "stopped": stopped,
        "best": best,
        "unvalidated": {**best, "best": {"step": 0, "mean_f1": -1.0}},
        "last": last,
    }
    said = {}
    for name, state in states.items():
        checkpoint.save(tmp_path / f"{name}.pt", **state)
        run("--init", tmp_path / f"{name}.pt", "--device", "cpu", "--json", tmp_path / "scored.json")
        lines = json.loads((tmp_path / "scored.json").read_text())["unfinished"]
        said[name] = "had not come to its end" in capsys.readouterr().out
        assert len(lines) == said[name]
    assert said == {"stopped": True, "best": False, "unvalidated": True, "last": False}


def test_where_figures_cannot_be_written_nothing_is_scored(complaint, finetuned, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(evaluate.metrics, "measure", None)  # the work, which none gets to
    (tmp_path / "folder.json").mkdir()
    for path, why in (
        ("file/x.json", "is a file"),
        ("folder.json", "is a folder"),
        ("file/a/x.json", "written into"),
        ("file", "ends in .json"),
    ):
        said = complaint(evaluate, "--init", finetuned / "best.pt", "--json", tmp_path / path)
        assert why in said and said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


# ---- several networks


@pytest.fixture(scope="module")
def parsers(finetuned, tmp_path_factory):
    """Three checkpoints of other weights each."""
    home, paths = tmp_path_factory.mktemp("parsers"), []
    for i in range(3):
        state = checkpoint.load(finetuned / "best.pt")
        torch.manual_seed(i)
        for tensor in state["model"].values():
            tensor += 0.3 * tensor.std() * torch.randn(tensor.shape) if tensor.dim() > 1 else 0
        checkpoint.save(home / f"{i}.pt", **state)
        paths.append(home / f"{i}.pt")
    return paths


def by_hand(paths, data):
    """(M, N, K, ...) probabilities of each network for all images, and the majority (N, ...) of classes; of
    equal numbers of votes, the class of the higher mean wins."""
    images = data[list(range(len(data)))]["image"].float() / 255
    networks = [restore(checkpoint.load(path, target=None), "cpu") for path in paths]
    with torch.no_grad():
        outputs = [network(images) for network in networks]
    key = "class" if "class" in outputs[0] else "semantic"
    probs = torch.stack([output[key].softmax(1) for output in outputs]).movedim(2, -1).numpy()
    rows = probs.reshape(len(paths), -1, probs.shape[-1])
    preds = []
    for i in range(rows.shape[1]):
        votes = np.bincount(rows[:, i].argmax(1), minlength=rows.shape[-1]).tolist()
        preds.append(max(range(len(votes)), key=lambda k: (votes[k], rows[:, i, k].mean())))
    return torch.tensor(probs).movedim(-1, 2), torch.tensor(preds).view(probs.shape[1:-1])


def figures(tmp_path, *flags):
    """What --json says, but for its lineage: flags and times."""
    run(*flags, "--device", "cpu", "--json", tmp_path / "figures.json")
    found = json.loads((tmp_path / "figures.json").read_text())
    del found["lineage"]
    return found


def test_parsers_vote(folder, parsers, tmp_path, capsys):
    """Soft: by the mean of their probabilities; hard: by majority, which is something else here."""
    data = load(splits.open_data(folder), "val", 32)
    labels = data[list(range(len(data)))]["semantic"]
    num_classes = 11
    found = figures(tmp_path, "--init", *parsers[:2])
    assert found == figures(tmp_path, "--init", *parsers[:2], "--vote", "soft") and found["vote"] == "soft"
    soft = by_hand(parsers[:2], data)[0].mean(0)
    counts = metrics.confusion(soft.argmax(1), labels, num_classes).sum(0)
    assert found["mean_f1"] == pytest.approx(metrics.mean_f1(counts).item(), abs=1e-6)
    calibration = metrics.calibration_counts(soft, labels)
    assert found["ece"] == pytest.approx(metrics.ece(calibration), abs=1e-5)
    assert found["init"] == [str(path) for path in parsers[:2]] and len(found["step"]) == 2
    found = figures(tmp_path, "--init", *parsers, "--vote", "hard")
    probs, majority = by_hand(parsers, data)
    counts = metrics.confusion(majority, labels, num_classes).sum(0)
    assert found["mean_f1"] == pytest.approx(metrics.mean_f1(counts).item(), abs=1e-6)
    assert (majority != probs.mean(0).argmax(1)).any(), "or the test would not tell them apart"
    assert "next:" not in capsys.readouterr().out, "predict.py takes one"


def test_what_a_vote_says():
    """Two networks against one that is surer; and one against one, where the mean decides."""
    probs = torch.tensor([[[0.6, 0.4, 0.0]], [[0.6, 0.4, 0.0]], [[0.0, 0.98, 0.02]]])
    soft, hard = (evaluate.vote(list(probs.log()), how).exp() for how in ("soft", "hard"))
    assert torch.allclose(soft, torch.tensor([[0.4, 0.5933, 0.0067]]), atol=1e-4)
    assert torch.allclose(hard, torch.tensor([[2.4, 1.5933, 0.0067]]) / 4, atol=1e-4)
    tie = evaluate.vote(list(probs[1:].log()), "hard")
    assert tie.argmax(1) == 1 and tie.exp().sum() == pytest.approx(1)
    assert evaluate.vote([probs[0].log()] * 2, "soft").isfinite().all(), "where all give a class nothing"


# ---- classifiers


NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """20 images of 3 classes to test, of more or less their colour, and one of each to train and validate."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 3), ("test", 20)):
        for i in range(count):
            k = i % 3
            (root / split / NAMES[k]).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 200, (20, 20, 3))
            pixels[..., 2 - k] += 55
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / NAMES[k] / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def classifiers(colours, tmp_path_factory):
    """Three checkpoints of untrained networks, as train_classify.py writes them."""
    home = tmp_path_factory.mktemp("classifiers")
    return [untrained(home / f"{i}.pt", i, colours, {"class": 3}) for i in range(3)]


def untrained(path, seed, data, heads, **flags):
    torch.manual_seed(seed)
    model = build_classifier("cnn", heads).state_dict()
    model = {name: tensor * 3 if "heads" in name else tensor for name, tensor in model.items()}
    args = {"model": "cnn", "size": 20, "data": str(data), "val_fraction": 0.15, "leave_out": None}
    args |= {"head": "linear", "dropout": 0.0, **flags}
    meaning = labelled.label_info(labelled.open_images(str(data)))
    state = {"script": "train_classify.py", "args": args, "step": 5, "data": meaning, "model": model}
    checkpoint.save(path, **state)
    return path


@pytest.fixture(scope="module")
def tested(colours):
    return labelled.load(labelled.open_images(str(colours)), "test", 20)


def test_classifiers_vote(classifiers, tested, tmp_path, capsys):
    labels = tested[list(range(20))]["class"]
    probs, majority = by_hand(classifiers, tested)
    assert (majority != probs.mean(0).argmax(1)).any(), "or the test would not tell them apart"
    cases = {None: probs[0], "soft": probs.mean(0), "hard": torch.nn.functional.one_hot(majority)}
    for vote, expected in cases.items():
        files = classifiers[:1] if vote is None else classifiers
        found = figures(tmp_path, "--init", *files, *(["--vote", vote] if vote else []))
        ours = class_metrics.summary({"probs": expected.double(), "labels": labels}, NAMES)
        assert found["confusion"] == ours["confusion"]
        if vote != "hard":  # a vote of each is a one, and ranks nothing
            assert found["map"] == pytest.approx(ours["map"], abs=1e-6)
            assert found["ece"] == pytest.approx(ours["ece"], abs=1e-5)
    assert found["classes"] == NAMES and found["target"] == "class" and found["split"] == "test"
    assert f"accuracy {found['accuracy']:.3f}  macro_f1 " in capsys.readouterr().out


def test_one_without_a_head_for_domains_votes_too(tmp_path):
    """... and a domain that was left out is left out of a copy of the data as well."""
    both = [
        untrained(tmp_path / f"{len(heads)}.pt", len(heads), "shapes", heads, leave_out="noise")
        for heads in ({"class": 10, "domain": 4}, {"class": 10})
    ]
    state = checkpoint.load(both[1], target="class")
    checkpoint.save(both[1], **state | {"data": {**state["data"], "domains": []}})
    found = figures(tmp_path, "--init", *both, "--split", "val")
    assert "domain" not in found and found["n_images"] == 300
    found = figures(tmp_path, "--init", both[1], "--data", "shapes")
    assert found["leave_out"] == "noise" and found["n_images"] == 200


def test_domains_are_scored(tmp_path, capsys):
    """... but not where the only one there is was left out of training."""
    for left_out, split in ((None, "test"), ("noise", "val"), ("noise", "test")):
        heads = {"class": 10, "domain": 4}
        path = untrained(tmp_path / "shapes.pt", 0, "shapes", heads, leave_out=left_out)
        found = figures(tmp_path, "--init", path, "--split", split)
        scored = not (left_out and split == "test")
        assert ("domain" in found) == scored and found["leave_out"] == left_out
        said = capsys.readouterr().out
        assert ("domains are not scored" in said) != scored
        if scored:
            assert f"\ndomain:\naccuracy {found['domain']['accuracy']:.3f}  " in said
            assert sum(map(sum, found["domain"]["confusion"])) == found["n_images"]
            assert list(found["domain"]["f1"]) == found["domains"] and list(found["f1"]) == found["classes"]


def test_mistakes_are_saved(classifiers, tested, tmp_path, complaint, capsys):
    out = tmp_path / "new/errors"
    found = figures(tmp_path, "--init", classifiers[0], "--save-errors", out)
    probs, _ = by_hand(classifiers[:1], tested)
    labels = tested[list(range(20))]["class"].tolist()
    expected = {
        tested.ids[i]: [NAMES[labels[i]], NAMES[k], round(confidence, 4)]
        for i, (confidence, k) in enumerate(zip(*(x.tolist() for x in probs[0].max(1)), strict=True))
        if k != labels[i]
    }
    rows = json.loads((out / "errors.json").read_text())
    assert {r["id"]: [r["truth"], r["guess"], round(r["probability"], 4)] for r in rows} == expected
    assert 1 < len(rows) == 20 - round(20 * found["accuracy"])
    surest = [row["probability"] for row in rows]
    assert surest == sorted(surest, reverse=True)
    picture = np.asarray(Image.open(out / "errors.png"))
    first = tested[[tested.ids.index(rows[0]["id"])]]["image"][0].permute(1, 2, 0).numpy()
    enlarged = first.repeat(7, 0).repeat(7, 1)
    tops = [y for y in range(len(picture) - 140) if (picture[y : y + 140, :140] == enlarged).all()]
    assert len(tops) == 1, "the surest mistake is the first picture"
    assert "errors.png" in capsys.readouterr().out
    said = complaint(evaluate, "--init", classifiers[0], "--save-errors", out)
    assert "holds errors.json already" in said and json.loads((out / "errors.json").read_text()) == rows


def test_without_a_mistake_there_is_no_picture(tested, tmp_path):
    labels = tested[list(range(20))]["class"]
    right = {"probs": torch.nn.functional.one_hot(labels).double(), "labels": labels}
    assert "none" in evaluate.save_errors(tmp_path, tested, right, NAMES)
    assert json.loads((tmp_path / "errors.json").read_text()) == [] and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_vote_is_refused(complaint, parsers, classifiers, colours, folder, tmp_path):
    state = checkpoint.load(classifiers[0], target="class")
    for name, change in (
        ("size", {"args": state["args"] | {"size": 24}}),
        ("classes", {"data": state["data"] | {"classes": NAMES[::-1]}}),
    ):
        other = tmp_path / f"{name}.pt"
        checkpoint.save(other, **state | change)
        said = complaint(evaluate, "--init", classifiers[0], other)
        assert f"--init: {name} of {classifiers[0]}: " in said and str(other) in said
        assert said.count("\n") == 1
    for flags, why in (
        ([classifiers[0], parsers[0]], "target of"),
        ([parsers[0], "--vote", "soft"], "--vote soft: has no effect with one checkpoint"),
        ([parsers[0], "--save-errors", tmp_path / "out"], "has no effect on face parsers"),
        ([classifiers[0], "--part-order", "farl"], "has no effect on images"),
        ([classifiers[0], "--scenes", 2], "--scenes 2: has no effect on images"),
        ([classifiers[0], "--split", "tset"], "tset"),
    ):
        said = complaint(evaluate, "--init", *flags)
        assert why in said and said.count("\n") == 1
    for script, flags in (
        (train_finetune, ["--init", classifiers[0], "--data", folder, "--steps", 1, *TINY]),
    ):
        said = complaint(script, *flags, "--out", tmp_path / "out")
        assert said.count("\n") == 1
        assert "holds a classifier of images, and a face parser or a parser of scenes" in said
    assert not (tmp_path / "out").exists()


# ---- several faces


class Knowing(torch.nn.Module):
    """What is on each of the scenes of a data set; offsets are off by `shift` pixels."""

    def __init__(self, data, num_classes, shift=0.0):
        super().__init__()
        self.data, self.num_classes, self.shift = data, num_classes, shift

    def forward(self, images):
        images = (images * 255).round().byte()
        rows = [int((self.data.batch["image"] == image).flatten(1).all(1).nonzero()) for image in images]
        batch = self.data[rows]
        parts = batch["semantic"].where(batch["semantic"] < 255, 0).long()
        aims = targets(batch["instance"])
        return {
            "semantic": 9 * torch.nn.functional.one_hot(parts, self.num_classes).movedim(-1, 1).float(),
            "center": aims["center"],
            "offset": aims["offset"] + self.shift,
        }


@pytest.fixture
def eight(monkeypatch):
    """... scenes are enough."""
    monkeypatch.setitem(batches.SCENES, "val", 8)


@pytest.fixture(scope="module")
def crowded(finetuned, tmp_path_factory):
    """crowded(model): a checkpoint of a network for scenes of three, whose weights nobody reads."""
    home = tmp_path_factory.mktemp("crowded")
    state = checkpoint.load(finetuned / "best.pt")
    classes = state["data"]["classes"]
    data = state["data"] | {
        "target": "panoptic",
        "things": {"face": list(range(1, len(classes)))},
        "scenes": 3,
    }

    def crowded(model):
        path = home / f"{model}.pt"
        checkpoint.save(path, **state | {"data": data, "args": state["args"] | {"model": model, "scenes": 3}})
        return path

    return crowded


def test_faces_of_scenes_are_counted(crowded, eight, folder, tmp_path, monkeypatch, capsys):
    """By a network that knows them all, in figures and in words; and by two whose offsets are right in the
    mean alone. A network without the heads has no such figures."""
    data = load(splits.open_data(folder, scenes=3), "val", 32)
    truths = [len(set(ids.unique().tolist()) - {0, 255}) for ids in data.batch["instance"]]
    know = {path: Knowing(data, 11, shift) for path, shift in {"a": 0.0, "b": 9.0, "c": -9.0}.items()}
    turns = []
    monkeypatch.setattr(evaluate, "restore", lambda *_: know[turns.pop(0)])
    path = crowded("panoptic_unet")
    turns += "a"
    found = figures(tmp_path, "--init", path)
    assert found["n_images"] == found["panoptic"]["n_images"] == len(data) == 8 and found["scenes"] == 3
    face = found["panoptic"]["per_category"]["face"]
    assert found["panoptic"]["pq"] > 0.95 and face["invented"] == 0, "as good as the targets are"
    assert face["found"] + face["missed"] == sum(truths) and face["found"] > 0.8 * sum(truths)
    assert found["mean_f1"] == 1 and found["panoptic"]["parts"]["mean_f1"] > 0.9
    shares = found["slices"]["share"]
    assert sum(row["n_images"] for row in shares.values()) == 8 and set(shares) <= set(
        evaluate.SHARES.values()
    )
    large = sum((data.shares >= 0.2).tolist())
    assert shares[">20%"]["n_images"] == large > 0 and found["ci95"]["mean_f1"] is None
    said = capsys.readouterr().out
    assert "8 scenes of up to 3 faces" in said and f"pq {found['panoptic']['pq']:.3f}" in said
    assert "largest face" in said and "over people" not in said
    turns += "bc"
    assert figures(tmp_path, "--init", path, path)["panoptic"] == found["panoptic"]
    turns += "bb"
    assert figures(tmp_path, "--init", path, path)["panoptic"]["pq"] < found["panoptic"]["pq"]
    for files in ([path, crowded("unet")], [crowded("unet")]):
        turns += "a" * len(files)
        less = figures(tmp_path, "--init", *files)
        assert "panoptic" not in less and less["slices"]["share"] == shares
        named = (
            f"no panoptic quality: no instances are told apart by {files[-1]}\n" in capsys.readouterr().out
        )
        assert named == (len(files) > 1)


def test_what_is_no_scene_is_scored_as_it_is(crowded, finetuned, eight, folder, tmp_path, complaint, capsys):
    """A parser of single faces on scenes, where it is asked for; a network for scenes on other data, or on
    single photos, where nobody knows instances."""
    plain = figures(tmp_path, "--init", finetuned / "best.pt", "--scenes", 2)
    assert plain["n_images"] == 8 and plain["scenes"] == 2 and plain["slices"]["share"]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    single = figures(tmp_path, "--init", finetuned / "best.pt")
    own = figures(tmp_path, "--init", crowded("unet_gn"), "--scenes", 0)
    other = figures(tmp_path, "--init", crowded("unet_gn"), "--data", copy)
    assert capsys.readouterr().out.count(evaluate.AS_THEY_ARE) == 1, (
        "of other data; of its own 0 was asked for"
    )
    for found in (own, other):
        assert "scenes" not in found and not found["slices"]["share"]
        assert found["per_class"] == single["per_class"]
    both = figures(tmp_path, "--init", crowded("unet_gn"), finetuned / "best.pt", "--scenes", 0)
    assert both["per_class"] == single["per_class"], "they vote together"
    said = complaint(evaluate, "--init", crowded("unet"), "--split", "train")
    assert "scenes to train on have no end" in said and said.count("\n") == 1
    flags = ["--teacher", crowded("unet"), "--unlabelled", folder, "--out", tmp_path / "student"]
    said = complaint(train_student, *flags)
    assert "holds a parser of scenes or instances, and a face parser or a classifier of images" in said


def test_faces_of_photos_as_they_are_are_not_counted(crowded, eight, folder, tmp_path, monkeypatch, capsys):
    """... and a line says so, and what counts them."""
    monkeypatch.setattr(evaluate, "restore", lambda *_: build_model("panoptic_unet", 11))
    shutil.copytree(folder, tmp_path / "copy")
    for flags in (["--scenes", 0], ["--data", tmp_path / "copy"]):
        assert "panoptic" not in figures(tmp_path, "--init", crowded("panoptic_unet"), *flags)
        said = capsys.readouterr().out
        assert said.count(evaluate.NOT_COUNTED) == 1 and evaluate.AS_THEY_ARE not in said
    assert "panoptic" in figures(tmp_path, "--init", crowded("panoptic_unet"), "--scenes", 1)
    assert evaluate.NOT_COUNTED not in capsys.readouterr().out


def test_a_checkpoint_of_another_split_is_named(classifiers, tmp_path, capsys):
    state = checkpoint.load(classifiers[0], target="class")
    checkpoint.save(tmp_path / "b.pt", **state | {"args": state["args"] | {"val_fraction": 0.3}})
    run("--init", *classifiers[:2], "--device", "cpu")
    assert "another split" not in capsys.readouterr().out
    run("--init", *classifiers[:2], tmp_path / "b.pt", "--device", "cpu")
    said = [line for line in capsys.readouterr().out.splitlines() if "another split than" in line]
    assert len(said) == 1 and said[0].endswith(f": {tmp_path / 'b.pt'}")


def test_predict_guesses_what_evaluate_scores(classifiers, tested, colours, complaint, tmp_path):
    out = tmp_path / "guesses"
    flags = ["--init", classifiers[0], colours / "test", "--recursive", "--out", out]
    predict.main(predict.get_parser().parse_args([str(flag) for flag in flags]))
    guesses = json.loads((out / "guesses.json").read_text())
    probs = by_hand(classifiers[:1], tested)[0][0]
    for name, row in zip(tested.ids, probs.tolist(), strict=True):
        found = guesses[name.removeprefix("test/")]["class"]
        assert list(found.values()) == sorted(found.values(), reverse=True) and set(found) == set(NAMES)
        assert [found[name] for name in NAMES] == pytest.approx(row, abs=1e-5)
    assert "holds guesses.json already" in complaint(predict, *flags)
    assert "--box 1.0" in complaint(predict, *flags, "--overwrite", "--box", 1, 1, 5, 5)
    (tmp_path / "page.jpg").write_text("<html>")
    said = complaint(predict, "--init", classifiers[0], tmp_path / "page.jpg", "--out", tmp_path / "other")
    assert "1 of 1 photos left out" in said and (tmp_path / "other" / "guesses.json").exists()
