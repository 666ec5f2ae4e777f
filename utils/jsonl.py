"""Rows as lines of JSON: appended whole or not at all, and read past what a power cut or a fault tore."""

import errno
import json
import os
import pathlib

from utils.errors import UserError
from utils.files import cannot_write, write_whole


def read(path, needs, mend=True):
    """The rows of a file, dicts with the keys and kinds of `needs`, {key: type}; [] where there is no file.
    Other lines are dropped from it, and it says so; with mend=False, for who may not write, the file stays
    as it is."""
    path = pathlib.Path(path)
    lines = path.read_bytes().splitlines() if path.is_file() else []
    rows = [(_loads(line), line) for line in lines]
    kept = [(row, line) for row, line in rows if all(isinstance(row.get(k), t) for k, t in needs.items())]
    if mend and (damaged := len(lines) - len(kept)):
        write_whole(path, b"".join(line + b"\n" for _, line in kept))
        print(f"{path}: {damaged} damaged of {len(lines)} lines dropped")
    return [row for row, _ in kept]


def append(path, row, sync=True):
    """One more row, which a kill does not undo once this returns, and with `sync` no power cut. Where it does
    not fit, the file stays as it was. Raises UserError."""
    try:
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            torn = size and file.read(1) != b"\n"
            line = b"\n" * torn + json.dumps(row).encode() + b"\n"
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise UserError(cannot_write(path, error)) from None


def _loads(line):
    """A dict, {} of what is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
