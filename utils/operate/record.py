"""What an operator has on disk, and the facts of its page."""

import json
import os
import shlex

import numpy as np
from PIL import Image

from utils import checkpoint, draw, files, jsonl
from utils.operate import decisions, store

DRIFT = {  # what is said of it
    "not asked": "no batch was watched since the last decision",
    "no": "no drift: the last batch is not told from the reference",
    "suspected": "one batch is told from the reference; a second in a row makes it a drift",
    "yes": "drift: batches in a row are told from the reference",
    "cannot tell": "cannot tell: the test has no verdict, which does not mean that there is no drift",
}


def watched(ops):
    """The batches: rows of watch.jsonl."""
    needs = {"batch": int, "status": str, "photos": list}
    return jsonl.read(ops / "watch.jsonl", needs, mend=False)  # another process may write


def decided(ops):
    """The candidates that were judged: rows of decisions.jsonl."""
    needs = {"candidate": str, "sha256": str, "verdict": str, "augment": str}
    return jsonl.read(ops / "decisions.jsonl", needs, mend=False)


def better(ops):
    """The row of the candidate that was last judged better than the present champion, if it never was one
    itself; None without one."""
    present, promoted = store.champion(ops)["sha256"], {row["sha256"] for row in store.history(ops)}
    won = [row for row in decided(ops) if row["verdict"] == "better" and row["champion"] == present]
    return won[-1] if won and won[-1]["sha256"] not in promoted else None


def state_of(ops):
    """Where improvements are: the number of the one that is not at its end, how many are, and the last batch
    that one was made of."""
    path = ops / "state.json"
    return files.read_json(path) if path.exists() else {"improving": None, "improvements": 0, "decided": 0}


def drift_of(ops):
    """(a key of `DRIFT`, the batches that have drifted)."""
    rows = watched(ops)
    done = state_of(ops)["decided"]
    if not any(row["batch"] > done for row in rows):
        return "not asked", []
    return decisions.drift(rows, done)


def taught(state):
    """The checkpoint in which a model learned from masks, where scores have tuned it since."""
    while state["script"] == "train_scores.py":
        state = checkpoint.load(state["args"]["init"])
    return state


def policy_of(state):
    """The augmentation that the masks of a checkpoint were trained with: a name, or the path of a file."""
    policy = taught(state)["args"].get("augment") or "cutmix"
    return os.path.abspath(policy) if os.path.isfile(policy) else policy


def recipe(ops, config, digest):
    """As `policy_of`, of the champion with this sha256; wherever the folder is by now."""
    known = [row["augment"] for row in decided(ops) if row["sha256"] == digest]
    policy = known[-1] if known else config["augment"]
    return os.path.abspath(ops / policy) if (ops / policy).is_file() else policy


def inside(path, ops):
    """The path of a file as seen from `ops`, which may be moved; any other word as it is."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(ops)) if os.path.isfile(path) else path


def next_command(ops):
    """What a person does next."""
    if state_of(ops)["improving"] or drift_of(ops)[0] == "yes":
        scored = files.read_json(ops / "operate.json")["scorer"]
        return command("improve", ops) + ("" if scored else " --audit LABELLED")
    if row := better(ops):
        return f"{command('promote', ops)}    # {row['candidate']}"
    return command("watch", ops) + " NEW_PHOTOS"


def command(name, ops):
    return f"python operate.py {name} {shlex.quote(str(ops))}"


def ancestry(digest, origin):
    """A checkpoint and what it came from, each once, as rows {"depth", "what", "out", "sha256", "data"}.
    origin: what the checkpoint says of itself, see `utils.lineage`."""
    known = origin.get("ancestors", {})
    rows = {}

    def add(digest, facts, depth):
        splits = (facts.get("data") or {}).items()
        data = ", ".join(f"{name}: {of['photos']} photos of {of['people']} people" for name, of in splits)
        rows[digest] = {"depth": depth, "what": facts["script"], "out": facts["out"], "sha256": digest}
        rows[digest]["data"] = data
        for parent in facts.get("parents") or []:
            if parent in known and parent not in rows:
                add(parent, known[parent], depth + 1)

    if origin:
        add(digest, origin, 0)
    return list(rows.values())


def facts(ops, time):
    """All that page.html shows, see `page.page`."""
    champion = store.champion(ops)
    state = checkpoint.load(champion["path"])
    config = files.read_json(ops / "operate.json")
    rows = watched(ops)
    newest = rows[-1]["batch"] if rows else 0
    history = store.history(ops)
    promoted = {row["sha256"] for row in history}
    judged = decided(ops)
    for row in [*rows, *judged, *history]:
        row["time"] = in_words(row["time"])
    for row in history:
        if row.get("event") == "rollback":
            row["decision"] = "rolled back to"
    for row in judged:
        if row["verdict"] == "better" and row["sha256"] in promoted:
            row["verdict"] = "promoted"
    drift = drift_of(ops)[0]
    way = command("rollback", ops)
    ways_back = [
        f"{way} {row['version']}" if row["version"] != champion["version"] else None for row in history
    ]
    return {
        "ops": str(ops),
        "time": in_words(time),
        "champion": champion | {"time": history[-1]["time"]},
        "fallback": champion.get("fallback"),
        "state": {"drift": drift, "sentence": DRIFT[drift], "next": next_command(ops)},
        "alpha": config["alpha"],
        "delta": config["delta"],
        "watch": [row | {"num_photos": len(row["photos"]), "photos": row["source"]} for row in rows],
        "strangest": pictures(ops / f"batches/{newest:03d}/strangest", ("photo", "nearest")),
        "differences": pictures(ops / "differences", ("photo", "champion", "candidate")),
        "legend": list(zip(state["data"]["classes"], state["data"]["colors"], strict=True)),
        "decisions": [row | {"k": row["audit"]["k"]} for row in judged],
        "lineage": ancestry(champion["sha256"], state.get("lineage", {})),
        "history": [row | {"rollback": way} for row, way in zip(history, ways_back, strict=True)][::-1],
    }


def in_words(time):
    """An ISO time in UTC, for people."""
    return f"{time[:16].replace('T', ' ')} UTC"


def pictures(folder, kinds):
    """The rows of rows.json in a folder, each with its pictures {row}_{kind}.png as (H, W, 3) uint8."""
    path = folder / "rows.json"
    rows = files.read_json(path) if path.is_file() else []
    return [
        row | {kind: np.asarray(Image.open(folder / f"{i}_{kind}.png").convert("RGB")) for kind in kinds}
        for i, row in enumerate(rows)
    ]


def write_pictures(folder, rows, shown):
    """What `pictures` reads. shown: {kind: (H, W, 3) uint8} for each of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, kinds in enumerate(shown):
        for kind, array in kinds.items():
            draw.write(folder / f"{i}_{kind}.png", array)
    files.write_whole(folder / "rows.json", json.dumps(rows, indent=1) + "\n")
