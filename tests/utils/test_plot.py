"""Pictures are read back: what is drawn where the data says, and nothing where it does not."""

import numpy as np
import pytest

from utils import plot
from utils.draw import INK, PAPER

BLUE, RED, SKY, ORANGE = plot.PALETTE[0], plot.PALETTE[1], plot.PALETTE[5], plot.PALETTE[4]
SMALL = dict(size=(440, 300))
UNIT = dict(xlim=(0, 1), ylim=(0, 1), **SMALL)


@pytest.fixture
def pages(monkeypatch):
    """The pages of the pictures drawn so far: they know where a value lies."""
    seen = []

    class Seen(plot.Page):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(self)

    monkeypatch.setattr(plot, "Page", Seen)
    return seen


def near(picture, spot, color, tolerance=25):
    """Is the pixel at spot (x, y) of that colour?"""
    x, y = np.floor(spot).astype(int)
    return np.abs(picture[y, x].astype(int) - color).max() <= tolerance


def luma(color):
    return np.asarray(color, float) @ (0.299, 0.587, 0.114)


def changed(picture, other):
    """(left, top, right, foot) of the pixels in which two pictures of one size differ."""
    rows, columns = np.nonzero((picture != other).any(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_ticks_are_multiples_of_1_2_5():
    def words(*asked):
        return [name for _, name in plot.ticks(*asked)]

    assert words(0, 0.97) == ["0.0", "0.2", "0.4", "0.6", "0.8"]
    assert words(0, 1, 5) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert words(0, 3200, 4) == ["0", "1,000", "2,000", "3,000"]
    assert words(-0.013, 0.046, 4) == ["0.00", "0.02", "0.04"]
    assert [v for v, _ in plot.ticks(0.1, 0.36, 6)] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3, 0.35])


def test_limits_hold_what_is_finite():
    assert plot.limits([[0, np.nan], [[np.inf, 10]], 3]) == pytest.approx((-0.4, 10.4))
    assert plot.limits([]) == pytest.approx((-0.04, 1.04))
    for constant in (0, 0.3, -7):
        low, high = plot.limits([constant])
        assert low < constant < high


def test_frame_maps_data(pages):
    plot.chart([("a", [1, 100], [0, 2])], xlim=(1, 100), ylim=(0, 2), **SMALL)
    left, top, right, foot = pages[0].frame
    assert pages[0].at([1, 100], [0, 2]).tolist() == [[left, foot], [right, top]]  # y points up
    assert pages[0].at(50.5, 1).tolist() == [(left + right) / 2, (top + foot) / 2]


def test_line_passes_through_its_points(pages):
    picture = plot.chart([("a", [0, 0.5, 1], [0.1, 0.9, 0.3]), ("b", [0, 1], [0.05, 0.05])], **UNIT)
    assert picture.shape == (300, 440, 3) and picture.dtype == np.uint8
    for x, y in [(0.5, 0.9), (0.25, 0.5), (0.75, 0.6), (0.1, 0.26)]:
        assert near(picture, pages[0].at(x, y), BLUE)
        assert not near(picture, pages[0].at(x, y - 0.1), BLUE)
    assert near(picture, pages[0].at(0.6, 0.05), RED)


def test_dots_mark_few_points(pages):
    for count, dotted in [(11, True), (61, False)]:
        picture = plot.chart([("a", np.linspace(0, 1, count), np.full(count, 0.5))], **UNIT)
        assert near(picture, pages[0].at(0.5, 0.5) + (0, 2.5), BLUE) == dotted


def test_step_holds_to_the_edge(pages):
    picture = plot.chart([("a", [0.2, 0.6], [0.3, 0.8], "step")], **UNIT)
    for x, y in [(0.25, 0.3), (0.55, 0.3), (0.6, 0.5), (0.65, 0.8), (0.97, 0.8)]:
        assert near(picture, pages[0].at(x, y), BLUE)
    assert not near(picture, pages[0].at(0.1, 0.3), BLUE)
    assert not near(picture, pages[0].at(0.4, 0.55), BLUE)


@pytest.mark.parametrize("style", ["line", "step"])
@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_curve_breaks_where_not_finite(pages, style, hole):
    ys = np.full(50, 0.5)
    ys[20:24] = ys[25:30] = hole
    picture = plot.chart([("a", np.linspace(0, 1, 50), ys, style)], **UNIT)
    drawn = [near(picture, pages[0].at(x, 0.5) + (1, 0), BLUE) for x in (0.3, 0.45, 24 / 49, 0.55, 0.7)]
    assert drawn == [True, False, True, False, True]  # a lonely point too


def test_nothing_outside_the_frame(pages):
    empty = plot.chart([("a", [], [])], **UNIT)
    picture = plot.chart([("a", [0.2, 0.5, 0.8], [-9, 9, -9])], **UNIT)
    left, top, right, foot = pages[0].frame
    box = changed(picture, empty)
    assert box[1] <= top and box[3] >= foot  # it was cut
    assert min(np.subtract(box[:2], (left, top))) >= -4 and max(np.subtract(box[2:], (right, foot))) <= 4


def test_what_cannot_be_drawn_is_left_out(pages):
    nothing = plot.chart([("a", [], [])], **UNIT)
    holes = [0.2, np.nan, np.inf, 0.5], [np.nan, 0.5, 0.5, -np.inf]
    assert (plot.chart([("a", *holes)], **UNIT) == nothing).all()
    for style in ("line", "step"):
        picture = plot.chart([("a", [3], [0.2], style)], **SMALL)
        assert near(picture, pages[-1].at(3, 0.2) + (1, 0), BLUE)


def test_six_curves_are_told_apart(pages):
    curves = [(f"name {i}", [0, 1], [i, i]) for i in range(6)]
    picture = plot.chart(curves, "title", "x", "y", size=(640, 300))
    key = picture[: int(pages[0].frame[1])].astype(int)
    for i, color in enumerate(plot.PALETTE):
        assert near(picture, pages[0].at(0.3, i), color)
        assert (np.abs(key - color).max(-1) <= 25).sum() >= 25


def test_references(pages):
    flat = [("a", [0, 1], [0.9, 0.9])]
    given = dict(levels=[(0.3, "alpha")], marks=[(0.7, "m")], gaps=[(0.2, 0.4, 0.8, "D")])
    picture = plot.chart(flat, **given, **UNIT)
    left, top, right, foot = pages[0].frame
    row = luma(picture[int(pages[0].at(0, 0.3)[1]), left:right]) < 120
    column = luma(picture[top:foot, int(pages[0].at(0.7, 0)[0])]) < 120
    assert 0.5 < row.mean() < 0.7 and 0.5 < column.mean() < 0.7  # dashed: 6 on, 4 off
    assert all(near(picture, pages[0].at(0.2, y), INK) for y in np.linspace(0.41, 0.79, 30))
    assert not near(picture, pages[0].at(0.2, 0.35), INK, 80)
    plot.chart(flat, levels=[(5, "far")], **SMALL)
    assert pages[1].ylim[0] < 0.9 and pages[1].ylim[1] > 5


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["levels", "marks", "gaps"])
def test_labels_stay_in_the_frame(pages, kind, at):
    """Whole, and so neither on the title nor cut by the edge of the picture."""

    def drawn(words):
        line = {"levels": (at, words), "marks": (at, words), "gaps": (at, 0.0, 0.9, words)}[kind]
        return plot.chart([("a", [0], [0])], "a title", **{kind: [line]}, **UNIT)

    left, top, right, foot = changed(drawn("a label"), drawn(""))
    assert right - left > 30 and foot - top > 9
    frame = pages[0].frame
    assert left > frame[0] and top > frame[1] and right < frame[2] and foot < frame[3]


def test_heatmap_cells(pages):
    values = np.array([[0.0, 0.2, 0.4, np.nan], [0.6, 0.8, 1.0, 3.0]])
    marked = values == 0.8
    picture = plot.heatmap(values, ["flip", "translate_x"], list("abcd"), "title", marked=marked, width=600)
    assert picture.shape[1] == 600 and picture.dtype == np.uint8
    colors = [
        [picture[tuple(pages[0].at(c + 0.15, r + 0.3).astype(int)[::-1])] for c in range(4)] for r in (0, 1)
    ]
    assert (colors[0][0] == plot.SHADES[0]).all() and (colors[0][1] == plot.SHADES[1]).all()
    assert (colors[1][2] == plot.SHADES[-1]).all() and (colors[1][3] == plot.SHADES[-1]).all()  # 3 is beyond
    assert (colors[0][3] == plot.MISSING).all()
    assert (np.diff(luma([*colors[0][:3], *colors[1][:3]])) < -15).all()  # the larger the darker
    edges = [near(picture, pages[0].at(c, 1.5) + (1.5, 0), INK, 60) for c in range(4)]
    assert edges == [False, True, False, False]
    for r, c in [(0, 0), (1, 2)]:  # black on pale, white on dark
        (left, top), (right, foot) = np.round(pages[0].at([c, c + 1], [r, r + 1])).astype(int)
        cell = luma(picture[top + 3 : foot - 3, left + 3 : right - 3])
        assert cell.max() - cell.min() > 120


def test_heatmap_has_room_for_long_names():
    names = [f"centroid hair {c}" for c in "abcdefghijklmnopqrs"]
    short = plot.heatmap(np.zeros((2, 19)), ["a", "b"], [name[-1] for name in names])
    leaning = plot.heatmap(np.zeros((2, 19)), ["a", "b"], names)
    assert leaning.shape[1] == 900 and 40 < leaning.shape[0] - short.shape[0] < plot.extent(names)
    assert (leaning[:4] == PAPER).all() and (leaning[:, -4:] == PAPER).all()  # nothing is cut


def test_bars_point_both_ways(pages):
    names, values, errors = ["up", "down", "none"], [0.4, -0.2, np.nan], [0.1, np.nan, np.nan]
    picture = plot.bars(names, values, errors, "title", "gain", width=600)
    assert picture.shape[1] == 600 and picture.dtype == np.uint8
    at = pages[0].at
    assert near(picture, at(0.1, 0.2), SKY) and not near(picture, at(-0.1, 0.2), SKY)
    assert near(picture, at(-0.1, 1), ORANGE) and not near(picture, at(0.1, 1), ORANGE)
    dark = [luma(picture[int(at(x, 0)[1]), int(at(x, 0)[0])]) < 120 for x in (0.25, 0.35, 0.45, 0.51)]
    assert dark == [False, True, True, False]  # the whisker
    left, _, right, _ = pages[0].frame
    row = picture[int(at(0, 2.2)[1]), left:right].astype(int)
    assert not (np.abs(row - SKY).max(-1) < 60).any() and not (np.abs(row - ORANGE).max(-1) < 60).any()


def test_two_calls_are_identical():
    rng = np.random.default_rng(0)
    curves = [("a", np.sort(rng.random(300)), np.arange(300) / 300, "step")]
    given = dict(title="title", levels=[(0.3, "c")], gaps=[(0.4, 0.2, 0.6, "D")], **SMALL)
    assert (plot.chart(curves, **given) == plot.chart(curves, **given)).all()
