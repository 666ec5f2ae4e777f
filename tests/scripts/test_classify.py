"""train_classify.py: its schedules, what stays and what moves, where it goes on from, and what it refuses."""

import json
import shlex
import shutil
import signal

import numpy as np
import pytest
import torch
from conftest import draw_pictures, logged, weights
from PIL import Image

import evaluate
import train_classify
import train_reward
import train_scores
from train_classify import Bootstrap, grown, progress_at, rate_at
from utils import checkpoint

SMALL = ["--model", "cnn", "--size", 16, "--batch-size", 4, "--device", "cpu"]


def train(out, *flags):
    """A run in this process, to its end; its folder."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    parser = train_classify.get_parser()
    train_classify.main(parser.parse_args([str(flag) for flag in [*flags, "--out", out]]))
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return out


def model_of(out):
    return weights(out / "last.pt")["model"]


def args_of(out):
    return json.loads((out / "args.json").read_text())["args"]


def figures(out, name):
    return [row[name] for row in logged(out) if name in row]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Images without domains."""
    return draw_pictures(tmp_path_factory.mktemp("plain") / "data", ["."], ["cat", "cow"], 3)


@pytest.fixture(scope="module")
def base(pictures, tmp_path_factory):
    """A run of two steps on `pictures`."""
    out = tmp_path_factory.mktemp("base") / "run"
    return train(out, "--data", pictures, "--steps", 2, *SMALL)


@pytest.fixture
def seen(monkeypatch):
    """{what: [of each step]} of the runs that follow: what the loop gives to the functions it calls."""
    seen = {"index": [], "scale": [], "dropout": [], "size": []}
    augment, build = train_classify.augment, train_classify.build_classifier

    def augment_and_note(batch, policy, *more):
        seen["index"].append(batch["index"].tolist())
        seen["scale"].append(policy["scale"])
        seen["dropout"].append([m.p for m in seen["model"].modules() if isinstance(m, torch.nn.Dropout)])
        return augment(batch, policy, *more)

    def build_and_note(*how):
        seen["model"] = build(*how)
        seen["model"].register_forward_pre_hook(note_size)
        return seen["model"]

    def note_size(model, inputs):
        if model.training:
            seen["size"].append(inputs[0].shape[-1])

    monkeypatch.setattr(train_classify, "augment", augment_and_note)
    monkeypatch.setattr(train_classify, "build_classifier", build_and_note)
    return seen


# ---- schedules


def test_rates():
    cosine = [rate_at("cosine", step, 105, 2.0) for step in (0, 4, 5, 30, 55, 80)]  # 5 of warm-up, then 100
    assert cosine == pytest.approx([0.4, 2, 2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5])
    halves = [rate_at("step", step, 12, 2.0) for step in range(12)]
    assert halves == [2, 2, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]
    assert {rate_at("constant", step, 12, 2.0) for step in range(12)} == {2.0}


def test_stages():
    progress = [progress_at(step, 10, 4) for step in range(10)]
    assert progress == [0, 0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1, 1]
    assert {progress_at(step, 10, 1) for step in range(10)} == {1}
    assert [grown(0.25, progress) for progress in (0, 0.5, 1)] == [0.25, 0.625, 1]


def test_a_progressive_run_grows(pictures, seen, tmp_path):
    flags = ["--steps", 8, "--eval-every", 2, "--progressive", 4, "--augment", "trivial"]
    out = train(tmp_path / "run", "--data", pictures, *flags, *SMALL, "--size", 40, "--dropout", 0.6)
    assert figures(out, "train/size") == seen["size"][::2] == seen["size"][1::2] == [17, 25, 32, 40]
    assert seen["scale"][::2] == seen["scale"][1::2] == pytest.approx([1 / 3, 5 / 9, 7 / 9, 1])
    for p in zip(*seen["dropout"], strict=True):  # of each head
        assert p[::2] == p[1::2] == pytest.approx([0.2, 1 / 3, 7 / 15, 0.6])


# ---- what stays and what moves


@pytest.mark.parametrize(
    ("what", "prefix"), [("1", "backbone.features.0."), ("backbone", "backbone."), ("none", "nothing")]
)
def test_what_is_frozen_stays_bit_for_bit(what, prefix, base, pictures, tmp_path):
    before = weights(base / "best.pt")["model"]
    after = model_of(
        train(tmp_path / "run", "--init", base / "best.pt", "--freeze", what, "--steps", 2, *SMALL)
    )
    stays = {name for name in before if torch.equal(before[name], after[name])}
    assert stays == {name for name in before if name.startswith(prefix)}
    assert what != "1" or "backbone.features.0.3.running_mean" in stays


def test_the_backbone_has_a_rate_of_its_own(base, tmp_path):
    """... and a head of no weight is none."""
    still = ["--backbone-lr-scale", 0, "--optimizer", "sgd", "--schedule", "constant", "--steps", 1]
    still += ["--loss", "class=1", "domain=0"]
    out = train(tmp_path / "run", "--init", base / "best.pt", *still, *SMALL)
    before, after = weights(base / "best.pt")["model"], model_of(out)
    assert weights(out / "best.pt")["data"]["domains"] == []
    assert before.keys() - after.keys() == {"heads.domain.1.weight", "heads.domain.1.bias"}
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert all(name.startswith("heads.") or "running" in name or "tracked" in name for name in moved)
    assert "heads.class.1.weight" in moved and "backbone.features.0.3.running_mean" in moved


def test_labels_follow_mixed_styles(pictures, tmp_path):
    """On a frozen backbone too, which mixes all the same."""
    flags = ["--data", pictures, "--steps", 4, "--eval-every", 1, *SMALL, "--freeze", "backbone"]
    flags += ["--loss", "class=1", "domain=3"]
    ways = {"none": [], "follow": ["--mixstyle", 1], "hard": ["--mixstyle", 1, "--domain-labels", "hard"]}
    outs = {way: train(tmp_path / way, *flags, *more) for way, more in ways.items()}
    _, follow, hard = (figures(out, "loss/domain") for out in outs.values())
    first = [a == b for a, b in zip(follow, hard, strict=True)].index(False)  # domains mixed, and visibly
    none, follow, hard = (figures(out, "loss/class") for out in outs.values())
    assert follow[: first + 1] == hard[: first + 1] != none[: first + 1]
    whole, first, second = (
        figures(outs["hard"], name) for name in ("train/loss", "loss/class", "loss/domain")
    )
    assert whole == pytest.approx([a + 3 * b for a, b in zip(first, second, strict=True)], abs=1e-4)
    none, follow, hard = (model_of(out) for out in outs.values())
    assert none.keys() == follow.keys()
    assert not torch.equal(follow["heads.domain.1.weight"], hard["heads.domain.1.weight"])


def test_a_bootstrap_draws_with_replacement(pictures, seen, tmp_path):
    rows = Bootstrap(range(20), 3).rows
    assert len(rows) == 20 and set(rows) < set(range(20)) and rows == Bootstrap(range(20), 3).rows
    assert rows != Bootstrap(range(20), 4).rows
    flags = ["--data", pictures, "--limit", 20, "--steps", 5, "--seed", 3, *SMALL]  # all images once
    for name, more, expected in (("plain", [], range(20)), ("bootstrap", ["--bootstrap"], rows)):
        seen["index"].clear()
        train(tmp_path / name, *flags, *more)
        assert sorted(sum(seen["index"], [])) == sorted(expected)


# ---- data


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def digits(root):
    """MNIST of 60 images to train on and 10 to test."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 10)):
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
        (root / f"{name}-images-idx3-ubyte").write_bytes(idx(pixels))
        (root / f"{name}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    return root


def test_mnist_has_its_recipe(tmp_path):
    (tmp_path / "data").mkdir()
    flags = ["--steps", 2, "--device", "cpu", "--batch-size", 8]
    out = train(tmp_path / "run", "--data", digits(tmp_path / "data"), *flags)
    found = args_of(out)
    assert {key: found[key] for key in train_classify.ON_MNIST} == train_classify.ON_MNIST | {"steps": 2}
    assert found["loss"] == ["class=1"] and weights(out / "best.pt")["data"]["classes"] == list("0123456789")


def test_folders_of_splits_and_nobody_validates(plain, tmp_path, capsys):
    """The last step is the best one, then. What comes next is named where there is something to score."""
    root = draw_pictures(tmp_path / "data", ["train", "val", "test"], ["cat", "cow"], 4)
    flags = ["--val-fraction", 0, "--steps", 3, "--eval-every", 2, *SMALL]
    out = train(tmp_path / "run", "--data", root, *flags)
    assert "8 train, 0 val" in (said := capsys.readouterr().out) and "step 3, the last one" in said
    best, last = weights(out / "best.pt"), weights(out / "last.pt")
    assert best["step"] == 3 and all(
        torch.equal(best["model"][name], last["model"][name]) for name in best["model"]
    )
    evaluate.main(evaluate.get_parser().parse_args(["--init", str(out / "best.pt"), "--device", "cpu"]))
    assert "next: " in said and "test: 8 images" in capsys.readouterr().out
    train(tmp_path / "plain", "--data", plain, *flags)
    assert "6 train, 0 val" in (said := capsys.readouterr().out) and "next: " not in said


def test_a_domain_left_out_is_the_test(pictures, plain, tmp_path):
    """... and of runs from there on the same data."""
    flags = ["--leave-out", "photo", "--steps", 2, *SMALL]
    out = train(tmp_path / "run", "--data", pictures, *flags)
    facts = json.loads((out / "data.json").read_text())
    assert all(facts[split]["domains"]["photo"] == 0 for split in ("train", "val"))
    assert args_of(out)["loss"] == ["class=1"] and not [n for n in model_of(out) if "heads.domain" in n]
    flags = ["--init", out / "best.pt", "--json", tmp_path / "test.json", "--device", "cpu"]
    evaluate.main(evaluate.get_parser().parse_args([str(flag) for flag in flags]))
    found = json.loads((tmp_path / "test.json").read_text())
    assert found["n_images"] == 18 and found["leave_out"] == "photo" and "domain" not in found
    assert found["support"] == {"cat": 6, "cow": 6, "dog": 6}
    for data, expected in ((pictures, "photo"), (plain, None)):
        flags = ["--init", out / "best.pt", "--data", data, "--steps", 1, *SMALL]
        assert args_of(train(tmp_path / f"on {data.name}", *flags))["leave_out"] == expected


# ---- from an earlier run


def test_a_head_goes_on_by_its_names(base, pictures, tmp_path, capsys):
    """At a rate at which nothing moves."""
    before = weights(base / "best.pt")["model"]
    still = ["--init", base / "best.pt", "--freeze", "backbone", "--lr", "1e-30", "--steps", 1, *SMALL]
    after = model_of(train(tmp_path / "same", *still))
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    assert "begun anew" not in capsys.readouterr().out
    other = draw_pictures(tmp_path / "data", ["photo", "sketch"], ["bee", "cow", "cat"], 3)
    after = model_of(train(tmp_path / "other", *still, "--data", other))
    assert "begun anew, of other names: bee, sketch" in capsys.readouterr().out
    for part in ("weight", "bias"):
        old, new = (state[f"heads.class.1.{part}"] for state in (before, after))
        assert torch.equal(new[[1, 2]], old[[0, 1]])  # cat, cow
        assert not any(torch.equal(new[0], row) for row in old)
        old, new = (state[f"heads.domain.1.{part}"] for state in (before, after))
        assert torch.equal(new[0], old[1]) and not torch.equal(new[1], old[0])


def test_who_trains_classifiers_and_who_parsers(base, folder, finetuned, complaint, tmp_path):
    said = complaint(train_classify, "--init", finetuned / "best.pt", "--out", tmp_path / "run")
    assert "holds a face parser, and a classifier of images is needed" in said and said.count("\n") == 1
    alone = ["--unlabelled", folder, "--reward", "anatomy", "--estimator", "rloo", "--score-budget", 999]
    for script, flags in ((train_reward, ["--data", folder]), (train_scores, alone)):
        said = complaint(script, "--init", base / "best.pt", *flags, "--out", tmp_path / "run")
        assert "holds a classifier of images, and a face parser is needed" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_from_shapes_to_figures(call, tmp_path):
    """... by the commands that each names next."""
    out, errors = tmp_path / "run", tmp_path / "errors"
    said = call(
        "train_classify.py", "--data", "shapes", "--limit", 40, "--steps", 2, *SMALL, "--out", out
    ).stdout
    assert "shapes (shapes): 40 train, 400 val" in said
    python, *command = shlex.split(said.split("next:")[1])
    said = call(*command, "--split", "test", "--save-errors", errors, "--device", "cpu").stdout
    assert python == "python" and "shapes test: 800 images" in said and "\ndomain:\n" in said
    assert len(json.loads((errors / "errors.json").read_text())) > 0 and (errors / "errors.png").is_file()
    names = {"best.pt", "last.pt", "args.json", "data.json", "metrics.jsonl", "train_batch.png", "val.png"}
    assert names <= {path.name for path in out.iterdir()}


# ---- mistakes

MISTAKES = [
    (["--data", "nowhere"], "nowhere: no such folder"),
    ([], "--data or --init is needed"),
    (["--loss", "domain=1"], "--loss domain=1: class needs a weight above zero"),
    (["--loss", "class=0", "domain=1"], "class needs a weight above zero"),
    (["--data", "{plain}", "--loss", "class=1", "domain=1"], "has no domains"),
    (["--loss", "semantic=1"], "names from class, domain"),
    (["--model", "resnet19"], "Did you mean resnet1"),
    (["--weights", "imagenet"], "cnn has no imagenet weights"),
    (["--weights", "nowhere.pt"], "nowhere.pt"),
    (["--stochastic-depth", "0.2"], "cnn has no stochastic depth"),
    (["--mixstyle", "2"], "no MixStyle after stage 2: this network has 2 stages"),
    (["--freeze", "3"], "this model has 2"),
    (["--data", "shapes", "--val-fraction", "0.2"], "shapes, which has a validation split"),
    (["--limit", "99"], "limit 99: there are only 23 images"),
    (["--limit", "2"], "no image of"),
    (["--leave-out", "oil"], "it has paint, photo"),
    (["--data", "{plain}", "--leave-out", "oil"], "it has no domains"),
    (["--domain-labels", "hard"], "has no effect without --mixstyle"),
    (["--mixstyle", "1", "--leave-out", "photo", "--domain-labels", "hard"], "without domain in --loss"),
    (["--mixstyle", "1", "--batch-size", "1"], "has no effect on one image"),
    (["--init", "{base}", "--leave-out", "photo"], "best.pt was trained on that domain"),
    (["--init", "{base}", "--val-fraction", "0.5"], "was trained on images of these"),
    (["--augment", "trivail"], "trivial"),
    (["--init", "{base}", "--weights", "imagenet"], "beside --init, which has weights"),
    (["--init", "{base}", "--head", "mlp"], "holds cnn with the head linear"),
    (["--init", "{base}", "--freeze", "backbone", "--backbone-lr-scale", "0.1"], "backbone that is frozen"),
    (["--dropout", "1"], "from 0 to below 1"),
    (["--progressive", "0"], "from 1 to"),
    (["--progressive", "2"], "--progressive 2: needs as many --steps; there are 1"),
    (
        ["--progressive", "2", "--steps", "2"],
        "--size 16 --progressive 2: this network takes no images of 7 x 7 pixels",
    ),
]


@pytest.mark.parametrize(("flags", "named"), MISTAKES)
def test_a_mistake_gets_one_line(flags, named, complaint, pictures, plain, base, tmp_path):
    flags = [flag.format(plain=plain, base=base / "best.pt") for flag in flags]
    data = [] if not flags or {"--data", "--init"} & {*flags} else ["--data", pictures]
    model = [] if "--model" in flags or not flags else ["--model", "cnn"]
    short = ["--size", 16, "--steps", 1]  # should a mistake not be noticed
    said = complaint(train_classify, *data, *model, *short, *flags, "--out", tmp_path / "run")
    assert named in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists(), "what was refused leaves nothing behind"


def test_a_class_that_none_trains_is_named(pictures, complaint, tmp_path):
    root = draw_pictures(tmp_path / "data", ["train", "val"], ["cat", "cow"], 2)
    draw_pictures(tmp_path / "data", ["val"], ["dog"], 2)
    said = complaint(train_classify, "--data", root, "--out", tmp_path / "run", *SMALL)
    assert "train: no image of dog among 4 images" in said


def test_a_resumed_run_has_the_images_that_it_began_with(base, pictures, complaint, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, data)
    shutil.copytree(base, out)
    state = checkpoint.load(out / "last.pt", target="class")
    checkpoint.save(out / "last.pt", **state | {"args": state["args"] | {"steps": 9, "out": str(out)}})
    changed = data / "photo" / "cow" / "2.png"
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    kept = (out / "last.pt").read_bytes()
    said = complaint(train_classify, "--resume", "--out", out, "--data", data)
    assert "1 with another photo, mask or class (" in said and "photo/cow/2" in said
    assert (out / "last.pt").read_bytes() == kept
