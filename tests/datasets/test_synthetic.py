"""Synthetic faces: the same in any batch, every class present, left and right where they belong."""

import functools

import pytest
import torch

from datasets import celebamask, fasseg, lapa, synthetic
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX as IGNORE

UNDRAWN = {"ear_r", "neck_l"}  # CelebAMask-HQ's earrings and necklaces


@functools.cache
def faces_of(scheme):
    """128 faces in the class list of a data set."""
    return synthetic.faces(3, torch.arange(128), 64, scheme)


@pytest.fixture(scope="module")
def many():
    return faces_of("full")


def centre(mask, axis):
    """Mean coordinate (B,) of a mask (B, S, S) along an axis; NaN where the mask is empty."""
    place = torch.arange(mask.shape[-1], dtype=torch.float32)
    place = place.view(1, 1, -1) if axis == "x" else place.view(1, -1, 1)
    return (mask * place).sum((1, 2)) / mask.sum((1, 2))


@pytest.mark.parametrize("size", [48, 37])  # 37: rows that no vector register divides
def test_a_face_does_not_depend_on_its_batch(size):
    together = synthetic.faces(5, torch.arange(12), size)
    for i in (0, 5, 11):
        alone = synthetic.faces(5, torch.tensor([i]), size)
        for key, value in alone.items():
            assert torch.equal(value[0], together[key][i]), key
    shuffled = synthetic.faces(5, torch.tensor([7, 2, 9]), size)
    assert torch.equal(shuffled["image"], together["image"][[7, 2, 9]])


def test_seed_and_position_both_matter():
    a, b = (synthetic.faces(seed, torch.tensor([0, 1, 2**33]), 32) for seed in (0, 1))
    for key in a:
        assert not torch.equal(a[key][0], b[key][0])
        assert len(a[key].flatten(1 if a[key].dim() > 1 else 0).unique(dim=0)) == 3


@pytest.mark.parametrize("scheme", synthetic.SCHEMES)
def test_shapes_and_every_class_occurs(scheme):
    found = faces_of(scheme)
    assert found["image"].shape == (128, 3, 64, 64) and found["image"].dtype == torch.uint8
    assert found["semantic"].shape == (128, 64, 64) and found["semantic"].dtype == torch.uint8
    assert found["yaw"].dtype == torch.float32 and found["yaw"].abs().max() <= 95
    classes = synthetic.SCHEMES[scheme].classes
    expected = {i for i, name in enumerate(classes) if name not in UNDRAWN}
    assert set(found["semantic"].unique().tolist()) - {IGNORE} == expected
    assert ((found["semantic"] == IGNORE).any()) == (scheme == "lapa")  # glasses


def test_images_are_neither_black_nor_white(many):
    mean = many["image"].float().mean((1, 2, 3))
    assert mean.min() > 15 and mean.max() < 250
    assert many["image"].float().flatten(1).std(1).min() > 8


@pytest.mark.parametrize(
    "scheme, right, left",  # by the image
    [
        ("full", "l_eye", "r_eye"),
        ("full", "l_brow", "r_brow"),
        ("celebamask", "l_ear", "r_ear"),
        ("lapa", "right_eye", "left_eye"),
        ("lapa", "right_eyebrow", "left_eyebrow"),
    ],
)
def test_left_and_right(scheme, right, left):
    found = faces_of(scheme)
    classes = synthetic.SCHEMES[scheme].classes
    x = [centre(found["semantic"] == classes.index(name), "x") for name in (right, left)]
    both = ~(x[0] + x[1]).isnan()
    assert both.sum() > 10 and (x[0] > x[1])[both].all()


def test_order_from_brow_to_neck(many):
    y = [centre(many["semantic"] == synthetic.FULL.index(k), "y") for k in ("nose", "l_lip", "neck")]
    brows = centre((many["semantic"] == 2) | (many["semantic"] == 3), "y")
    for upper, lower in zip([brows, *y], y, strict=False):
        there = ~(upper + lower).isnan()
        assert (upper < lower)[there].all()


def test_positive_yaw_looks_to_image_left(many):
    nose = centre(many["semantic"] == synthetic.FULL.index("nose"), "x")
    head = centre((many["semantic"] > 0) & (many["semantic"] < synthetic.FULL.index("neck")), "x")
    turned = (many["yaw"].abs() > 25) & ~nose.isnan()
    assert turned.sum() > 50
    assert ((nose - head).sign() == -many["yaw"].sign())[turned].all()


def test_yaw_is_spread_evenly():
    yaw = synthetic.faces(0, torch.arange(1000), 4)["yaw"]
    counts = torch.histc(yaw, bins=5, min=-95, max=95)
    assert counts.min() > 150


def test_fasseg_sees_through_glasses(many):
    """Where `full` has glasses, `fasseg` has the face behind, eyes included."""
    plain = faces_of("fasseg")["semantic"]
    worn = many["semantic"] == synthetic.FULL.index("glasses")
    behind = plain[worn]
    assert worn.any() and (behind != fasseg.CLASSES.index("background")).float().mean() > 0.8
    assert (behind == fasseg.CLASSES.index("eyes")).any()  # under the rims


def test_schemes_speak_of_the_real_data_sets():
    for module, name in ((fasseg, "fasseg"), (celebamask, "celebamask"), (lapa, "lapa")):
        assert synthetic.scheme_of(module.CLASSES) == name
        assert synthetic.SCHEMES[name].colors == module.COLORS
    assert synthetic.scheme_of(synthetic.FULL) == "full"
    assert len(set(synthetic.SCHEMES["full"].colors)) == len(synthetic.FULL)
    with pytest.raises(UserError, match="no synthetic faces with classes cat dog.*lapa"):
        synthetic.scheme_of(["cat", "dog"])


def test_flip_pairs_are_all_the_names_of_two_sides():
    for scheme in synthetic.SCHEMES.values():
        other = [name.replace("left", "right").replace("l_", "r_", 1) for name in scheme.classes]
        pairs = {
            frozenset((k, scheme.classes.index(n)))
            for k, n in enumerate(other)
            if n in scheme.classes and n != scheme.classes[k]
        }
        assert {frozenset(pair) for pair in scheme.flip_pairs} == pairs


def test_a_data_set_of_faces():
    data = synthetic.SyntheticFaces(5, seed=2, size=32, scheme="fasseg")
    batch = data[[4, 1]]
    assert len(data) == 5 and batch["index"].tolist() == [4, 1]
    assert torch.equal(batch["image"], synthetic.faces(2, torch.tensor([4, 1]), 32)["image"])
