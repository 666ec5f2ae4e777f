"""Checkpoints: plain data, written whole or not at all, checked before they are trusted."""

import argparse
import copy
import os
import pathlib
import pickle
import shutil
import zipfile

import torch

from utils.errors import UserError

FORMAT = 1


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
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of these scripts (format {FORMAT} expected)")
    if script and state["script"] != script:
        raise UserError(f"{path}: was written by {state['script']}; --resume needs one of {script}")
    return state


def inherit(args, init, **defaults):
    """`args` with every None among `defaults` filled in: from the checkpoint's flags, else from
    `defaults`. args: a Namespace or any object with the flags as attributes."""
    filled = copy.copy(args)
    for key, value in defaults.items():
        if getattr(args, key) is None:
            setattr(filled, key, init["args"].get(key, value) if init else value)
    return filled


def resume_flags(parser, saved, argv=None, free=("resume", "out", "device", "workers")):
    """The flags of the run that goes on: those it began with. A flag on the command line that says
    otherwise is refused, except `free` ones, which hold."""
    absent = object()  # tells a flag that was not written from one written with its default
    parser.set_defaults(**dict.fromkeys(saved, absent))
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not absent}
    for key, value in given.items():
        began = saved.get(key, parser.get_default(key))  # a flag may be younger than the run
        if key not in free and value != began:
            raise UserError(
                f"--{key.replace('_', '-')} {value}: the run in {saved['out']} began with {began} "
                "and --resume goes on unchanged; a new stage needs --init and another --out"
            )
    return argparse.Namespace(**{**saved, **given})
