"""ks_test.py as its users run it: the verdict, the exit status, what is refused, and what is written."""

import json
import os
import signal
import time

import numpy as np
import pytest
from conftest import FASSEG, lineage_of, needs_fasseg, weights
from PIL import Image

import ks_test
from utils import lineage
from utils.files import sha256

QUICK = ["--features", "pixel", "--size", "32", "--permutations", "199", "--splits", "5", "--device", "cpu"]
QUICKER = [*QUICK, "--permutations", 99, "--splits", 2]  # for all operations
PASS, REJECT, UNKNOWN = 0, 1, 3


def report(out):
    return json.loads((out / "ks_report.json").read_text())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 pictures without masks: blobs of skin with hair before a wall, each somebody else's."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[:48, :48] / 24 - 1
    for i in range(60):
        rng = np.random.default_rng(i)
        inside = ((x - rng.normal(0, 0.1)) / 0.6) ** 2 + ((y - rng.normal(0, 0.1)) / 0.8) ** 2 < 1
        wall = rng.uniform(0.2, 0.9, (6, 6, 3)).repeat(8, 0).repeat(8, 1)
        color = np.where(inside[..., None], rng.uniform(0.4, 0.9, 3) * [1, 0.8, 0.7], wall)
        color = np.where((inside & (y < rng.normal(-0.4, 0.1)))[..., None], rng.uniform(0, 0.3), color)
        noisy = color + rng.normal(0, 0.03, (48, 48, 3))
        Image.fromarray((noisy.clip(0, 1) * 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def halves(photos, tmp_path_factory):
    """Two folders of 30 of them, under names that begin anew."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for i, path in enumerate(sorted(photos.glob("*.png"), key=lambda p: int(p.stem))):
        (folders[i % 2] / f"{i // 2}.png").write_bytes(path.read_bytes())
    return folders


@pytest.fixture(scope="module")
def operations(start, photos, tmp_path_factory):
    """A run of --ops, which takes long: it begins before the other tests of this file."""
    home = tmp_path_factory.mktemp("operations")
    flags = ["--real", photos, "--ops", *QUICKER, "--out", home / "out"]
    return start("ks_test.py", *flags, stdout=home / "said"), home


def test_identity_passes_and_the_same_seed_gives_the_same_report(calls, operations, photos, tmp_path):
    """G4, G8."""
    flags = ["ks_test.py", "--real", photos, "--augment", "none", *QUICK]
    jobs = [[*flags, "--out", tmp_path / "a"], [*flags, "--out", tmp_path / "b"]]
    done = calls(*jobs, [*flags, "--seed", 1, "--out", tmp_path / "c"], status=PASS)[0]
    assert "PASS: Not distinguishable at 0.05 with 30 people against 30; a shift of" in done.stdout
    texts = [(tmp_path / x / "ks_report.json").read_text() for x in "ab"]
    assert texts[0] == texts[1]
    found, other = report(tmp_path / "a"), report(tmp_path / "c")
    assert found["type1_rate"] != other["type1_rate"] or found["d_max"] != other["d_max"]
    assert all(share >= 0.8 for share in found["power"].values())  # G6
    keys = (
        "status p confidence alpha n splits permutations d_max d_critical d_upper feature features type1_rate"
    )
    assert {*keys.split(), "power", "ops", "seed", "sha256"} <= found.keys()
    assert found["confidence"] == 1 - found["p"] < 0.95 and max(found["features"].values()) == found["d_max"]
    words = (tmp_path / "a/ks_report.md").read_text()
    assert words.startswith("# PASS") and "95 % similar" not in words
    for name in ("ecdf", "power"):
        assert f"({name}.png)" in words and Image.open(tmp_path / f"a/{name}.png").width > 800
    assert list((tmp_path / "a").glob("events*"))


def test_two_halves_of_one_folder_pass_and_changed_ones_do_not(call, halves, tmp_path):
    one, two = halves
    call("ks_test.py", "--real", one, "--other", two, *QUICK, "--out", tmp_path / "a", status=PASS)
    found = report(tmp_path / "a")
    assert (found["n"], found["n_other"], found["splits"]) == (30, 30, 1)  # nothing to choose: one split
    dark = tmp_path / "dark"
    dark.mkdir()
    for path in two.glob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 2).save(dark / path.name)
    done = call("ks_test.py", "--real", one, "--other", dark, *QUICK, "--out", tmp_path / "b", status=REJECT)
    assert "REJECT: Told apart at 0.05 with 30 people against 30: most by `" in done.stdout
    assert report(tmp_path / "b")["feature"] in ("luma", "bright")


def test_copies_are_refused_by_name_or_left_out_on_request(call, complaint, halves, tmp_path):
    """G3: the same photos on both sides; one photo twice, resaved under another name."""
    one, two = halves
    said = complaint(ks_test, "--real", one, "--other", one, *QUICK, "--out", tmp_path / "a")
    assert said.startswith("error: 30 photos look like another one (30 of the other side): ")
    assert said.count("\n") == 1
    more = tmp_path / "more"
    more.mkdir()
    for path in two.glob("*.png"):
        (more / path.name).write_bytes(path.read_bytes())
    Image.open(two / "3.png").save(more / "other_name.jpg", quality=60)
    flags = ["--real", more, "--augment", "none", *QUICK, "--out", tmp_path / "a"]
    said = complaint(ks_test, *flags)
    assert "1 photos look like another one: " in said and "other_name" in said and "--drop-copies" in said
    call("ks_test.py", *flags, "--drop-copies", status=UNKNOWN)
    assert report(tmp_path / "a")["notes"][0].startswith("1 photos left out that look like another one: ")


def test_photos_that_look_alike_are_counted_and_not_their_pairs(complaint, photos, tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes((photos / "0.png").read_bytes())
    flags = ["--real", tmp_path, *QUICK, "--out", tmp_path / "out"]
    said = complaint(ks_test, *flags, "--augment", "none")
    assert said.startswith("error: 7 photos look like another one: ")
    said = complaint(ks_test, *flags, "--other", tmp_path)
    assert said.startswith("error: 15 photos look like another one (8 of the other side): ")


def test_eight_people_are_too_few(call, photos, tmp_path):
    """G5."""
    few = tmp_path / "few"
    few.mkdir()
    for i in range(8):
        (few / f"{i}.png").write_bytes((photos / f"{i}.png").read_bytes())
    done = call(
        "ks_test.py", "--real", few, "--augment", "none", *QUICK, "--out", tmp_path / "a", status=UNKNOWN
    )
    assert "UNDERPOWERED: No verdict: 4 people against 4 can never give a p below 0.029" in done.stdout
    assert report(tmp_path / "a")["status"] == "UNDERPOWERED"
    said = lineage_of(tmp_path / "a")
    assert said["exit"] == UNKNOWN and said["data"].keys() == {"real"} and "ks_report.md" in said["outputs"]
    assert said["data"]["real"]["photos"] == 8 and len(said["data"]["real"]["sha256"]) == 64


def test_every_operation_and_a_policy_that_the_next_script_takes(call, operations, photos, tmp_path):
    process, home = operations
    out, said = home / "out", home / "said"
    assert process.wait() == PASS
    found, policy = report(out), json.loads((out / "policy.json").read_text())
    assert found["ops"]["brightness"]["status"] == "PASS" and found["ops"]["equalise"]["status"] == "REJECT"
    dark = found["ops"]["brightness"]["neg"]
    assert 0 < dark["m"] < 0.99 and dark["p"] > 0.05 and len(dark["trail"]) >= 7
    accepted = {m: p > 0.05 for m, p, _ in dark["trail"]}
    assert accepted[dark["m"]] and not any(ok for m, ok in accepted.items() if m > dark["m"])
    bounds = {op["name"]: (op["m_neg"], op["m_pos"]) for op in policy["ops"]}
    assert bounds["brightness"][0] <= dark["m"] and "equalise" not in bounds
    assert f"--augment {out}/policy.json" in said.read_text()
    for name in ("operations", "magnitudes", "faces"):
        assert Image.open(out / f"{name}.png").width > 400
    flags = ["--data", "synthetic", "--augment", out / "policy.json", "--steps", 2, "--size", 32]
    call("train_finetune.py", *flags, "--device", "cpu", "--out", tmp_path / "run")
    seen = lineage.seen(weights(tmp_path / "run/last.pt"))
    assert len(seen) == lineage_of(out)["data"]["real"]["photos"], (
        "what chose the policy, of all that trained"
    )
    assert seen <= {sha256(path)[:16] for path in photos.iterdir()}
    flags = ["--real", photos, "--augment", out / "policy.json", *QUICKER]
    call("ks_test.py", *flags, "--out", tmp_path / "again", status=PASS)


def test_a_schedule_is_tested_at_its_strongest(call, photos, tmp_path):
    """Solarising everything is seen, although the policy begins and ends without it."""
    ops = [{"name": "solarise", "m_pos": 1.0}]
    policy = {
        "flip": 0.0,
        "levels": [30, 30],
        "scale": 0.0,
        "ops": ops,
        "schedule": [[0, 0.0], [5, 0.7], [9, 0]],
    }
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    flags = ["--real", photos, "--augment", tmp_path / "policy.json", *QUICK]
    call("ks_test.py", *flags, "--out", tmp_path / "ks", status=REJECT)


def test_a_parser_that_has_seen_the_photos_leaves_them_out(call, calls, complaint, tmp_path):
    """bbsd of a parser, on synthetic faces, of which there is no end; on its own training people, refused."""
    root = tmp_path / "faces"
    for i in range(6):
        for kind in ("images", "labels"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{i}.png")
        Image.fromarray(pixels[..., 0] // 128).save(root / f"labels/{i}.png")
    short = ["--steps", 2, "--size", 32, "--device", "cpu"]
    synthetic = ["--data", "synthetic", "--classes", "fasseg", *short]
    own = ["--data", root, "--val-fraction", 0.2, *short]
    calls(
        ["train_finetune.py", *synthetic, "--out", tmp_path / "run"],
        ["train_finetune.py", *own, "--out", tmp_path / "own"],
    )
    flags = ["--real", "synthetic", "--other", "synthetic", "--init", tmp_path / "run/best.pt", "--splits", 3]
    flags += ["--n", 20, "--features", "bbsd", "mask", "--permutations", 99, "--device", "cpu"]
    done = call("ks_test.py", *flags, "--out", tmp_path / "ks", status=UNKNOWN)
    assert "No verdict" in done.stdout  # after two steps it sees next to nothing, and the report says so
    found = report(tmp_path / "ks")
    assert {"share skin", "entropy", "mask hair"} <= found["features"].keys() and found["sha256"]["init"]
    flags = ["--real", root, "--augment", "none", "--init", tmp_path / "own/best.pt", "--device", "cpu"]
    said = complaint(ks_test, *flags, "--out", tmp_path / "none")
    assert "1 people against" in said or "no photo is left" in said
    flags = ["--real", root, "--other", "synthetic", "--features", "mask", "--device", "cpu"]
    said = complaint(ks_test, *flags, "--init", tmp_path / "run/best.pt", "--out", tmp_path / "none")
    assert f"--features mask: {root} has the classes" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--other", "nowhere"], "nowhere: no such folder"),
        (["--augment", "none", "--features", "bbsd"], "--features bbsd: needs a parser"),
        (["--augment", "none", "--features", "mask"], "--features mask: needs --other with masks"),
        (["--augment", "none", "--alpha", "5"], "--alpha 5.0: need a level between 0 and 1"),
        (["--augment", "none", "--alpha", "nan"], "--alpha nan: need a level between 0 and 1"),
        (["--augment", "none", "--real-yaw", "10", "0"], "--real-yaw 10 0: need |yaw| FROM 0 or more"),
        (["--other", "synthetic", "--other-yaw", "-5", "0"], "--other-yaw -5 0: need |yaw| FROM 0 or more"),
        (["--augment", "none", "--other-yaw", "0", "10"], "--other-split and --other-yaw: need --other"),
        (["--augment", "none", "--real-split", "test"], "no split test; there is train"),
        (["--augment", "none", "--real-yaw", "0", "10"], "no photo is left in train with |yaw| 0 to 10"),
        (["--augment", "nothing.json"], "policy nothing.json: no such file"),
    ],
)
def test_mistakes_take_one_line(complaint, photos, tmp_path, flags, words):
    said = complaint(ks_test, "--real", photos, "--size", 32, *flags, "--out", tmp_path / "x")
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "x/ks_report.json").exists()


def test_a_test_ends_on_ctrl_c_and_the_same_command_begins_it_again(start, call, photos, tmp_path):
    out, told = tmp_path / "out", tmp_path / "told"
    flags = ["--real", photos, "--augment", "none", *QUICK, "--out", out]
    process, until = start("ks_test.py", *flags, "--permutations", 10**6, stderr=told), time.time() + 60
    while not (out / "args.json").is_file():
        assert process.poll() is None and time.time() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 128 + signal.SIGINT
    assert told.read_text() == "stopped by signal 2; a test keeps nothing; the same command begins it again\n"
    call("ks_test.py", *flags, status=PASS)


def test_a_report_is_never_overwritten(complaint, photos, tmp_path):
    (tmp_path / "ks_report.json").write_text("{}")
    said = complaint(ks_test, "--real", photos, "--ops", "--out", tmp_path)
    assert "holds a report already" in said and (tmp_path / "ks_report.json").read_text() == "{}"


@needs_fasseg
def test_fasseg_train_and_test_share_six_photos_and_are_otherwise_alike(call, complaint, tmp_path):
    v2 = FASSEG / "V2"
    flags = ["--real", v2, "--real-split", "train", "--other", v2, "--other-split", "test", *QUICK]
    assert "6 photos look like another one (6 of" in complaint(ks_test, *flags, "--out", tmp_path / "a")
    call("ks_test.py", *flags, "--drop-copies", "--out", tmp_path / "b", status=PASS)
    assert report(tmp_path / "b")["n"] == 20


@needs_fasseg
def test_fasseg_profiles_are_not_frontal_faces(call, tmp_path):
    flags = ["--real", FASSEG / "V2", "--other", FASSEG / "V3", "--other-split", "train", "test", *QUICK]
    call("ks_test.py", *flags, "--other-yaw", 60, 90, "--out", tmp_path, status=REJECT)
    assert report(tmp_path)["n_other"] == 11  # people, of 286 photos
