"""Opening photos and masks: what a picture is, and what is refused with its name before it can do harm."""

import os

import numpy as np
import torch
from PIL import Image, ImageOps

from utils.errors import UserError
from utils.metrics import IGNORE_INDEX

MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded (decompression bombs)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # what counts as a picture


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
    ids = np.full(rgb.shape[:2], IGNORE_INDEX, np.uint8)
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


def to_float(images):
    """(B, 3, H, W) uint8 -> float in [0, 1], which models take; what is float already stays."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
