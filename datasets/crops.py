"""Which part of a photo a network sees, where that lies in its square input, and boxes that say so; and the
faces that were found in that input, in the photo."""

import math
import typing

import numpy as np
import scipy  # its parts load when they are first used
from PIL import Image

from datasets.faces import some
from utils.errors import UserError
from utils.files import read_json


class Frame(typing.NamedTuple):
    """A part of a photo, and the part of a network's input that shows it: (left, top, right, bottom), each,
    in whole pixels. What else the input holds is padding."""

    part: tuple[int, int, int, int]
    place: tuple[int, int, int, int]


def frame(width, height, size, box=None, aspect=None):
    """`Frame` of a photo of width x height pixels in an input of size x size.

    box: (x, y, w, h), the pixels to show; all of the photo where it is None. aspect: width / height to which
    the box is grown, about its centre, since the network was trained on photos of this shape, stretched to
    the square; None: as it is. Raises UserError: no pixel of the photo is in the box.
    """
    x, y, w, h = box or (0, 0, width, height)
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise UserError(f"box {x:g} {y:g} {w:g} {h:g} lies outside of the photo, {width}x{height}")
    wide, high = (max(w, h * aspect), max(h, w / aspect)) if aspect else (w, h)
    columns = _span(x - (wide - w) / 2, wide, width, size)
    rows = _span(y - (high - h) / 2, high, height, size)
    (left, right), (first, last) = columns
    (top, bottom), (upper, lower) = rows
    return Frame((left, top, right, bottom), (first, upper, last, lower))


def _span(start, length, limit, size):
    """((first, end) in the photo, (first, end) in the input) along one axis; each has a pixel at least."""
    first = min(max(0, math.floor(start + 0.5)), limit - 1)
    end = max(first + 1, min(limit, math.floor(start + length + 0.5)))
    scale = size / length
    place = min(max(0, round((first - start) * scale)), size - 1)
    return (first, end), (place, max(place + 1, min(size, round((end - start) * scale))))


def network_input(photo, found, size):
    """(3, size, size) uint8: the part of a PIL image that `found`, a `Frame`, names, stretched to its place
    (bilinear, antialiased, as in training). Padding repeats the border, so that no edge gives it away."""
    left, top, right, bottom = found.place
    part = photo.resize((right - left, bottom - top), Image.BILINEAR, box=found.part)
    margins = ((top, size - bottom), (left, size - right), (0, 0))
    return np.pad(np.asarray(part), margins, mode="edge").transpose(2, 0, 1)


def faces_of(ids, found, mask, things, frame):
    """The instances of a network's input, in the photo.

    ids (size, size) uint8, found: see `utils.instances.segments`; mask (H, W): classes of the photo. ->
    (ids (H, W) uint8, [{"id", "thing", "score", "box", "area"}] of those that the photo has, in its pixels).
    Ids are enlarged to the nearest, and are 0 where the class is in no thing. A box is that of the largest
    connected piece, so that stray pixels elsewhere do not stretch it; the area is of all pixels.
    """
    (left, top, right, bottom), (first, upper, last, lower) = frame
    height, width = bottom - top, right - left
    rows = upper + (np.arange(height) + 0.5) * (lower - upper) // height
    columns = first + (np.arange(width) + 0.5) * (last - first) // width
    faces = np.zeros(mask.shape, np.uint8)
    faces[top:bottom, left:right] = ids[rows.astype(int)[:, None], columns.astype(int)]
    faces[~np.isin(np.arange(256), sum(things.values(), []))[mask]] = 0
    there = []
    for each, place in zip(found, scipy.ndimage.find_objects(faces, len(found)), strict=True):
        if place:
            own = faces[place] == each["id"]
            pieces, _ = scipy.ndimage.label(own)
            spots = scipy.ndimage.find_objects(pieces)
            areas = [np.count_nonzero(pieces[spot] == i) for i, spot in enumerate(spots, start=1)]
            y, x = spots[np.argmax(areas)]
            x0, y0 = place[1].start + x.start, place[0].start + y.start
            box = [x0, y0, x.stop - x.start, y.stop - y.start]
            there.append({**each, "score": round(each["score"], 6), "box": box, "area": int(sum(areas))})
    return faces, there


def is_far(width, height, aspects):
    """Whether a photo's shape is none of those trained on. aspects: their smallest, median and largest
    width / height."""
    return not 0.8 * aspects[0] <= width / height <= 1.25 * aspects[2]


def read_boxes(path):
    """{file name: (x, y, w, h)} of a JSON file: pixels of the upright photo. Raises UserError."""
    boxes = read_json(path)
    if not isinstance(boxes, dict) or not boxes:
        raise UserError(f'{path}: need {{"file name": [x, y, w, h]}}')
    for name, box in boxes.items():
        if isinstance(box, list) and any(isinstance(face, dict) for face in box):
            raise UserError(f"{path}: lists several faces of {name}; give one of their boxes with --box")
    return {name: checked(box, f"{path}: {name}") for name, box in boxes.items()}


def checked(box, what):
    """A box as a tuple, or a UserError that begins with `what`."""
    known = isinstance(box, (list, tuple)) and len(box) == 4
    if not known or not all(type(v) in (int, float) and math.isfinite(v) for v in box):
        raise UserError(f"{what}: {box} is no box; need [x, y, w, h], numbers of pixels")
    if box[2] <= 0 or box[3] <= 0:
        raise UserError(f"{what}: box {some(map(str, box))} has no size; need x, y, width, height")
    return tuple(box)
