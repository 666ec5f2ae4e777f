"""The champion is the old or the new one, whole, whatever happens; and there is a way back."""

import json
import pathlib
import shutil

import pytest
from conftest import ROOT, refusal

from utils import checkpoint
from utils.errors import UserError
from utils.operate import store

HERE = pathlib.Path(__file__).parent


def weights_of(folder, number, size=2000):
    """A file whose first byte is `number`."""
    path = folder / f"run {number}" / "best.pt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes([number]) + bytes(size))
    return path


def promote(ops, *numbers, size=2000):
    for number in numbers:
        store.promote(ops, weights_of(ops.parent, number, size), {"number": number}, lambda path: None)


def serves(ops):
    """The first byte of the champion's file, which is whole, and the line about a fallback or None."""
    found = store.champion(ops)
    content = pathlib.Path(found["path"]).read_bytes()
    assert content == content[:1] + bytes(len(content) - 1) and len(content) > 1
    assert store.file_of(str(ops)) == found["path"]
    return content[0], found.get("fallback")


def versions(ops):
    lines = (ops / "history.jsonl").read_text().splitlines()
    return [json.loads(line)["version"] for line in lines]


@pytest.fixture
def ops(tmp_path):
    """With three champions, the files 11, 12, 13."""
    promote(tmp_path / "ops", 11, 12, 13)
    return tmp_path / "ops"


# ---- there and back


def test_what_is_promoted_serves(ops, tmp_path):
    row = store.champion(ops)
    kept = pathlib.Path(row["path"])
    assert row.keys() == {"version", "sha256", "run", "decision", "path"}
    assert (row["version"], row["run"], row["decision"]) == (3, str(tmp_path / "run 13"), {"number": 13})
    assert kept == ops / "store" / f"{row['sha256']}.pt" and serves(ops) == (13, None)
    weights_of(tmp_path, 13).unlink()
    assert serves(ops) == (13, None), "a copy"
    assert versions(ops) == [1, 2, 3] and len(list((ops / "store").iterdir())) == 3


def test_the_same_file_again_is_a_new_version_of_one_copy(ops):
    promote(ops, 11)
    assert versions(ops) == [1, 2, 3, 4] and len(list((ops / "store").iterdir())) == 3
    assert store.champion(ops)["version"] == 4 and serves(ops) == (11, None)


def test_no_version_is_given_twice(ops):
    store.rollback(ops, 1)
    lines = (ops / "history.jsonl").read_text().splitlines()
    (ops / "history.jsonl").write_text("\n".join([*lines[:2], lines[2][:20], lines[3]]) + "\n")
    promote(ops, 14)
    assert store.champion(ops)["version"] == 4


def test_each_rollback_goes_further_back(ops):
    kept = {path.name: path.read_bytes() for path in (ops / "store").iterdir()}
    assert store.rollback(ops) == 2 and serves(ops) == (12, None)
    assert store.rollback(ops) == 1 and serves(ops) == (11, None)
    assert "no champion before the present one" in refusal(store.rollback, ops)
    assert store.rollback(ops, 3) == 3 and serves(ops) == (13, None), "forward by name"
    assert store.rollback(ops) == 1, "where it came from"
    promote(ops, 14)
    assert store.rollback(ops) == 1 and versions(ops) == [1, 2, 3, 2, 1, 3, 1, 4, 1]
    events = [row["event"] for row in store.history(ops)]
    assert events == [*["promotion"] * 3, *["rollback"] * 4, "promotion", "rollback"]
    assert {name: (ops / "store" / name).read_bytes() for name in kept} == kept


def test_rollbacks_that_lead_nowhere(ops, tmp_path):
    assert "no version 7; there are 1, 2, 3" in refusal(store.rollback, ops, 7)
    assert "version 3 is the champion already" in refusal(store.rollback, ops, 3)
    promote(tmp_path / "one", 11)
    assert "no champion before the present one" in refusal(store.rollback, tmp_path / "one")
    assert "no champion before the present one" in refusal(store.rollback, tmp_path / "none")
    (ops / "store" / f"{store.history(ops)[1]['sha256']}.pt").unlink()
    said = refusal(store.rollback, ops)
    assert "version 2 cannot serve" in said and "whole: 1, 3" in said
    assert serves(ops) == (13, None) and versions(ops) == [1, 2, 3]


def test_what_fails_the_check_never_serves(ops, tmp_path):
    def check(path):
        assert path.read_bytes()[0] == 14
        raise UserError(f"{path}: gives values that are not finite")

    assert "not finite" in refusal(store.promote, ops, weights_of(tmp_path, 14), None, check)
    assert "no such checkpoint" in refusal(store.promote, ops, tmp_path / "none.pt", None, check)
    assert serves(ops) == (13, None) and versions(ops) == [1, 2, 3]


def test_a_file_that_changes_while_it_is_copied_is_refused(ops, tmp_path, monkeypatch):
    path, copy = weights_of(tmp_path, 14), shutil.copyfileobj

    def copyfileobj(*files):
        path.write_bytes(b"the next save of the run")
        copy(*files)

    monkeypatch.setattr(store.shutil, "copyfileobj", copyfileobj)
    assert "changed while it was copied" in refusal(store.promote, ops, path, None, lambda path: None)
    assert serves(ops) == (13, None) and len(list((ops / "store").iterdir())) == 3


# ---- killed


def test_killed_at_any_moment_the_champion_is_the_old_or_the_new_one(start, times, record_property, tmp_path):
    """SIGKILL at 40 of the lines that a promotion and a rollback run through, those that copy and hash among
    them; at 200 in the reliability runs."""
    promote(tmp_path / "begun", 1, size=2**20)
    new = weights_of(tmp_path, 2, 2**20)
    said, found = tmp_path / "said", {"half-written": 0, "without a row": 0}

    def run(moment):
        ops = tmp_path / f"ops {moment}"
        shutil.copytree(tmp_path / "begun", ops)
        said.unlink(missing_ok=True)
        assert start(HERE / "promotes.py", ops, new, moment, stdout=said).wait() == (-9 if moment else 0)
        return ops

    run(0)
    kills = times(few=40, many=200)
    lines = int(said.read_text().split()[-1])
    for kill in range(kills):
        ops = run(1 + kill * lines // kills)
        done = [1, 2, 1][: 1 + len(said.read_text().splitlines())]
        may_be = [done, [1, 2, 1][: len(done) + 1]]
        number, fallback = serves(ops)
        assert number in [each[-1] for each in may_be] and fallback is None
        found["half-written"] += bool(list(ops.rglob("*.tmp")))
        found["without a row"] += versions(ops)[-1] != number
        store.recover(ops)
        assert versions(ops) in may_be and versions(ops)[-1] == number and serves(ops) == (number, None)
        assert not list(ops.rglob("*.tmp"))
        if kill % 10 == 0:  # it goes on
            promote(ops, 3)
            assert serves(ops) == (3, None) and store.rollback(ops) == number
        shutil.rmtree(ops)
    record_property("figure", ", ".join(f"{count} {what}" for what, count in found.items()))
    assert all(found.values()), "kills that could do harm"


# ---- damaged


def flip(path, at=1000):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_in_the_store_falls_back(ops, capsys):
    flip(pathlib.Path(store.champion(ops)["path"]))
    before = {path: path.read_bytes() for path in ops.rglob("*") if path.is_file()}
    number, line = serves(ops)
    assert number == 12 and store.champion(ops)["version"] == 2
    for word in ("version 3: store/", "is damaged", "so version 2 serves", f"rollback {ops} 2"):
        assert word in line
    assert capsys.readouterr().err == line + "\n" and "\n" not in line
    assert before == {path: path.read_bytes() for path in ops.rglob("*") if path.is_file()}, "only read"
    assert "version 3 cannot serve" in refusal(store.rollback, ops, 3)
    assert store.rollback(ops) == 2 and serves(ops) == (12, None), "as the line says"
    promote(ops, 13)
    assert serves(ops) == (13, None), "a whole copy in the place of the damaged one"


def test_never_back_to_what_was_rolled_back_from(ops):
    assert store.rollback(ops, 1) == 1
    flip(pathlib.Path(store.champion(ops)["path"]))
    said = refusal(store.champion, ops)
    assert "no champion (version 1: store/" in said and "whole: 2, 3" in said
    assert refusal(store.file_of, ops) == said and "cannot serve" in refusal(store.rollback, ops, 1)
    assert store.rollback(ops, 2) == 2 and serves(ops) == (12, None)


@pytest.mark.parametrize("content", ["", '{"version": 3, "sha', '{"version": 3}', "[3]", None])
def test_a_damaged_champion_json_falls_back_to_the_history(ops, content):
    if content is None:
        (ops / "champion.json").unlink()
    else:
        (ops / "champion.json").write_text(content)
    number, line = serves(ops)
    assert number == 13 and "champion.json: " in line and "so version 3 serves" in line
    assert store.rollback(ops, 3) == 3 and serves(ops) == (13, None), "as the line says"
    assert store.rollback(ops) == 2


def test_champion_json_names_a_file_that_is_not_there(ops):
    row = json.loads((ops / "champion.json").read_text()) | {"version": 4, "sha256": "../../champion"}
    (ops / "champion.json").write_text(json.dumps(row))
    number, line = serves(ops)
    assert number == 13 and "version 4: store/../../champion.pt is not there" in line
    store.recover(ops)
    assert versions(ops) == [1, 2, 3], "nobody served as version 4"


def test_a_torn_history_is_mended_by_who_holds_the_folder(ops, capsys):
    path = ops / "history.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert serves(ops) == (13, None) and path.read_bytes() == whole[:-20], "only read"
    store.recover(ops)
    said = capsys.readouterr().out
    assert "1 damaged of 3 lines dropped" in said and "lacked the champion, version 3" in said
    assert path.read_bytes() == whole
    path.unlink()
    assert serves(ops) == (13, None)
    promote(ops, 14)
    assert versions(ops) == [3, 4]


def test_no_champion_at_all(ops, tmp_path):
    for path in (ops / "store").iterdir():
        path.unlink()
    assert "versions that are whole: none" in refusal(store.champion, ops)
    assert "champion.json: cannot be read" in refusal(store.champion, tmp_path / "none")
    assert store.file_of(tmp_path) == tmp_path and store.file_of("best.pt") == "best.pt"


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True  # of what is imported under the limit: Python would cut it
from utils.errors import UserError
from utils.operate import store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
try:
    store.promote(*sys.argv[2:4], "better", lambda path: None)
except UserError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    print(error)
"""


@pytest.mark.parametrize("what", ["store", "champion.json", "history.jsonl"])
def test_a_full_disk_is_one_line_and_the_champion_is_whole(call, ops, tmp_path, what):
    """Full as the copy is written, champion.json, or the row of the history."""
    script = tmp_path / "promote.py"
    script.write_text(FULL_DISK)
    limit = {"store": 1000, "champion.json": 100, "history.jsonl": (ops / "history.jsonl").stat().st_size}
    new = weights_of(tmp_path, 14 if what == "store" else 11)  # 11 has a copy
    said = call(script, ROOT, ops, new, limit[what]).stdout
    assert said.count("\n") == 1 and "cannot be written (File too large" in said and f"{ops}/{what}" in said
    moved = what == "history.jsonl"
    assert ("version 4 is the champion now, but" in said) == moved
    assert serves(ops) == (11 if moved else 13, None) and not list(ops.rglob("*.tmp"))
    store.recover(ops)
    assert versions(ops) == [1, 2, 3] + [4] * moved


# ---- scripts


def test_scripts_take_the_champion(call, complaint, finetuned, folder, tmp_path):
    import evaluate
    import train_reward

    ops = tmp_path / "ops"
    promote(ops, 11)
    store.promote(ops, finetuned / "best.pt", "better", checkpoint.load)
    file = store.champion(ops)["path"]
    flags = ["--data", folder, "--split", "val", "--device", "cpu"]
    said = call("evaluate.py", "--init", ops, *flags).stdout
    alone = call("evaluate.py", "--init", file, *flags).stdout
    assert file in said and said.splitlines()[:-1] == alone.splitlines()[:-1]
    assert f"--init {ops} PHOTO" in said.splitlines()[-1]
    photo, out = folder / "images" / "0.png", tmp_path / "out"
    call("predict.py", "--init", ops, photo, "--out", out, "--device", "cpu")
    assert list(out.glob("*overlay.png"))
    said = complaint(train_reward, "--init", ops, "--data", folder, "--out", tmp_path / "run")
    assert f"{ops}: is a folder; did you mean {file}?" in said
    flip(pathlib.Path(file))
    assert "not a whole checkpoint" in complaint(evaluate, "--init", ops, *flags), "the other is no parser"
