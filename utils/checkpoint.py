"""Checkpoints: plain data, written whole or not at all, checked before they are trusted."""

import os
import pathlib
import pickle
import shutil
import zipfile

import torch

from utils.errors import UserError

FORMAT = 2
OLD = 1  # before a model held its normalisation; `load_state_dict` of models/ knows the names of then


def save(path, **state):
    """Write {"format", **state} to `path`: temporary file, fsync, rename, fsync of the folder. A kill
    or a full disk at any moment leaves the previous file whole."""
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except FileNotFoundError:
        raise UserError(f"{path}: cannot be written, since there is no such folder") from None
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(path.parent).free // 2**20
        raise UserError(
            f"{path}: cannot be written ({error}; {free} MB free); any earlier one is kept"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def save_run(out, state, is_best, best_model):
    """last.pt of a run folder, and if this is the best step so far best.pt: with the weights of `best_model`,
    without what only a resumed run needs. best.pt comes first: the best step that last.pt names is there."""
    if is_best:
        kept = {k: v for k, v in state.items() if k not in ("optimizer", "scaler", "ema")}
        save(out / "best.pt", **kept | {"model": best_model.state_dict()})
    save(out / "last.pt", **state)


def load(path, script=None):
    """The dict that `save` wrote. Every byte is checked against the archive's checksums, since
    `torch.load` does not notice a flipped one. Raises UserError: missing, damaged, foreign."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; the training scripts write them")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise UserError(f"{path}: damaged (checksum of {damaged}); use another checkpoint")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
        size = path.stat().st_size
        raise UserError(f"{path}: not a whole checkpoint ({size} bytes: {error})") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than plain data, so it was not loaded") from None
    if not isinstance(state, dict) or state.get("format") not in (OLD, FORMAT):
        raise UserError(f"{path}: not a checkpoint of these scripts (format {FORMAT} expected)")
    if script and state["script"] != script:
        raise UserError(f"{path}: was written by {state['script']}; --resume needs one of {script}")
    if state["format"] == OLD and state.get("args", {}).pop("control", None) and script:
        raise UserError(f"{path}: began with --control, which is no more; start anew with --init {path}")
    return state
