"""Checkpoints: plain data, written whole or not at all, checked before they are trusted."""

import errno
import os
import pathlib
import pickle
import zipfile

import torch

from utils import lineage
from utils.errors import UserError
from utils.files import cannot_write, whole
from utils.operate import store

FORMAT = 2
OLD = 1  # before a model held its normalisation; `load_state_dict` of models/ knows the names of then
TARGETS = {  # what a model was trained for
    "semantic": "a face parser",
    "class": "a classifier of images",
    "panoptic": "a parser of scenes or instances",
}


def save(path, **state):
    """Write {"format", **state} to `path`, whole or not at all. Raises UserError where it cannot be."""
    try:
        with whole(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except RuntimeError as error:  # torch's word for a disk that is full
        if "write" not in str(error) and "pos" not in str(error):
            raise
        raise UserError(cannot_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))) from None


def save_run(out, state, is_best, best_model):
    """last.pt of a run folder, and if this is the best step so far best.pt: with the weights of `best_model`,
    without what only a resumed run needs. best.pt comes first: the best step that last.pt names is there."""
    for what, weights in (("", state["model"]), (" (the average)", state.get("ema") or {})):
        if name := not_finite(weights):
            raise UserError(
                f"step {state['step']}: {name} holds values that are not finite{what}, so nothing was saved; "
                f"{out} is as it was: start anew with a lower rate, or without half precision"
            )
    if is_best:
        kept = {
            k: v for k, v in state.items() if k not in ("optimizer", "scaler", "ema", "teacher", "surveyed")
        }
        save(out / "best.pt", **kept | {"model": best_model.state_dict()})
    save(out / "last.pt", **state)


def load(path, script=None, holds="model", target="semantic"):
    """The dict that `save` wrote. Every byte is checked against the archive's checksums, since
    `torch.load` does not notice a flipped one, and what it says against what scripts rely on. Its `model` is
    what was validated, an average of the weights where the run kept one; where `script` goes on with it, the
    weights themselves. target: what the model needs to be for, a key of `TARGETS` or a tuple of them; None
    takes any. Raises UserError: missing, damaged, foreign, without `holds`, of another target, weights that
    are not finite."""
    path = pathlib.Path(path)
    if path.is_dir():
        champion = store.file_of(path)
        meant = path / "best.pt" if champion == path else champion
        if os.path.isfile(meant):
            raise UserError(f"{path}: is a folder; did you mean {meant}?")
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; the training scripts write them")
    state = read(path)
    if not isinstance(state, dict) or state.get("format") not in (OLD, FORMAT):
        raise UserError(f"{path}: not a checkpoint of these scripts (format {FORMAT} expected)")
    if holds not in state:
        raise UserError(f"{path}: holds {', '.join(sorted(map(str, state)))}, but no {holds}")
    if holds != "model":
        return state
    if fault := fault_of(state, resumed=bool(script)):
        raise UserError(f"{path}: not a whole checkpoint: {fault}; use another one")
    if script and state["script"] != script:
        raise UserError(f"{path}: was written by {state['script']}; --resume needs one of {script}")
    wanted = (target,) if isinstance(target, str) else target
    if wanted and (found := target_of(state)) not in wanted:
        scenes = "train_finetune.py goes on with it, evaluate.py and predict.py use it"
        needed = " or ".join(TARGETS[each] for each in wanted)
        hint = scenes if found == "panoptic" else "evaluate.py scores both"
        raise UserError(f"{path}: holds {TARGETS[found]}, and {needed} is needed; {hint}")
    if state["format"] == OLD and state["args"].pop("control", None) and script:
        raise UserError(f"{path}: began with --control, which is no more; start anew with --init {path}")
    if not script and state.get("ema"):
        state["model"] = state["ema"]
    return state


def read(path):
    """Plain data that `torch.save` wrote, on the CPU, checked byte by byte. Raises UserError: damaged, or
    more than plain data."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise UserError(f"{path}: damaged (checksum of {damaged}); use another one")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than plain data, so it was not loaded") from None
    except UserError:
        raise
    except Exception as error:  # zipfile and torch raise many kinds on damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: not a whole checkpoint ({path.stat().st_size} bytes: {reason})") from None


def target_of(state):
    """What the model of a checkpoint is for: its main output, a key of `TARGETS`."""
    return state["data"].get("target", "semantic")


def refuse_unlike(flag, paths, states, preprocess=False):
    """A UserError where checkpoints given to a flag differ from the first in what they are for, images or
    their pixels, in classes or size, so that they cannot answer together. preprocess: whether what they do to
    a photo counts, too."""

    def kind(state):
        found = {
            "target": TARGETS["class" if target_of(state) == "class" else "semantic"],
            "classes": state["data"]["classes"],
            "size": state["args"]["size"],
        }
        how = {"preprocess": state["args"].get("preprocess", "none")} if preprocess else {}
        return found | how

    first, *others = map(kind, states)
    for path, other in zip(paths[1:], others, strict=True):
        for key, value in first.items():
            if other[key] != value:
                a, b = (" ".join(v) if isinstance(v, list) else v for v in (value, other[key]))
                raise UserError(f"{flag}: {key} of {paths[0]}: {a}; of {path}: {b}; they need the same")


def trained_apart(paths, states):
    """A line, in a list, about checkpoints of other data or another split than the first one's: they may have
    trained on what it has not seen."""

    def split(flags):
        return os.path.realpath(flags["data"]), *map(flags.get, ("val_fraction", "ids", "leave_out"))

    first, *others = [split(state["args"]) for state in states]
    apart = [path for path, how in zip(paths[1:], others, strict=True) if how != first]
    line = f"trained on other data or another split than {paths[0]}, perhaps on what is held out here: "
    return [line + ", ".join(map(str, apart))] if apart else []


def unfinished(paths, states):
    """A line for each checkpoint whose run had not come to its end. That best.pt is of an earlier step, the
    best one that was validated, is no reason for a line."""
    lines = []
    for path, state in zip(paths, states, strict=True):
        steps = state["args"].get("steps")
        chosen = "optimizer" not in state and state["step"] == (state.get("best") or {}).get("step")
        if isinstance(steps, int) and state["step"] < steps and not chosen:
            lines.append(f"{path}: of step {state['step']} of {steps}: its run had not come to its end")
    return lines


def fault_of(state, resumed=False):
    """What scripts rely on and a checkpoint lacks, in words; None if it lacks nothing. resumed: whether a run
    goes on from it."""
    kinds = {"script": str, "args": dict, "step": int, "data": dict, "model": dict}
    kinds |= {"optimizer": dict, "scaler": dict, "best": dict} if resumed else {}
    for key, kind in kinds.items():
        if not isinstance(state.get(key), kind):
            return f"{key} is {'missing' if key not in state else 'no ' + kind.__name__}"
    if (target := target_of(state)) not in list(TARGETS):
        return f"its target is {target}, none of {', '.join(TARGETS)}"
    flags = {"model": str, "size": int, "data": str, "val_fraction": (int, float)}
    flags |= {"head": str, "dropout": (int, float)} if target == "class" else {"part_order": str}
    for key, kind in flags.items():
        if not isinstance(state["args"].get(key), kind):
            return f"its flags lack {key}"
    names = state["data"].get("classes")
    if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        return "it names no classes"
    colors, pairs, domains = (state["data"].get(key) for key in ("colors", "flip_pairs", "domains"))
    if target != "class":
        if len(set(names)) < len(names) or not _rows(colors, 3, 256) or len(colors) != len(names):
            return f"its {len(names)} classes do not have a name and a colour each"
        if not _rows(pairs, 2, len(names)):
            return "it has no flip_pairs of its classes"
        things = state["data"].get("things", None if target == "panoptic" else {})
        if not isinstance(things, dict) or not all(_numbers(ids, len(names)) for ids in things.values()):
            return "it does not say which of its classes are things that can be counted"
    elif len(set(names)) < len(names):
        return f"its {len(names)} classes do not have a name each"
    elif not (isinstance(domains, list) and all(isinstance(n, str) for n in domains)):
        return "it has no list of its domains, which may be empty"
    if not all(torch.is_tensor(v) for v in state["model"].values()):
        return "its model is no dict of tensors"
    if "lineage" in state and (fault := lineage.fault_of(state["lineage"])):
        return fault
    for key in ("model", "optimizer") if resumed else ("model",):
        if name := not_finite(state[key]):
            return f"{name} of the {key} holds values that are not finite"
    return None


def _rows(found, length, limit):
    """Whether something is a list of rows of so many whole numbers from 0 to below `limit`."""
    return isinstance(found, list) and all(len(row) == length and _numbers(row, limit) for row in found)


def _numbers(found, limit):
    """Whether something is a list of whole numbers from 0 to below `limit`."""
    return isinstance(found, list) and all(isinstance(v, int) and 0 <= v < limit for v in found)


def not_finite(state):
    """The name of the first tensor in a state dict, which may be nested, that holds a value which is not
    finite; None without one."""
    for name, value in state.items():
        if isinstance(value, dict) and (inner := not_finite(value)):
            return f"{name}.{inner}"
        if torch.is_tensor(value) and not value.isfinite().all():
            return str(name)
    return None
