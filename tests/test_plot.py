"""Charts are read back: what is drawn where the data says, and nothing where it does not."""

import numpy as np
import pytest

from utils import plot
from utils.draw import INK, PAPER
from utils.page import Page, decades, extent, limits, ticks

BLUE, RED, SKY, ORANGE = plot.PALETTE[0], plot.PALETTE[1], plot.PALETTE[5], plot.PALETTE[4]
SMALL = dict(size=(440, 300))
UNIT = dict(xlim=(0, 1), ylim=(0, 1), **SMALL)


@pytest.fixture
def pages(monkeypatch):
    """The pages of the charts drawn so far: they know where a value lies."""
    seen, picture = [], Page.picture
    monkeypatch.setattr(Page, "picture", lambda self: seen.append(self) or picture(self))
    return seen


def near(picture, spot, color, tolerance=25):
    """Is the pixel at spot (x, y) of that colour?"""
    x, y = np.floor(spot).astype(int)
    return np.abs(picture[y, x].astype(int) - color).max() <= tolerance


def luma(color):
    return np.asarray(color, float) @ (0.299, 0.587, 0.114)


def words(found):
    return [w for _, w in found]


def test_ticks_are_multiples_of_1_2_5():
    assert words(ticks(0, 0.97)) == ["0.0", "0.2", "0.4", "0.6", "0.8"]
    assert words(ticks(0, 1, 5)) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert words(ticks(0, 3200, 4)) == ["0", "1,000", "2,000", "3,000"]
    assert words(ticks(-0.013, 0.046, 4)) == ["0.00", "0.02", "0.04"]
    assert [v for v, _ in ticks(0.1, 0.36, 6)] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    assert words(decades(0, 4)) == ["1", "10", "100", "1,000", "10,000"]
    assert words(decades(-1, np.log10(3))) == ["0.1", "0.2", "0.5", "1", "2"]


def test_limits_hold_what_is_finite():
    assert limits([0, np.nan], [[np.inf, 10]]) == pytest.approx((-0.4, 10.4))
    assert limits([]) == pytest.approx((-0.04, 1.04))
    for constant in (0, 0.3, -7):
        low, high = limits([constant])
        assert low < constant < high


@pytest.mark.parametrize("logx", [False, True])
def test_frame_maps_data(pages, logx):
    plot.chart([("a", [1, 100], [0, 2])], logx=logx, xlim=(1, 100), ylim=(0, 2), **SMALL)
    page, (x0, y0, x1, y1) = pages[0], pages[0].frame
    left, right = (0, 2) if logx else (1, 100)
    assert page.at([left, right], [0, 2]).tolist() == [[x0, y1], [x1, y0]]  # y points up
    assert page.at((left + right) / 2, 1).tolist() == [(x0 + x1) / 2, (y0 + y1) / 2]


def test_line_passes_through_its_points(pages):
    picture = plot.chart([("a", [0, 0.5, 1], [0.1, 0.9, 0.3]), ("b", [0, 1], [0.05, 0.05])], **UNIT)
    assert picture.shape == (300, 440, 3) and picture.dtype == np.uint8
    for x, y in [(0.5, 0.9), (0.25, 0.5), (0.75, 0.6), (0.1, 0.26)]:
        assert near(picture, pages[0].at(x, y), BLUE)
        assert not near(picture, pages[0].at(x, y - 0.1), BLUE)
    assert near(picture, pages[0].at(0.6, 0.05), RED)


def test_log_axis_leaves_out_what_is_not_positive(pages):
    picture = plot.chart([("a", [-1, 0, 1, 10, 100], [9, 9, 1, 2, 3])], logx=True, **SMALL)
    assert near(picture, pages[0].at(0.5, 1.5), BLUE)
    assert pages[0].ylim[1] < 4 and pages[0].xlim == pytest.approx((-0.08, 2.08))


def test_step_holds_to_the_edge(pages):
    picture = plot.chart([("a", [0.2, 0.6], [0.3, 0.8], "step")], **UNIT)
    for x, y in [(0.25, 0.3), (0.55, 0.3), (0.6, 0.5), (0.65, 0.8), (0.97, 0.8)]:
        assert near(picture, pages[0].at(x, y), BLUE)
    assert not near(picture, pages[0].at(0.1, 0.3), BLUE)
    assert not near(picture, pages[0].at(0.4, 0.55), BLUE)


def test_line_breaks_at_nan(pages):
    ys = np.full(50, 0.5)
    ys[20:30] = np.nan
    picture = plot.chart([("a", np.linspace(0, 1, 50), ys)], **UNIT)
    assert near(picture, pages[0].at(0.3, 0.5), BLUE) and near(picture, pages[0].at(0.7, 0.5), BLUE)
    assert not near(picture, pages[0].at(0.5, 0.5), BLUE)


def test_band_and_whiskers(pages):
    band = plot.chart([("a", [0, 1], [0.5, 0.5], "line", [0.2, 0.2])], **UNIT)
    bare = plot.chart([("a", [0, 1], [0.5, 0.5])], **UNIT)
    inside, outside = pages[0].at(0.33, 0.66), pages[0].at(0.33, 0.74)
    assert (
        not near(band, inside, PAPER, 10) and near(band, outside, PAPER, 10) and near(bare, inside, PAPER, 10)
    )
    points = plot.chart([("a", [0.3, 0.7], [0.5, 0.5], "points", [0.2, np.nan])], **UNIT)
    assert near(points, pages[0].at(0.3, 0.6), BLUE, 80) and near(points, pages[0].at(0.7, 0.5), BLUE)
    assert not near(points, pages[0].at(0.7, 0.6), BLUE, 80)


def test_nothing_outside_the_frame(pages):
    empty = plot.chart([("a", [], [])], **UNIT)
    picture = plot.chart([("", [0.2, 0.5, 0.8], [-9, 9, -9])], **UNIT)
    x0, y0, x1, y1 = pages[0].frame
    changed = (picture != empty).any(-1)
    assert changed[y0:y1, x0:x1].sum() > 200
    changed[y0 - 8 : y1 + 8, x0 - 8 : x1 + 8] = False  # half a dot, and what averaging down smears
    assert not changed.any()


def test_what_cannot_be_drawn_is_left_out(pages):
    nothing = [("", [], []), ("", [1, 2], [np.nan, np.inf])]
    assert (plot.chart(nothing, **SMALL) == plot.chart([], **SMALL)).all()
    for one in [("a", [3], [0.2]), ("a", [3], [0.2], "step"), ("a", [3], [0.2], "line", [0.1])]:
        picture = plot.chart([one, *nothing], **SMALL)
        assert near(picture, pages[-1].at(3, 0.2), BLUE)
    assert near(picture, pages[-1].at(3, 0.27), BLUE, 120)  # a lonely point has a whisker for a band


def test_ten_curves_are_told_apart(pages):
    curves = [(f"a rather long name {i}", [0, 1], [i, i]) for i in range(10)]
    picture = plot.chart(curves, "title", "x", "y", **SMALL)
    for i, color in enumerate(plot.PALETTE):
        assert near(picture, pages[0].at(0.3, i), color)
    dashed = [near(picture, pages[0].at(x, 9), RED, 60) for x in np.linspace(0, 1, 200)]
    assert 0.4 < np.mean(dashed) < 0.75
    key = picture[: int(pages[0].frame[1])]  # in several rows above the frame
    for color in plot.PALETTE:
        assert (np.abs(key.astype(int) - color).max(-1) <= 25).sum() >= 25


def test_references(pages):
    flat = [("a", [0, 1], [0.9, 0.9])]
    picture = plot.chart(
        flat, levels=[(0.3, "alpha")], marks=[(0.7, "m")], gaps=[(0.2, 0.4, 0.8, "D")], **UNIT
    )
    x0, y0, x1, y1 = pages[0].frame
    row = luma(picture[int(pages[0].at(0, 0.3)[1]), int(x0) : int(x1)]) < 120
    assert 0.5 < row.mean() < 0.7  # dashed: 6 on, 4 off
    dashes = luma(picture[int(y0) : int(y1), int(pages[0].at(0.7, 0)[0])]) < 120
    assert 0.5 < dashes.mean() < 0.7
    bar = [near(picture, pages[0].at(0.2, y), INK) for y in np.linspace(0.41, 0.79, 30)]
    assert all(bar) and not near(picture, pages[0].at(0.2, 0.35), INK, 80)
    automatic = plot.chart(flat, levels=[(5, "far")], gaps=[(7, 0, 1, "D")], **SMALL)
    assert (
        automatic.shape == picture.shape
        and pages[1].ylim[0] < 0
        and pages[1].ylim[1] > 5
        and pages[1].xlim[1] > 7
    )


def test_label_goes_where_it_hides_least(pages):
    def label(*busy):
        curves = [("", busy, [y, y]) for y in (0.46, 0.54)]
        pictures = [plot.chart(curves, levels=[(0.5, words)], **UNIT) for words in ("level", "")]
        return np.argwhere((pictures[0] != pictures[1]).any(-1))[:, 1]

    assert label(0.6, 1).max() < pages[0].at(0.6, 0)[0]
    assert label(0, 0.4).min() > pages[0].at(0.4, 0)[0]


def test_histogram_counts(pages):
    values = [0.1] * 4 + [0.6] * 10 + [np.nan, 7]
    picture = plot.histogram(values, 2, (0, 1), "title", "p", levels=[(5, "uniform")], size=(500, 300))
    assert picture.shape == (300, 500, 3) and picture.dtype == np.uint8
    for x, count in [(0.1, 4), (0.8, 10)]:
        assert near(picture, pages[0].at(x, count - 0.3), SKY)
        assert not near(picture, pages[0].at(x, count + 0.3), SKY)
    assert (luma(picture[int(pages[0].at(0, 5)[1])]) < 120).sum() > 200
    assert plot.histogram([], 5).shape == (420, 900, 3)


def test_shades_darken_all_the_way_and_stay_legible():
    colors = plot.shade(np.linspace(0, 1, 300))
    assert (np.diff(luma(colors)) < 0.6).all() and luma(colors[0]) - luma(colors[-1]) > 180
    assert (plot.shade([[np.nan]]) == plot.MISSING).all()


def test_heatmap_cells(pages):
    values = np.array([[0.0, 0.2, 0.4, np.nan], [0.6, 0.8, 1.0, 3.0]])
    marked = values == 0.8
    picture = plot.heatmap(values, ["flip", "translate_x"], list("abcd"), "title", marked=marked, width=600)
    assert picture.shape[1] == 600 and picture.dtype == np.uint8
    spots = [[pages[0].at(c + 0.15, r + 0.3) for c in range(4)] for r in range(2)]
    for (r, c), value in np.ndenumerate(values):
        assert near(picture, spots[r][c], plot.shade(min(value, 1)), 4)
    frame = np.array([pages[0].at(x, 1.5) for x in range(5)]) - (0, 0.5)
    assert [near(picture, at, INK, 60) for at in frame] == [False, True, True, False, False]
    middle = picture[int(spots[1][2][1])]
    assert (luma(middle) > 200).any()
    for r, c in [(0, 0), (1, 2)]:  # black on pale, white on dark
        (x0, y0), (x1, y1) = np.round(pages[0].at([c, c + 1], [r, r + 1])).astype(int)
        cell = luma(picture[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3])
        assert cell.max() - cell.min() > 120


def test_heatmap_turns_long_names():
    names = [f"centroid hair {c}" for c in "abcdefghijklmnopqrs"]
    flat = plot.heatmap(np.zeros((2, 19)), ["a", "b"], [n[-1] for n in names])
    turned = plot.heatmap(np.zeros((2, 19)), ["a", "b"], names)
    assert turned.shape[1] == 900 and 40 < turned.shape[0] - flat.shape[0] < extent(names[0])


def test_bars_point_both_ways(pages):
    picture = plot.bars(
        ["up", "down", "none"], [0.4, -0.2, np.nan], [0.1, 0, np.nan], "title", "gain", width=600
    )
    assert picture.shape[1] == 600 and picture.dtype == np.uint8
    at = pages[0].at
    assert near(picture, at(0.1, 0.2), SKY) and not near(picture, at(-0.1, 0.2), SKY)
    assert near(picture, at(-0.1, 1), ORANGE) and not near(picture, at(0.1, 1), ORANGE)
    thick = {x: luma(picture[int(at(x, 0)[1]) - 1 :, int(at(x, 0)[0])][:3]).min() for x in (0.35, 0.45, 0.51)}
    assert thick[0.35] < 120 and thick[0.45] < 120 and thick[0.51] > 180
    x0, _, x1, y1 = (int(v) for v in pages[0].frame)
    row = picture[int(at(0, 2)[1]), x0 + 2 : x1]
    assert not (np.abs(row.astype(int) - SKY).max(-1) < 60).any()


def test_two_calls_are_identical():
    rng = np.random.default_rng(0)
    xs, ys = np.sort(rng.random(300)), np.arange(300) / 300
    drawn = [
        plot.chart(
            [("a", xs, ys, "step")], "title", levels=[(0.3, "c")], gaps=[(0.4, 0.2, 0.6, "D")], **SMALL
        )
        for _ in range(2)
    ]
    assert (drawn[0] == drawn[1]).all()
