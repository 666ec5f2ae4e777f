"""Files that are broken, foreign or hostile are read as they were meant or refused by name; never a crash."""

import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write
from PIL import Image

import augment
import evaluate
import ks_test
import predict
import train_finetune
import train_reward
import train_scores
from datasets.images import read_image, read_mask
from utils import checkpoint
from utils.errors import UserError

# ---- R8


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrapped", ["by torch", "by torch before 1.6", "by pickle"])
def test_no_script_runs_what_a_file_holds(wrapped, complaint, folder, times, record_property, tmp_path):
    times(1, 1)
    file, trap = tmp_path / "evil.pt", tmp_path / "trap"
    state = {"format": checkpoint.FORMAT, "script": "train_finetune.py", "model": Trap(trap)}
    if wrapped == "by pickle":
        file.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=wrapped == "by torch")
    out = tmp_path / "run"
    out.mkdir()
    commands = [
        (train_finetune, "--data", folder, "--init", file, "--out", tmp_path / "a"),
        (train_finetune, "--data", folder, "--weights", file, *TINY, "--out", tmp_path / "b"),
        (train_finetune, "--resume", "--out", out),
        (train_reward, "--init", file, "--out", tmp_path / "c"),
        (train_reward, "--resume", "--out", out),
        (
            train_scores,
            "--init",
            file,
            "--unlabelled",
            folder,
            "--reward",
            "anatomy",
            "--out",
            tmp_path / "d",
        ),
        (train_scores, "--resume", "--out", out),
        (evaluate, "--init", file),
        (predict, "--init", file, folder / "images", "--out", tmp_path / "e"),
        (ks_test, "--real", folder, "--other", folder, "--init", file, "--out", tmp_path / "f"),
        (ks_test, "--real", folder, "--other", folder, "--weights", file, "--out", tmp_path / "g"),
    ]
    for script, *flags in commands:
        shutil.copy(file, out / "last.pt")
        assert complaint(script, *flags).count("\n") == 1, flags
        assert not trap.exists(), flags
    record_property("n", len(commands))
    record_property("passed", len(commands))
    torch.load(file, weights_only=False) if wrapped == "by torch" else state["model"].path.touch()
    assert trap.exists() and augment, "the trap does not work: no test"


# ---- R9


def photo(size=48):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))


def mask(size=48):
    return Image.fromarray(np.arange(size * size).reshape(size, size).astype(np.uint8) % 11)


def sixteen_bits():
    return Image.fromarray(np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 20)


def encoded(picture, kind="PNG", **how):
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def cut(content, share):
    return content[: int(share * len(content))]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(png, kind, content):
    """A PNG with one chunk more, behind its header."""
    return png[:33] + chunk(kind, content) + png[33:]


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def fifo(path):
    os.mkfifo(path)


def loop(path):
    path.symlink_to(path)


def broken_link(path):
    path.symlink_to(path.with_name("nowhere"))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(), "JPEG", exif=exif)


PNG, JPEG = encoded(photo()), encoded(photo(), "JPEG", quality=95)
BOMB = bytes(2**26)  # 64 MB that pack into 64 kB
PHOTOS = {  # name: (content, or what makes the file; whether it is read)
    "jpeg.jpg": (JPEG, True),
    "png.png": (PNG, True),
    "progressive.jpg": (encoded(photo(), "JPEG", progressive=True), True),
    "cmyk.jpg": (encoded(photo().convert("CMYK"), "JPEG"), True),
    "grey.jpg": (encoded(photo().convert("L"), "JPEG"), True),
    "rgba.png": (encoded(photo().convert("RGBA")), True),
    "la.png": (encoded(photo().convert("LA")), True),
    "palette.png": (encoded(photo().convert("P")), True),
    "one_bit.png": (encoded(photo().convert("1")), True),
    "bmp.bmp": (encoded(photo(), "BMP"), True),
    "webp.webp": (encoded(photo(), "WEBP"), True),
    "tiff.tif": (encoded(photo(), "TIFF"), True),
    "png_called_jpg.jpg": (PNG, True),
    "one_pixel.png": (encoded(photo(1)), True),
    "one_row.png": (encoded(photo().resize((5000, 1))), True),
    **{f"turned_{i}.jpg": (turned(i), True) for i in range(1, 9)},
    **{f"cut_{share}.jpg": (cut(JPEG, share), False) for share in (0.05, 0.3, 0.5, 0.7, 0.9)},
    **{f"cut_{share}.png": (cut(PNG, share), False) for share in (0.05, 0.3, 0.5, 0.7, 0.9)},
    "empty.jpg": (b"", False),
    "zeros.jpg": (bytes(5000), False),
    "page.png": (b"<!DOCTYPE html><html><body>404</body></html>", False),
    "text.jpg": (b"version https://git-lfs.github.com/spec/v1\n", False),
    "header_flipped.png": (flipped(PNG, 18), False),
    "pixels_flipped.png": (flipped(PNG, len(PNG) // 2), False),
    "text_bomb.png": (with_chunk(PNG, b"zTXt", b"a\0\0" + zlib.compress(BOMB)), False),
    "profile_bomb.png": (with_chunk(PNG, b"iCCP", b"a\0\0" + zlib.compress(BOMB)), None),
    "fifo.jpg": (fifo, False),
    "loop.jpg": (loop, False),
    "broken_link.jpg": (broken_link, False),
    "folder.png": (os.mkdir, False),
    "sixteen_bits.png": (
        encoded(Image.fromarray(np.arange(2304, dtype=np.uint16).reshape(48, 48) * 20)),
        None,
    ),
    "float.tif": (encoded(Image.fromarray(np.full((48, 48), np.nan, np.float32)), "TIFF"), False),
}
MASKS = {
    "grey.png": (encoded(mask()), True),
    "palette.png": (encoded(mask().convert("P")), True),
    "rgb_of_grey.png": (encoded(mask().convert("RGB")), True),
    "all_255.png": (encoded(Image.new("L", (48, 48), 255)), True),
    "jpeg.jpg": (encoded(mask(), "JPEG"), False),
    "coloured.png": (encoded(photo()), False),
    "sixteen_bits.png": (encoded(Image.fromarray(np.asarray(mask()).astype(np.uint16))), False),
    "float.tif": (encoded(Image.fromarray(np.asarray(mask()).astype(np.float32)), "TIFF"), False),
    "one_bit.png": (encoded(mask().convert("1")), False),
    "cut.png": (cut(encoded(mask()), 0.6), False),
    "empty.png": (b"", False),
    "fifo.png": (fifo, False),
    "loop.png": (loop, False),
    "folder.png": (os.mkdir, False),
}


@pytest.mark.parametrize("what", ["photos", "masks"])
def test_a_picture_is_read_or_refused_by_name(what, times, record_property, tmp_path):
    """True: it is read; False: one line names it; None: either, but no third."""

    def waits(*_):
        raise TimeoutError("it waits for more")

    times(1, 1)
    kinds, read = (PHOTOS, read_image) if what == "photos" else (MASKS, read_mask)
    wrong = []
    before = signal.signal(signal.SIGALRM, waits)
    for name, (content, is_read) in kinds.items():
        path = tmp_path / name
        content(path) if callable(content) else path.write_bytes(content)
        signal.alarm(5)
        try:
            read(str(path))
            found = True
        except UserError as error:
            found = False
            if name not in str(error) or "\n" in str(error):
                wrong.append(f"{name}: {error}")
        except Exception as error:
            found = repr(error)
        if found is not is_read and not (is_read is None and isinstance(found, bool)):
            wrong.append(f"{name}: {found}, not {is_read}")
        signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    record_property("n", len(kinds))
    record_property("passed", len(kinds) - len(wrong))
    assert not wrong, wrong


# ---- R10


def test_a_flipped_bit_of_a_png_is_no_other_picture(times, record_property, tmp_path):
    """Refused, or without effect. Those of a JPEG change its pixels: nothing but a digest could tell."""
    n = times(60, 600)
    draw = random.Random(0)
    path = tmp_path / "mask.png"
    content = encoded(mask())
    path.write_bytes(content)
    right = read_mask(str(path))
    silent = 0
    for _ in range(n):
        path.write_bytes(flipped(content, draw.randrange(len(content))))
        try:
            silent += not np.array_equal(read_mask(str(path)), right)
        except UserError:
            pass
    record_property("passed", n - silent)
    record_property("figure", f"{silent} read as another mask")
    assert not silent


# ---- R11

GIANT = """
import resource, sys, time
sys.path.insert(0, {root!r})
from datasets.images import read_image
from utils.errors import UserError
read_image({small!r})
before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    read_image({path!r})
except UserError as error:
    assert {path!r} in str(error)
    after, now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    print((now - since) * 1000, (after - before) / 1024)
"""


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_bomb_is_refused_before_it_is_decoded(side, start, times, record_property, tmp_path):
    times(1, 1)
    path, small, script, said = (tmp_path / name for name in ("bomb.png", "small.png", "try.py", "said"))
    Image.new("1", (side, side)).save(path)
    small.write_bytes(PNG)
    root = str(Path(__file__).parents[2])
    script.write_text(GIANT.format(root=root, small=str(small), path=str(path)))
    assert start(script, stdout=said).wait() == 0
    milliseconds, megabytes = map(float, said.read_text().split())
    record_property("figure", f"{side**2 // 10**6} MP: {milliseconds:.0f} ms, {megabytes:.1f} MB")
    assert megabytes < 20


# ---- R19


def test_a_class_list_in_another_order_is_refused(complaint, folder, finetuned, times, tmp_path):
    times(1, 1)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    info = json.loads((other / "classes.json").read_text())
    names = info["classes"]
    names[1], names[6] = names[6], names[1]
    write(other / "classes.json", info)
    said = complaint(evaluate, "--init", finetuned / "best.pt", "--data", other)
    assert " ".join(names) in said and said.count("\n") == 1


# ---- R23

STRANGE = "{i:02d} Ünï 名 \U0001f600 [#]'\"$(x);&\n%"


def test_strange_names_change_nothing(calls, folder, times, tmp_path):
    """Spaces, line breaks, brackets, emoji, 240 bytes; with a relative path and the locale C."""
    times(1, 1)
    groups = json.loads((folder / "classes.json").read_text())["groups"]
    for kind in ("plain", "strange"):
        copy, named = tmp_path / kind, {}
        shutil.copytree(folder, copy)
        for i in range(24):
            stem = STRANGE.format(i=i) if kind == "strange" else f"{i:02d}"
            if kind == "strange" and i == 7:
                stem += "x" * (240 - len(os.fsencode(stem)))
            named[stem] = groups[str(i)]
            for part in ("images", "labels"):
                (copy / part / f"{i}.png").rename(copy / part / f"{stem}.png")
        info = json.loads((copy / "classes.json").read_text())
        write(copy / "classes.json", info | {"groups": named})
    relative = os.path.relpath(tmp_path / "strange")
    flags = ["--steps", 3, "--eval-every", 3, *TINY]
    calls(
        ["train_finetune.py", "--data", tmp_path / "plain", *flags, "--out", tmp_path / "run a"],
        ["train_finetune.py", "--data", relative, *flags, "--out", tmp_path / "run 名"],
    )
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("run a", "run 名"))
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"]) and a["best"] == b["best"]
    photos, out = tmp_path / "strange" / "images", tmp_path / "masks"
    calls(["predict.py", "--init", tmp_path / "run 名" / "best.pt", photos, "--out", out, "--device", "cpu"])
    stems = {path.stem for path in photos.iterdir()}
    assert {stem for stem in stems if any(path.name.startswith(stem) for path in out.iterdir())} == stems
