"""What a data set of faces is: samples with a person and a yaw, and what labels mean, once."""

import dataclasses
import hashlib
import os
import typing

import numpy as np
from PIL import Image, ImageOps

from utils.errors import UserError

IGNORE = 255  # the label of a pixel that never counts, in every data set here
MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded (decompression bombs)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # what counts as a picture


class Sample(typing.NamedTuple):
    """One photo. `label` is whatever `Faces.read_label` understands: a path, a tuple of paths, or
    None where nobody labelled it."""

    id: str  # unique in the data set and the same on every machine: path below the root, no suffix
    image: str
    label: object
    group: str  # the person, by which everything is split; the id where nobody knows
    yaw: float | None = None  # degrees; 0 is frontal


@dataclasses.dataclass
class Faces:
    """A data set on disk, recognised but not read yet.

    splits: lists of `Sample` by name: `train`, `val`, `test`, `unlabelled`; absent ones are absent.
    read_label(sample): (H, W) uint8 array of class ids in 0..len(classes)-1 or 255.
    notes: lines the user should see (a choice made, files left out and why).
    """

    name: str
    classes: list[str]
    colors: list[tuple[int, int, int]]
    flip_pairs: list[tuple[int, int]]  # class ids that a horizontal flip swaps
    splits: dict[str, list[Sample]]
    read_label: typing.Callable[[Sample], np.ndarray]
    notes: list[str] = dataclasses.field(default_factory=list)
    options: dict[str, str] = dataclasses.field(default_factory=dict)  # goes into every result


def meaning(faces):
    """What labels mean, as plain data for a checkpoint: name, classes, colors, flip_pairs, ..."""
    return {
        "name": faces.name,
        "classes": list(faces.classes),
        "colors": [list(color) for color in faces.colors],
        "flip_pairs": [list(pair) for pair in faces.flip_pairs],
        "ignore_index": IGNORE,
        "options": dict(faces.options),
    }


def open_image(path):
    """A PIL image, opened but not decoded; size and kind are checked first."""
    try:
        image = Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable picture ({error})") from None
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{path}: {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def size_of(path):
    """(width, height) in pixels, read from the file's header."""
    with open_image(path) as image:
        return image.size


def read_image(path):
    """RGB photo as a PIL image, turned upright by its EXIF orientation."""
    image = open_image(path)
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be decoded ({error}); replace or remove it") from None


def read_mask(path):
    """(H, W) uint8 class ids from a single-channel mask. Palette PNGs keep their indices; RGB is
    accepted where R = G = B; 16-bit masks are refused, and grey ones of 1, 2 or 4 bits as well:
    Pillow stretches those to 0..255, so their ids would be lost."""
    mask = open_image(path)
    if mask.format == "JPEG":
        raise UserError(f"{path}: a JPEG cannot hold class ids; save the mask as PNG")
    if mask.mode == "L" and mask.tile[0][3] in ("L;2", "L;4"):
        raise UserError(f"{path}: grey mask of fewer than 8 bits; save it with 8 (mode L or P)")
    if mask.mode not in ("L", "P", "RGB"):
        raise UserError(f"{path}: mask of mode {mask.mode}; need 8-bit ids (PNG, mode L or P)")
    array = decode(mask, path)
    if array.ndim == 3:
        if (array != array[..., :1]).any():
            raise UserError(f"{path}: coloured mask; need class ids, or a classes.json with colors")
        array = array[..., 0]
    return array


def decode(image, path, mode=None):
    """All pixels of an opened PIL image as an array, converted to `mode` first if one is given; a
    damaged file is named."""
    try:
        return np.asarray(image.convert(mode) if mode else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be decoded ({error}); replace or remove it") from None


def nearest_class(rgb, colors, far):
    """(H, W, 3) uint8 pixels to (H, W) uint8 ids of the nearest of `colors`; 255 where even that is
    farther than `far` in RGB distance, since anti-aliased borders have colours of no class."""
    rgb = rgb.astype(np.int32)
    ids = np.full(rgb.shape[:2], IGNORE, np.uint8)
    nearest = np.full(rgb.shape[:2], far**2 + 1, np.int32)
    for i, color in enumerate(colors):  # one class at a time: K distances at once would not fit
        squared = ((rgb - np.array(color, np.int32)) ** 2).sum(-1)
        ids[squared < nearest] = i
        nearest = np.minimum(nearest, squared)
    return ids


def pictures(folder, suffixes=SUFFIXES):
    """{stem: path} of the pictures in one folder, sorted; two files of one stem are refused. Hidden
    files are no pictures: macOS leaves a `._name.jpg` beside many a `name.jpg`."""
    found = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes and not name.startswith("."):
            if stem in found:
                first = os.path.basename(found[stem])
                raise UserError(f"{folder}: {first} and {name} share a name; remove one")
            found[stem] = os.path.join(folder, name)
    return found


def pair(photos, labels, where):
    """[(stem, photo, label)] of two {stem: path}. Neither may have what the other lacks: a label
    misplaced or misspelt must not turn into less data without a word."""
    for what, has, lacks in (
        ("photos without a label", photos, labels),
        ("labels without a photo", labels, photos),
    ):
        if lone := [stem for stem in has if stem not in lacks]:
            raise UserError(f"{where}: {len(lone)} {what}: {some(lone)}; add, move or remove them")
    return [(stem, photos[stem], labels[stem]) for stem in photos]


def some(names, n=10):
    """The first n names, for a message."""
    names = list(names)
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def read_lines(path):
    """Lines of a small text file that a data set comes with."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def split_by_group(samples, fraction, seed=0):
    """(rest, held out): whole groups are held out until `fraction` of the groups is reached (at
    least one). The choice depends on the group names and the seed alone, not on the samples."""
    groups = sorted({s.group for s in samples}, key=lambda g: _rank(seed, g))
    if len(groups) < 2:
        raise UserError("validation needs at least two people; the labelled photos show one")
    held = set(groups[: min(len(groups) - 1, max(1, round(fraction * len(groups))))])
    return [s for s in samples if s.group not in held], [s for s in samples if s.group in held]


def limit(samples, n, seed):
    """n samples spread over people and yaw, nested: the first n of `limit(samples, n + 1, seed)`.

    Greedy: the next sample is of the person, then of the |yaw| (to 15 degrees), then of the yaw
    chosen least so far; ties are broken by a hash of (seed, id).
    """
    if n > len(samples):
        raise UserError(f"--limit {n}: there are {len(samples)} labelled training images")
    left = sorted(samples, key=lambda s: _rank(seed, s.id))
    people = [s.group for s in left]
    angle = np.array([15 * round((s.yaw or 0) / 15) for s in left])
    traits = [np.unique(t, return_inverse=True)[1] for t in (people, abs(angle), angle)]
    counts = [np.zeros(len(left), np.int64) for _ in traits]  # of each person, |yaw| and yaw chosen
    free, taken = np.ones(len(left), bool), []
    for _ in range(n):
        person, side, yaw = (count[trait] for count, trait in zip(counts, traits, strict=True))
        key = (person * (n + 1) + side) * (n + 1) + yaw
        best = int(np.where(free, key, np.iinfo(np.int64).max).argmin())
        free[best] = False
        taken.append(left[best])
        for count, trait in zip(counts, traits, strict=True):
            count[trait[best]] += 1
    return taken


def _rank(seed, text):
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
