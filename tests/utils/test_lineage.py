"""Runs and checkpoints say what they came from, and TensorBoard's table shows them all."""

import hashlib
import json
import shutil
import sys

import numpy as np
import pytest
from conftest import TINY, lineage_of, refusal, weights, write
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

import predict
import train_finetune
from datasets.policies import chosen_by, load_policy
from utils import checkpoint, cli, files, lineage
from utils.files import sha256
from utils.log import RunLog


def digits(folder):
    """16 hex digits of each file in a folder."""
    return {hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in folder.iterdir()}


def run(script, *flags):
    """The exit status of a script in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.run(script.main, script.get_parser().parse_args([str(flag) for flag in flags]))
    return ended.value.code


# ---- ancestors


@pytest.fixture(scope="module")
def family(call, finetuned, tmp_path_factory):
    """A start, a student of it with photos of its own, and one that both of them teach; moved after each
    run. {name: file}, the first with `photos`, the folder of those."""
    home = tmp_path_factory.mktemp("family")
    photos = home / "photos"
    photos.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    files = {name: home / f"{name}.pt" for name in ("start", "student", "grandchild")}
    shutil.copy(finetuned / "best.pt", files["start"])
    same = ["--steps", 1, "--batch-size", 4, "--device", "cpu"]
    call("train_student.py", "--teacher", files["start"], "--unlabelled", photos, *same, "--out", home / "a")
    (home / "a/best.pt").rename(files["student"])
    teachers = [files["student"], files["start"]]
    call("train_student.py", "--teacher", *teachers, "--distill", 0.5, *same, "--out", home / "b")
    (home / "b/best.pt").rename(files["grandchild"])
    return files | {"photos": photos}


def test_a_moved_file_knows_its_ancestors(family, folder):
    start, student = sha256(family["start"]), sha256(family["student"])
    own = weights(family["grandchild"])["lineage"]
    assert own["parents"] == [student, start] and own["ancestors"].keys() == {student, start}
    assert own["ancestors"][student]["parents"] == [start]
    assert own["ancestors"][start]["script"] == "train_finetune.py"
    assert own["ancestors"][start]["step"] in (6, 12)
    assert own["ancestors"][start]["data"]["train"]["path"] == str(folder)
    assert own["ancestors"][student]["data"]["unlabelled"]["photos"] == 3
    assert "ancestors" not in own["ancestors"][student], "flat"
    assert weights(family["start"])["lineage"]["ancestors"] == {}
    path, grandchild = family["grandchild"], sha256(family["grandchild"])
    made = lineage.origin("x.py", "out", {}, {}, {path: {"sha256": grandchild}}, {path: weights(path)})
    assert made["parents"] == [grandchild] and made["ancestors"].keys() == {grandchild, student, start}


def test_a_moved_file_knows_all_photos_that_it_has_seen(family, folder):
    own = digits(folder / "images")
    assert len(own) == 24 and lineage.seen(weights(family["start"])) == own
    for name in ("student", "grandchild"):  # the latter through its teacher alone
        assert lineage.seen(weights(family[name])) == own | digits(family["photos"])


def test_the_run_folder_names_files_and_what_came_out(family, finetuned):
    said = lineage_of(family["photos"].parent / "a")
    assert said["files"] == {str(family["start"]): {"flag": "teacher", "sha256": sha256(family["start"])}}
    assert said["exit"] == 0 and said["started"] <= said["ended"] and said["cpu_seconds"] > 0
    assert said["outputs"]["best.pt"] == sha256(family["student"]) and "data.json" not in said["outputs"]
    said = lineage_of(finetuned)
    pictures = {"val.png", "train_batch.png"}
    assert said["outputs"].keys() == {"best.pt", "last.pt", "args.json", "metrics.jsonl"} | pictures
    assert said["processes"] == 1
    rows = [json.loads(line) for line in (finetuned / "metrics.jsonl").read_text().splitlines()]
    scored = {row["step"]: row["val/mean_f1"] for row in rows if "val/mean_f1" in row}
    assert (said["figures"]["step"], said["figures"]["mean_f1"]) == (12, scored[12])


def test_figures_are_those_of_the_last_validation_and_of_the_best(tmp_path):
    assert lineage.figures(tmp_path) == {}
    rows = [{"step": 1, "val/mean_f1": 0.75}, {"step": 2, "val/mean_f1": 0.5}, {"step": 2, "train/loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    last = {"step": 2, "mean_f1": 0.5}
    assert lineage.figures(tmp_path) == last
    for step, best in ((1, {"step": 1, "mean_f1": 0.75}), (0, {"step": 0})):
        checkpoint.save(tmp_path / "best.pt", step=step)
        assert lineage.figures(tmp_path) == last | {"best": best}


FACTS = {"photos": 1, "people": 1, "sha256": "5" * 64, "contents": ["00" * 8, "ff" * 8, "00" * 8]}


def test_a_start_that_is_older_than_this_is_a_parent_and_no_more():
    named = {"old.pt": {"flag": "init", "sha256": "ab" * 32}}
    starts = {"old.pt": {"script": "train_finetune.py", "step": 3}, None: None}
    made = lineage.origin("x.py", "out", {"train": FACTS}, {"train": "here"}, named, starts)
    assert made["parents"] == ["ab" * 32]
    nothing = {"out": None, "commit": None, "data": None}
    known = {"script": "train_finetune.py", "step": 3, "parents": []}
    assert made["ancestors"] == {"ab" * 32: known | nothing}
    assert made["seen"].tolist() == [[0] * 8, [255] * 8], "sorted, each once"
    assert lineage.digits(made) == {"00" * 8, "ff" * 8}, "and more, which nobody knows"
    assert lineage.seen({"lineage": made}) is None and lineage.seen({}) is None
    child = lineage.origin(
        "x.py", "out", {}, {}, {"a.pt": {"sha256": "cd" * 32}}, {"a.pt": {"lineage": made}}
    )
    assert lineage.seen({"lineage": child}) is None, "nor do its descendants"
    unread = lineage.origin("x.py", "out", {"train": FACTS}, {"train": "here"}, named, {"old.pt": None})
    assert lineage.seen({"lineage": unread}) is None
    rendered = {"train": FACTS | {"sha256": None, "contents": []}}
    rendered = lineage.origin("x.py", "out", rendered, {"train": "synthetic"}, {}, {})
    assert lineage.seen({"lineage": rendered}) == set(), "synthetic faces are no photos"
    assert lineage.origin("y.py", "there", {}, {}, {}, {}, {"lineage": made}) is made, "resumed"


def test_photos_that_chose_a_policy_are_seen_by_what_it_augments(tmp_path):
    policy, by_hand = tmp_path / "policy.json", tmp_path / "hand.json"
    chosen = lineage.origin("ks_test.py", "ks", {"real": FACTS}, {"real": "here"}, {}, {})
    write(policy, {"flip": 0.5, "lineage": lineage.as_json(chosen)})
    write(by_hand, {"flip": 0.5})
    for path, seen in ((policy, {"00" * 8, "ff" * 8}), (by_hand, set())):
        named = {str(path): {"flag": "augment", "sha256": sha256(path)}}
        starts = chosen_by(str(path), load_policy(str(path)))
        made = lineage.origin("x.py", "out", {}, {}, named, starts)
        assert lineage.seen({"lineage": made}) == seen
        assert made["parents"] == ([sha256(path)] if seen else [])
    assert made["ancestors"] == {} and chosen_by("flip", load_policy("flip")) == {}
    write(policy, {"flip": 0.5, "lineage": lineage.as_json(chosen) | {"seen": ["xx"]}})
    assert "does not say which photos it has seen" in refusal(load_policy, str(policy))


def test_flags_that_change_nothing_are_not_in_the_digest(monkeypatch, tmp_path):
    made = lineage.origin("x.py", "out", {}, {}, {}, {})
    digest = lambda **flags: lineage.record(made, {"lr": 1, "out": "a", **flags}, {})["args_sha256"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.chdir(tmp_path)
    record = lineage.record(made, {}, {})
    assert record["processes"] == 4 and record["cwd"] == str(tmp_path)
    assert digest() == digest(out="b") == digest(resume=True, device="cuda", workers=3)[:64] != digest(lr=2)


# ---- how a run ends


def test_a_wrong_flag_leaves_nothing_and_a_fault_on_the_way_its_status(complaint, folder, tmp_path):
    flags = ["--data", folder, *TINY, "--out", tmp_path / "run"]
    assert "zz" in complaint(train_finetune, *flags, "--loss", "zz=1")
    assert not (tmp_path / "run").exists()
    wild = ["--steps", 4, "--lr", 1e30, "--grad-clip", 1e30]
    assert "no finite loss" in complaint(train_finetune, *flags, *wild)
    said = lineage_of(tmp_path / "run")
    assert said["exit"] == 2 and "last.pt" not in said["outputs"] and said["figures"] == {}


def test_each_call_into_a_folder_of_masks_is_kept(finetuned, folder, tmp_path):
    photos = [folder / f"images/{i}.png" for i in (1, 2)]
    for photo in photos:
        flags = ["--init", finetuned / "best.pt", "--device", "cpu", "--out", tmp_path / "out"]
        assert run(predict, *flags, photo) == 0
    said = lineage_of(tmp_path / "out")
    (before,) = said["earlier"]
    assert before["outputs"].keys() == {"1_mask.png", "1_overlay.png"} and before["exit"] == 0
    assert said["outputs"] == {n: sha256(tmp_path / "out" / n) for n in ("2_mask.png", "2_overlay.png")}
    init = str(finetuned / "best.pt")
    assert said["parents"] == [sha256(init)] and said["data"]["photos"]["photos"] == 1
    assert said["files"].keys() == {init}, "photos are data"
    (tmp_path / "out/lineage.json").write_text("[]")
    assert run(predict, *flags, "--overwrite", photo) == 2, "what somebody else wrote is not replaced"


def test_calls_without_end_name_each_file_once(tmp_path):
    made = lineage.origin("predict.py", "out", {}, {}, {}, {})
    names = {"a": ["1.png", "2.png"], "b": ["2.png"], "c": ["2.png", "3.png"]}
    for call, written in names.items():
        paths = [tmp_path / name for name in written]
        lineage.begin(tmp_path, made, {}, {}, paths)
        for path in paths:
            path.write_text(call)
        lineage.finish(0)
    said = lineage_of(tmp_path)
    assert [[*each["outputs"]] for each in (*said["earlier"], said)] == [["1.png"], [], ["2.png", "3.png"]]


def test_a_folder_of_another_script_is_left_alone(complaint, finetuned, folder, tmp_path):
    lineage.begin(tmp_path, lineage.origin("train_finetune.py", "out", {}, {}, {}, {}), {}, {})
    lineage.finish(0)
    before = lineage_of(tmp_path)
    flags = ["--init", finetuned / "best.pt", "--device", "cpu", "--out", tmp_path]
    said = complaint(predict, *flags, folder / "images/1.png")
    assert f"{tmp_path}: holds a run of train_finetune.py; name another --out" in said
    assert lineage_of(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["lineage.json"]


@pytest.mark.parametrize("fault", ["gone", "damaged"])
def test_no_run_fails_by_the_end_of_its_lineage(fault, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    made = lineage.origin("x.py", "out", {}, {}, {}, {})
    lineage.begin(tmp_path / "run", made, {"out": "run"}, {})
    assert lineage_of(tmp_path / "run")["exit"] is None
    if fault == "gone":
        shutil.rmtree(tmp_path / "run")
    else:
        (tmp_path / "run/best.pt").write_bytes(b"PK")
        (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "val/mean_f1": 0.5}\n')
    lineage.finish(0)
    assert capsys.readouterr().err.count("\n") == 1
    lineage.finish(0)
    assert not capsys.readouterr().err, "there is no second end"


@pytest.mark.parametrize(("raised", "status"), [(SystemExit(143), 143), (KeyError("x"), 1), (None, 3)])
def test_the_status_is_that_of_the_process(raised, status, tmp_path, monkeypatch):
    finish, held = lineage.finish, []
    monkeypatch.setattr(
        lineage, "finish", lambda status: [finish(status), held.extend(tmp_path.glob(".lock"))]
    )

    def main(args):
        files.lock(tmp_path)
        lineage.begin(tmp_path, lineage.origin("x.py", "out", {}, {}, {}, {}), {}, {})
        if raised:
            raise raised
        return 3

    with pytest.raises((SystemExit, KeyError)):
        cli.run(main, None)
    assert lineage_of(tmp_path)["exit"] == status
    assert held and not (tmp_path / ".lock").exists(), "held to the last word"


# ---- TensorBoard's table of runs


def table_of(folder):
    """({column of a flag: its type}, {run: {"sessions", "status", tag: (value, step)}}), of the runs below a
    folder, as TensorBoard's HParams shows them with the filter of each column set to all that it offers."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder))
    runs.Reload()
    provider = MultiplexerDataProvider(runs, str(folder))
    context = Context(TBContext(logdir=str(folder), multiplexer=runs, data_provider=provider))
    ask = RequestContext(), context, "all"
    found = get_experiment.Handler(*ask, api_pb2.GetExperimentRequest(include_metrics=True)).run()
    columns = [api_pb2.ColParams(metric=metric.name) for metric in found.metric_infos]
    for flag in found.hparam_infos:
        column = api_pb2.ColParams(hparam=flag.name)
        for kind in ("domain_discrete", "domain_interval"):
            if flag.HasField(kind):
                getattr(column, kind.replace("domain", "filter")).CopyFrom(getattr(flag, kind))
        columns.append(column)
    every = {"start_index": 0, "slice_size": 99, "allowed_statuses": api_pb2.Status.values()}
    request = api_pb2.ListSessionGroupsRequest(**every, include_metrics=True, col_params=columns)
    shown = {
        group.name: {v.name.tag: (v.value, v.training_step) for v in group.metric_values}
        | {"sessions": len(group.sessions), "status": api_pb2.Status.Name(group.sessions[0].status)}
        for group in list_session_groups.Handler(*ask, request).run().session_groups
    }
    return {flag.name: api_pb2.DataType.Name(flag.type) for flag in found.hparam_infos}, shown


def test_all_runs_and_all_their_flags_are_in_the_table(finetuned, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py"])
    shutil.copytree(finetuned, tmp_path / "finetuned")
    flags = {"loss": ["ce=1", "dice=1"], "limit": 4, "ema": 0, "compile": True, "own": "yes"}

    def write_run(name, f1, step, resumed=None, **ended):
        (tmp_path / name).mkdir(exist_ok=True)
        log = RunLog(tmp_path / name, flags, resumed)
        log.scalars(step, **{"val/mean_f1": f1})
        log.close(**ended) if ended else log.board.close()

    write_run("killed", 0.25, 1)
    write_run("collapsed", 0.25, 1, done=False, signal=0)
    write_run("resumed", 0.25, 1, done=False, signal=15)
    write_run("resumed", 0.75, 5, resumed=1, done=True)
    columns, shown = table_of(tmp_path)
    given = json.loads((finetuned / "args.json").read_text())["args"]
    assert columns.keys() == flags.keys() | {name for name, value in given.items() if value is not None}
    assert columns["limit"] == columns["ema"] == "DATA_TYPE_FLOAT64", "None in another run is no text"
    assert columns["compile"] == "DATA_TYPE_BOOL" and columns["loss"] == "DATA_TYPE_STRING"
    assert all(run["sessions"] == 1 for run in shown.values())
    status = {name: run["status"].removeprefix("STATUS_") for name, run in shown.items()}
    ended = {"finetuned": "SUCCESS", "resumed": "SUCCESS"}
    assert status == ended | {"killed": "UNKNOWN", "collapsed": "FAILURE"}
    f1 = lineage_of(finetuned)["figures"]["mean_f1"]
    assert shown["finetuned"]["val/mean_f1"] == (pytest.approx(f1, abs=1e-6), 12)
    assert shown["resumed"]["val/mean_f1"] == (0.75, 5) and shown["killed"]["val/mean_f1"] == (0.25, 1)
