"""runs.py: rows and their figures by hand, and real runs: charted, checked, shown as a page, exported."""

import hashlib
import json
import os
import re
import shutil
import sys

import pytest
from conftest import TINY, weights, write
from PIL import Image

import runs
from datasets import cache
from utils import checkpoint
from utils.tracking.check import check_champions

REWARD = "train_reward.py"
ALL_WELL = "4 runs, 29 files and 9 sets of photos checked: all as it was\n"


@pytest.fixture
def said(capsys, monkeypatch):
    """said(*flags, status=None): what runs.py prints."""
    monkeypatch.setattr(cache, "own", None)  # as it is before and after a check

    def said(*flags, status=None):
        assert runs.main(runs.get_parser().parse_args([str(flag) for flag in flags])) == status
        return capsys.readouterr().out

    return said


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def made(folder, figure=None, script="train_finetune.py", flags=(), rows=(), **record):
    """A run folder as a script would leave it, with one validation, or rows of metrics.jsonl."""
    folder.mkdir(parents=True)
    name = "val/reward" if script == REWARD else "val/mean_f1"
    rows = rows or ([{"step": 4, name: figure}] if figure is not None else [])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = {"seed": 0, "augment": "flip", "batch_size": 4, "init": None, "out": str(folder), **dict(flags)}
    empty = {"commit": "abc", "data": {}, "files": {}, "parents": [], "outputs": {}, "figures": {}}
    own = {"script": script, "out": str(folder), "args": args, **empty, "args_sha256": sha(str(args))}
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:00+00:00"}
    write(folder / "lineage.json", own | times | {"cpu_seconds": 60, "exit": 0, "earlier": []} | record)
    return folder


def table(text):
    """[{column: cell}] of the only table."""
    header, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(header, row, strict=True)) for row in rows]


def cut(text, *columns):
    return [[row[column] for column in columns] for row in table(text)]


@pytest.fixture
def chains(tmp_path):
    """Three fine-tuned parsers, and a student of each, in folders whose names say nothing."""
    root = tmp_path / "runs"
    for seed, name in enumerate("xyz"):
        out = {"outputs": {"best.pt": sha(name)}}
        made(root / name, [0.80, 0.82, 0.84][seed], flags={"seed": seed}, **out)
        given = {f"was/{name}/best.pt": {"flag": "teacher", "sha256": sha(name)}}
        flags = {"seed": seed, "teacher": [*given], "augment": "cutmix"}
        figure = [0.83, 0.84, 0.88][seed]
        made(root / f"{name}_of", figure, "train_student.py", flags, files=given, parents=[sha(name)])
    return root


# ---- rows and figures


def test_seeds_are_grouped_along_a_chain_and_compared_in_pairs(said, chains):
    text = said(chains, "--baseline", chains / "x_of")
    assert cut(text, "script", "augment", "seeds", "val/mean_f1", "CPU min") == [
        ["train_student.py", "cutmix", "0, 1, 2", "0.8500 ± 0.0265", "1.0"],
        ["train_finetune.py", "flip", "0, 1, 2", "0.8200 ± 0.0200", "1.0"],
    ]
    # differences -.03, -.02, -.04: mean -.03, deviation .01, t(.975, 2) = 4.3027
    assert [row["against row 1"] for row in table(text)] == ["", "-0.0300 [-0.0548, -0.0052], 3 seeds"]
    assert "batch_size" not in text and "seed |" not in text
    text = said(chains, "--baseline", chains / "y")
    assert [row["against row 2"] for row in table(text)] == ["+0.0300 [+0.0052, +0.0548], 3 seeds", ""]


def test_another_start_is_another_row(said, chains):
    (chains / "w").mkdir()
    file = {"flag": "teacher", "sha256": sha("w")}
    made(chains / "w/0", 0.7, flags={"seed": 0, "augment": "trivial"}, outputs={"best.pt": sha("w")})
    flags = {"seed": 0, "teacher": ["elsewhere"], "augment": "cutmix"}
    made(chains / "w/of", 0.9, "train_student.py", flags, files={"elsewhere": file})
    rows = cut(said(chains, "--baseline", chains / "w/0"), "val/mean_f1", "seeds", "teacher")
    assert len(rows) == 4 and rows[0] == ["0.9000", "0", "elsewhere"]
    assert rows[1] == ["0.8500 ± 0.0265", "0, 1, 2", "was/…/best.pt"]


def test_of_a_start_that_is_not_here_the_path_tells(said, tmp_path):
    for seed in (0, 1):
        for name, start in (("of_each", f"p0/{seed}/best.pt"), ("of_one", "p0/one/best.pt")):
            files = {start: {"flag": "init", "sha256": sha(start)}}
            files["weights.pt"] = {"flag": "weights", "sha256": sha("w")}
            flags = {"seed": seed, "init": start, "weights": "weights.pt"}
            made(tmp_path / name / str(seed), 0.5 + seed / 10, flags=flags, files=files)
    rows = cut(said(tmp_path), "init", "seeds", "val/mean_f1")
    assert sorted(rows) == [
        ["p0/one/best.pt", "0, 1", "0.5500 ± 0.0707"],
        ["p0/…/best.pt", "0, 1", "0.5500 ± 0.0707"],
    ]


def test_a_file_of_other_content_under_the_same_name_is_another_row(said, tmp_path):
    for seed, content in enumerate("aab"):
        files = {"policy.json": {"flag": "augment", "sha256": sha(content)}}
        made(tmp_path / str(seed), 0.5, flags={"seed": seed, "augment": "policy.json"}, files=files)
    assert sorted(cut(said(tmp_path), "augment", "seeds")) == [["policy.json", "0, 1"], ["policy.json", "2"]]


def test_runs_that_did_not_end_well_are_named_and_count_nowhere(said, tmp_path):
    ends = {"well": 0, "killed": None, "stopped": 143, "failed": 2, "collapsed": 3}
    for seed, (name, status) in enumerate(ends.items()):
        made(tmp_path / name, 0.1 * seed + 0.5, REWARD, {"seed": seed}, exit=status)
    text = said(tmp_path)
    assert cut(text, "seeds", "val/reward") == [["0 (4 not counted)", "0.5000"]]
    for word in ("killed did not end", "stopped was stopped by signal 15", "failed with exit status 2"):
        assert f"{word}\n" in text
    assert "collapsed collapsed\n" in text


def test_what_earlier_starts_cost_is_counted(said, tmp_path):
    made(tmp_path / "a", 0.5, cpu_seconds=30, earlier=[{"cpu_seconds": 60}, {"cpu_seconds": 90}])
    made(tmp_path / "b", 0.4, flags={"augment": "none"}, earlier=[{"cpu_seconds": None}])  # which was killed
    made(tmp_path / "c", 0.3, flags={"augment": "cutmix"}, processes=1)
    made(tmp_path / "d", 0.2, flags={"augment": "trivial"}, processes=4)  # of which one counted itself
    assert cut(said(tmp_path), "CPU min") == [["3.0"], ["≥ 1.0"], ["1.0"], ["≥ 1.0"]]


def test_by_a_flag_rows_are_its_values_and_tell_what_else_differs(said, tmp_path):
    made(tmp_path / "a", 0.6, flags={"augment": "none", "batch_size": 8})
    made(tmp_path / "b", 0.8, flags={"augment": "none", "batch_size": 16})
    made(tmp_path / "c", 0.5, flags={"batch_size": 8})
    made(tmp_path / "d", 0.9, flags={"batch_size": 8, "seed": 1})
    text = said(tmp_path, "--by", "augment")
    # two runs of seed 0 are one value: .7; they have seed 0 in common with the row of .5 and .9
    columns = "augment", "val/mean_f1", "against row 1"
    assert sorted(cut(text, *columns)) == [
        ["flip", "0.7000 ± 0.2828", "-0.2000 (1 seed, no interval)"],
        ["none", "0.7000", ""],
    ]
    assert "row 1: its runs differ in batch_size, too" in text and "several runs have one seed" in text
    text = said(tmp_path, "--by", "augment", "batch-size", "--baseline", tmp_path / "d")
    assert cut(text, "augment", "batch_size", "val/mean_f1")[0] == ["none", "16", "0.8000"]
    made(tmp_path / "e", 0.1, flags={"augment": "cutmix", "seed": 7})
    assert table(said(tmp_path, "--by", "augment"))[-1]["against row 1"] == "no common seeds"


def test_any_figure_is_that_of_the_best_step(said, tmp_path):
    rows = [
        {"step": 2, "val/mean_f1": 0.7, "val/miou": 0.3},
        {"step": 4, "val/mean_f1": 0.6, "val/miou": 0.4},
    ]
    run = made(tmp_path / "a", rows=[*rows, {"step": 4, "train/loss": 2.5}], outputs={"best.pt": sha("a")})
    assert cut(said(tmp_path), "val/mean_f1") == [["0.7000"]]
    assert cut(said(tmp_path, "--figure", "val/miou"), "val/miou") == [["0.3000"]]
    assert cut(said(tmp_path, "--figure", "train/loss"), "train/loss") == [["2.5000"]], (
        "the last, if no other"
    )
    write(
        run / "test.json", {"init": "a", "split": "test", "mean_f1": 0.65, "lineage": {"parents": [sha("a")]}}
    )
    write(
        run / "other.json", {"init": "b", "split": "test", "mean_f1": 0.9, "lineage": {"parents": [sha("b")]}}
    )
    assert cut(said(tmp_path), "val/mean_f1", "test.json") == [["0.7000", "0.6500"]]
    assert "other.json" not in said(tmp_path), "of a checkpoint of another run"
    assert cut(said(tmp_path, "--figure", "test.json"), "test.json") == [["0.6500"]]


def test_where_the_start_was_best_its_figure_counts(said, tmp_path):
    rows = [{"step": 4, "val/reward": 0.5, "val/mean_f1": 0.4}]
    run = made(tmp_path / "a", script=REWARD, rows=rows, figures={"step": 4, "best": {"step": 0}})
    checkpoint.save(run / "best.pt", best={"step": 0, "reward": 0.625})
    assert cut(said(tmp_path), "val/reward") == [["0.6250"]]
    made(tmp_path / "b", script=REWARD, rows=rows, flags={"seed": 1})
    # of the start nobody logged it, and that of step 4 is of another network
    text = said(tmp_path, "--figure", "val/mean_f1").partition("### train_reward.py, no figure")[0]
    assert cut(text, "seeds", "val/mean_f1") == [["1", "0.4000"]]


def test_other_photos_to_validate_on_and_other_code_are_told(said, tmp_path):
    for seed in (0, 1):
        val = {"path": "faces", "sha256": sha(str(seed)), "photos": 4, "people": 2}
        made(tmp_path / str(seed), 0.5, flags={"seed": seed}, data={"val": val}, commit=f"c{seed}")
    text = said(tmp_path)
    assert "not all were validated on the same" in text and "2 versions of the code: c0, c1" in text


def test_runs_from_before_lineage_are_listed_with_what_they_know(said, tmp_path):
    for seed in (0, 1):
        run = made(tmp_path / str(seed), 0.5 + seed)
        (run / "lineage.json").unlink()
        args = {"seed": seed, "steps": 4 if seed else 8, "augment": "flip"}
        write(run / "args.json", {"args": args, "command": ["x/train_finetune.py"], "git": "abc"})
    text = said(tmp_path, "--by", "augment")
    assert cut(text, "seeds", "val/mean_f1", "CPU min") == [["1 (1 not counted)", "1.5000", "–"]]
    assert "0 did not end" in text


def test_nothing_is_mended_in_a_folder(said, tmp_path):
    run = made(tmp_path / "a", 0.5)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "val/mean_f1": 0.')  # torn
    before = (run / "metrics.jsonl").read_bytes()
    assert cut(said(tmp_path), "val/mean_f1") == [["0.5000"]]
    assert (run / "metrics.jsonl").read_bytes() == before


def faces(path="faces", **digests):
    """What lineage.json says of photos. digests: {split: content}."""
    return {split: {"path": path, "sha256": sha(x), "photos": 4, "people": 2} for split, x in digests.items()}


def test_other_training_data_is_another_row_whatever_it_is_called(said, tmp_path):
    for seed, (name, content) in enumerate([("faces", "a"), ("./faces/", "a"), ("/x/faces", "b")]):
        given = faces(name, train=content, val="v")
        made(tmp_path / str(seed), 0.5 + seed, flags={"seed": seed, "data": name}, data=given)
    given = faces(train="c", val="v")
    made(tmp_path / "3", 3.5, flags={"seed": 3, "data": "faces"}, data=given)
    text = said(tmp_path)
    assert cut(text, "data", "seeds") == [["faces", "3"], ["/x/faces", "2"], ["…", "0, 1"]]
    assert "rows 1 and 3: data is faces by name; what it holds is not the same" in text
    assert "rows 2" not in text


def test_of_photos_that_the_seed_drew_a_note_tells(said, tmp_path):
    for seed in (0, 1):
        given = faces(train=str(seed), val="v")
        made(tmp_path / str(seed), 0.5, flags={"seed": seed, "data": "faces", "limit": 4}, data=given)
    text = said(tmp_path)
    assert cut(text, "seeds") == [["0, 1"]] and "row 1: each seed drew its own train" in text


def test_a_start_is_known_by_what_it_holds(said, tmp_path):
    def began(name, seed, start, content):
        files = {start: {"flag": "init", "sha256": sha(content)}}
        made(tmp_path / name, 0.5, flags={"seed": seed, "init": start}, files=files)

    began("a", 0, "here/best.pt", "one")
    began("b", 1, "there/best.pt", "one")
    assert cut(said(tmp_path), "seeds") == [["0, 1"]], "two paths of one file"
    for seed in (0, 1):
        began(f"each{seed}", seed, f"p/{seed}/best.pt", f"{seed} old")
    assert sorted(cut(said(tmp_path), "seeds")) == [["0, 1"], ["0, 1"]]
    began("again", 0, "p/0/best.pt", "0 retrained")
    assert sorted(cut(said(tmp_path), "seeds")) == [["0"], ["0"], ["0, 1"], ["1"]]


def test_a_start_whose_maker_has_written_another_since_is_not_pooled(said, tmp_path):
    for name, content in (("old", "old"), ("new", "new")):
        files = {f"{tmp_path}/p/best.pt": {"flag": "init", "sha256": sha(content)}}
        made(tmp_path / name, 0.5, REWARD, {"init": f"{tmp_path}/p/best.pt"}, files=files)
    made(tmp_path / "p", 0.5, outputs={"best.pt": sha("new")})
    text = said(tmp_path).partition("### train_reward.py")[2]
    assert sorted(cut(text, "runs", "seeds")) == [["new", "0"], ["old", "0"]]


def test_figures_of_other_test_data_are_told(said, tmp_path):
    tests = [("test", "a"), ("test", "a"), ("test", "b"), ("val", "a")]
    for seed, (split, content) in enumerate(tests):
        if seed == 2:
            assert "masks" not in said(tmp_path)
        run = made(tmp_path / str(seed), 0.5, flags={"seed": seed})
        own = {"parents": [], "data": faces(**{split: content})}
        write(run / "test.json", {"init": "a", "split": split, "mean_f1": 0.6, "lineage": own})
        if seed == 2:
            assert "test.json: not all are of the same photos and masks (test)" in said(tmp_path)
    assert "same photos and masks (test, val)" in said(tmp_path, "--figure", "test.json")


def test_a_damaged_result_is_named_and_stops_nothing(said, tmp_path):
    run = made(tmp_path / "a", 0.5)
    (run / "data.json").write_text("{")  # which is not read
    assert "left out" not in said(tmp_path)
    (run / "torn.json").write_text("{")
    write(run / "odd.json", {"init": "a", "split": "test", "mean_f1": 0.5, "lineage": []})
    text = said(tmp_path)
    assert cut(text, "val/mean_f1") == [["0.5000"]]
    assert f"left out: {run}/odd.json: not what" in text and f"left out: {run}/torn.json: not JSON" in text


FIRST = {"train/loss": 0.5, "loss/labelled": 0.5, "policy_loss": 0.5, "val/ece": 0.5, "val/f1/gloss": 0.75}


@pytest.mark.parametrize("name, first", FIRST.items())
def test_the_best_is_the_lowest_where_less_is_better(said, tmp_path, name, first):
    for augment, value in (("flip", 0.5), ("none", 0.75)):
        made(tmp_path / augment, flags={"augment": augment}, rows=[{"step": 1, name: value}])
    text = said(tmp_path, "--figure", name)
    assert cut(text, name)[0] == [f"{first:.4f}"] and ("lowest first" in text) == (first == 0.5)


def test_runs_of_a_search_are_no_rows_unless_it_is_named(said, tmp_path):
    made(tmp_path / "engine", script="augment.py")
    (tmp_path / "engine/arms.jsonl").touch()
    made(tmp_path / "engine/runs/search/none/0", 0.5, outputs={"best.pt": sha("deleted")})
    assert "val/mean_f1" not in said(tmp_path)
    assert "1 runs, 0 files" in said(tmp_path, "--check", status=0)
    for named in (tmp_path / "engine", tmp_path / "engine/runs"):
        assert cut(said(named).partition("### augment.py")[0], "val/mean_f1") == [["0.5000"]]
        assert "deleted by augment.py: " in said(named, "--check", status=0)


def test_what_a_check_could_not_check_is_said(said, tmp_path):
    made(tmp_path / "killed", 0.5, exit=None)
    older = made(tmp_path / "older", 0.5)
    (older / "lineage.json").unlink()
    write(older / "args.json", {"args": {}, "command": ["train_finetune.py"], "git": "abc"})
    assert said(tmp_path, "--check", status=0).splitlines() == [
        f"not checked: {tmp_path}/killed: did not end",
        f"not checked: {tmp_path}/older: is older than lineage.json",
        "2 runs, 0 files and 0 sets of photos checked: all as it was",
    ]


# ---- real runs


@pytest.fixture(scope="module")
def real(calls, folder, pictures, judge, tmp_path_factory):
    """Faces, a parser fine-tuned on some of them, a student of it, which is scored, a parser tuned on scores,
    and a classifier."""
    root = tmp_path_factory.mktemp("real")
    faces, out = shutil.copytree(folder, root / "faces"), root / "runs"
    few = ["--steps", 2, "--eval-every", 1, "--device", "cpu"]
    parser = ["--data", faces, "--limit", 12, "--allow-empty", "inner_mouth", *few, *TINY]
    images = ["--data", pictures, "--model", "cnn", "--size", 32, *few, "--out", out / "classes"]
    calls(["train_finetune.py", *parser, "--out", out / "parser"], ["train_classify.py", *images])
    start, photos = out / "parser/best.pt", ["--unlabelled", faces, "--batch-size", 4]
    scores = ["--init", start, *photos, "--reward", judge, "--samples", 4, "--limit", 4, *few]
    student = ["--teacher", start, *photos, *few, "--out", out / "student"]
    calls(["train_student.py", *student], ["train_scores.py", *scores, "--out", out / "scores"])
    init = ["--init", out / "student/best.pt", "--split", "val", "--device", "cpu"]
    calls(["evaluate.py", *init, "--json", out / "student/val.json"])
    return root


@pytest.fixture
def copied(real, tmp_path):
    """Its runs, elsewhere."""
    return shutil.copytree(real / "runs", tmp_path / "runs")


def test_a_table_of_real_runs(said, real):
    text = said(real)
    assert re.findall("### (.*):", text) == [
        "train_classify.py, val/accuracy",
        "train_finetune.py, val/mean_f1",
        "train_student.py, val/mean_f1",
        "train_scores.py, val/reward",
    ]
    assert "teacher" not in text, "no column of one script's only run"
    text = said(real, "--figure", "val/mean_f1", "--baseline", real / "runs/parser")
    rows = table(text.partition("### no figure")[0])
    assert {row["script"] for row in rows} == {"train_finetune.py", "train_student.py"}
    student = next(row for row in rows if row["script"] == "train_student.py")
    scored = json.loads((real / "runs/student/val.json").read_text())["mean_f1"]
    best = weights(real / "runs/student/best.pt")["best"]["mean_f1"]
    assert student["val.json"] == f"{scored:.4f}" and student["val/mean_f1"] == f"{best:.4f}"


def nodes(text):
    """{node: what it says}, and the edges, of a chart."""
    assert text.startswith("```mermaid\nflowchart TD\n") and text.endswith("```\n")
    says = dict(re.findall(r'^    (n\d+)\[\(?"(.*)"\)?\]$', text, re.M))
    arrows = re.findall(r"^    (n\d+) -->(?:\|(.*)\|)? (n\d+)$", text, re.M)
    assert len(says) + len(arrows) + 4 == len(text.splitlines())
    return says, {(says[a].split("<br>")[0], flag, says[b].split("<br>")[0]) for a, flag, b in arrows}


def test_a_file_that_was_moved_alone_knows_who_it_came_from(said, real, tmp_path):
    alone = shutil.copy(real / "runs/student/best.pt", tmp_path / 'a "b" #1.pt')
    says, arrows = nodes(said("--lineage", alone))
    faces = str(real / "faces")
    assert arrows == {
        ("train_finetune.py", "", "train_student.py"),
        (faces, "train", "train_finetune.py"),
        (faces, "val", "train_finetune.py"),
        (faces, "train, unlabelled", "train_student.py"),
        (faces, "val", "train_student.py"),
    }
    (own,) = (text for text in says.values() if text.startswith("train_student.py"))
    assert "a #quot;b#quot; #35;1.pt" in own and "has seen 24 photos" in own and "step " in own
    assert f"{faces}<br>4 photos of 2 people" in "".join(says.values())


def test_folders_tell_where_a_parent_is_today_and_who_made_what_flags_named(said, real, copied):
    record = json.loads((copied / "student/lineage.json").read_text())
    policy = {"flag": "augment", "sha256": sha("policy")}
    own = {"flag": "ids", "sha256": sha("ids")}
    write(copied / "student/lineage.json", record | {"files": record["files"] | {"p.json": policy, "i": own}})
    made(copied / "engine", script="augment.py", outputs={"policy.json": sha("policy")})
    shutil.move(copied / "parser", copied / "renamed")
    says, arrows = nodes(said("--lineage", copied / "student/best.pt", copied))
    assert {
        ("train_finetune.py", "teacher", "train_student.py"),
        ("augment.py", "augment", "train_student.py"),
        ("i", "ids", "train_student.py"),  # which no run made
    } <= arrows
    assert any(f"<br>{copied}/renamed/best.pt<br>" in text for text in says.values())
    assert any(f"augment.py<br>{copied}/engine/policy.json<br>" in text for text in says.values())


def test_a_checkpoint_from_before_lineage_says_so(said, real, tmp_path):
    import torch

    state = weights(real / "runs/parser/best.pt")
    del state["lineage"]
    torch.save(state, tmp_path / "old.pt")
    says, arrows = nodes(said("--lineage", tmp_path / "old.pt"))
    assert not arrows and "nothing is known" in says["n0"] and "train_finetune.py" in says["n0"]


def test_a_chart_of_what_has_no_lineage_of_its_own(said, copied, tmp_path):
    import torch

    record = json.loads((copied / "parser/lineage.json").read_text())
    state = weights(copied / "parser/best.pt")
    own = state.pop("lineage")
    torch.save(state, copied / "parser/best.pt")  # as an older one: only the folder tells
    digest = hashlib.sha256((copied / "parser/best.pt").read_bytes()).hexdigest()
    npz = {"path": "faces.npz", "sha256": sha("npz"), "photos": 4, "people": 2}
    files = {"faces.npz": {"flag": "data", "sha256": sha("file")}}
    made_of = {"outputs": {"best.pt": digest}, "files": files, "data": {"train": npz}}
    write(copied / "parser/lineage.json", record | made_of)
    says, arrows = nodes(said("--lineage", copied / "parser/best.pt", copied))
    assert arrows == {("faces.npz", "train", "train_finetune.py")} and "nothing is known" not in says["n0"]
    own = own | {"parents": [digest], "ancestors": {digest: dict.fromkeys(own, None)}}
    torch.save(state | {"lineage": own}, tmp_path / "child.pt")
    says, arrows = nodes(said("--lineage", tmp_path / "child.pt", copied))
    assert ("faces.npz", "train", "train_finetune.py") in arrows
    nodes(said("--lineage", tmp_path / "child.pt"))  # nor do folders tell


def test_all_is_as_it_was(said, real):
    assert said(real, "--check", status=0) == ALL_WELL


def test_outputs_that_are_changed_missing_or_moved_are_found(said, real, copied):
    with open(copied / "student/best.pt", "r+b") as file:
        file.seek(3000)
        byte = file.read(1)
        file.seek(3000)
        file.write(bytes([byte[0] ^ 1]))
    (copied / "student/val.png").unlink()
    (copied / "parser/last.pt").rename(copied / "parser/kept.pt")
    lines = said(copied, "--check", status=1).splitlines()
    assert sorted(lines[:-1]) == [
        f"changed: {copied}/student/best.pt",
        f"missing: {copied}/student/val.png",
        f"moved: {copied}/parser/last.pt; what it was lies in {copied}/parser/kept.pt",
    ]
    assert lines[-1] == "4 runs, 29 files and 9 sets of photos checked: 2 changed or missing"


def test_champions_of_operators_are_checked(tmp_path):
    kept = tmp_path / "ops/store" / f"{hashlib.sha256(b'weights').hexdigest()}.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    (tmp_path / "ops/history.jsonl").touch()
    assert check_champions([tmp_path]) == ([], 1)
    kept.write_bytes(b"weighty")
    assert check_champions([tmp_path]) == ([(True, f"changed: {kept}")], 1)


def test_what_is_only_moved_is_not_wrong(said, copied):
    (copied / "parser/last.pt").rename(copied / "parser/kept.pt")
    assert "moved: " in said(copied, "--check", status=0)


def test_a_teacher_that_was_replaced_is_found(said, real, copied):
    record = json.loads((copied / "student/lineage.json").read_text())
    ((path, file),) = record["files"].items()
    assert path == str(real / "runs/parser/best.pt")
    record["files"][path]["sha256"] = sha("another")
    write(copied / "student/lineage.json", record)
    assert f"changed: {path} (--teacher) of {copied}/student\n" in said(copied, "--check", status=1)


def test_paths_are_seen_from_where_the_command_ran(said, copied, real):
    path = copied / "student/lineage.json"
    record = json.loads(path.read_text())
    start, photos = "runs/parser/best.pt", "faces"
    files = {start: record["files"][str(real / start)]}
    data = {split: facts | {"path": photos} for split, facts in record["data"].items()}
    flags = record["args"] | {"data": photos, "unlabelled": photos, "teacher": [start]}
    write(path, record | {"cwd": str(real), "files": files, "data": data, "args": flags})
    assert said(copied, "--check", status=0) == ALL_WELL
    write(path, record | {"files": files, "data": data, "args": flags})
    lines = said(copied, "--check", status=1).splitlines()
    assert len(lines) == 5 and "3 changed or missing" in lines[-1], lines


@pytest.mark.parametrize("change", ["pixel", "person", "class", "gone"])
def test_data_is_read_again_whatever_the_manifest_says(said, copied, real, change):
    mask, classes = real / "faces/labels/3.png", real / "faces/classes.json"
    before = mask.read_bytes(), classes.read_text()
    known = cache.contents([str(mask)])[str(mask)]
    facts = json.loads(before[1])
    try:
        if change == "pixel":
            image = Image.open(mask)
            image.putpixel((0, 0), 1 - image.getpixel((0, 0)))
            image.save(mask)
            status = os.stat(mask)  # a manifest that knows nothing of it
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, known]
            cache._remember(str(mask.parent), {mask.name: stamp})
            assert cache.contents([str(mask)])[str(mask)] == known
        elif change == "person":
            write(classes, facts | {"groups": facts["groups"] | {"3": "somebody else"}})
        elif change == "class":
            write(classes, facts | {"classes": [*facts["classes"][:-1], "renamed"], "flip_pairs": []})
        else:
            mask.rename(mask.with_suffix(".txt"))
        text = said(copied, "--check", status=1)
    finally:
        mask.with_suffix(".txt").unlink(missing_ok=True)
        mask.write_bytes(before[0])
        classes.write_text(before[1])
    assert re.search(rf"^(changed|data): {real}/faces \(train\) of {copied}/parser: ", text, re.M)
    assert re.search(rf"^(changed|data): {real}/faces \(unlabelled\) of {copied}/student: ", text, re.M)


def test_a_page_holds_the_table_and_nothing_from_elsewhere(said, chains, tmp_path):
    made(chains / "<b>", 0.5, flags={"augment": "a & b"}, exit=3)
    rows = [{"step": 2, "val/mean_f1": 0.2}, {"step": 4, "val/mean_f1": 0.4}]
    made(chains / "curve", rows=rows, flags={"augment": "c"})
    one_table = "--baseline", chains / "x"
    assert said(chains, *one_table, "--html", tmp_path / "runs.html") == f"wrote:   {tmp_path}/runs.html\n"
    page = (tmp_path / "runs.html").read_text()
    found = [re.findall(r"<td>(.*?)</td>", row) for row in page.split("<tr")[2:]]
    lines = [line for line in said(chains, *one_table).splitlines() if line.startswith("|")]
    plain = [line.strip("| ").split(" | ") for line in lines]
    assert [row[5:] for row in found] == [row[5:] for row in plain[2:]]
    assert page.count("<polyline") == 8 and "not counted: " in page and "a &amp; b" in page
    assert "<b>" not in page and not re.search(r"https?:|src=|href=|url\(|@import|<script", page)


# ---- what is refused, and MLflow


def test_mistakes(complaint, chains, tmp_path, monkeypatch):
    no = tmp_path / "no"
    assert "name the folders" in complaint(runs)
    assert "no such folder" in complaint(runs, no)
    no.mkdir()
    assert "no run folder there" in complaint(runs, no)
    assert "did you mean augment?" in complaint(runs, chains, "--by", "augmnet")
    assert "did you mean val/mean_f1?" in complaint(runs, chains, "--figure", "mean_f1")
    assert "is none of these runs" in complaint(runs, chains, "--baseline", no)
    assert "has no effect beside --check" in complaint(runs, chains, "--check", "--by", "augment")
    assert "ends in .html" in complaint(runs, chains, "--html", chains / "x/lineage.json")
    assert "not a whole checkpoint" in complaint(runs, "--lineage", chains / "x/lineage.json")
    assert "no such checkpoint" in complaint(runs, "--lineage", chains / "x/best.pt")
    write(chains / "x/lineage.json", {"script": 1})
    said = complaint(runs, chains)
    assert "x/lineage.json: not what these scripts write" in said and said.count("\n") == 1
    made(tmp_path / "none/run", script="predict.py")
    assert "none of these runs has any figure" in complaint(runs, tmp_path / "none", "--figure", "val/miou")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert "pip install mlflow" in complaint(runs, chains / "y", "--mlflow", "sqlite:///no.db")


def test_mlflow_has_each_run_once(said, real, copied, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="no mlflow, 800 MB: pip install mlflow")
    monkeypatch.chdir(tmp_path)  # where it puts artifacts
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    made(copied / "collapsed", 0.1, REWARD, rows=[{"step": 1, "val/f1/it's": 0.5}], exit=3)
    assert said(copied, "--mlflow", uri).count(": written\n") == 5
    shutil.move(copied / "parser", copied / "renamed")
    assert said(copied, "--mlflow", uri).count(": is there already\n") == 5
    with open(copied / "student/metrics.jsonl", "a") as file:  # it went on
        file.write('{"step": 3, "val/mean_f1": 0.75}\n')
    assert "student: brought up to date" in said(copied, "--mlflow", uri)
    client = mlflow.MlflowClient(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "faces")
    found = {run.data.tags["script"]: run for run in client.search_runs([experiment.experiment_id])}
    assert len(found) == 5
    assert found[REWARD].info.status == "FAILED" and found[REWARD].data.tags["ended"] == "collapsed"
    student = found["train_student.py"]
    history = client.get_metric_history(student.info.run_id, "val/mean_f1")
    assert [point.step for point in history] == [1, 2, 3] and history[-1].value == 0.75
    assert student.data.params["batch_size"] == "4" and student.info.status == "FINISHED"
    assert {"lineage.json", "val.png"} <= {file.path for file in client.list_artifacts(student.info.run_id)}
