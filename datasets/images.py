"""Opening photos and masks: what a picture is, and what is refused with its name before it can do harm."""

import contextlib
import os
import re
import stat
import warnings

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from utils.errors import UserError
from utils.metrics import IGNORE_INDEX

MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded (decompression bombs)
# what counts as a picture
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".avif")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "JPEG2000", "AVIF")  # what Pillow may take a file for
LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")
ORIENTATION = 0x0112  # EXIF: 1 is upright, 3 turned by 180 degrees, 5 to 8 by 90
FAR = 40  # RGB distance beyond which a pixel of a coloured mask is nobody's
FLAT = 0.001  # the share of a mask beyond which an area of one colour of no class is a class that is missing
BETWEEN = 6  # so many classes that show on borders alone, and a mask was interpolated
SAME = 13  # RGB distance up to which two colours are one: some palettes have 5 bits a channel

# suffixes of what people keep among photos and is not read here
STILLS = (
    ".heic .heif .hif .jxl .jxr .j2k .psd .xcf .svg .eps .ai .pdf .exr .hdr .tga .ico .ppm .pgm .pbm "
    ".cr2 .cr3 .nef .arw .dng .raf .orf .rw2 .pef .srw .raw"
).split()
MOVIES = ".mp4 .mov .m4v .avi .mkv .webm .mpg .mpeg .3gp".split()
BEGINNINGS = (  # of files that are no picture in spite of their names: what each is, what to do
    (rb"\Z", "an empty file; replace or remove it"),
    (rb"\0+\Z", "nothing but zero bytes; replace or remove it"),
    (rb"....ftyp(hei|hev|mif1)", "HEIC is not read; convert it to JPEG or PNG"),
    (rb"....ftypavi", "this Pillow reads no AVIF; convert it to JPEG or PNG"),
    (rb"....ftyp", "a video; save the frames that matter to JPEG or PNG"),
    (rb"\s*<(!doctype html|html)", "a web page; download the picture again"),
    (rb"version https://git-lfs", "a pointer of Git LFS; fetch the picture with git lfs pull"),
)


# ---- opening


def open_image(path):
    """A PIL image, opened but not decoded; what the file is, its kind and its size are checked first."""
    path = os.fspath(path)
    try:
        os.path.basename(path).encode()
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except UnicodeEncodeError:
        raise UserError(f"{path}: a name that is not UTF-8; rename the file") from None
    except OSError as error:
        link = "a broken link: " if os.path.islink(path) else ""
        raise UserError(f"{path}: cannot be read ({link}{error.strerror})") from None
    if not regular:  # to open a named pipe would wait for ever
        raise UserError(f"{path}: a folder, pipe or device, not a picture; remove it")
    with _named(path, "not a readable picture"):
        image = Image.open(path, formats=FORMATS)
        # a second picture in a JPEG (MPO) is a preview or a depth map of the first
        several = getattr(image, "is_animated", False) and image.format != "MPO"
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{path}: {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    if several:
        raise UserError(f"{path}: an animation, or several pages; save the one that is meant as PNG")
    return image


@contextlib.contextmanager
def _named(path, what, do=""):
    """Whatever Pillow raises in the block, as a UserError that names the file: its decoders raise errors of
    any kind. A warning of a decompression bomb is one, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, UnidentifiedImageError | KeyError):  # a KeyError: this Pillow lacks a format
                reason = _looks_like(path)
            raise UserError(f"{path}: {what} ({reason}){do}") from None


def _looks_like(path):
    with open(path, "rb") as file:
        head = file.read(512)
    known = [words for pattern, words in BEGINNINGS if re.match(pattern, head, re.IGNORECASE | re.DOTALL)]
    return known[0] if known else f"none of {', '.join(FORMATS)}, or damaged"


def size_of(path):
    """(width, height) in pixels, read from the file's header."""
    with open_image(path) as image:
        return image.size


def decode(image, path, mode=None):
    """All pixels of an opened PIL image as an array, converted to `mode` first if one is given; a
    damaged file is named."""
    with _named(path, "cannot be decoded", "; replace or remove it"):
        _check_sums(image, path)
        return np.asarray(image.convert(mode) if mode else image)


def _check_sums(image, path):
    """A PNG has checksums, which Pillow does not look at when it decodes: one bit makes another mask."""
    if image.format == "PNG":
        Image.open(path).verify()


# ---- photos


def read_image(path):
    """RGB photo as a PIL image, turned upright by its EXIF orientation; see `read_photo`."""
    return read_photo(path)[0]


def read_photo(path):
    """(RGB photo as a PIL image, turned upright; the EXIF orientation that it was stored in, 1 to 8).

    Transparent pixels are shown on white. Grey of 16 bits is divided by 257; float is taken for 0..1 where
    nothing exceeds 1, else for 0..255. Whatever else does not fit 8 bits a channel is refused.
    """
    image = open_image(path)
    deep = bool(image.tile) and "16" in str(image.tile[0][3])  # of colour, Pillow keeps the upper 8 bits
    with _named(path, "cannot be decoded", "; replace or remove it"):
        _check_sums(image, path)
        orientation = image.getexif().get(ORIENTATION, 1)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F" or image.mode.startswith("I"):
            image = _eight_bits(image, path)
        elif deep and np.asarray(image.convert("RGB")).max() < 16:
            raise UserError(f"{path}: photo of 16 bits of which at most 12 are used; save it with 8 bits")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB"), orientation if orientation in range(1, 9) else 1


def _eight_bits(image, path):
    """A grey photo of 16 bits or of float, as mode L."""
    values = np.asarray(image, np.float32)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not 0 <= low <= high <= 255:
            raise UserError(f"{path}: float values from {low:g} to {high:g}, not 0 to 1; save it with 8 bits")
        values = values * 255 if high <= 1 else values
    elif image.mode == "I" and image.format != "PNG":
        raise UserError(f"{path}: grey photo of 32 bits; save it with 8 bits")
    elif high < 4096:  # 12 bits or fewer in 16 would all but vanish
        raise UserError(f"{path}: grey photo of 16 bits of which {high:.0f} is the most; save it with 8 bits")
    else:
        values = values / 257
    return Image.fromarray(values.round().astype(np.uint8))


# ---- masks


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
    with _named(path, "cannot be decoded", "; replace or remove it"):
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
        if count > FLAT * ids.size and _filtered(shown == value, ImageFilter.MinFilter).any():
            color = [int(value) >> shift & 255 for shift in (16, 8, 0)]
            raise UserError(
                f"{path}: {100 * count / ids.size:.1f} % of it has the colour {color}, which no class has; "
                "add the class and its colour, or paint white what nobody knows"
            )


def _filtered(values, kind):
    """The smallest (`MinFilter`) or largest (`MaxFilter`) of 3 x 3 pixels around each of (H, W)."""
    return np.asarray(Image.fromarray(values.astype(np.uint8)).filter(kind(3)))


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


def interpolated(mask):
    """Whether an (H, W) uint8 mask of class ids looks as if it was resized with other than nearest: `BETWEEN`
    or more of its ids show only where a lower and a higher id are next to each pixel.

    None of 1,091 real masks of 6 to 21 classes has more than 2 such ids; faces of 16 pixels have up to 5.
    """
    known = mask != IGNORE_INDEX
    low = _filtered(mask, ImageFilter.MinFilter) < mask
    high = _filtered(np.where(known, mask, 0), ImageFilter.MaxFilter) > mask
    pixels = np.bincount(mask[known], minlength=IGNORE_INDEX)
    between = np.bincount(mask[known & low & high], minlength=IGNORE_INDEX)
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


# ---- folders of pictures


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


def unread_pictures(folder):
    """What lies in a folder and looks like photos, but is not read: "a.heic: HEIC is not read; convert it to
    JPEG or PNG", one line a file, sorted."""
    lines = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        suffix = os.path.splitext(name)[1].lower()
        if looks_like_photo(name):
            do = "convert it" if suffix in STILLS else "save the frames that matter"
            lines.append(f"{name}: {suffix[1:].upper()} is not read; {do} to JPEG or PNG")
    return lines


def looks_like_photo(name):
    """Whether a file that is not read has the name of a photo or a video."""
    return os.path.splitext(name)[1].lower() in (*STILLS, *MOVIES) and not name.startswith(".")


def to_float(images):
    """(B, 3, H, W) uint8 -> float in [0, 1], which models take; what is float already stays."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
