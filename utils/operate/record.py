"""What an operator has on disk, and the facts of its page."""

import numpy as np
from PIL import Image

from utils import checkpoint, files, jsonl
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
    return jsonl.read(ops / "watch.jsonl", {"batch": int, "status": str, "photos": list})


def decided(ops):
    """The candidates that were judged: rows of decisions.jsonl."""
    return jsonl.read(ops / "decisions.jsonl", {"candidate": str, "sha256": str, "verdict": str})


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


def judged_better(ops):
    """The row of the candidate that waits to be promoted: the last one judged better than the champion of now
    and never promoted. None without one."""
    better = [row for row in decided(ops) if row["verdict"] == "better"]
    promoted = {row["sha256"] for row in store.history(ops)}
    if (
        not better
        or better[-1]["champion"] != store.champion(ops)["sha256"]
        or better[-1]["sha256"] in promoted
    ):
        return None
    return better[-1]


def next_command(ops):
    """What a person does next."""
    if state_of(ops)["improving"] or drift_of(ops)[0] == "yes":
        scored = files.read_json(ops / "operate.json")["scorer"]
        return f"python operate.py improve {ops}" + ("" if scored else " --audit LABELLED")
    if judged_better(ops):
        return f"python operate.py promote {ops}"
    return f"python operate.py watch {ops} NEW_PHOTOS"


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
    history = store.history(ops)
    promoted = {row["sha256"] for row in history}
    judged = decided(ops)
    for row in [*rows, *judged, *history]:
        row["time"] = in_words(row["time"])
    for row in judged:
        if row["verdict"] == "better" and row["sha256"] in promoted:
            row["verdict"] = "promoted"
    drift = drift_of(ops)[0]
    command = f"python operate.py rollback {ops}"
    ways_back = [
        f"{command} {row['version']}" if row["version"] != champion["version"] else None for row in history
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
        "strangest": pictures(ops / f"batches/{len(rows):03d}/strangest", ("photo", "nearest")),
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
