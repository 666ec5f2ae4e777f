"""Saves without a pause, as ours or as other projects do it, until it is killed.

python tests/reliability/saves.py HOW PATH MEGABYTES FIRST    writes the number of each save that is done
"""

import io
import itertools
import os
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from utils import checkpoint  # noqa: E402


def in_place(path, state):
    """torchvision's reference scripts, and most small projects."""
    torch.save(state, path)


def from_memory(path, state):
    """Ultralytics: serialised in memory, then written in one go."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue())


def unlink_first(path, state):
    """timm: a temporary file, which is renamed once the earlier one is deleted."""
    temporary = path.with_name("tmp.pt")
    torch.save(state, temporary)
    path.unlink(missing_ok=True)
    temporary.rename(path)


HOW = {
    "ours": lambda path, state: checkpoint.save(path, **state),
    "torchvision": in_place,
    "ultralytics": from_memory,
    "timm": unlink_first,
}

if __name__ == "__main__":
    how, path, megabytes, first = sys.argv[1:]
    pieces = [torch.zeros(2**18) for _ in range(int(megabytes))]  # 1 MB each, as weights come in pieces
    for number in itertools.count(int(first)):
        state = {"step": number, "model": {str(i): piece.fill_(number) for i, piece in enumerate(pieces)}}
        HOW[how](pathlib.Path(path), state)
        os.write(1, f"{number}\n".encode())
