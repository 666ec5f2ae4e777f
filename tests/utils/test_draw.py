"""What pictures show: colours that say one thing only, headings, and legends that can be read."""

import math

import numpy as np
import pytest
import torch
from conftest import refusal
from PIL import Image

from utils import draw
from utils.instances import targets

CLASSES = ["background", "skin", "hair"]
COLORS = [[0, 0, 0], [200, 120, 90], [90, 30, 110]]


class Photos:
    """`count` grey photos of 64 x 64 pixels with a square of skin; 255 above it, on the first one."""

    def __init__(self, count):
        self.labels = torch.zeros(count, 64, 64, dtype=torch.uint8)
        self.labels[:, 20:40, 20:40] = 1
        self.labels[0, :10] = 255

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, rows):
        images = torch.full((len(rows), 3, 64, 64), 100, dtype=torch.uint8)
        return {"image": images, "semantic": self.labels[rows]}


def predict(images, by=None):
    """Skin a pixel further to the right than it is: an error of a column on either side."""
    logits = torch.zeros(len(images), 3, 64, 64)
    logits[:, 1, 20:40, 21:41] = 1
    return logits


def has(picture, color):
    return (picture == np.uint8(color)).all(-1)


@pytest.mark.parametrize("colors", [COLORS, [[255, 0, 255], [255, 255, 0], [0, 255, 255]]])
def test_errors_have_a_colour_of_their_own(colors):
    page = draw.validation(predict, Photos(1), "semantic", colors, CLASSES)
    color = draw.unlike(colors)
    assert color not in map(tuple, colors)
    wrong = has(page[-256:], color)  # below legend and headings: one row of panels, enlarged four times
    assert wrong.sum() == 2 * 20 * 4 * 4 and wrong[:, 3 * 256 :].sum() == wrong.sum()
    assert has(page[:-256], color).sum() > 50, "the legend has it"


def test_a_picture_has_as_many_rows_as_there_are_photos():
    heights = {n: draw.validation(predict, Photos(n), "semantic", COLORS, CLASSES).shape for n in (1, 3, 9)}
    assert heights[1][1] == 4 * 256 and heights[3][1] == heights[9][1] == 2 * 4 * 256 + 6
    assert heights[9][0] - heights[3][0] == 2 * (256 + 6)


def test_what_nobody_labelled_is_in_the_legend_where_it_occurs():
    with_void = draw.comparison(*args_of([0]), COLORS, CLASSES, scale=4)
    without = draw.comparison(*args_of([1]), COLORS, CLASSES, scale=4)
    assert has(with_void[:-256], draw.VOID).sum() > 50 > has(without[:-256], draw.VOID).sum()
    pairs = Photos(2)[[0, 1]]
    page = draw.pairs(pairs["image"], pairs["semantic"], COLORS, CLASSES)
    assert has(page[:-64], draw.VOID).sum() > 50


def args_of(rows):
    batch = Photos(2)[rows]
    return batch["image"], batch["semantic"], batch["semantic"]


def test_panels_have_headings():
    """Dark letters above each panel, in a strip of their own."""
    page = draw.validation(predict, Photos(2), "semantic", COLORS, CLASSES)
    strip = page[-256 - 20 : -256]
    for panel in range(8):
        left = panel * 256 + 6 * (panel // 4)
        assert (strip[:, left : left + 256].min(-1) < 100).sum() > 20, panel


def test_what_is_taught_is_a_picture_of_five_panels():
    """... for up to eight photos; 254 and 255 are grey, and the legend says what that is."""
    batch = Photos(9)[list(range(9))]
    images, labels = batch["image"], batch["semantic"].clone()
    labels[:, :2] = 254

    def taught(count):
        seen = {"image": images[:count].float() / 255, "semantic": labels[:count]}
        preds = torch.zeros_like(labels[:count])
        return draw.taught(images[:count], preds, labels[:count], seen, COLORS, CLASSES)

    side = 3 * 64
    page = taught(9)
    assert page.shape[1] == 2 * 5 * side + 6
    assert page.shape == taught(8).shape and page.shape[0] == taught(6).shape[0] + side + 6
    photo, teacher, sure, seen, known = (page[-side:, i * side : (i + 1) * side] for i in range(5))
    assert np.array_equal(photo, seen) and np.array_equal(sure, known)
    assert (teacher == COLORS[0]).all() and has(sure, draw.VOID).sum() == 2 * 3 * side


@pytest.mark.parametrize("side", [64, 800, 4000])
def test_the_legend_of_an_overlay_fits_the_photo(side):
    """Text of a size that a screen shows, beside a photo of 64 pixels and one of 4000."""
    ids = np.zeros((side, side), np.uint8)
    ids[side // 4 : side // 2, side // 4 : side // 2] = 1
    ids[side // 2 :, : side // 4] = 2
    photo = np.full((side, side, 3), 100, np.uint8)
    page = draw.overlay(photo, ids, COLORS, CLASSES)
    scale = max(1, 256 // side)
    height = side * scale
    assert page.shape[1] == height and 0.02 < (len(page) - height) / height < 0.15
    shown = page[:height:scale, ::scale]
    assert (shown[: side // 5] == 100).all(), "background stays"
    middle, edge = shown[3 * side // 8, 3 * side // 8], shown[side // 4, 3 * side // 8]
    assert np.abs(middle - (50 + np.array(COLORS[1]) / 2)).max() <= 1 and edge.tolist() == COLORS[1]


def test_outlines_follow_the_borders():
    ids = np.zeros((9, 9), np.uint8)
    ids[3:6, 3:6] = 1
    lines = draw.outlines(ids, 1)
    assert lines[3, 3:6].all() and lines[2, 3:6].all() and not lines[4, 4] and not lines[1].any()
    assert not draw.outlines(np.ones((3, 3), np.uint8), 5).any(), "a photo smaller than its lines"


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    picture = np.zeros((4, 5, 3), np.uint8)
    draw.write(tmp_path / "a.png", picture)
    assert Image.open(tmp_path / "a.png").size == (5, 4)
    assert "cannot be written" in refusal(draw.write, tmp_path / "nowhere" / "a.png", picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# ---- several faces


def crowd(count=3):
    """Photos of two faces each, with a nose each (class 2); what a network says that loses the second face
    and invents one."""
    semantic = torch.zeros(count, 64, 64, dtype=torch.uint8)
    instance = torch.zeros(count, 64, 64, dtype=torch.uint8)
    for i, (top, left) in enumerate([(5, 5), (30, 35)], 1):
        semantic[:, top : top + 24, left : left + 24] = 1
        semantic[:, top + 8 : top + 12, left + 10 : left + 14] = 2
        instance[:, top : top + 24, left : left + 24] = i
    guess = instance.where(instance == 1, 0)
    guess[:, 50:62, 2:14] = 2
    return semantic, instance, guess


class Crowd:
    def __init__(self, count):
        self.semantic, self.instance, self.guess = crowd(count)

    def __len__(self):
        return len(self.semantic)

    def __getitem__(self, rows):
        images = torch.full((len(rows), 3, 64, 64), 100, dtype=torch.uint8)
        return {"image": images, "semantic": self.semantic[rows], "instance": self.instance[rows]}

    def predict(self, images):
        guess = self.guess[: len(images)]
        parts = torch.nn.functional.one_hot((guess > 0).long(), 3).movedim(-1, 1)
        aims = targets(guess)
        return {"semantic": 9.0 * parts, "center": aims["center"], "offset": aims["offset"]}


def test_headings_are_words_of_what_is_counted(monkeypatch):
    said, words = [], draw.words
    monkeypatch.setattr(draw, "words", lambda text, *args: said.append(text) or words(text, *args))
    data = Crowd(1)
    draw.scenes(data.predict, data, {"face": [1, 2]}, COLORS, CLASSES)
    draw.scenes(data.predict, data, {"car": [1], "dog": [2]}, COLORS, CLASSES)
    assert said == ["photo", "true parts", "predicted parts", "true faces", "predicted faces"] + [
        "photo",
        "true classes",
        "predicted classes",
        "true instances",
        "predicted instances",
    ]


def test_scenes_show_whose_part_it_is():
    """A face that is found has one colour in both panels; what is invented has one of its own."""
    data = Crowd(9)
    page = draw.scenes(data.predict, data, {"face": [1, 2]}, COLORS, CLASSES)
    side = 3 * 64
    assert page.shape[1] == 2 * 5 * side + 6, "five panels, two scenes a row"
    photo, parts, guessed, faces, found = (page[-side:, i * side : (i + 1) * side] for i in range(5))
    assert (photo == 100).all() and has(parts, COLORS[2]).sum() == 9 * 2 * 16
    assert has(guessed, COLORS[1]).sum() == 9 * (24 * 24 + 12 * 12) and not has(guessed, COLORS[2]).any()
    one, two, three = draw.face_colors(3)[1:]
    assert has(faces, one).sum() == has(faces, two).sum() == has(found, one).sum() == 9 * 24 * 24
    assert not has(found, two).any() and has(found, three).sum() == 9 * 12 * 12
    assert not has(faces, three).any()


def test_a_match_in_a_picture_is_one_in_the_figures():
    """... of the same thing, and by its known pixels alone: one is a nose that is taken for skin, and of the
    other only a half is known."""
    data = Crowd(2)
    data.semantic[data.instance == 1] = 2
    data.guess[:, 50:62, 2:14] = 0
    data.guess[:, 30:54, 35:59] = 2
    data.instance[:, 30:54, 47:59] = 255
    data.semantic[:, 38:42, 45:49] = 1
    page = draw.scenes(data.predict, data, {"skin": [1], "nose": [2]}, COLORS, CLASSES)
    side = 3 * 64
    faces, found = (page[-side:, i * side : (i + 1) * side] for i in (3, 4))
    one, two, three = draw.face_colors(3)[1:]
    assert has(faces, one).sum() == has(found, three).sum() == has(found, two).sum() == 9 * 24 * 24
    assert has(faces, two).sum() == has(faces, draw.VOID).sum() == 9 * 24 * 12 and not has(found, one).any()
    faces = draw.scenes(data.predict, data, {"face": [1, 2]}, COLORS, CLASSES)
    assert not np.array_equal(page[:-side], faces[:-side]), "the headings say what is counted"


def test_faces_in_an_overlay_are_outlined_and_numbered():
    semantic, instance, _ = (maps[0].numpy() for maps in crowd(1))
    photo = np.full((64, 64, 3), 100, np.uint8)
    plain = draw.overlay(photo, semantic, COLORS, CLASSES)
    page = draw.overlay(photo, semantic, COLORS, CLASSES, instances=instance)
    assert page.shape == plain.shape and np.array_equal(page[256:], plain[256:])
    for color, (top, left) in zip(draw.face_colors(254, COLORS)[1:3], [(5, 5), (30, 35)], strict=True):
        where = np.argwhere(has(page[:256], color))
        assert (where >= 4 * np.array((top, left))).all()
        assert page[4 * (top + 23), 4 * (left + 12)].tolist() != list(color)
        assert page[4 * (top + 24) - 1, 4 * (left + 12)].tolist() == list(color), "its lower edge"
        corner = page[4 * top : 4 * top + 20, 4 * left : 4 * left + 16]
        assert (corner.max(-1) < 60).sum() > 4, "its number"
    tiny = np.zeros_like(instance)
    tiny[20:22, 20:50] = 1
    page_of_tiny = draw.overlay(photo, semantic, COLORS, CLASSES, instances=tiny)
    changed = (page_of_tiny != plain).any(-1)
    assert changed.any() and not changed[4 * 22 + 8 :].any(), "no room for its number"
    same = page == plain[: len(page)]
    assert same[:256][4 * 15 : 4 * 25, 4 * 8 : 4 * 14].all(), "inside of a face nothing changes"
    assert len(set(draw.face_colors(12))) == 13


def test_faces_have_colours_that_no_class_has():
    """... in an overlay; the first of all bright colours is a class's here."""
    red = draw.face_colors(1)[1]
    semantic, instance, _ = (maps[0].numpy() for maps in crowd(1))
    photo = np.full((64, 64, 3), 100, np.uint8)
    page = draw.overlay(photo, semantic, [(0, 0, 0), red, red], CLASSES, instances=instance)[:256]
    one, two = draw.face_colors(254, [red])[1:3]
    assert has(page, one).any() and has(page, two).any()
    assert min(math.dist(color, red) for color in (one, two)) > 100
    assert sorted(draw.face_colors(254, [red])) == sorted(draw.face_colors(254)), "none is lost"
