"""operate.py as its users run it: the loop on tiny faces, kills, promotions, ways back, what it refuses."""

import json
import os
import pathlib
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, refusal, weights, write
from PIL import Image

import operate
import predict
from datasets import incoming, splits, synthetic
from datasets.faces import Sample
from utils import checkpoint, cli, files
from utils.operate import record, store

SHORT = ["--steps", "2", "--eval-every", "2", "--batch-size", "4"]
SEARCH = "--arms randaugment --folds 2 --steps 2 --batch-size 4 --jobs 1 --no-gate --no-allocation"
STUDENT = " ".join(SHORT)
FACES = synthetic.SCHEMES["fasseg"]


def run(script, *flags):
    """Its exit status, in this process, which then holds no folder any more."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(SystemExit) as ended:
        cli.run(script.main, script.get_parser().parse_args([str(flag) for flag in flags]))
    for number, handler in handlers.items():
        signal.signal(number, handler)
    files.release()
    return ended.value.code


def contents(folder):
    """{path: (size, when it was written)} of all that is in a folder."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    return {str(path.relative_to(folder)): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders of synthetic faces, a person each, over a fine pattern, in which the test sees blur."""
    home = tmp_path_factory.mktemp("photos")
    made = synthetic.faces(0, torch.arange(128), 32, "fasseg")
    pixels = made["image"].permute(0, 2, 3, 1).numpy()
    pixels[:, 28:] = np.where(np.indices((4, 32)).sum(0) % 2, 20, 235)[..., None]
    pixels = pixels + np.random.default_rng(0).integers(-5, 6, pixels.shape)
    flips = [[FACES.classes[a], FACES.classes[b]] for a, b in FACES.flip_pairs]

    def photo(i, path, light=1.0):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels[i] * light).clip(0, 255).astype(np.uint8))
        with open(path, "wb") as file:
            image.save(file, "PNG")

    def folder(name, numbers, light=1.0, masks=True, split=".", people=None):
        root = home / name / split
        for i in numbers:
            photo(i, root / ("images" if masks else "unlabelled") / f"{i}.png", light)
            if masks:
                (root / "labels").mkdir(exist_ok=True)
                Image.fromarray(made["semantic"][i].numpy()).save(root / f"labels/{i}.png")
        named = {str(i): (people or {}).get(i, f"person {i}") for i in numbers}
        before = json.loads((home / name / "classes.json").read_text()) if split == "test" else {}
        info = {"classes": FACES.classes, "flip_pairs": flips}
        info["groups"] = named | before.get("groups", {})
        info["yaw"] = {key: 10.0 for key in info["groups"]}
        write(home / name / "classes.json", info)

    folder("train", range(12), people={i: f"person {i // 2}" for i in range(12)})
    folder("guard", range(12, 20))
    folder("reference", range(12, 52), masks=False)
    folder("day", range(52, 84), masks=False)
    folder("one", (84, 85), masks=False, people={84: "anna", 85: "anna"})
    for i, name in enumerate(["a b", "ü", "\udcff", *"cdefghijk"]):  # the third is no text in any encoding
        photo(86 + i, home / f"dark_a/{name}.png", 0.4)
    folder("dark_b", range(98, 112), 0.4, split="train", people={111: "person 112"})
    folder("dark_b", (112, 113), 0.4, split="test")
    shutil.copy(home / "guard/images/12.png", home / "dark_b/train/images/guard.png")
    shutil.copy(home / "guard/labels/12.png", home / "dark_b/train/labels/guard.png")
    folder("audit", range(118, 128), 0.4)
    folder("audit_day", range(118, 128))
    folder("spent", (98, 99), 0.4)  # photos that train students, under other names
    for kind in ("images", "labels"):
        (home / f"spent/{kind}/98.png").rename(home / f"spent/{kind}/renamed.png")
    info = json.loads((home / "spent/classes.json").read_text())
    write(home / "spent/classes.json", {**info, "groups": {}, "yaw": {}})
    return home


@pytest.fixture(scope="module")
def parsers(calls, photos, tmp_path_factory):
    """A hardly trained one, on eight of its photos, and a plainly better one."""
    home = tmp_path_factory.mktemp("parsers")
    flags = ["--data", photos / "train", *TINY]
    few = ["--limit", 8, "--steps", 2, "--eval-every", 2, "--seed", 1]
    many = ["--steps", 60, "--eval-every", 60, "--lr", "3e-3"]
    calls(
        ["train_finetune.py", *flags, *many, "--out", home / "good"],
        ["train_finetune.py", *flags, *few, "--out", home / "champion"],
    )
    return home


@pytest.fixture(scope="module")
def champion(parsers):
    return parsers / "champion/best.pt"


@pytest.fixture(scope="module")
def good(parsers):
    return parsers / "good/best.pt"


@pytest.fixture(scope="module")
def begin(call, photos):
    """begin(ops, champion, *flags, status=0): operate.py init."""

    def begin(ops, champion, *flags):
        flags = ["--features", "pixel", "--seeds", 1, "--search", SEARCH, "--student", STUDENT, *flags]
        given = ["--reference", photos / "reference", "--guard", photos / "guard", "--out", ops]
        call("operate.py", "init", "--champion", champion, *given, *flags)
        return ops

    return begin


@pytest.fixture(scope="module")
def new(begin, champion, tmp_path_factory):
    """A folder where nothing came in yet."""
    return begin(tmp_path_factory.mktemp("new") / "ops", champion)


@pytest.fixture(scope="module")
def watched(call, new, photos, tmp_path_factory):
    """Photos drawn alike, of one person, and twice darkened ones."""
    ops = tmp_path_factory.mktemp("watched") / "my ops"
    shutil.copytree(new, ops)
    for name, status, drift in [
        ("day", 0, "no"),
        ("one", 3, "cannot tell"),
        ("dark_a", 0, "suspected"),
        ("dark_b", 1, "yes"),
    ]:
        call("operate.py", "watch", ops, photos / name, status=status)
        assert record.drift_of(ops)[0] == drift
    return ops


@pytest.fixture(scope="module")
def waiting(call, watched, tmp_path_factory):
    """Candidates that nobody has judged."""
    ops = tmp_path_factory.mktemp("waiting") / "my ops"
    shutil.copytree(watched, ops)
    said = call("operate.py", "improve", ops, status=operate.WAITS).stdout
    assert (
        "improve/001/label" in said and f"next:    python operate.py improve '{ops}' --audit LABELLED" in said
    )
    return ops


# ---- the loop


def test_batches_keep_who_is_on_a_photo_and_leave_test_people_out(watched, photos):
    batches = [splits.open_any(watched / f"batches/{n:03d}/photos").splits["unlabelled"] for n in range(1, 5)]
    assert [len(batch) for batch in batches] == [32, 2, 12, 14]
    assert [row["people"] for row in record.watched(watched)] == [32, 1, 12, 14]
    assert {s.group for s in batches[1]} == {"anna"}
    assert {s.group for s in batches[3]} == {f"person {i}" for i in range(98, 111)} | {"train/guard"}
    assert {s.yaw for s in batches[3]} == {10.0, None} and not [s for s in batches[3] if s.label]
    came = {path.read_bytes() for path in (photos / "dark_a").iterdir()}
    assert {pathlib.Path(s.image).read_bytes() for s in batches[2]} == came
    page = (watched / "page.html").read_text()
    assert "<b>2</b>" in page and "<b>4</b>" in page and "REJECT" in page and "UNDERPOWERED" in page
    assert str(photos / "dark_a") in page and "a b" in page


def test_improve_trains_on_what_drifted_and_on_the_photos_of_the_champion(waiting, watched, champion, photos):
    folder = waiting / "improve/001"
    trained, judging = (splits.open_any(folder / name).splits["unlabelled"] for name in ("photos", "label"))
    assert len(trained) + len(judging) == 25 and len(judging) == 6  # of 26, one of which guards
    digests = incoming.short_digests(trained + judging)
    assert len(set(digests.values())) == 25
    assert not {*incoming.short_digests(splits.open_any(photos / "guard").splits["train"]).values()} & {
        *digests.values()
    }
    known = {s.group: s.yaw for s in trained + judging}
    assert {f"person {i}" for i in range(98, 111)} < known.keys() and known["person 98"] == 10.0
    first = weights(champion)
    kept = {row.tobytes().hex() for row in first["lineage"]["seen"].numpy()}
    jobs = rows(folder / "runs.jsonl")
    ran = {row["run"] for row in jobs}
    assert ran in ({"student/old/0"}, {"student/old/0", "student/new/0"}) and len(jobs) == len(ran)
    for row in jobs:
        state = weights(folder / "runs" / row["run"] / "last.pt")
        assert state["lineage"]["data"]["train"]["photos"] == first["lineage"]["data"]["train"]["photos"] == 8
        assert state["lineage"]["data"]["train"]["sha256"] == first["lineage"]["data"]["train"]["sha256"]
        assert state["lineage"]["data"]["val"]["sha256"] == first["lineage"]["data"]["val"]["sha256"]
        seen = {row.tobytes().hex() for row in state["lineage"]["seen"].numpy()}
        assert seen == kept | {*incoming.short_digests(trained).values()}
        assert files.sha256(champion) in state["lineage"]["parents"]


def test_masks_let_it_judge_what_was_trained(call, complaint, waiting, photos, tmp_path):
    ops = tmp_path / "ops"
    shutil.copytree(waiting, ops)
    before = contents(ops / "improve")
    assert "--batches: an improvement on 3 4 is not at" in complaint(operate, "improve", ops, "--batches", 1)
    flags = ["improve", ops, "--audit", photos / "audit"]
    status = run(operate, *flags)
    assert contents(ops / "improve") == before, "nothing is trained or searched again"
    judged, state = record.decided(ops), record.state_of(ops)
    assert state == {"improving": None, "improvements": 1, "decided": 4}
    assert status == (0 if judged[-1]["verdict"] == "better" else 1)
    assert [row["audit"]["k"] for row in judged] == [1, 2][: len(judged)]
    assert all(row["verdict"] == "refused" for row in judged[:-1])
    for row in judged:
        new = "improve/001/search/policy.json" if "/new/" in row["candidate"] else "cutmix"
        assert (
            row["augment"] == new
            and row["batches"] == [3, 4]
            and files.sha256(ops / row["candidate"]) == row["sha256"]
        )
        assert row["audit"]["differences"].keys() == {f"person {i}" for i in range(118, 128)}
        assert row["guard"]["differences"].keys() == {f"person {i}" for i in range(12, 20)}
    page = (ops / "page.html").read_text()
    assert judged[-1]["sha256"] in page and "of pixels differ" in page
    assert "no batch was watched since the last decision" in complaint(operate, *flags)


def killed(process, ready):
    """By kill -9, as soon as ready()."""
    began = time.time()
    while not ready():
        assert process.poll() is None and time.time() - began < 100
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def end_search(folder):
    """End the augment.py that a kill leaves: here the kernel ends only the one that waits for its fork."""
    pid = int((folder / ".lock").read_text().split()[1])
    os.kill(pid, signal.SIGKILL)
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.005)


def test_killed_anywhere_it_ends_as_it_would_have(call, start, complaint, watched, waiting, photos, tmp_path):
    straight, ops = tmp_path / "straight", tmp_path / "killed"
    shutil.copytree(waiting, straight)
    flags = ["--audit", photos / "audit"]
    never_killed = start("operate.py", "improve", straight, *flags)
    shutil.copytree(watched, ops)
    folder = ops / "improve/001"
    search, runs = folder / "search/arms.jsonl", folder / "runs"
    process = start("operate.py", "improve", ops)
    killed(process, lambda: search.is_file() and search.read_bytes().count(b"\n"))
    end_search(folder / "search")
    searched = rows(search)
    process = start("operate.py", "improve", ops)
    while not list(runs.glob("student/old/0.*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.005)
    said = complaint(operate, "watch", ops, photos / "day")
    assert f"process {process.pid} on" in said and "is writing there" in said and said.count("\n") == 1
    killed(process, lambda: True)
    assert rows(search)[: len(searched)] == searched and not (folder / "runs.jsonl").exists()
    call("operate.py", "improve", ops, status=operate.WAITS)
    killed(start("operate.py", "improve", ops, *flags), (ops / "decisions.jsonl").is_file)
    assert record.state_of(ops)["improving"] == 1
    assert run(operate, "improve", ops, *flags) == never_killed.wait()
    for name in ("runs.jsonl", "search/arms.jsonl"):
        done = [[row["run"] for row in rows(each / "improve/001" / name)] for each in (straight, ops)]
        assert sorted(done[0]) == sorted(done[1]) and len(set(done[1])) == len(done[1])
    for row in rows(folder / "runs.jsonl"):
        one, two = (weights(each / "improve/001/runs" / row["run"] / "last.pt") for each in (straight, ops))
        assert all(torch.equal(one["ema"][key], two["ema"][key]) for key in one["ema"])
    keys = ("verdict", "why", "guard", "audit", "audit_photos", "candidate", "batches")
    one, two = ([{key: row[key] for key in keys} for row in record.decided(each)] for each in (straight, ops))
    assert one == two and record.state_of(straight) == record.state_of(ops)


def test_an_improvement_goes_on_with_its_batches_or_is_given_up(complaint, waiting, tmp_path, capsys):
    ops = tmp_path / "ops"
    shutil.copytree(waiting, ops)
    assert run(operate, "improve", ops, "--batches", 4, 3) == operate.WAITS
    assert "an improvement on 3 4 is not at its end" in complaint(operate, "improve", ops, "--batches", 3)
    assert run(operate, "status", ops) == 1
    assert "improvement 1 is not at its end" in capsys.readouterr().out
    assert run(operate, "improve", ops, "--abandon") == 0
    assert record.state_of(ops) == {"improving": None, "improvements": 1, "decided": 0}
    assert record.drift_of(ops) == ("yes", [3, 4]) and (ops / "improve/001/runs.jsonl").is_file()


# ---- promotion and the way back


def masks_of(init, photos, out):
    assert run(predict, "--init", init, photos, "--out", out, "--device", "cpu") == 0
    return {path.name: path.read_bytes() for path in out.glob("*_mask.png")}


def test_only_what_is_better_is_promoted_and_rollback_gives_the_old_file(
    new, champion, good, photos, complaint, capsys, tmp_path
):
    ops = tmp_path / "ops"
    shutil.copytree(new, ops)
    audit = ["--audit", photos / "audit_day"]
    few = tmp_path / "few"
    few.mkdir()
    for i in (118, 119):
        shutil.copy(photos / f"audit/images/{i}.png", few)
    first = masks_of(ops, few, tmp_path / "first")
    assert len(first) == 2
    assert "nothing was judged better than version 1" in complaint(operate, "promote", ops)
    assert "--audit FOLDER" in complaint(operate, "promote", ops, good)
    assert run(operate, "promote", ops, champion, *audit) == 1, "the same file"
    state = checkpoint.load(champion)
    for tensor in state["model"].values():
        if tensor.is_floating_point():
            tensor *= 1 + 1e-6
    checkpoint.save(tmp_path / "same.pt", **state)
    assert run(operate, "promote", ops, tmp_path / "same.pt", *audit) == 1, "trained on at next to no rate"
    assert store.champion(ops)["version"] == 1

    candidate = tmp_path / "candidate.pt"
    shutil.copy(good, candidate)
    assert run(operate, "promote", ops, candidate, *audit) == 0
    assert [row["audit"]["k"] for row in record.decided(ops)] == [1, 2, 3]
    assert store.champion(ops)["version"] == 2 and store.champion(ops)["sha256"] == files.sha256(good)
    assert masks_of(ops, few, tmp_path / "second") == masks_of(good, few, tmp_path / "good") != first
    assert run(operate, "promote", ops, champion, *audit) == 1, "worse"
    capsys.readouterr()
    assert run(operate, "status", ops) == 0
    said = capsys.readouterr().out
    assert "version 2 is champion" in said and files.sha256(good) in said

    assert run(operate, "rollback", ops) == 0
    present = store.champion(ops)
    assert present["version"] == 1 and pathlib.Path(present["path"]).read_bytes() == champion.read_bytes()
    assert masks_of(ops, few, tmp_path / "third") == first
    assert "nothing was judged better" in complaint(operate, "promote", ops), "it was rolled back from"
    assert run(operate, "status", ops) == 0
    assert f"next:    python operate.py watch {ops} NEW_PHOTOS" in capsys.readouterr().out
    damaged = ops / "store" / f"{files.sha256(champion)}.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "no champion" in complaint(operate, "status", ops) and run(operate, "rollback", ops, 2) == 0


# ---- a scorer in place of masks


def test_a_scorer_judges_and_tunes_and_the_folder_may_move(
    call, start, complaint, begin, watched, champion, good, photos, monkeypatch, tmp_path
):
    asked = tmp_path / "asked.jsonl"
    scorer = tmp_path / "later.py"
    scorer.write_text(
        "import json, os, time\n"
        f"path = {str(asked)!r}\n"
        "def score(masks, photos):\n"
        "    'Whatever is asked later is better.'\n"
        "    time.sleep(0.03)\n"
        "    with open(path, 'a+') as file:\n"
        "        file.seek(0)\n"
        "        value = 0.01 * len(file.readlines()) ** 1.5\n"
        "        file.write(json.dumps([photos[0], value]) + chr(10))\n"
        "    return [value]\n"
    )
    flags = ["--scorer", f"{scorer}:score", "--search", "none", "--delta", 1]
    scores = "--score-budget 16 --limit 4 --steps 3 --eval-every 3 --lr 1e-2"
    flags += ["--student", f"{STUDENT} --lr 1e-2", "--scores", scores]
    ops = begin(tmp_path / "ops", champion, *flags)
    shutil.copy(watched / "watch.jsonl", ops)
    shutil.copytree(watched / "batches", ops / "batches")
    write(ops / "state.json", {"improving": None, "improvements": 0, "decided": 4})
    answers = ops / "scores.jsonl"
    process = start("operate.py", "improve", ops, "--batches", 3, stderr=tmp_path / "said")
    killed(process, lambda: answers.is_file() and answers.read_bytes().count(b"\n") == 2)
    jobs = rows(ops / "improve/001/runs.jsonl")
    assert [row["run"] for row in jobs] == ["student/old/0", "scores/old/0"]
    state = weights(ops / "improve/001/runs/scores/old/0/last.pt")
    assert state["script"] == "train_scores.py" and record.taught(state)["args"]["limit"] is None
    code = scorer.read_text()
    scorer.write_text(code + "# edited\n")
    before = contents(ops)
    said = complaint(operate, "improve", ops)
    assert f"{scorer}:score: not the file of `init`" in said and contents(ops) == before
    scorer.write_text(code)

    shutil.copytree(ops, tmp_path / "elsewhere/moved")
    assert run(operate, "improve", ops, "--promote") == 0
    assert store.champion(ops)["version"] == 2 and rows(ops / "improve/001/runs.jsonl") == jobs
    assert record.state_of(ops)["decided"] == 4, "a decision on an older batch opens no younger one"
    judging = splits.open_any(ops / "improve/001/label").splits["unlabelled"]
    found = {s.group: [value for path, value in rows(asked) if path == s.image] for s in judging}
    assert len(found) == 3 and all(len(values) == 2 for values in found.values()), "each mask was asked once"
    (row,) = record.decided(ops)
    assert row["audit"]["differences"] == {who: after - first for who, (first, after) in found.items()}

    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.rmtree(ops)
    assert (
        run(operate, "improve", "moved") == 0 and rows(pathlib.Path("moved/improve/001/runs.jsonl")) == jobs
    )
    monkeypatch.chdir(tmp_path)
    shutil.move("elsewhere/moved", "again")
    assert run(operate, "promote", "again") == 0 and store.champion("again")["version"] == 2
    tuned = pathlib.Path("again/improve/001/runs/scores/old/0/last.pt")
    assert store.champion("again")["sha256"] == files.sha256(tuned)

    again = pathlib.Path("again")
    flags = SimpleNamespace(batches=[3, 4], audit=None)
    operate.plan(again, files.read_json(again / "operate.json"), flags)
    trained = splits.open_any(again / "improve/002/photos").splits["unlabelled"]
    assert refusal(incoming.refuse_seen, trained, checkpoint.load(tuned), tuned), "they train once more"


def test_photos_that_the_champion_has_seen_judge_nobody(
    begin, watched, champion, photos, complaint, tmp_path
):
    state = checkpoint.load(champion)
    known = [Sample("", str(path), None, "", None) for path in (photos / "dark_a").iterdir()]
    rows = [list(bytes.fromhex(digest)) for digest in incoming.short_digests(known).values()]
    state["lineage"]["seen"] = torch.cat([state["lineage"]["seen"], torch.tensor(rows, dtype=torch.uint8)])
    checkpoint.save(tmp_path / "knows.pt", **state)
    ops = begin(tmp_path / "ops", tmp_path / "knows.pt")
    shutil.copy(watched / "watch.jsonl", ops)
    shutil.copytree(watched / "batches", ops / "batches")
    said = complaint(operate, "improve", ops, "--batches", 3)
    assert "batches [3]: the champion has seen every photo; --audit LABELLED judges" in said
    assert not (ops / "improve").exists()
    flags = SimpleNamespace(batches=[3, 4], audit=None)
    operate.plan(ops, files.read_json(ops / "operate.json"), flags)
    judging = splits.open_any(ops / "improve/001/label").splits["unlabelled"]
    assert len(judging) == 3 and all(s.id.startswith("unlabelled/4__") for s in judging)


# ---- what is refused


@pytest.fixture(scope="module")
def starts(champion, call, photos, waiting, tmp_path_factory):
    """{name: checkpoint} that differ from the champion in one thing, and one that began as a student."""
    home = tmp_path_factory.mktemp("starts")
    for name in ("classifier", "synthetic", "named", "plain"):
        state = checkpoint.load(champion)
        if name == "classifier":
            state["data"] |= {"target": "class", "domains": []}
            state["args"] |= {"head": "linear", "dropout": 0.0}
        elif name == "synthetic":
            state["args"]["data"] = "synthetic"
        elif name == "plain":
            del state["lineage"]
        elif name == "named":
            state["data"]["classes"] = ["other", *state["data"]["classes"][1:]]
        checkpoint.save(home / f"{name}.pt", **state)
    student = waiting / "improve/001/runs/student/old/0/last.pt"
    flags = ["--init", student, "--data", photos / "train", "--steps", 1, "--batch-size", 4]
    call("train_finetune.py", *flags, "--device", "cpu", "--out", home / "tuned")
    found = {path.stem: path for path in home.glob("*.pt")}
    return {**found, "champion": champion, "student": student, "tuned": home / "tuned/last.pt"}


@pytest.fixture(scope="module")
def mistaken(new, watched, photos, tmp_path_factory):
    """Folders that mistakes are made on, and must leave as they were."""
    home = tmp_path_factory.mktemp("mistaken")
    shutil.copytree(new, home / "new")
    shutil.copytree(watched, home / "watched")
    shutil.copytree(photos / "guard", home / "mine/reference")
    return home


INIT = ["init", "--out", "{home}/begun", "--champion", "{champion}"]
REFERENCE, GUARD = ["--reference", "{photos}/reference"], ["--guard", "{photos}/guard"]
MISTAKES = [
    ([*INIT, *REFERENCE, "--guard", "{photos}/train"], "photos trained or validated {champion}"),
    ([*INIT, *REFERENCE, "--guard", "{folder}"], "{folder}: the classes are background skin"),
    ([*INIT, *REFERENCE, "--guard", "{photos}/day"], "day: no labelled photos"),
    ([*INIT, *GUARD, "--reference", "{photos}/one"], "2 photos; a test needs more"),
    ([*INIT[:-1], "{classifier}", *REFERENCE, *GUARD], "holds a classifier of images, and a face parser"),
    ([*INIT[:-1], "{synthetic}", *REFERENCE, *GUARD], "trained on synthetic, no folder here"),
    ([*INIT, *REFERENCE, *GUARD, "--out", "{home}/new"], "holds an operator already"),
    ([*INIT, *GUARD, "--reference", "{home}/mine/reference", "--out", "{home}/mine"], "holds other files"),
    ([*INIT, *REFERENCE, *GUARD, "--scores", "--steps 3"], "has no effect without --scorer"),
    ([*INIT, *REFERENCE, *GUARD, "--scorer", "nowhere.py:f"], "nowhere.py"),
    ([*INIT, *REFERENCE, *GUARD, "--alpha", "1"], "need a level between 0 and 1"),
    ([*INIT, *REFERENCE, *GUARD, "--student", "--stepz 6"], "--student: train_student.py: "),
    ([*INIT, *REFERENCE, *GUARD, "--student", "--out x"], "--student: --out is the operator's to give"),
    (["improve", "{home}/new", "--abandon"], "no improvement is under way"),
    (
        ["promote", "{home}/new", "{student}", "--audit", "{photos}/guard"],
        "are of the guard or the reference",
    ),
    (["watch", "{home}/begun", "{photos}/day"], "no operator there"),
    (["watch", "{home}/watched", "{photos}/dark_a"], "all of its 12 photos were in a batch before"),
    (["improve", "{home}/new"], "no batch was watched since the last decision"),
    (["improve", "{home}/watched", "--batches", "2", "9"], "--batches 9: there is no such batch"),
    (["improve", "{home}/watched", "--audit", "{folder}"], "{folder}: the classes are background skin"),
    (["rollback", "{home}/new"], "no champion before the present one"),
    (["rollback", "{home}/new", "3"], "no version 3; there are 1"),
    (["promote", "{home}/new", "--audit", "{photos}/audit"], "has no effect without a CHECKPOINT"),
    (["promote", "{home}/new", "{named}", "--audit", "{photos}/audit"], "CHECKPOINT: classes of"),
    (["promote", "{home}/new", "{plain}", "--audit", "{photos}/audit"], "{plain}: which photos it has seen"),
    (["promote", "{home}/new", "{student}", "--audit", "{photos}/spent"], "1 of 2 photos trained or"),
    (["promote", "{home}/new", "{tuned}", "--audit", "{photos}/spent"], "1 of 2 photos trained or"),
]


@pytest.mark.parametrize(("flags", "named"), MISTAKES)
def test_a_mistake_gets_one_line_and_changes_nothing(
    flags, named, complaint, mistaken, photos, starts, folder
):
    names = {**starts, "home": mistaken, "photos": photos, "folder": folder}
    before = contents(mistaken)
    said = complaint(operate, *[flag.format(**names) for flag in flags])
    assert named.format(**names) in said and said.startswith("error: ") and said.count("\n") == 1
    assert contents(mistaken) == before and not (mistaken / "begun").exists()


def test_a_guard_that_was_touched_judges_nobody(complaint, mistaken, photos, good):
    path = photos / "guard/labels/15.png"
    was, before = path.read_bytes(), contents(mistaken)
    mask = np.array(Image.open(path))
    mask[0, 0] = 1 - mask[0, 0]
    Image.fromarray(mask).save(path)
    try:
        for flags in (
            ["promote", mistaken / "new", good, "--audit", photos / "audit"],
            ["improve", mistaken / "watched"],
        ):
            said = complaint(operate, *flags)
            assert "not the photos and masks of `init`" in said and said.count("\n") == 1
        assert contents(mistaken) == before
    finally:
        path.write_bytes(was)


def test_a_candidate_that_changed_since_it_was_judged_is_not_promoted(complaint, waiting, champion, tmp_path):
    ops = tmp_path / "ops"
    shutil.copytree(waiting, ops)
    candidate = "improve/001/runs/student/old/0/last.pt"
    row = {"candidate": candidate, "sha256": files.sha256(ops / candidate), "verdict": "better", "why": "so"}
    row["augment"] = "none"
    (ops / "decisions.jsonl").write_text(json.dumps({**row, "champion": files.sha256(champion)}) + "\n")
    shutil.copy(champion, ops / candidate)
    assert "is not the file that was judged better" in complaint(operate, "promote", ops)
    assert store.champion(ops)["version"] == 1


def test_what_an_operator_writes_meanwhile_stays_as_it_is(watched, tmp_path, capsys):
    ops = tmp_path / "ops"
    shutil.copytree(watched, ops)
    with open(ops / "watch.jsonl", "a") as file:
        file.write('{"batch": 5, "sta')
    before = contents(ops)
    assert run(operate, "status", ops) == 1 and contents(ops) == before
    assert "drift: batches in a row" in capsys.readouterr().out
