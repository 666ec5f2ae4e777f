"""augment.py as its users run it: a search killed and going on, what it never reads, what it writes."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from conftest import lineage_of, weights
from PIL import Image

import augment
from datasets import policies, splits, synthetic
from datasets.augmentation import augment as apply
from datasets.cache import CachedFaces
from datasets.operations import GEOMETRY
from datasets.pairs import augmented, write_pairs
from utils.errors import UserError
from utils.files import sha256

QUICK = ["--size", "32", "--steps", "3", "--folds", "2", "--arms", "trivial", "--device", "cpu"]
QUICK += ["--model", "unet_gn", "--batch-size", "4", "--jobs", "2"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Four people, two photos of each to train on, and a test split that cannot be read."""
    root = tmp_path_factory.mktemp("faces")
    batch = synthetic.faces(0, torch.arange(8), 32, "fasseg")
    groups = {}
    for split in ("train", "test"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
    for i in range(8):
        pixels = batch["image"][i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / f"train/images/{i}.png")
        Image.fromarray(batch["semantic"][i].numpy()).save(root / f"train/labels/{i}.png")
        groups[str(i)] = f"person {i // 2}"
    (root / "test/images/a.png").write_bytes(b"sealed")
    (root / "test/labels/a.png").write_bytes(b"sealed")
    classes = {"classes": synthetic.SCHEMES["fasseg"].classes, "groups": groups}
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def test_a_killed_search_ends_with_the_same_policy_and_never_reads_the_test_split(
    call, start, complaint, faces, tmp_path
):
    """E4, E7."""
    flags, ledger, said = ["--data", faces, *QUICK], tmp_path / "killed/arms.jsonl", tmp_path / "said"
    straight = start("augment.py", *flags, "--out", tmp_path / "straight", stdout=said)

    def killed_after(rows, number):
        """Of its ledger, by a signal."""
        killed = start("augment.py", *flags, "--out", tmp_path / "killed", stderr=tmp_path / "told")
        began = time.time()
        while not (ledger.is_file() and ledger.read_text().count("\n") >= rows):
            assert killed.poll() is None and time.time() - began < 200
            time.sleep(0.02)
        os.kill(killed.pid, number)  # what it started is a fork here, so it goes on, and must do no harm
        return killed.wait(), ledger.read_text()

    status, before = killed_after(2, signal.SIGTERM)
    told = (tmp_path / "told").read_text()
    assert status == 128 + signal.SIGTERM and "Traceback" not in told
    assert told.splitlines()[-1] == "stopped by signal 15; the same command goes on"
    assert not (tmp_path / "killed/policy.json").exists()
    again = complaint(augment, *flags, "--out", tmp_path / "killed", "--batch-size", 5)
    assert "--batch-size 5: the search in" in again
    told = (tmp_path / "killed/search.json").read_text()
    (tmp_path / "killed/search.json").write_text(told.replace("train/", "train/other"))
    again = complaint(augment, *flags, "--out", tmp_path / "killed")
    assert "began with other photos or arms" in again and again.count("\n") == 1
    (tmp_path / "killed/search.json").write_text(told)
    status, later = killed_after(8, signal.SIGKILL)  # within the allocation
    assert status == -signal.SIGKILL
    assert later.startswith(before[: before.rindex("\n") + 1]) and "extra/" in later
    before = later
    call("augment.py", *flags, "--out", tmp_path / "killed")
    assert ledger.read_text().startswith(before[: before.rindex("\n") + 1])  # nothing was run again
    assert straight.wait() == 0
    policies = [(tmp_path / name / "policy.json").read_text() for name in ("straight", "killed")]
    assert policies[0] == policies[1].replace(f"{tmp_path}/killed", f"{tmp_path}/straight")
    record = lineage_of(tmp_path / "killed")
    assert [run["exit"] for run in [*record["earlier"], record]] == [None, None, 0]
    assert record["data"]["train"]["photos"] == 8 and record["outputs"].keys() >= {
        "policy.json",
        "arms.jsonl",
    }

    out, policy = tmp_path / "straight", json.loads(policies[0])
    assert policy["gate"]["verdict"].startswith("UNDERPOWERED: ")
    rows = [json.loads(line) for line in open(out / "arms.jsonl")]
    searched = [row for row in rows if row["run"].startswith("search/")]
    assert {row["arm"] for row in searched} == {"none", "trivial"} and len(searched) == 4
    ways = {row["arm"] for row in rows if row["run"].startswith("extra/")}
    assert {"ft", "shared", "routed", "disjoint"} <= ways and len(rows) == 4 + 2 + 2 * len(ways)
    held = [photo for row in searched if row["arm"] == "none" for photo in row["f1"]]
    assert len(set(held)) == len(held) == 8 and not [photo for photo in held if photo.startswith("test")]
    ids = [json.loads((out / f"{name}.ids.json").read_text())["train"] for name in ("finetune", "reward")]
    suspects, mode = policy["suspects"], policy["search"]["allocation"]
    everybody = set(held) - (set(suspects) if mode in ("cleaned", "disjoint") else set())
    assert set(ids[0]) == everybody or mode == "disjoint" and set(ids[0]) | set(ids[1]) == everybody
    assert set(ids[1]) <= set(held) and "allocation" not in policy
    words = (out / "engine_report.md").read_text()
    assert "## Rung 2, over none\n\nOn 8 held-out photos of 4 people." in words
    assert "train/" in words and "(gains.png)" in words
    assert "holds a policy.json already" in complaint(augment, *flags, "--out", out)
    commands = said.read_text().splitlines()[-2:]  # next: python SCRIPT FLAGS
    first, second = (line.split()[2:] for line in commands)
    call(*first, "--device", "cpu", "--out", tmp_path / "run")
    call(*second, "--device", "cpu", "--init", tmp_path / "run/last.pt", "--out", tmp_path / "tuned")
    chosen = sha256(out / "policy.json")
    assert weights(tmp_path / "tuned/last.pt")["lineage"]["parents"] == [
        sha256(tmp_path / "run/last.pt"),
        chosen,
    ]
    assert len(policy["lineage"]["seen"]) == 8 and policy["lineage"]["script"] == "augment.py"


def test_a_policy_is_replayed_bit_for_bit(faces, tmp_path):
    """E5: through the file, and onto disk."""
    found = splits.open_any(str(faces))
    data = CachedFaces(found, found.splits["train"], 32)
    policy = policies.POLICIES["trivial"]
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    read = policies.load_policy(str(tmp_path / "policy.json"))
    for first in (0, 100):
        one, two = (augmented(data, found, p, 3, [0, 1, 2], first) for p in (policy, read))
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    for name in ("a", "b"):
        write_pairs(data, found, read, 3, 10, tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 21
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    again = splits.open_any(str(tmp_path / "a"))
    assert again.classes == found.classes and {s.group for s in again.splits["train"]} == {*data.groups}
    with pytest.raises(UserError, match="is there already"):
        write_pairs(data, found, read, 3, 1, tmp_path / "a")


def test_photo_and_mask_move_together():
    """E6: a mask painted as a photo, warped as one, agrees with the mask that was warped as a mask."""
    labels = synthetic.faces(1, torch.arange(16), 64, "fasseg")["semantic"]
    shades = torch.linspace(0, 255, 6).round().byte()
    images = shades[labels.long()][:, None].expand(-1, 3, -1, -1)
    policy = policies.load_policy("trivial")
    policy = {**policy, "ops": [op for op in policy["ops"] if op["name"] in GEOMETRY]}
    batch = apply({"image": images, "semantic": labels}, policy, 0, torch.arange(16), {})
    moved, masks = batch["image"], batch["semantic"]
    painted = (moved[:, 0] * 5).round()
    same = torch.nn.functional.max_pool2d(masks[:, None].float(), 3, 1, 1)[:, 0] == masks
    same &= -torch.nn.functional.max_pool2d(-masks[:, None].float(), 3, 1, 1)[:, 0] == masks
    inside = same & (masks != 255)
    assert (painted == masks)[inside].float().mean() >= 0.99 and inside.float().mean() > 0.5


def test_arms_keep_to_the_gate_and_may_be_files(tmp_path):
    gated = {
        "ops": [{"name": "rotate", "m_neg": 5.0, "m_pos": 6.0, "weight": 1.0}],
        "scale": 2.0,
        "flip": 0.5,
    }
    arms = augment.make_arms(gated, 0.25, None)
    assert set(arms) == {*augment.DEFAULT, "synthetic"} and len(augment.make_arms(gated, 0, None)) == 7
    assert set(augment.SAFE) < set(augment.DEFAULT)
    assert arms["synthetic"]["flags"] == ["--synthetic", "0.25"]
    with pytest.raises(UserError, match="--arms photometric: there is none"):
        augment.make_arms(gated, 0.25, ["photometric"])  # the gate passed geometry alone
    arms |= augment.make_arms(gated, 0, ["half", "quarter", "grey-world"])
    for name, share in {"full": 1, "half": 0.5, "quarter": 0.25, "geometric": 1, "grey-world": 1}.items():
        op = arms[name]["policy"]["ops"][0]
        assert (
            arms[name]["policy"]["scale"] * op["m_pos"] == pytest.approx(12 * share) and arms[name]["gated"]
        )
    assert not arms["cutmix"]["gated"] and not augment.make_arms(None, 0, None)["full"]["gated"]
    assert arms["standardise"]["flags"] == ["--preprocess", "standardise"]

    refused = augment.make_arms({"ops": [], "scale": 0.0, "flip": 0.5}, 0, None)
    assert list(refused) == ["none", "randaugment", "trivial", "cutmix"]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(gated))
    chosen = augment.make_arms(None, 0, ["half", str(file)])
    assert list(chosen) == ["none", "half", "mine"] and chosen["mine"]["policy"]["ops"][0]["m_pos"] == 6
    (tmp_path / "half.json").write_text(json.dumps(gated))
    with pytest.raises(UserError, match="two have one name"):
        augment.make_arms(None, 0, ["half", str(tmp_path / "half.json")])


def test_half_of_the_images_get_a_box():
    """CutMix as an arm: counted over drawn augmentations of two flat photos."""
    policy = {**policies.POLICIES["randaugment"], "flip": 0.0, "scale": 0.7}
    still = {"name": "rotate", "m_neg": 0.0, "m_pos": 0.0, "weight": 3.0}
    policy = policies.with_cutmix({**policy, "ops": [still]})
    labels = torch.arange(2, dtype=torch.uint8).repeat(1000).view(-1, 1, 1).expand(-1, 32, 32)
    images = torch.zeros(2000, 3, 32, 32, dtype=torch.uint8)
    batch = {"image": images, "semantic": labels}
    masks = apply(batch, policy, 0, torch.arange(2000), {})["semantic"]
    pasted = (masks != labels).float().mean((1, 2))
    assert (pasted > 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert 0.15 < pasted[pasted > 0].median() < 0.25  # of half a side, often over the edge


def test_a_gate_found_before_is_taken_as_it_is(tmp_path):
    report = {"status": "PASS", "verdict": "Not distinguishable", "ops": {"rotate": {}}}
    (tmp_path / "ks_report.json").write_text(json.dumps(report))
    (tmp_path / "policy.json").write_text(json.dumps({"ops": [], "scale": 1.5}))
    policy, verdict = augment.run_gate(str(tmp_path), 32, 0, "cpu", tmp_path)
    assert policy["scale"] == 1.5 and policy["flip"] == 0.5 and verdict == "PASS: Not distinguishable"
    (tmp_path / "ks_report.json").write_text(json.dumps({**report, "status": "UNDERPOWERED"}))
    (tmp_path / "policy.json").unlink()
    assert augment.run_gate(str(tmp_path), 32, 0, "cpu", tmp_path)[0] is None
    few = {"status": "UNDERPOWERED", "verdict": "Too few people", "ops": {}}
    (tmp_path / "ks_report.json").write_text(json.dumps(few))
    assert augment.run_gate(str(tmp_path), 32, 0, "cpu", tmp_path)[0] is None
    for other in (json.dumps({**report, "ops": {}}), "{}", "["):
        (tmp_path / "ks_report.json").write_text(other)
        with pytest.raises(UserError, match="not written by ks_test.py --ops"):
            augment.run_gate(str(tmp_path), 32, 0, "cpu", tmp_path)


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "--data is needed"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "FACES", "--preview"], "--policy FILE: with --preview or --materialise"),
        (
            ["--data", "FACES", "--no-gate", "--arms", "luck"],
            "--arms luck: there is none randaugment trivial",
        ),
        (["--data", "FACES", "--no-gate", "--arms", "none", "none"], "--arms none none: none is named twice"),
        (["--data", "FACES", "--no-gate", "--folds", "99"], "99 folds of 4 people: need 2 at least, and a"),
        (["--data", "FACES", "--no-gate", "--folds", "1"], "1 folds of 4 people: need 2 at least"),
        (
            ["--data", "FACES", "--policy", "trivial", "--materialise", "many", "x"],
            "need a number and a folder",
        ),
    ],
)
def test_mistakes_take_one_line(complaint, faces, tmp_path, flags, words):
    flags = [faces if flag == "FACES" else flag for flag in flags]
    said = complaint(augment, *flags, "--size", 32, "--out", tmp_path / "out")
    assert words in said and said.count("\n") == 1


def test_a_preview_is_drawn(call, faces, tmp_path):
    flags = ["--data", faces, "--policy", "trivial", "--preview", "--size", 32, "--out", tmp_path]
    call("augment.py", *flags)
    picture = np.asarray(Image.open(tmp_path / "preview.png"))
    assert picture.shape[1] == 6 * (2 * 32 + 6) - 6 and picture.std() > 20
