"""CIFAR-10 and CIFAR-100, "python version" of https://www.cs.toronto.edu/~kriz/cifar.html, as downloaded:

    cifar-10-batches-py/    data_batch_1 ... data_batch_5, test_batch, batches.meta
    cifar-100-python/       train, test, meta

in the folder, or the folder itself. torchvision checks and reads them; nothing is downloaded.
"""

import os

import numpy as np

from utils.errors import UserError

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
LOOKS_FOR = f"CIFAR ({', '.join(FOLDERS.values())})"


def recognise(root):
    """What `labelled.Images` is made of, as a dict, or None where neither is in the folder `root`."""
    root = os.path.abspath(root)
    parents = {
        name: parent
        for name, folder in FOLDERS.items()
        for parent in (root, os.path.dirname(root))
        if os.path.isdir(inside := os.path.join(parent, folder)) and (parent == root or inside == root)
    }
    if not parents:
        return None
    if len(parents) > 1:
        raise UserError(f"{root}: both {' and '.join(FOLDERS.values())}; give the folder of one")
    from torchvision.datasets import CIFAR10, CIFAR100

    [(name, parent)] = parents.items()
    read = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        both = {split: read(parent, train=split == "train", download=False) for split in ("train", "test")}
    except RuntimeError:
        folder = os.path.join(parent, FOLDERS[name])
        raise UserError(
            f"{folder}: files are missing, or are not what was published (by their MD5); unpack "
            f"{read.filename} again (from {read.url})"
        ) from None
    return {
        "name": name,
        "classes": both["train"].classes,
        "labels": {split: found.targets for split, found in both.items()},
        "pixels": np.concatenate([found.data for found in both.values()]).transpose(0, 3, 1, 2),
    }
