"""The paper that the charts of plot.py are drawn on: a frame that maps data to pixels, its numbers and names.

Sizes are pixels of the result; everything is drawn three times larger and averaged down. Pillow's own font
has ASCII, ± and °, and an empty box for all else: write alpha, not the Greek letter.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.draw import INK, PAPER

SCALE, GRID, AXIS = 3, (228, 228, 228), (120, 120, 120)


class Page:
    """A title, a key below it, and a frame with grid and numbers. Points (N, 2) to draw are in pixels.

    size: (width, height). xlim, ylim: (low, high). xticks, yticks: [(value, words)]; rows: yticks are names
    and have no grid. key: [(name, color, style, dashed)]. head, right: room above and right of the frame.
    """

    def __init__(
        self, size, xlim, ylim, xticks, yticks, title, x="", y="", key=(), rows=False, head=0, right=20
    ):
        self.image = Image.new("RGB", [SCALE * n for n in size], PAPER)
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        left = 20 + 24 * bool(y) + math.ceil(max([extent(words) for _, words in yticks], default=0))
        spot, top = left, 42 if title else 14
        self.text(12 if rows else left, 22, title, size=17)
        for i, (name, color, style, dashed) in enumerate(key):
            if i and spot + 36 + extent(name) > size[0] - 8:
                spot, top = left, top + 22
            if style == "points":
                self.dot((spot + 14, top + 8.5), color)
            else:
                self.line([(spot, top + 8.5), (spot + 28, top + 8.5)], color, 2, dashed)
            self.text(spot + 35, top + 8, name)
            spot += 57 + extent(name)
        top, foot = top + head + 28 * bool(key), size[1] - 10 - 20 * bool(xticks) - 24 * bool(x)
        end = size[0] - right
        self.frame, self.xlim, self.ylim = (left, top, end, foot), xlim, ylim
        for value, words in xticks:
            across = math.floor(self.at(value, 0)[0]) + 0.5  # the middle of a pixel: a crisp line
            self.line([(across, top), (across, foot)], GRID)
            self.text(across, foot + 14, words, "mm", 12)
        for value, words in yticks:
            down = math.floor(self.at(0, value)[1]) + 0.5
            self.line([(left, down), (left if rows else end, down)], GRID)
            self.text(left - 8, down, words, "rm", 13 if rows else 12)
        if xticks:
            self.line([(left, foot + 0.5), (end, foot + 0.5)], AXIS)
        if not rows:
            self.line([(left + 0.5, top), (left + 0.5, foot + 1)], AXIS)
        self.text((left + end) / 2, foot + 36, x, "mm")
        self.text(18, (top + foot) / 2, y, "mm", angle=90)

    def at(self, xs, ys):
        """Data (...) -> pixels (..., 2)."""
        x0, y0, x1, y1 = self.frame
        x = x0 + (x1 - x0) * (np.asarray(xs, float) - self.xlim[0]) / (self.xlim[1] - self.xlim[0])
        y = y1 - (y1 - y0) * (np.asarray(ys, float) - self.ylim[0]) / (self.ylim[1] - self.ylim[0])
        return np.stack(np.broadcast_arrays(x, y), -1).clip(-1e5, 1e5)

    def line(self, points, color=INK, width=1.0, dashed=False):
        """dashed: 6 pixels on, 4 off, along the path."""
        points = np.asarray(points, float)
        if dashed:
            far = np.r_[0, np.hypot(*np.diff(points, axis=0).T).cumsum()]
            on = np.arange(0, far[-1], 10)[:, None] + [0, 6]
            for piece in np.stack([np.interp(on, far, p) for p in points.T], -1):
                self.line(piece, color, width)
            return
        points, width = (
            (points * SCALE - 0.5).round(),
            round(SCALE * width) | 1,
        )  # odd: the same on both sides
        moved = np.r_[True, (np.diff(points, axis=0) != 0).any(1)]  # so that 100,000 points are quick
        self.draw.line([tuple(p) for p in points[moved].tolist()], color, width, joint="curve")

    def whisker(self, start, end, color=INK, width=1.5):
        self.line([start, end], color, width)
        cap = np.array([0, 4] if start[1] == end[1] else [4, 0])
        for point in (start, end):
            self.line([point - cap, point + cap], color, width)

    def area(self, points, color):
        self.draw.polygon([tuple(p) for p in (points * SCALE - 0.5).tolist()], color)

    def box(self, corners, color, grow=0.0):
        start, end = ((np.sort(corners, 0) + [[-grow], [grow]]) * SCALE).round()
        if (end > start).all():
            self.draw.rectangle((*start, *(end - 1)), color)

    def dot(self, point, color):
        self.draw.circle([SCALE * v - 0.5 for v in point], 3.5 * SCALE, color)

    def text(self, x, y, words, anchor="lm", size=13, angle=0, color=INK, halo=0):
        """Words with their anchor (of Pillow) at (x, y), turned about it by so many degrees."""
        font = ImageFont.load_default(SCALE * size)
        if not angle:
            about = SCALE * x, SCALE * y
            self.draw.text(about, words, color, font, anchor, stroke_width=SCALE * halo, stroke_fill=PAPER)
            return
        side = math.ceil(font.getlength(words)) + SCALE * size
        mask = Image.new("L", (2 * side, 2 * side))
        ImageDraw.Draw(mask).text((side, side), words, 255, font, anchor)
        mask = mask.rotate(angle, Image.Resampling.BICUBIC)
        self.image.paste(color, (round(SCALE * x) - side, round(SCALE * y) - side), mask)

    def label(self, words, spots):
        """Words at the one of spots [(x, y, anchor)] where they hide least."""

        def hidden(spot):
            x, y, anchor = spot
            x -= extent(words) * (anchor == "rm")
            box = [round(SCALE * v) for v in (x - 3, y - 8, x + extent(words) + 3, y + 8)]
            return (np.abs(np.asarray(self.image.crop(box), int) - PAPER).max(-1) > 30).sum()

        x, y, anchor = min(spots, key=hidden)
        self.text(x, y, words, anchor, halo=2)

    def references(self, levels=(), marks=(), gaps=()):
        """Dashed lines at heights [(y, label)] and across [(x, label)], bars [(x, y0, y1, label)]."""
        (x0, y0, x1, y1), labels = self.frame, []
        sides = ("lm", 1), ("rm", -1)
        for level, words in levels:
            y = self.at(0, level)[1]
            self.line([(x0, y), (x1, y)], INK, 1.3, dashed=True)
            starts = np.linspace(x1 - 6 - extent(words), x0 + 6, 9)
            labels.append((words, [(x, y + down, "lm") for down in (-10, 10) for x in starts]))
        for mark, words in marks:
            x = self.at(mark, 0)[0]
            self.line([(x, y0), (x, y1)], INK, 1.3, dashed=True)
            labels.append((words, [(x + 6 * d, y, side) for y in (y0 + 10, y1 - 10) for side, d in sides]))
        for gap, *heights, words in gaps:
            (x, low), (_, high) = ends = self.at(gap, heights)
            self.whisker(*ends, INK, 2.5)
            downs = (low + high) / 2, max(low, high) + 10, min(low, high) - 10
            labels.append((words, [(x + 9 * d, y, side) for y in downs for side, d in sides]))
        for words, spots in labels:
            self.label(words, spots)

    def cut(self, before):
        """Takes back what was drawn outside the frame since the image was `before`, but for half a dot."""
        box = [SCALE * math.floor(v) for v in np.add(self.frame, (-4, -4, 4, 4))]
        before.paste(self.image.crop(box), box)
        self.image.paste(before)

    def picture(self):
        """-> (height, width, 3) uint8."""
        size = [n // SCALE for n in self.image.size]
        return np.asarray(self.image.resize(size, Image.Resampling.LANCZOS))


def extent(words):
    """Length of words in pixels."""
    return ImageFont.load_default(SCALE * 13).getlength(words) / SCALE


def ticks(low, high, count=6):
    """[(value, words)]: the multiples within [low, high] of 1, 2 or 5 times a power of ten, about `count`."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * count > 0.999 * (high - low))
    whole = range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-6))
    return [(k * step, f"{k * step:,.{digits}f}") for k in whole]


def decades(low, high):
    """`ticks` of a log10 axis from 10^low to 10^high."""
    digits = (1, 2, 5) if high - low < 3 else (1,)
    values = [m * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for m in digits]
    return [(math.log10(v), f"{v:,g}") for v in values if low - 1e-6 <= math.log10(v) <= high + 1e-6]


def limits(*values):
    """(...) each -> (low, high) around all that is finite, with some room."""
    values = np.concatenate([np.ravel(np.asarray(v, float)) for v in values])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    room = 0.04 * (high - low) or abs(high) / 10 or 0.5
    return low - room, high + room
