"""Opening pictures: what one is, what is refused by name before it can do harm, and photos of any mode."""

import contextlib
import os
import re
import stat
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import UserError

MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded (decompression bombs)
# what counts as a picture
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".avif")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "JPEG2000", "AVIF")  # what Pillow may take a file for
ORIENTATION = 0x0112  # EXIF: 1 is upright, 3 turned by 180 degrees, 5 to 8 by 90

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
    with named(path, "not a readable picture"):
        image = Image.open(path, formats=FORMATS)
        # a second picture in a JPEG (MPO) is a preview or a depth map of the first
        several = getattr(image, "is_animated", False) and image.format != "MPO"
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{path}: {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    if several:
        raise UserError(f"{path}: an animation, or several pages; save the one that is meant as PNG")
    return image


@contextlib.contextmanager
def named(path, what, do=""):
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
    with named(path, "cannot be decoded", "; replace or remove it"):
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
    how = image.tile[0][3] if image.tile else ""  # a raw mode, or a tuple that begins with one
    deep = ";16" in str(how if isinstance(how, str) else how[0])  # of colour, Pillow keeps the upper 8 bits
    with named(path, "cannot be decoded", "; replace or remove it"):
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


def read_square(path, size):
    """(3, size, size) uint8 tensor: a photo, see `read_photo`, stretched to a square, bilinear."""
    photo = read_image(path).resize((size, size), Image.BILINEAR)  # as `datasets.cache` does it
    return torch.tensor(np.asarray(photo)).movedim(-1, 0)


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
