"""Charts as (H, W, 3) uint8 pictures, on Pillow and numpy alone: curves, histograms, heat maps, bars.

Sizes are pixels. Text is ASCII, ± and ° (page.py says why). A value that is not finite is left out.
"""

import math
from typing import NamedTuple

import numpy as np

from utils.draw import INK, PAPER
from utils.page import Page, decades, extent, limits, ticks

# Okabe & Ito, Color Universal Design, https://jfly.uni-koeln.de/color; grey for yellow, too pale for a line
PALETTE = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233)]
PALETTE += [(0, 0, 0), (140, 140, 140)]
# YlGnBu of Brewer, https://colorbrewer2.org: it darkens all the way, for grey print and colour-blind readers
SHADES = [(255, 255, 217), (237, 248, 177), (199, 233, 180), (127, 205, 187), (65, 182, 196), (29, 145, 192)]
SHADES += [(34, 94, 168), (37, 52, 148), (8, 29, 88)]
MISSING, SIZE = (208, 208, 208), (900, 420)


class Curve(NamedTuple):
    """xs, ys (N,), a name for the key or "". style: `line` (with dots if 30 points or fewer), `points`, or
    `step` (a height holds until the next x, the last one to the edge: for ECDFs). error (N,) or None: half
    the height of a band, or of whiskers for `points`. A line breaks where a value is not finite."""

    name: str
    xs: np.ndarray
    ys: np.ndarray
    style: str = "line"
    error: np.ndarray | None = None


def chart(
    curves, title="", x="", y="", xlim=None, ylim=None, logx=False, levels=(), marks=(), gaps=(), size=SIZE
):
    """Curves over one pair of axes -> (height, width, 3) uint8; size: (width, height).

    curves: [(name, xs, ys, style, error)], the last two optional, see `Curve`; from the ninth on dashed.
    x, y: what the axes show. xlim, ylim: (low, high), by default what all that is given needs. logx: a log10
    axis, without what is not positive. levels [(y, label)], marks [(x, label)]: dashed lines. gaps
    [(x, y0, y1, label)]: the distance of two heights, as of Kolmogorov and Smirnov.
    """

    def place(xs):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(np.asarray(xs, float)) if logx else np.asarray(xs, float)

    marks = [(place(at), words) for at, words in marks]
    gaps = [(place(at), *rest) for at, *rest in gaps]
    across = [[at for at, *_ in [*marks, *gaps]]]  # all that the axes have to hold
    upward = [[level for level, _ in levels], *(heights for _, *heights, _ in gaps)]
    drawn, key = [], []
    for i, (name, xs, ys, style, error) in enumerate(Curve(*c) for c in curves):
        xs, ys, look = place(xs), np.asarray(ys, float), (PALETTE[i % 8], style, i >= 8)
        error = np.zeros(len(xs)) if error is None else np.nan_to_num(np.asarray(error, float))
        good = np.flatnonzero(np.isfinite(xs) & np.isfinite(ys))
        breaks = np.flatnonzero(np.diff(good) > 1) + 1 if style == "line" else []
        runs = [(xs[run], ys[run], error[run]) for run in np.split(good, breaks) if len(run)]
        across, upward = [*across, xs[good]], [*upward, (ys - error)[good], (ys + error)[good]]
        drawn.append((runs, len(good), *look))
        key += [(name, *look)] if runs and name else []
    xlim, ylim = limits(*across) if xlim is None else place(xlim), limits(*upward) if ylim is None else ylim
    xticks = decades(*xlim) if logx else ticks(*xlim, size[0] // 80)
    page = Page(size, xlim, ylim, xticks, ticks(*ylim, size[1] // 65), title, x, y, key)
    before = page.image.copy()
    for runs, count, color, style, dashed in drawn:
        for a, b, e in runs:
            loose = style == "points" or len(a) == 1
            if style == "step" and not loose:
                a, b, e = np.repeat([a, b, e], 2, 1)
                a = np.r_[a[1:], max(a[-1], xlim[1])]
            points, low, high = page.at(a, b), page.at(a, b - e), page.at(a, b + e)
            if loose:
                for start, end in zip(low[e > 0], high[e > 0], strict=True):
                    page.whisker(start, end, color)
            else:
                if e.any():
                    page.area(np.r_[low, high[::-1]], (*color, 45))
                page.line(points, color, 2, dashed)
            if loose or style == "line" and count <= 30:
                for point in points:
                    page.dot(point, color)
    page.references(levels, marks, gaps)
    page.cut(before)
    return page.picture()


def histogram(values, bins=20, range=None, title="", x="", y="count", levels=(), size=SIZE):
    """How many of values (...) fall into each of `bins` equal parts of range (low, high), by default theirs
    -> (height, width, 3) uint8. levels [(y, label)]: dashed, such as the count to expect."""
    values = np.asarray(values, float)
    counts, edges = np.histogram(values[np.isfinite(values)], bins, range)
    xlim, ylim = (edges[0], edges[-1]), (0, 1.1 * max([1, *counts, *(level for level, _ in levels)]))
    page = Page(size, xlim, ylim, ticks(*xlim, size[0] // 80), ticks(*ylim, size[1] // 65), title, x, y)
    for count, *ends in zip(counts, edges, edges[1:], strict=False):
        page.box(page.at(ends, [0, count]) + [[0.5, 0], [-0.5, 0]], PALETTE[5])
    page.references(levels)
    return page.picture()


def shade(share):
    """(...) from 0 to 1 -> (..., 3) uint8, pale to dark, grey where nan."""
    steps, share = np.linspace(0, 1, len(SHADES)), np.asarray(share, float)[..., None]
    color = np.concatenate([np.interp(share, steps, channel) for channel in np.transpose(SHADES)], -1)
    return np.where(np.isnan(share), MISSING, color.round()).astype(np.uint8)


def heatmap(values, rows, columns, title="", low=0.0, high=1.0, marked=None, form=".2f", width=900, cell=24):
    """values (R, C) as coloured cells with their numbers, and a scale -> (H, width, 3) uint8.

    rows (R,), columns (C,): names. low, high: where the colours begin and end; what lies beyond has theirs.
    marked (R, C) bool: cells framed in bold, such as values > critical. nan: a grey cell. form: format of the
    numbers. cell: height of a row.
    """
    values = np.asarray(values, float)
    marked = np.zeros(values.shape, bool) if marked is None else np.asarray(marked, bool)
    longest, right = max(map(extent, columns)), 70
    slant = longest > (width - 20 - max(map(extent, rows)) - right) / len(columns) - 8
    head = 0.77 * longest + 14 if slant else 20
    size = width, math.ceil((42 if title else 14) + head + cell * len(rows) + 10)
    names = [(r + 0.5, name) for r, name in enumerate(rows)]
    page = Page(size, (0, len(columns)), (len(rows), 0), [], names, title, rows=True, head=head, right=right)
    for c, name in enumerate(columns):
        page.text(*page.at(c + 0.5, 0) - (0, 10), name, "lm" if slant else "mm", angle=50 if slant else 0)
    colors = shade((values.clip(low, high) - low) / (high - low))
    for r, c in sorted(np.ndindex(values.shape), key=lambda at: marked[at]):  # frames over their neighbours
        corners, color = page.at([c, c + 1], [r, r + 1]), tuple(colors[r, c].tolist())
        if marked[r, c]:
            page.box(corners, INK, 1)
        page.box(corners, color, -1 if marked[r, c] else -0.5)
        if np.isfinite(values[r, c]):
            ink = PAPER if np.dot(color, (0.299, 0.587, 0.114)) < 140 else INK  # luma, ITU-R BT.601
            page.text(*corners.mean(0), f"{values[r, c]:{form}}", "mm", 11, color=ink)
    _, top, end, foot = page.frame
    edges = np.linspace(foot, top, 201)
    for color, y0, y1 in zip(shade(np.linspace(0, 1, 200)).tolist(), edges, edges[1:], strict=False):
        page.box([(end + 16, y0), (end + 28, y1)], tuple(color))
    for value, words in ticks(low, high, 5):
        page.text(end + 33, foot - (foot - top) * (value - low) / (high - low), words, size=11)
    return page.picture()


def bars(names, values, errors=None, title="", x="", form="+.3f", width=900):
    """A bar for each of values (N,), the first on top, with its number -> (H, width, 3) uint8.

    errors (N,): half the length of a whisker. form: format of the numbers. Bars below zero are orange.
    """
    values = np.asarray(values, float)
    errors = np.zeros(len(values)) if errors is None else np.nan_to_num(np.asarray(errors, float))
    spread = [f" ± {error:{form.lstrip('+')}}" if error > 0 else "" for error in errors]
    words = [f"{v:{form}}{s}" if np.isfinite(v) else "" for v, s in zip(values, spread, strict=True)]
    xlim, ylim = limits([0], values - errors, values + errors), (len(values) - 0.5, -0.5)
    size = width, (72 if title else 44) + 28 * len(values) + 24 * bool(x)
    right = 24 + math.ceil(max(map(extent, words)))
    page = Page(size, xlim, ylim, ticks(*xlim), list(enumerate(names)), title, x, rows=True, right=right)
    for i in np.flatnonzero(np.isfinite(values)):
        page.box(page.at([0, values[i]], [i - 0.32, i + 0.32]), PALETTE[5] if values[i] > 0 else PALETTE[4])
        page.text(width - 12, page.at(0, i)[1], words[i], "rm")
        if errors[i] > 0:
            page.whisker(*page.at([values[i] - errors[i], values[i] + errors[i]], i))
    zero = math.floor(page.at(0, 0)[0]) + 0.5
    page.line([(zero, page.frame[1]), (zero, page.frame[3])])
    return page.picture()
