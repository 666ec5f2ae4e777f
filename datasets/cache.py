"""Faces decoded and resized once, kept as a uint8 memory map, keyed by what they were made from."""

import hashlib
import json
import os
import pathlib

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets.faces import label_info
from datasets.images import read_image
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX

VERSION = 1  # raise it when the pixels that this file writes change
ROOT = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "reinforce-face"


class CachedFaces:
    """Samples as batches. `data[[3, 1]]` -> {"image": (2, 3, S, S) uint8, the data set's target: (2, S, S)
    uint8, "index": (2,)}; an unlabelled sample's mask is 255 throughout."""

    def __init__(self, faces, samples, size):
        self.ids, self.paths = [s.id for s in samples], [s.image for s in samples]
        self.groups, self.yaws = [s.group for s in samples], [s.yaw for s in samples]
        self.target = faces.target
        self.memory = np.load(build(faces, samples, size), mmap_mode="r")  # (N, 4, S, S)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        batch = torch.from_numpy(self.memory[np.asarray(index)])
        return {"image": batch[:, :3], self.target: batch[:, 3], "index": torch.tensor(index)}


def build(faces, samples, size):
    """The path of the memory map, written first if it is not there: (N, 4, size, size) uint8, the
    photo (bilinear, antialiased) and its mask (nearest), both stretched to the square.

    Every file is read, so this is also the scan: all faults are listed at once, then refused.
    """
    manifest = json.dumps([VERSION, size, label_info(faces), [_stat(s) for s in samples]])
    key = hashlib.sha256(manifest.encode()).hexdigest()[:24]
    path = ROOT / f"{faces.name}_{size}_{key}.npy"
    if path.is_file():
        return path
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    shape = (len(samples), 4, size, size)
    try:
        ROOT.mkdir(parents=True, exist_ok=True)
        memory = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
    except OSError as error:
        raise UserError(f"{ROOT}: no cache can be written ({error}); XDG_CACHE_HOME moves it") from None
    faults = []
    try:
        for row, sample in zip(memory, tqdm(samples, "reading faces", disable=None), strict=True):
            try:
                row[:3], row[3] = read(faces, sample, size)
            except UserError as error:
                faults.append(str(error))
        if faults:
            shown = "\n  ".join(faults[:20]) + ("\n  ..." if len(faults) > 20 else "")
            raise UserError(f"{len(faults)} of {len(samples)} samples are faulty:\n  {shown}")
        memory.flush()
        os.replace(temporary, path)  # a killed run leaves no half-written cache under the real name
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read(faces, sample, size):
    """One sample: (3, size, size) and (size, size) uint8. UserError names the file and its fault."""
    image = read_image(sample.image)
    pixels = np.asarray(image.resize((size, size), Image.BILINEAR)).transpose(2, 0, 1)
    if sample.label is None:
        return pixels, np.full((size, size), IGNORE_INDEX, np.uint8)
    label = faces.read_label(sample)
    name = sample.label if isinstance(sample.label, str) else sample.id
    unknown = np.setdiff1d(label, [*range(len(faces.classes)), IGNORE_INDEX])
    if unknown.size:
        raise UserError(
            f"{name}: ids {unknown.tolist()} are outside 0..{len(faces.classes) - 1}; "
            f"give them a class, or mark the pixels {IGNORE_INDEX}"
        )
    # masks may be smaller than photos (CelebAMask-HQ) but must show the same frame
    if abs(label.shape[1] / label.shape[0] - image.width / image.height) > 0.02:
        size = f"{label.shape[1]}x{label.shape[0]}"
        raise UserError(f"{name}: mask {size}, photo {image.width}x{image.height}; sizes must match")
    return pixels, np.asarray(Image.fromarray(label).resize((size, size), Image.NEAREST))


def _stat(sample):
    """What identifies a sample's files, as of now."""
    labels = sample.label if isinstance(sample.label, (tuple, list)) else [sample.label]
    paths = [os.path.abspath(p) for p in (sample.image, *labels) if p]
    return [sample.id, [(p, os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in paths]]
