"""Numbers as (H, W, 3) uint8 pictures, on Pillow and numpy alone: curves, heat maps, bars.

Sizes are pixels of the result; all is drawn three times larger and averaged down. What is not finite is left
out. Pillow's own font has ASCII, ± and °, and an empty box for the rest: write alpha, not the Greek letter.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.draw import INK, PAPER

SCALE = 3
GRID = (225, 225, 225)
MISSING = (208, 208, 208)
# Okabe & Ito, Color Universal Design, https://jfly.uni-koeln.de/color: without yellow, too pale for a line
PALETTE = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233)]
# YlGnBu of Brewer, https://colorbrewer2.org: it darkens all the way, for grey print and colour-blind readers
SHADES = [(255, 255, 204), (199, 233, 180), (127, 205, 187), (65, 182, 196), (44, 127, 184), (37, 52, 148)]


def chart(curves, title="", x="", y="", xlim=None, ylim=None, levels=(), marks=(), gaps=(), size=(900, 420)):
    """Curves over one pair of axes -> (height, width, 3) uint8; size: (width, height).

    curves: [(name, xs (N,), ys (N,), style)]. style: `line`, the default, with dots if there are 30 points or
    fewer; or `step`: a height holds until the next x, the last one to the edge, as in an ECDF. Colours repeat
    after six. x, y: what the axes show. xlim, ylim: (low, high), by default what the curves need. levels
    [(y, label)], marks [(x, label)]: dashed lines. gaps [(x, y0, y1, label)]: the distance of two heights.
    """
    xlim = xlim or limits([curve[1] for curve in curves])
    ylim = ylim or limits([curve[2] for curve in curves] + [level[0] for level in levels])
    numbers = ticks(*ylim, size[1] // 65)
    left = 20 + 24 * bool(y) + extent(words for _, words in numbers)
    right = size[0] - 24
    top = 14 + 28 * bool(title) + 28 * bool(curves)
    foot = size[1] - 30 - 24 * bool(x)
    page = Page(size, title, (left, top, right, foot), xlim, ylim, ticks(*xlim, size[0] // 80), numbers, x)
    page.text(18, (top + foot) / 2, y, "mm", angle=90)
    spot = left
    for i, curve in enumerate(curves):  # the key
        page.line([(spot, top - 19.5), (spot + 28, top - 19.5)], PALETTE[i % len(PALETTE)], 2)
        page.text(spot + 35, top - 20, curve[0])
        spot += 57 + extent([curve[0]])

    bare = page.image.copy()
    for i, curve in enumerate(curves):
        page.curve(PALETTE[i % len(PALETTE)], *curve[1:])
    labels = []  # (x, y, words): right of x, or left of it where the frame ends
    for level, words in levels:
        height = page.at(0, level)[1]
        for start in np.arange(left, right, 10):
            page.line([(start, height), (min(start + 6, right), height)], width=1.3)
        labels.append((right, height - 10 if height > top + 18 else height + 10, words))
    for mark, words in marks:
        across = page.at(mark, 0)[0]
        for start in np.arange(top, foot, 10):
            page.line([(across, start), (across, min(start + 6, foot))], width=1.3)
        labels.append((across, top + 10, words))
    for gap, y0, y1, words in gaps:
        ends = page.at(gap, [y0, y1])
        page.line(ends, width=3)
        labels.append((ends[0, 0], min(ends[:, 1].max() + 12, foot - 10), words))  # below both ECDFs
    for across, height, words in labels:  # after all lines, so that none crosses them
        start = across + 9 if across + 12 + extent([words]) < right else across - 9 - extent([words])
        page.text(start, height, words, color=PAPER, halo=2)
        page.text(start, height, words)
    inside = [SCALE * edge for edge in (left - 4, top - 4, right + 4, foot + 4)]  # the frame and half a dot
    bare.paste(page.image.crop(inside), inside)
    return np.asarray(bare.reduce(SCALE))


def heatmap(values, rows, columns, title="", low=0.0, high=1.0, marked=None, form=".2f", width=900, cell=24):
    """values (R, C) as coloured cells with their numbers -> (H, width, 3) uint8.

    rows (R,), columns (C,): names. low, high: where the colours begin and end; nan: grey. marked (R, C) bool:
    cells framed in bold, such as values > critical. form: format of the numbers. cell: height of a row.
    """
    values, longest = np.asarray(values, float), extent(columns)
    left = 20 + extent(rows)
    right = width - 12 - round(0.64 * longest)  # names lean by 50°, cos 50° = 0.64
    top = 28 + 28 * bool(title) + round(0.77 * longest)  # sin 50° = 0.77
    frame = (left, top, right, top + cell * len(rows))
    xlim = (0, len(columns))
    ylim = (len(rows), 0)
    names = [(r + 0.5, name) for r, name in enumerate(rows)]
    page = Page((width, frame[3] + 10), title, frame, xlim, ylim, [], names)
    for c, name in enumerate(columns):
        page.text(page.at(c + 0.5, 0)[0], top - 10, name, angle=50)
    share = (values - low) / (high - low)
    steps = np.linspace(0, 1, len(SHADES))
    colors = np.stack([np.interp(share, steps, channel) for channel in np.transpose(SHADES)], -1).round()
    colors[np.isnan(values)] = MISSING
    for (r, c), value in np.ndenumerate(values):
        corners = page.at([c, c + 1], [r, r + 1])
        framed = marked is not None and marked[r][c]
        page.box(corners + [[0.5], [-0.5]], colors[r, c], INK if framed else None)
        if np.isfinite(value):
            dark = colors[r, c] @ (0.299, 0.587, 0.114) < 140  # luma, ITU-R BT.601
            page.text(*corners.mean(0), f"{value:{form}}", "mm", 11, PAPER if dark else INK)
    return np.asarray(page.image.reduce(SCALE))


def bars(names, values, errors=None, title="", x="", form="+.3f", width=900):
    """A bar for each of values (N,), the first on top, with its number -> (H, width, 3) uint8.

    errors (N,): half the length of a whisker. form: format of the numbers. Bars below zero are orange.
    """
    values = np.asarray(values, float)
    errors = np.nan_to_num(np.zeros(len(values)) if errors is None else np.asarray(errors, float))
    spread = [f" ± {error:{form.lstrip('+')}}" if error > 0 else "" for error in errors]
    numbers = [f"{v:{form}}{s}" if np.isfinite(v) else "" for v, s in zip(values, spread, strict=True)]
    top = 14 + 28 * bool(title)
    frame = 20 + extent(names), top, width - 24 - extent(numbers), top + 28 * len(values)
    size = (width, frame[3] + 30 + 24 * bool(x))
    xlim = limits([0, values - errors, values + errors])
    page = Page(size, title, frame, xlim, (len(values) - 0.5, -0.5), ticks(*xlim), enumerate(names), x)
    for i in np.flatnonzero(np.isfinite(values)):
        corners = page.at(sorted([0, values[i]]), [i - 0.32, i + 0.32])
        page.box(corners, PALETTE[5] if values[i] > 0 else PALETTE[4])
        page.line(page.at([values[i] - errors[i], values[i] + errors[i]], i), width=2)
        page.text(width - 12, page.at(0, i)[1], numbers[i], "rm")
    page.line(page.at([0, 0], page.ylim))  # over the bars
    return np.asarray(page.image.reduce(SCALE))


class Page:
    """A picture with its title and a frame that axes map data onto; what is drawn on it is in pixels."""

    def __init__(self, size, title, frame, xlim, ylim, across, upward, x=""):
        """size: (width, height). frame: (left, top, right, foot) in pixels. xlim, ylim: the data at its left
        and right, foot and top. across, upward: [(value, words)], a line and words on the axis for each.
        x: what the axis across shows."""
        self.image = Image.new("RGB", [SCALE * n for n in size], PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.frame, self.xlim, self.ylim = frame, xlim, ylim
        left, top, right, foot = frame
        self.text(12, 22, title, size=17)
        self.text((left + right) / 2, foot + 36, x, "mm")
        for value, words in across:
            spot = math.floor(self.at(value, 0)[0]) + 0.5  # the middle of a pixel: a crisp line
            self.line([(spot, top), (spot, foot)], GRID)
            self.text(spot, foot + 14, words, "mm")
        for value, words in upward:
            height = math.floor(self.at(0, value)[1]) + 0.5
            self.line([(left, height), (right, height)], GRID)
            self.text(left - 8, height, words, "rm")

    def at(self, xs, ys):
        """Data (...) -> pixels (..., 2)."""
        left, top, right, foot = self.frame
        x = left + (right - left) * (np.asarray(xs, float) - self.xlim[0]) / (self.xlim[1] - self.xlim[0])
        y = foot - (foot - top) * (np.asarray(ys, float) - self.ylim[0]) / (self.ylim[1] - self.ylim[0])
        return np.stack(np.broadcast_arrays(x, y), -1).clip(-1e5, 1e5)  # farther out Pillow overflows

    def curve(self, color, xs, ys, style="line"):
        """xs, ys: data (N,); the styles of `chart`. It breaks where a value is not finite."""
        xs, ys = np.asarray(xs, float), np.asarray(ys, float)
        if style == "step":
            xs, ys = np.append(xs, self.xlim[1]).repeat(2)[1:-1], ys.repeat(2)
        good = np.flatnonzero(np.isfinite(xs) & np.isfinite(ys))
        for run in np.split(self.at(xs[good], ys[good]), np.flatnonzero(np.diff(good) > 1) + 1):
            if len(run) > 1:
                self.line(run, color, 2)
            for x, y in run if len(run) == 1 or style == "line" and len(good) <= 30 else []:
                self.draw.circle((SCALE * x - 0.5, SCALE * y - 0.5), 3.5 * SCALE, color)

    def line(self, points, color=INK, width=1.0):
        """points: (N, 2). Its width is odd where it is drawn, so that it is centred."""
        points = (np.asarray(points, float) * SCALE - 0.5).round()
        self.draw.line(points.ravel().tolist(), color, round(SCALE * width) | 1, joint="curve")

    def box(self, corners, color, outline=None):
        """corners: [(left, top), (right, foot)]."""
        corners = (np.asarray(corners) * SCALE).round().ravel().tolist()
        self.draw.rectangle(corners, tuple(int(c) for c in color), outline, 2 * SCALE)

    def text(self, x, y, words, anchor="lm", size=13, color=INK, angle=0, halo=0):
        """Words with their anchor (of Pillow) at (x, y), turned about it by so many degrees."""
        letters = ImageFont.load_default(SCALE * size)
        side = math.ceil(letters.getlength(words)) + SCALE * size
        mask = Image.new("L", (2 * side, 2 * side))
        ImageDraw.Draw(mask).text((side, side), words, 255, letters, anchor, stroke_width=SCALE * halo)
        mask = mask.rotate(angle, Image.Resampling.BICUBIC)
        self.image.paste(color, (round(SCALE * x) - side, round(SCALE * y) - side), mask)


def extent(names):
    """Length of the longest of names, in whole pixels."""
    length = ImageFont.load_default(SCALE * 13).getlength
    return math.ceil(max(map(length, names), default=0) / SCALE)


def ticks(low, high, count=6):
    """[(value, words)]: the multiples within [low, high] of 1, 2 or 5 times a power of ten, about `count`."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * count > 0.999 * (high - low))
    whole = range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-6))
    return [(k * step, f"{k * step:,.{digits}f}") for k in whole]


def limits(values):
    """Numbers and arrays (...) -> (low, high) around all that is finite, with some room."""
    values = np.concatenate([np.ravel(np.asarray(v, float)) for v in [[], *values]])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    room = 0.04 * (high - low) or abs(high) / 10 or 0.5
    return low - room, high + room
