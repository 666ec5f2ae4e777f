"""A student of a classifier: what it is taught, that a run goes on, what comes next, what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_run, logged, tags, weights, write
from PIL import Image

import train_student
from datasets import batches, labelled, shapes
from datasets.augmentation import augment
from datasets.policies import load_policy
from models import restore
from models.classifier import build_classifier
from utils import checkpoint

NAMES = ["dark", "light", "striped"]
SIZE = 16


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Eight images of each class to train on, two to test, and a folder of others in no order."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k, name in enumerate(NAMES):
        for i in range(16):
            pixels = rng.integers(0, 120, (SIZE, SIZE, 3)) + (0, 120, 0)[k]
            pixels[:: 2 if k == 2 else SIZE] += 100
            split = "train" if i < 8 else "test"
            path = root / "set" / split / name / f"{i}.png" if i < 10 else root / "others" / f"{name}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def others(tree):
    return tree / "others"


@pytest.fixture(scope="module")
def teacher(tree):
    return trained(tree / "teacher.pt", tree / "set", NAMES)


def trained(path, home, names, domains=(), seed=0, steps=6, **flags):
    """A checkpoint as train_classify.py writes it, of a network that has seen a little."""
    torch.manual_seed(seed)
    heads = {"class": len(names)} | ({"domain": len(domains)} if domains else {})
    network = build_classifier("cnn", heads, head="mlp")
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(steps):
        data = labelled.load(labelled.open_images(str(home)), "train", SIZE)
        batch = data[list(range(len(data)))]
        optimizer.zero_grad()
        F.cross_entropy(network(batch["image"].float() / 255)["class"], batch["class"]).backward()
        optimizer.step()
    args = {"model": "cnn", "head": "mlp", "dropout": 0.0, "size": SIZE, "augment": "flip"}
    args |= {"data": str(home), "val_fraction": 0.2, "leave_out": None, **flags}
    meaning = {"name": "folder", "target": "class", "classes": names, "domains": list(domains)}
    model = network.state_dict()
    checkpoint.save(path, script="train_classify.py", args=args, step=1, data=meaning, model=model)
    return path


# ---- what it is taught


@pytest.mark.parametrize(("how", "flip"), [("hard", 0.5), ("soft", 0.5), ("soft", 0)])
def test_the_first_loss_is_what_the_equations_say(how, flip, student, teacher, tree, others, tmp_path):
    """Written out image by image, of a student that still equals the first of its two teachers; a box of
    another image is in each, and a mirror image is looked at only where the policy mirrors."""
    other = trained(tmp_path / "other.pt", tree / "set", NAMES, seed=1)
    networks = [restore(checkpoint.load(file, target=None), "cpu") for file in (teacher, other)]

    @torch.no_grad()
    def probs_of(images, networks=networks):
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return torch.stack([network(images)["class"].double().softmax(1) for network in networks]).mean(0)

    images = labelled.open_images(str(tree / "set"), 0.2)
    opened = labelled.open_unlabelled(str(others), NAMES, 0.2, images, str(tree / "set"))
    own, photos = labelled.load(images, "train", SIZE), labelled.load(opened, "unlabelled", SIZE)
    own = own[next(iter(batches.Order(len(own), 4, 0, 0, 1)))]
    photos = photos[next(iter(batches.Order(len(photos), 4, 1, 0, 1)))]
    said = probs_of(photos["image"])
    if flip:
        said = (said + probs_of(photos["image"].flip(-1))) / 2
    sure = said.max(1).values.sort().values
    gap = sure.diff().argmax()
    threshold = sure[gap : gap + 2].mean().item()  # some are surer, others less
    assert sure[gap] + 1e-4 < threshold < sure[gap + 1] - 1e-4

    box = {"name": "cutmix", "m_pos": 0.7}
    policy = write(tmp_path / "policy.json", {"flip": flip, "ops": [box]})
    flags = ["--target", "soft"] if how == "soft" else ["--threshold", threshold, "--keep", 0]
    flags += ["--batch-size", 8, "--distill", 0.5, "--temperature", 3, "--augment", policy, "--steps", 1]
    out = student("--teacher", teacher, other, "--unlabelled", others, *flags)

    strong = load_policy(str(policy), "class")
    given = F.one_hot(own["class"], 3).float()
    own = augment({"image": own["image"], "class": given}, strong, 0, torch.arange(4), {})
    shares = torch.zeros(4, 3)
    for row, p in enumerate(said):
        if p.max() >= threshold:
            shares[row, p.argmax()] = 1
    if how == "soft":
        shares = (said ** (1 / 3) / (said ** (1 / 3)).sum(1, keepdim=True)).float()
    seen = augment({"image": photos["image"], "class": shares}, strong, 0, torch.arange(4, 8), {})
    assert ((own["class"] > 0.01).sum(1) > 1).any(), "labels are mixed"
    if how == "hard":
        assert (seen["class"].sum(1) < 0.99).any(), "what is not sure teaches nothing, by its share"
    log_probs = {name: probs_of(x["image"], networks[:1]).log() for name, x in (("own", own), ("seen", seen))}

    def distance(target, log_p):
        """T^2 KL at T = 3, of log probabilities at 1."""
        log_q = (log_p / 3).log_softmax(0)
        return 9 * (target * (target.log() - log_q)).sum().item()

    expected = {"loss/labelled": [], "loss/kd": [], "loss/unlabelled": []}
    for row in range(4):
        expected["loss/labelled"].append(-(own["class"][row] * log_probs["own"][row]).sum().item())
        target = probs_of(own["image"])[row] ** (1 / 3)
        expected["loss/kd"].append(distance(target / target.sum(), log_probs["own"][row]))
        share, log_p = seen["class"][row].double(), log_probs["seen"][row]
        hard = -(share * log_p).sum().item()
        expected["loss/unlabelled"].append(hard if how == "hard" else distance(share, log_p))
    found = tags(out)
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.mean(values), abs=2e-5), name
    mean = {name: np.mean(values) for name, values in expected.items()}
    total = ((mean["loss/labelled"] + mean["loss/kd"]) / 2 + mean["loss/unlabelled"]) / 2
    assert found["train/loss"] == pytest.approx(total, abs=2e-5)


# ---- killed and resumed, and what comes next


CASES = {
    "follows": ["--order", "confidence"],
    "fresh": ["--ema", 0, "--students", "cnn_plain", "cnn", "--target", "soft", "--order", "random"],
}


@pytest.mark.parametrize("case", CASES)
def test_killed_in_any_round_it_is_the_run_never_killed(case, student, tree, others, tmp_path, monkeypatch):
    """... of a teacher with dropout, after its checkpoint of a step, of which 2 is at the end of a round."""
    save_run = checkpoint.save_run
    kept = {}

    def keep(out, state, *rest):
        save_run(out, state, *rest)
        kept[state["step"]] = shutil.copytree(out, tmp_path / f"killed {state['step']}")

    monkeypatch.setattr(train_student, "vanished", lambda *_: None)  # so short a run learns nothing
    monkeypatch.setattr(checkpoint, "save_run", keep)
    drops = trained(tmp_path / "drops.pt", tree / "set", NAMES, dropout=0.3)
    flags = ["--teacher", drops, "--unlabelled", others, *CASES[case], "--rounds", 2, "--steps", 4]
    whole = student(*flags, "--eval-every", 1)
    monkeypatch.setattr(checkpoint, "save_run", save_run)
    for step in (2, 3):
        (kept[step] / "metrics.jsonl").write_text((whole / "metrics.jsonl").read_text())
        student("--resume", out=kept[step].name)
        assert_same_run(whole / "last.pt", kept[step] / "last.pt")
        untimed = [
            [{k: v for k, v in row.items() if "time/" not in k} for row in logged(run)]
            for run in (whole, kept[step])
        ]
        assert untimed[0] == untimed[1]
    saved = weights(whole / "last.pt")["args"]
    assert (saved["model"], saved["head"], saved["dropout"]) == ("cnn", "mlp", 0.3)
    models = [weights(run / "last.pt")["args"]["model"] for run in (kept[1], whole)]
    assert models == (["cnn_plain", "cnn"] if case == "fresh" else ["cnn", "cnn"])


def test_it_logs_and_goes_on_to_the_next_script(student, call, others, tmp_path, capsys):
    flags = ["--augment", "trivial", "--threshold", 0.4, "--steps", 4, "--eval-every", 2]
    out = student("--unlabelled", others, *flags)
    assert "% of the images are sure" in capsys.readouterr().out
    found = tags(out)
    assert sum(found[f"pseudo/share/{name}"] for name in NAMES) == pytest.approx(1, abs=1e-4)
    assert {"pseudo/agreement", "val/macro_f1", "val/f1/dark", "loss/unlabelled", "round"} <= set(found)
    assert "pseudo/mean_f1" not in found and "order/yaw" not in found
    for name in ("train_batch.png", "pseudo.png", "val.png"):
        assert np.asarray(Image.open(out / name)).std() > 20
    scored = tmp_path / "val.json"
    call("evaluate.py", "--init", out / "last.pt", "--split", "val", "--json", scored, "--device", "cpu")
    assert json.loads(scored.read_text())["accuracy"] == pytest.approx(found["val/accuracy"], abs=1e-5)
    best = weights(out / "best.pt")
    assert best["best"] == {"step": best["step"], "accuracy": best["best"]["accuracy"]}
    again = student("--teacher", out / "last.pt", "--distill", 0.5, "--steps", 1, out="again")
    assert weights(again / "last.pt")["args"]["augment"] == "trivial", "as its teacher's, where none is given"


def test_domains_are_left_to_the_teacher(student, tmp_path):
    """The student of a network with a head for domains has none; a domain that was left out still tests."""
    flags = {"leave_out": "noise", "size": 16}
    told = trained(tmp_path / "told.pt", "shapes", shapes.CLASSES, shapes.DOMAINS, steps=0, **flags)
    out = student("--teacher", told, "--unlabelled", "shapes", "--limit", 40, "--steps", 1)
    saved = weights(out / "last.pt")
    assert saved["data"]["domains"] == [] and not [name for name in saved["model"] if "domain" in name]
    assert saved["args"]["leave_out"] == "noise"
    known = json.loads((out / "data.json").read_text())
    assert known["train"]["domains"]["noise"] == 0 and known["unlabelled"]["photos"] == 1000


# ---- who trains nothing, and mistakes


def test_those_who_test_or_validate_are_not_among_the_images(tree, others, tmp_path):
    path = str(tree / "set")
    images = labelled.open_images(path, 0.2)
    own = labelled.open_unlabelled(path, NAMES, 0.2, images, path).splits["unlabelled"]
    assert {s.id for s in own} == {s.id for s in images.splits["train"]} and len(images.splits["val"]) > 2
    assert all(s.label is None for s in own)
    held = images.splits["val"][0].image
    mixed = tmp_path / "mixed"
    shutil.copytree(others, mixed)
    shutil.copy(held, mixed / "copy.png")
    opened = labelled.open_unlabelled(str(mixed), NAMES, 0.2, images, path)
    assert len(opened.splits["unlabelled"]) == 18, "a copy of one that validates is left out"
    two = tmp_path / "two"  # a data set of other classes, which has a test split
    for name, part in (("cats", "train"), ("dogs", "train"), ("cats", "test")):
        (two / part / name).mkdir(parents=True)
    for place, i in (("train/cats", 10), ("train/dogs", 11), ("train/dogs", 12), ("test/cats", 13)):
        shutil.copy(others / f"dark{i}.png", two / place)
    opened = labelled.open_unlabelled(str(two), NAMES, 0.0, images, path)
    data = labelled.load(opened, "unlabelled", SIZE)
    assert len(data) == 3 and set(data[[0]]) == {"image", "index"} and data.counts.shape == (3, 4)
    assert not data.counts.any()
    shutil.copy(two / "test/cats/dark13.png", two / "train/dogs/renamed.png")
    with pytest.raises(labelled.UserError, match="1 image of a test split.*renamed.png = test/cats/dark13"):
        labelled.open_unlabelled(str(two), NAMES, 0.0, images, path)


MISTAKES = [
    (["--unlabelled", "{others}", "--order", "yaw"], "--order yaw: of 18 photos nobody knows the yaw"),
    (
        ["--teacher", "{best}", "{renamed}"],
        "--teacher: classes of {best}: dark light striped; of",
    ),
    (
        ["--teacher", "{best}", "{parser}"],
        "target of {best}: a classifier of images; of {parser}: a face",
    ),
    (["--teacher", "{renamed}"], "other classes: the teacher's are dark light spotted, those of --data dark"),
    (["--unlabelled", "{tested}"], "1 image of a test split, byte for byte"),
    (["--unlabelled", "{others}", "--students", "unet"], "no classifier is called unet"),
    (["--unlabelled", "{others}", "--students", "densenet121"], "takes no images of 16 x 16 pixels"),
    (["--unlabelled", "{root}/none"], "none: no such folder"),
    (["--synthetic", "0.5"], "--synthetic 0.5: has no effect on images with classes"),
    (["--ids", "ids.json"], "--ids ids.json: has no effect on images with classes"),
    (["--allow-empty", "dark"], "--allow-empty dark: has no effect on images with classes"),
]


@pytest.fixture(scope="module")
def files(tree, teacher, tmp_path_factory):
    """Teachers that differ in one thing each, and a folder with an image that tests, under another name."""
    home = tmp_path_factory.mktemp("files")
    renamed = trained(home / "renamed.pt", tree / "set", [*NAMES[:2], "spotted"])
    state = checkpoint.load(teacher, target=None)
    state["data"] = {"classes": NAMES, "colors": [[0, 0, 0]] * 3, "flip_pairs": []}
    state["args"] |= {"part_order": "canonical"}
    checkpoint.save(home / "parser.pt", **state)
    shutil.copytree(tree / "others", home / "tested")
    shutil.copy(tree / "set/test/light/9.png", home / "tested/new.png")
    found = {"best": teacher, "renamed": renamed, "parser": home / "parser.pt", "tested": home / "tested"}
    return {**found, "others": tree / "others", "root": home}


@pytest.mark.parametrize(("flags", "named"), MISTAKES)
def test_a_mistake_gets_one_line(flags, named, complaint, files, tmp_path):
    flags = [flag.format(**files) for flag in flags]
    if "--teacher" not in flags:
        flags += ["--teacher", files["best"]]
    said = complaint(train_student, *flags, "--device", "cpu", "--out", tmp_path / "run")
    assert named.format(**files) in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists(), "what was refused leaves nothing behind"
