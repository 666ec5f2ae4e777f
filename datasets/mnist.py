"""MNIST as it is downloaded: 60,000 images to train on, 10,000 to test, grey, 28 x 28, digits 0 to 9.

    MNIST/raw/train-images-idx3-ubyte    train-labels-idx1-ubyte
              t10k-images-idx3-ubyte     t10k-labels-idx1-ubyte

each with .gz or without, in MNIST/raw/, raw/ or the folder itself (http://yann.lecun.com/exdb/mnist/).
"""

import gzip
import os
import zlib

import numpy as np

from utils.errors import UserError

LOOKS_FOR = "MNIST (train-images-idx3-ubyte, with .gz or without)"
PARTS = {"train": "train", "test": "t10k"}


def recognise(root):
    """What `labelled.Images` is made of, as a dict, or None where the files are not in the folder `root`."""
    for folder in (os.path.join(root, "MNIST", "raw"), os.path.join(root, "raw"), root):
        if _path(folder, "train-images-idx3-ubyte"):
            break
    else:
        return None
    pixels, labels = {}, {}
    for split, name in PARTS.items():
        pixels[split] = _read(folder, f"{name}-images-idx3-ubyte", 3)
        labels[split] = _read(folder, f"{name}-labels-idx1-ubyte", 1)
        count, most = len(pixels[split]), labels[split].max(initial=0)
        if not 0 < count == len(labels[split]) or most > 9:
            has = f"{count} images and {len(labels[split])} labels, up to {most}"
            raise UserError(f"{folder}: {name}: {has}; need as many of both, 0 to 9")
    if pixels["train"].shape[1:] != pixels["test"].shape[1:]:
        raise UserError(f"{folder}: images to train on and to test are of different sizes")
    return {
        "name": "mnist",
        "classes": [str(digit) for digit in range(10)],
        "labels": {split: found.tolist() for split, found in labels.items()},
        "pixels": np.concatenate([pixels["train"], pixels["test"]])[:, None],
    }


def _path(folder, name):
    paths = [os.path.join(folder, name + end) for end in ("", ".gz")]
    return next((path for path in paths if os.path.isfile(path)), None)


def _read(folder, name, dimensions):
    """The array in an idx file: two zeros, 8 for bytes, how many dimensions, each in four bytes, and data."""
    if not (path := _path(folder, name)):
        raise UserError(f"{folder}: no {name}, nor {name}.gz")
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it again") from None
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start].ljust(start - 4, b"\0"), ">i4").tolist()
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) - start != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path}: no whole idx file of {dimensions} dimensions; download it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
