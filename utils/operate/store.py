"""Champions: every file that was promoted is kept, one of them is named, and who was it when is a line.

    ops/store/<sha256>.pt   promoted files, never changed, never deleted
    ops/champion.json       the row of the present champion, replaced in one go
    ops/history.jsonl       a row of each promotion and rollback

A row is {"version", "sha256", "run", "event": "promotion" or "rollback", "time", "decision"}. champion.json
is written first, so a kill may leave a champion whose row history.jsonl lacks: `recover` adds it. Who writes
holds the folder (`utils.files.lock`); who reads needs nothing.
"""

import datetime
import json
import pathlib
import shutil
import sys

from utils import jsonl
from utils.errors import UserError
from utils.files import read_json, sha256, whole, write_whole

NEEDS = {"version": int, "sha256": str, "run": str}  # of a row


def promote(ops, checkpoint_path, decision, check):
    """Make a copy of `checkpoint_path` the champion of the folder `ops`, which may be new. Returns its
    version, from 1.

    decision: why, anything that JSON holds. check(path): raises UserError where the copy, which is verified
    by then, should not serve after all; the champion stays, and so does the copy. Raises UserError, too,
    where there is no such file, or no room.
    """
    ops, source = pathlib.Path(ops), pathlib.Path(checkpoint_path)
    recover(ops)
    if not source.is_file():
        raise UserError(f"{source}: no such checkpoint; the training scripts write them")
    digest = sha256(source)
    versions = [r["version"] for r in history(ops)]
    kept = len(
        list(ops.glob("store/*.pt"))
    )  # no number is given twice, though a row of the history be damaged
    row = {"version": 1 + max([kept, *versions]), "sha256": digest}
    copy = _file(ops, row)
    if _fault(ops, row):
        copy.parent.mkdir(parents=True, exist_ok=True)
        with whole(copy) as file, open(source, "rb") as original:
            shutil.copyfileobj(original, file)
            file.flush()
            if sha256(file.name) != digest:
                raise UserError(f"{source}: changed while it was copied; wait for the run that writes it")
    check(copy)
    _serve(ops, row | {"run": str(source.parent), "event": "promotion", "decision": decision})
    return row["version"]


def rollback(ops, version=None):
    """Make an earlier champion the champion again; its version. By default the one before the present one:
    each further rollback goes further back, and the only way forward is by name. Raises UserError: no such
    version, none earlier, its file damaged."""
    ops = pathlib.Path(ops)
    recover(ops)
    rows = history(ops)
    if version is None:
        rows = _line(rows)
        if len(rows) < 2:
            raise UserError(f"{ops}: there is no champion before the present one to go back to")
        row = rows[-2]
    else:
        found = {row["version"]: row for row in rows}
        if version not in found:
            raise UserError(f"{ops}: no version {version}; there are {_listed(found) or 'none'}")
        row = found[version]
    if fault := _fault(ops, row):
        raise UserError(f"{ops}: version {row['version']} cannot serve, {fault}; {_intact(ops)}")
    present, _ = _named(ops)
    if present and present["version"] == row["version"]:
        raise UserError(f"{ops}: version {row['version']} is the champion already")
    _serve(ops, row | {"event": "rollback"})
    return row["version"]


def champion(ops):
    """{"version", "sha256", "path", "run", "decision"} of the file that serves; path: str, checked against
    its digest. Where champion.json or the file that it names is damaged, the champion before it whose file is
    whole, with a line about it as "fallback"; never one that was rolled back from. Raises UserError where
    there is none. Changes nothing."""
    ops = pathlib.Path(ops)
    _, fault = _named(ops)
    faults = [fault] if fault else []
    for row in reversed(_line(history(ops))):
        if fault := _fault(ops, row):
            faults.append(f"version {row['version']}: {fault}")
            continue
        found = {key: row.get(key) for key in ("version", "sha256", "run", "decision")}
        found["path"] = str(_file(ops, row))
        if faults:
            found["fallback"] = (
                f"{ops}: {'; '.join(faults)}; so version {row['version']} serves, the last champion that is "
                f"whole; python operate.py rollback {ops} {row['version']} makes it the champion"
            )
        return found
    raise UserError(f"{ops}: no champion ({'; '.join(faults)}); {_intact(ops)}")


def history(ops):
    """The rows of history.jsonl, in order, with that of champion.json if it lacks it. Changes nothing."""
    ops = pathlib.Path(ops)
    rows = jsonl.read(ops / "history.jsonl", NEEDS, mend=False)
    present, _ = _named(ops)
    return rows + [present] if _lacks(rows, present) else rows


def recover(ops):
    """Clear up after a kill: what was half-written goes, and the champion gets its row in the history. For
    who holds the folder; says what it does."""
    ops = pathlib.Path(ops)
    for stray in [*ops.glob("*.tmp"), *ops.glob("store/*.tmp")]:
        stray.unlink(missing_ok=True)
    rows = jsonl.read(ops / "history.jsonl", NEEDS)
    present, _ = _named(ops)
    if _lacks(rows, present) and not _fault(ops, present):
        jsonl.append(ops / "history.jsonl", present)
        print(f"{ops}: history.jsonl lacked the champion, version {present['version']}; its row is added")


def file_of(path):
    """The champion's file where `path` is a folder that has champions, else `path` as it is. Says so on
    stderr where the champion is not the one named. Raises UserError where there is none."""
    if not any((pathlib.Path(path) / name).is_file() for name in ("champion.json", "history.jsonl")):
        return path
    found = champion(path)
    if "fallback" in found:
        print(found["fallback"], file=sys.stderr)
    return found["path"]


def _serve(ops, row):
    row = row | {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    write_whole(ops / "champion.json", json.dumps(row, indent=1) + "\n")
    try:
        jsonl.append(ops / "history.jsonl", row)
    except UserError as error:
        raise UserError(f"version {row['version']} is the champion now, but {error}") from None


def _named(ops):
    """(the row in champion.json, None), or (None, what is wrong with it)."""
    try:
        row = read_json(ops / "champion.json")
    except UserError as error:
        return None, str(error).removeprefix(f"{ops}/")
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in NEEDS.items()):
        return None, f"champion.json: lacks one of {', '.join(NEEDS)}"
    return row, None


def _lacks(rows, present):
    """Whether champion.json says what history.jsonl does not yet."""
    return bool(present) and (not rows or rows[-1]["version"] != present["version"])


def _line(rows):
    """The champions that stand, the present one last: going back to one takes those after it away."""
    line = []
    for row in rows:
        versions = [other["version"] for other in line]
        line = line[: versions.index(row["version"])] if row["version"] in versions else line
        line.append(row)
    return line


def _file(ops, row):
    return ops / "store" / f"{row['sha256']}.pt"


def _fault(ops, row):
    """What is wrong with the file of a row, in words; None if it is whole."""
    file = _file(ops, row)
    if not file.is_file():
        return f"{file.relative_to(ops)} is not there"
    return None if sha256(file) == row["sha256"] else f"{file.relative_to(ops)} is damaged"


def _intact(ops):
    """For people: the versions that could serve."""
    found = {row["version"] for row in history(ops) if not _fault(ops, row)}
    return f"versions that are whole: {_listed(found) or 'none'}"


def _listed(versions):
    return ", ".join(map(str, sorted(versions)))
