"""The label-free reward: faces drawn by hand with known scores, real and synthetic labels, and hacks."""

import numpy as np
import pytest
import torch
from conftest import FASSEG, needs_fasseg
from PIL import Image
from scipy import ndimage

from datasets import celebamask, fasseg, helen, ibugmask, lapa, open_faces, synthetic
from utils.errors import UserError
from utils.rewards.anatomy import SIZES, anatomy, parts, rules

NAMES = fasseg.CLASSES
BACKGROUND, SKIN, HAIR, EYES, NOSE, MOUTH = range(6)


def draw(*boxes, start=None):
    """(64, 64) int64 mask of boxes (id, top, left, height, width), the later ones over the earlier."""
    mask = torch.zeros(64, 64, dtype=torch.int64) if start is None else start.clone()
    for i, top, left, height, width in boxes:
        mask[top : top + height, left : left + width] = i
    return mask


SKULL = draw((HAIR, 4, 12, 52, 40), (SKIN, 12, 16, 44, 32))  # the face: 44 x 32
FRONT = draw((EYES, 20, 20, 2, 6), (EYES, 20, 38, 2, 6), start=SKULL)
FRONT = draw((NOSE, 24, 29, 10, 6), (MOUTH, 42, 26, 4, 12), start=FRONT)
# looking left: skin begins at column 16 with background before it, into which a third of the nose sticks
PROFILE = draw((HAIR, 4, 16, 52, 40), (SKIN, 12, 16, 44, 28), (EYES, 20, 18, 2, 5))
PROFILE = draw((NOSE, 24, 14, 10, 6), (MOUTH, 42, 16, 4, 6), start=PROFILE)


def score(mask, names=NAMES):
    return anatomy(mask[None], names).item()


def rule(name, mask, names=NAMES):
    return rules(mask[None], names)[name].item()


@pytest.mark.parametrize("mask", [FRONT, PROFILE, FRONT.flip(1), PROFILE.flip(1)])
def test_a_face_fulfils_every_rule(mask):
    found = rules(mask[None], NAMES)
    assert list(found) == ["nose", "mouth", "eyes", "order", "inside", "face"]
    assert {name: value.item() for name, value in found.items()} == dict.fromkeys(found, 1.0)
    assert anatomy(mask[None], NAMES).dtype == torch.float64 and score(mask) == 1


@pytest.mark.parametrize(
    "name, worth, boxes",
    [
        ("nose", 1 / 2, [(NOSE, 24, 40, 10, 6)]),  # as large as the first
        ("nose", 60 / 75, [(NOSE, 44, 18, 5, 3)]),
        ("nose", 60 / 75, [(NOSE, 0, 0, 5, 3)]),  # over there in the background
        ("nose", 1, [(NOSE, 34, 35, 4, 4)]),  # connected at a corner
        ("mouth", 20 / 40, [(SKIN, 42, 31, 4, 2)]),  # parted
        ("eyes", 24 / 36, [(EYES, 28, 20, 2, 6)]),  # a third
        ("eyes", 1, [(SKIN, 20, 38, 2, 6)]),  # one of them hidden
        ("order", 1 / 3, [(SKIN, 42, 26, 4, 12), (MOUTH, 14, 26, 4, 12)]),  # mouth on the forehead
        ("order", 2 / 3, [(SKIN, 24, 29, 10, 6), (NOSE, 48, 29, 8, 6)]),  # nose below the mouth
        ("order", 1 / 3, [(SKIN, 24, 29, 10, 6)]),  # no nose
        (
            "inside",
            60 / 132,
            [
                (BACKGROUND, 19, 19, 4, 26),
                (EYES, 20, 20, 2, 6),
                (EYES, 20, 38, 2, 6),
                (BACKGROUND, 41, 25, 6, 14),
                (MOUTH, 42, 26, 4, 12),
            ],
        ),
        ("nose", 6 / (0.015 * 44 * 32), [(SKIN, 24, 29, 9, 6)]),  # a dot
        ("nose", 0.12 * 44 * 32 / 240, [(NOSE, 23, 26, 15, 16)]),  # all over the cheeks
        ("face", 30 / 31, [(HAIR, 12, 17, 44, 1)]),  # a column of skin is cut off
    ],
)
def test_damage_costs_what_it_should(name, worth, boxes):
    mask = draw(*boxes, start=FRONT)
    assert abs(rule(name, mask) - worth) < 1e-9
    assert (score(mask) < 1) == (worth < 1)


def test_nothing_and_hacks_score_low():
    for k in range(6):
        assert score(torch.full((64, 64), k)) < 0.15
    assert score(torch.zeros(64, 64, dtype=torch.uint8)) == 0
    assert score(SKULL) == pytest.approx(1 / 6), "a head without a face"
    dots = draw((EYES, 20, 20, 1, 1), (NOSE, 26, 31, 1, 1), (MOUTH, 42, 31, 1, 1), start=SKULL)
    assert score(dots) < 0.6
    small = torch.zeros(64, 64, dtype=torch.int64)
    small[28:36, 28:36] = FRONT[::8, ::8]
    assert rule("face", small) < 0.2, "a face in miniature"
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 6, (64, 64)))
    assert score(noise) < 0.5


def test_improving_in_part_is_rewarded():
    """A mouth on its way down from the forehead, a second nose on its way out, a nose that grows."""
    away = draw((SKIN, 42, 26, 4, 12), (SKIN, 24, 29, 10, 6), start=FRONT)
    down = [
        rule("order", draw((NOSE, 24, 29, 4, 6), (MOUTH, y, 26, 4, 5), start=away)) for y in range(12, 50)
    ]
    out = [score(draw((NOSE, 24, 40, rows, 6), start=FRONT)) for rows in range(10, -1, -1)]
    grown = [rule("nose", draw((NOSE, 24, 29, 1, columns), start=away)) for columns in range(20)]
    for row in (down, out, grown):
        assert row == sorted(row) and row[0] < row[-1]
    assert len(set(down)) > 6 and len(set(out)) == 11 and len(set(grown)) == 20


@pytest.mark.parametrize("angle", [-15, 15])
@pytest.mark.parametrize("mask", [FRONT, PROFILE])
def test_a_tilted_head_is_a_face(mask, angle):
    turned = torch.from_numpy(ndimage.rotate(mask.numpy(), angle, reshape=False, order=0))
    assert score(turned) > 0.97
    assert rule("order", turned.flip(0)) < 0.05


def test_pieces_that_touch_the_background_may_do_so_on_one_side():
    """A profile's nose may move out to half of its border and a little more; adrift it counts nothing."""
    column = [
        rule(
            "inside",
            draw((SKIN, 24, 16, 10, 4), (BACKGROUND, 24, 8, 10, 8), (NOSE, 24, x, 10, 6), start=PROFILE),
        )
        for x in range(16, 7, -1)
    ]
    assert column == sorted(column, reverse=True) and column[0] == 1
    others = (PROFILE == EYES).sum() + (PROFILE == MOUTH).sum()
    assert column[-1] == pytest.approx(others.item() / (others.item() + 60))


def test_ids_beyond_the_list_are_nothing():
    for beyond in (6, 77, 255):
        mask = FRONT.to(torch.uint8)
        mask[:4] = beyond
        assert score(mask) == 1
        assert score(torch.full_like(mask, beyond)) == 0
    rim = ndimage.grey_dilation(FRONT.numpy(), 3) != ndimage.grey_erosion(FRONT.numpy(), 3)
    assert score(FRONT.masked_fill(torch.from_numpy(rim) & (FRONT == SKIN), 255)) > 0.97, "blurred borders"


def test_every_image_by_itself():
    masks = torch.stack([FRONT, torch.zeros_like(FRONT), PROFILE, FRONT.flip(0), SKULL])
    assert anatomy(masks, NAMES).tolist() == [score(mask) for mask in masks]
    assert anatomy(masks.to(torch.uint8), NAMES).tolist() == anatomy(masks, NAMES).tolist()


def test_eyes_of_two_classes_are_one_piece_each():
    names = ["background", "skin", "hair", "left eye", "nose", "mouth", "right eye"]
    right = draw((6, 20, 38, 2, 6), start=FRONT)
    assert score(right, names) == 1
    assert score(PROFILE, names) == 1, "the other one is hidden"
    assert rule("eyes", FRONT, names) == 0.5, "both of them left"


def test_glasses_do_not_cut_a_face_in_two():
    names = [*NAMES, "glasses"]
    worn = draw((6, 18, 16, 1, 32), start=FRONT)
    assert score(worn, names) == 1
    assert rule("face", worn, [*NAMES, "hat"]) < 1


def test_rules_of_what_the_class_list_has():
    mask = torch.where((FRONT == NOSE) | (FRONT == MOUTH), SKIN, FRONT)
    assert list(rules(mask[None], NAMES[:4])) == ["eyes", "inside", "face"] and score(mask, NAMES[:4]) == 1
    with pytest.raises(UserError, match="needs skin and.*background hair nose"):
        anatomy(FRONT[None], ["background", "hair", "nose"])
    with pytest.raises(UserError, match="needs skin and.*background skin"):
        anatomy(FRONT[None], ["background", "skin"])


LAPA = {"eyes": "left_eye right_eye", "brows": "left_eyebrow right_eyebrow"}
LAPA |= {"mouth": "upper_lip inner_mouth lower_lip"}
CELEBAMASK = {"eyes": "l_eye r_eye", "brows": "l_brow r_brow", "glasses": "eye_g"}
CELEBAMASK |= {"mouth": "mouth u_lip l_lip", "outside": "background cloth"}


@pytest.mark.parametrize(
    "classes, expected",
    [
        (fasseg.CLASSES, {"eyes": "eyes", "mouth": "mouth"}),
        (celebamask.CLASSES, CELEBAMASK),
        (synthetic.FULL, CELEBAMASK | {"glasses": "glasses"}),
        (lapa.CLASSES, LAPA),
        (helen.CLASSES, LAPA),
        (ibugmask.CLASSES, LAPA),
    ],
)
def test_class_lists(classes, expected):
    expected = dict(skin="skin", nose="nose", glasses="", brows="", outside="background") | expected
    found = {part: " ".join(classes[i] for i in ids) for part, ids in parts(classes).items()}
    assert found == expected


def test_class_names_of_your_own():
    expected = dict(skin=[1], glasses=[], eyes=[2, 3], brows=[], nose=[4], mouth=[5], outside=[0])
    assert parts(["nobody", "Skin", "LEFT-eye", "Right eye", "Nose", "lips", "ear"]) == expected, (
        "class 0 is outside whatever its name"
    )


@pytest.mark.parametrize("scheme", synthetic.SCHEMES)
def test_synthetic_faces_are_faces(scheme):
    found = synthetic.faces(3, torch.arange(64), 64, scheme)
    scores = anatomy(found["semantic"], synthetic.SCHEMES[scheme].classes)
    assert scores.mean() > 0.97 and scores.quantile(0.1) > 0.93


@needs_fasseg
def test_real_labels_are_faces_at_every_yaw():
    faces = open_faces(FASSEG / "V3")
    samples = faces.splits["train"]
    labels = [
        Image.fromarray(faces.read_label(s)).resize((128, 128), Image.Resampling.NEAREST) for s in samples
    ]
    masks = torch.stack([torch.from_numpy(np.array(label)) for label in labels])
    yaws, scores = torch.tensor([abs(s.yaw) for s in samples]), anatomy(masks, faces.classes)
    for yaw in yaws.unique():
        assert scores[yaws == yaw].mean() > 0.97, yaw
    for part in SIZES:
        without = masks.masked_fill(masks == faces.classes.index(part), faces.classes.index("skin"))
        assert (anatomy(without, faces.classes) < scores - 0.2).all()
    above = masks.masked_fill(masks == MOUTH, SKIN).roll(-40, 1).where(masks != MOUTH, SKIN)
    assert anatomy(above, faces.classes).mean() < 0.9
