"""Reading masks: which class each pixel shows, whatever the mode, and why ids are none of the classes."""

import re

import numpy as np

from datasets.images import ORIENTATION, decode, named, open_image
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX

LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")
FAR = 40  # RGB distance beyond which a pixel of a coloured mask is nobody's
FLAT = 0.001  # the share of a mask beyond which an area of one colour of no class is a class that is missing
BETWEEN = 6  # so many classes that show on borders alone, and a mask was interpolated
SAME = 13  # RGB distance up to which two colours are one: some palettes have 5 bits a channel


def read_mask(path, colors=()):
    """(H, W) uint8 class ids of a mask; 255 is nobody's. colors: (r, g, b) of each class, where masks may be
    in colours.

    Grey holds ids, also in 16 bits where all fit in 8. A palette holds ids, unless its colours are those of
    `colors` in another order: then they count. RGB is read by the nearest of `colors`, 255 beyond a distance
    of `FAR`, and as ids where R = G = B are ids and no such colours. Transparent pixels are 255, white ones,
    too, unless a class is white. Refused: areas of one colour that no class has, lossy formats,
    half-transparent pixels, and grey of 1, 2 or 4 bits, which Pillow stretches to 0..255.
    """
    mask = open_image(path)
    if mask.format in LOSSY:
        raise UserError(f"{path}: a {mask.format} cannot hold class ids; save the mask as PNG")
    if mask.mode == "1" or mask.mode == "L" and re.search("L;[24]", str(mask.tile[0][3])):
        raise UserError(f"{path}: grey mask of fewer than 8 bits; save it with 8 (mode L or P)")
    if mask.mode not in ("L", "LA", "P", "RGB", "RGBA", "I") and not mask.mode.startswith("I;16"):
        raise UserError(f"{path}: mask of mode {mask.mode}; need 8-bit ids (PNG, mode L or P)")
    with named(path, "cannot be decoded", "; replace or remove it"):
        if mask.getexif().get(ORIENTATION) in range(2, 9):
            raise UserError(f"{path}: a mask with an EXIF orientation of its own; save it upright without")
    pixels = decode(mask, path)
    if mask.mode == "P":
        return _by_palette(pixels, mask.getpalette("RGB"), colors, path) if colors else pixels
    if mask.mode.startswith("I"):
        if pixels.min() < 0 or pixels.max() > IGNORE_INDEX:
            raise UserError(f"{path}: mask of 16 bits with ids up to {pixels.max()}; need ids of 8 bits")
        return pixels.astype(np.uint8)
    if mask.mode in ("L", "RGB"):
        return _by_color(pixels, colors, path)
    clear = pixels[..., -1] == 0
    if (pixels[..., -1][~clear] < 255).any():
        raise UserError(f"{path}: half-transparent pixels, which have no class; save the mask without alpha")
    pixels = np.where(clear[..., None], np.uint8(255), pixels[..., :-1])
    return np.where(clear, np.uint8(IGNORE_INDEX), _by_color(pixels, colors, path))


def _by_color(pixels, colors, path):
    """Ids of a grey (H, W) or (H, W, 1), or an RGB (H, W, 3) mask."""
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2])
    if (pixels == pixels[..., :1]).all():
        grey = pixels[..., 0]
        used = [int(v) for v in np.unique(grey)]
        ids = [v for v in used if v != IGNORE_INDEX]
        if not colors or (ids and 0 < max(ids) < len(colors) and not {(v, v, v) for v in used} <= {*colors}):
            return grey
    if not colors:
        raise UserError(f"{path}: coloured mask; need class ids, or a classes.json with colors")
    ids = nearest_class(pixels, colors, FAR)
    _check_flat(pixels, ids, path)
    return ids


def _check_flat(pixels, ids, path):
    """A UserError that names a colour of no class which covers areas: those of anti-aliased borders, of which
    no 3 x 3 pixels are alike, have none. White is how tools paint what nobody labels."""
    shown = pixels.astype(np.int32) @ [65536, 256, 1]
    values, counts = np.unique(shown[(ids == IGNORE_INDEX) & (shown != 0xFFFFFF)], return_counts=True)
    for value, count in zip(values, counts, strict=True):
        if count > FLAT * ids.size and _around(shown == value, np.minimum).any():
            color = [int(value) >> shift & 255 for shift in (16, 8, 0)]
            raise UserError(
                f"{path}: {100 * count / ids.size:.1f} % of it has the colour {color}, which no class has; "
                "add the class and its colour, or paint white what nobody knows"
            )


def _around(values, join):
    """The smallest (`np.minimum`) or largest (`np.maximum`) of the 3 x 3 pixels around each of (H, W)."""
    for _ in range(2):  # along the columns, then, turned over, along the rows
        around = values.copy()
        join(around[1:], values[:-1], out=around[1:])
        join(around[:-1], values[1:], out=around[:-1])
        values = around.T
    return values


def _by_palette(ids, palette, colors, path):
    """`ids` as they are, or, where `palette` shows colours of other classes than theirs, those classes."""
    used = np.setdiff1d(ids, [IGNORE_INDEX])
    shown = np.zeros((256, 3), np.uint8)
    shown[: len(palette) // 3] = np.reshape(palette, (-1, 3))
    meant = nearest_class(shown[None, used], colors, SAME)[0]
    meant[used >= len(palette) // 3] = IGNORE_INDEX
    known = meant != IGNORE_INDEX
    if (meant[known] == used[known]).all():
        return ids
    odd = [i for i in range(len(used)) if not known[i] or (meant == meant[i]).sum() > 1]
    if odd:
        listed = ", ".join(f"{used[i]} {tuple(shown[used[i]].tolist())}" for i in odd[:3])
        raise UserError(
            f"{path}: the palette has colours of classes.json in another order, and ids with a colour of no "
            f"class, or shown twice: {listed}; save class ids, or each colour of classes.json once"
        )
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[used] = meant
    return table[ids]


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


def on_borders(mask):
    """(2, 256) int64 of an (H, W) uint8 mask of class ids: the pixels of each id, and those of them that have
    a lower and a higher id next to them, as blends of two classes do."""
    known = mask != IGNORE_INDEX
    low = _around(mask, np.minimum) < mask
    high = _around(np.where(known, mask, 0), np.maximum) > mask
    return np.stack([np.bincount(mask[pixels], minlength=256) for pixels in (known, known & low & high)])


def interpolated(counts):
    """Whether masks look as if they were resized with other than nearest: `BETWEEN` or more of their ids are
    on borders alone, in all of them. counts: the sum of `on_borders` over the masks.

    None of 1,091 real masks of 6 to 21 classes has more than 2 such ids by itself; of faces of 12 to 32
    pixels one in twenty has 6, but another mask of the same data set then shows them elsewhere.
    """
    pixels, between = counts
    return ((pixels > 0) & (pixels == between)).sum() >= BETWEEN


def why_absent(counts, classes):
    """Why masks do not hold just the ids of `classes`, as far as the ids tell: a short reason with what to
    do, or "". counts: (256,) pixels of each id over the masks."""
    counts = np.asarray(counts)
    k, total = len(classes), max(int(counts.sum()), 1)
    ids = np.flatnonzero(counts[:IGNORE_INDEX])
    unknown = ids[ids >= k]
    rare = unknown[counts[unknown] < total / 200]
    scattered = len(ids) > 64 or ids.size and ids[-1] > 1.5 * len(ids)
    if len(rare) >= 6 and 2 * len(rare) > len(unknown) and scattered:
        return f"{len(rare)} ids of few pixels each: looks interpolated; resize masks with nearest, as PNG"
    # whether 255 is one more level, or pixels that nobody knows, the number of classes tells
    levels = [*ids.tolist(), *[IGNORE_INDEX] * bool(counts[IGNORE_INDEX] and len(ids) < k)]
    gapped = 1 < len(levels) <= k and min(np.diff(levels)) > 1
    if gapped and (unknown.size or 10 * len(ids) < k):
        save = _begin(range(len(levels)))
        return f"ids {_begin(levels)} look like grey levels of {len(levels)} classes; save {save}"
    if ids.size and ids[0] == 1 and ids[-1] == k:
        return f"ids are 1 to {k}: the first class is 0; subtract 1"
    absent = [i for i in range(k) if not counts[i]]
    share = counts[IGNORE_INDEX] / total
    if not unknown.size and absent and share > (0.05 if ids.any() else 0):
        one = f"save {classes[absent[0]]} as {absent[0]}" if len(absent) == 1 else "save each class as its id"
        return f"255 means nobody knows here, and covers {100 * share:.0f} % of all pixels: {one}"
    return ""


def _begin(ids):
    return ", ".join(map(str, ids[:3])) + " ..." * (len(ids) > 3)
