"""Augmentation against torchvision, one operation at a time; then what a policy draws."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from datasets import augmentation
from datasets.augmentation import mirror, sample_operations, warp_image, warp_map
from datasets.operations import COLOUR, GEOMETRY
from datasets.policies import FLIP, POLICIES, at_step, load_policy, scaled, without_regularisers
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX as IGNORE

SIDE = 64
BILINEAR, NEAREST = InterpolationMode.BILINEAR, InterpolationMode.NEAREST
POLICY = {"flip": 0.5, "num_ops": 2, "p_identity": 0.0, "levels": [0, 30], "scale": 1.0}


def smooth(phase=0.0):
    """(1, 3, SIDE, SIDE) in (0, 1): waves that differ in the three channels."""
    y, x = torch.meshgrid(torch.arange(SIDE) / SIDE, torch.arange(SIDE) / SIDE, indexing="ij")
    waves = [torch.sin(5 * x + 3 * y + phase), torch.cos(7 * y - x), torch.sin(4 * x * y + phase)]
    return torch.stack(waves)[None] * 0.4 + 0.5


def discs():
    """(1, SIDE, SIDE) uint8: three classes, no symmetry."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    mask[(x - 26) ** 2 + (y - 36) ** 2 < 20**2] = 1
    mask[(x - 40) ** 2 + (y - 22) ** 2 < 11**2] = 2
    return mask[None]


def op(name, m_neg=1.0, m_pos=1.0, weight=1.0):
    return {"name": name, "m_neg": m_neg, "m_pos": m_pos, "weight": weight}


def always(name, m_neg=0.0, m_pos=0.5, p=1.0):
    return [{"name": name, "m_neg": m_neg, "m_pos": m_pos, "p": p}]


def magnitude(*m):
    return torch.tensor(m).view(-1, 1, 1, 1)


def augment(images, labels, policy, seed, positions, flip_pairs):
    """Of a batch with one map, or one of weights."""
    batch = {"image": images, "labels": labels}
    batch = augmentation.augment(batch, policy, seed, positions, {"labels": flip_pairs})
    return batch["image"], batch["labels"]


def warp(images, labels, theta):
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return warp_image(images, grid), warp_map(labels, grid)


# ---- geometry


def affine(pixels, name, m, interpolation):
    """The same by torchvision, whose positive shear pushes what is below the centre to the left."""
    angle, translate, scale, shear = 0.0, [0, 0], 1.0, [0.0, 0.0]
    if name == "rotate":
        angle = m  # clockwise, unlike torchvision's `rotate`
    elif name == "zoom":
        scale = 2**m
    else:
        along = "xy".index(name[-1])
        if name.startswith("shear"):
            shear[along] = -math.degrees(math.atan(m))
        else:
            translate[along] = m * SIDE
    return TF.affine(pixels, angle, translate, scale, shear, interpolation=interpolation, fill=0.0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "name, m",
    [
        ("rotate", 30.0),
        ("shear_x", 0.4),
        ("shear_y", 0.4),
        ("translate_x", 0.25),
        ("translate_y", 0.25),
        ("zoom", 0.5),
    ],
)
def test_geometry_is_torchvisions(name, m, sign):
    image, mask = smooth(), discs()
    m = m * sign
    warped, labels = warp(image, mask, GEOMETRY[name](torch.tensor([m])))
    expected, expected_mask = (
        affine(pixels, name, m, mode) for pixels, mode in ((image, BILINEAR), (mask, NEAREST))
    )
    inside = (affine(torch.ones_like(image), name, m, BILINEAR)[:, 0] > 1 - 1e-5) & (labels != IGNORE)
    assert inside.float().mean() > 0.4
    error = (warped - expected).abs().amax(1)[inside].max()
    assert error < 1e-3 < (image - expected).abs().amax(1)[inside].max(), error
    assert (labels == expected_mask)[inside].float().mean() >= 0.99
    assert (mask == expected_mask)[inside].float().mean() < 0.95, "the mask does not move: no test"


def test_stretch_is_zoom_of_the_width():
    image, mask = smooth(), discs()
    warped, labels = warp(image, mask, GEOMETRY["stretch"](torch.tensor([1.0])))
    middle = slice(SIDE // 4, 3 * SIDE // 4)
    twice = mask[:, :, middle].repeat_interleave(2, 2)
    assert (labels == twice).float().mean() >= 0.99
    assert (warped[..., ::2] - image[..., middle]).abs().max() < 0.05


@pytest.mark.parametrize("name", GEOMETRY)
def test_each_sample_has_its_own_geometry(name):
    images, masks = torch.cat([smooth(), smooth(1.0)]), discs().repeat(2, 1, 1)
    m = torch.tensor([0.3, -0.2])
    together = warp(images, masks, GEOMETRY[name](m))
    for i in range(2):
        alone = warp(images[[i]], masks[[i]], GEOMETRY[name](m[[i]]))
        torch.testing.assert_close(together[0][[i]], alone[0])
        assert torch.equal(together[1][[i]], alone[1])


@pytest.mark.parametrize("name", GEOMETRY)
def test_image_and_mask_move_together(name):
    mask = discs()
    painted = torch.nn.functional.one_hot(mask.long(), 3).movedim(-1, 1).float()
    m = torch.tensor([20.0 if name == "rotate" else 0.21])
    image, labels = warp(painted, mask, GEOMETRY[name](m))
    inside = labels != IGNORE
    assert (image.argmax(1) == labels)[inside].float().mean() >= 0.99
    assert (labels != mask).float().mean() > 0.02


def test_outside_is_mirrored_and_not_labelled():
    image, mask = smooth(), discs()
    warped, labels = warp(image, mask, GEOMETRY["translate_x"](torch.tensor([0.25])))
    shift = SIDE // 4
    assert (labels[..., :shift] == IGNORE).all()
    assert torch.equal(labels[..., shift:], mask[..., :-shift])
    torch.testing.assert_close(warped[..., :shift], image[..., :shift].flip(-1), atol=1e-4, rtol=0)


def test_ignored_labels_stay_ignored():
    mask = discs()
    mask[:, 20:40, 20:40] = IGNORE
    _, labels = warp(smooth(), mask, GEOMETRY["zoom"](torch.tensor([1.0])))
    expected = mask[:, 16:48, 16:48].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (labels == expected).float().mean() >= 0.99
    assert set(labels.unique().tolist()) <= {0, 1, 2, IGNORE}


# ---- colour


REFERENCE = {
    "brightness": lambda x, m: TF.adjust_brightness(x, 1 + m),
    "contrast": lambda x, m: TF.adjust_contrast(x, 1 + m),
    "saturation": lambda x, m: TF.adjust_saturation(x, 1 + m),
    "sharpness": lambda x, m: TF.adjust_sharpness(x, 1 + m),
    "hue": TF.adjust_hue,
    "gamma": lambda x, m: TF.adjust_gamma(x, 2**m),
    "solarise": lambda x, m: TF.solarize(x, 1 - m),
    "autocontrast": lambda x, m: TF.autocontrast(x),
}


@pytest.mark.parametrize("m", [0.4, -0.4])
@pytest.mark.parametrize("name", REFERENCE)
def test_colour_is_torchvisions(name, m):
    image = smooth() + 0.08 * torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    if name == "solarise":  # one-sided
        m = abs(m) + 0.1 * (m < 0)
    changed = COLOUR[name](image, magnitude(m))
    torch.testing.assert_close(changed, REFERENCE[name](image, m), atol=2e-5, rtol=0)
    assert (changed - image).abs().max() > 0.01, "nothing changed: no test"


@pytest.mark.parametrize("m", [1.0, 3.0, 8.0])
def test_blur_is_torchvisions(m):
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    sigma = m / 100 * SIDE
    expected = TF.gaussian_blur(image, 2 * math.ceil(3 * sigma) + 1, sigma)
    torch.testing.assert_close(COLOUR["blur"](image, magnitude(m)), expected, atol=1e-5, rtol=0)
    wide = TF.gaussian_blur(image, SIDE - 1, sigma)
    torch.testing.assert_close(COLOUR["blur"](image, magnitude(m)), wide, atol=3e-3, rtol=0)


@pytest.mark.parametrize("dropped", [1, 3, 6])
def test_posterise_is_torchvisions(dropped):
    image = (smooth() * 255).round().to(torch.uint8)
    expected = TF.posterize(image, 8 - dropped)
    changed = COLOUR["posterise"](image.float() / 255, magnitude(float(dropped)))
    assert torch.equal((changed * 255).round().to(torch.uint8), expected)
    assert not torch.equal(expected, image)


def test_equalise_is_torchvisions():
    image = (smooth() * 100).round().to(torch.uint8)
    changed = COLOUR["equalise"](image.float() / 255, magnitude(1.0))
    assert torch.equal((changed * 255).round().to(torch.uint8), TF.equalize(image))
    assert changed.max() > 0.9 > 100 / 255


@pytest.mark.parametrize("name", COLOUR)
def test_each_sample_has_its_own_colour(name):
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    m = magnitude(4.0, 1.0) if name in ("posterise", "blur") else magnitude(0.6, 0.2)
    together = COLOUR[name](images, m)
    for i in range(2):
        alone = COLOUR[name](images[[i]], m[[i]])
        torch.testing.assert_close(together[[i]], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted({*COLOUR} - {"autocontrast", "equalise", "solarise"}))
def test_magnitude_zero_changes_nothing(name):
    image = (smooth() * 255).round() / 255
    torch.testing.assert_close(COLOUR[name](image, magnitude(0.0)), image, atol=1e-5, rtol=0)


# ---- flip


def test_flip_swaps_left_and_right():
    labels = torch.tensor([[[0, 1, 2], [3, 2, IGNORE]]], dtype=torch.uint8)
    flipped = mirror(labels, [(1, 2)])
    assert flipped.tolist() == [[[1, 2, 0], [IGNORE, 1, 3]]]
    assert torch.equal(mirror(flipped, [(1, 2)]), labels)


def test_augment_flips_image_and_mask():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    labels = torch.randint(0, 4, (2, 8, 8), dtype=torch.uint8)
    kept = images.clone(), labels.clone()
    out, mask = augment(images, labels, {**FLIP, "flip": 1.0}, 0, torch.arange(2), [(1, 2)])
    assert torch.equal(out, images.flip(-1).float() / 255)
    assert torch.equal(mask, mirror(labels, [(1, 2)]))
    assert torch.equal(images, kept[0]) and torch.equal(labels, kept[1]), "inputs were changed"


# ---- policies


def batch(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 24, 24), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 4, (n, 24, 24), dtype=torch.uint8, generator=generator)


EVERYTHING = {
    **POLICY,
    "ops": [op(name, 0.0, 0.5) for name in (*GEOMETRY, *COLOUR, "crop", "noise", "erase") if name != "blur"],
}  # without blur, whose convolution may round differently in another batch, and cutmix


@pytest.mark.parametrize("name", [*(name for name in POLICIES if name != "cutmix"), "everything"])
def test_augment_depends_on_seed_and_position_alone(name):
    policy = {**POLICIES, "everything": EVERYTHING}[name]
    images, labels = batch(6)
    changed = 0
    for seed in range(5):
        positions = torch.arange(6) + 100
        whole = augment(images, labels, policy, seed, positions, [(1, 2)])
        for rows in (slice(0, 3), slice(3, 6)):
            part = augment(images[rows], labels[rows], policy, seed, positions[rows], [(1, 2)])
            assert torch.equal(whole[0][rows], part[0]), seed
            assert torch.equal(whole[1][rows], part[1]), seed
        changed += (whole[0] * 255 - images).abs().amax((1, 2, 3)).gt(0.5).sum()
    assert changed == 0 if name == "none" else changed > 5
    again = augment(images, labels, policy, 0, positions + 6, [(1, 2)])
    assert name == "none" or not torch.equal(again[0], whole[0])


def test_operations_compose_in_the_order_drawn():
    """Two operations in one resampling are the first, then the second."""
    ops = [op("rotate", 0.0, 40.0), op("translate_x", 0.0, 0.2)]
    policy = {**POLICY, "flip": 0.0, "levels": [30, 30], "ops": ops}
    positions = torch.arange(40)
    chosen = sample_operations(policy, 0, positions)[1].tolist()
    image, mask = (smooth() * 255).to(torch.uint8), discs()
    for first, second in ([0, 1], [1, 0]):
        position = positions[[chosen.index([first, second])]]
        _, labels = augment(image, mask, policy, 0, position, [])
        step = mask
        for k in (first, second):
            m = torch.tensor([ops[k]["m_pos"]])
            step = warp(smooth(), step, GEOMETRY[ops[k]["name"]](m))[1]
        inside = (labels != IGNORE) & (step != IGNORE)
        assert inside.float().mean() > 0.4
        assert (labels == step)[inside].float().mean() > 0.97


@pytest.mark.parametrize("name", ["erase", "cutmix"])
def test_regularisers_change_image_and_mask_in_one_box(name):
    n, side = 5, 24
    images = (torch.arange(n, dtype=torch.uint8) * 50)[:, None, None, None].expand(n, 3, side, side)
    labels = torch.arange(n, dtype=torch.uint8)[:, None, None].expand(n, side, side)
    only = {**POLICY, "flip": 0.0, "num_ops": 1, "levels": [30, 30], "ops": [op(name, 0.0, 0.5)]}
    out, mask = augment(images, labels, only, 3, torch.arange(n), [])
    box = mask != labels
    assert torch.equal((out * 255 - images).abs().amax(1) > 1e-3, box)
    for i in range(n):
        rows, columns = box[i].any(1), box[i].any(0)
        assert torch.equal(box[i], rows[:, None] & columns[None]) and box[i].any()
        assert max(rows.sum(), columns.sum()) <= side // 2
    assert len({tuple(b.flatten().tolist()) for b in box}) > 1
    if name == "erase":
        assert (mask[box] == IGNORE).all() and out.movedim(1, -1)[box].std() > 0.1
    else:
        assert torch.equal((out[:, 0] * 255).round(), mask * 50.0), "one donor for both"


def test_draw_honours_the_policy():
    ops = [op("rotate", 0.2, 0.4, 3.0), op("blur", 0.0, 3.0, 1.0), op("hue", weight=0.0)]
    policy = {**POLICY, "p_identity": 0.25, "levels": [10, 20], "scale": 0.5, "ops": ops}
    n = 4000
    flip, chosen, m = sample_operations(policy, 7, torch.arange(n))
    assert chosen.shape == m.shape == (n, 2) and flip.shape == (n,)
    assert abs(flip.float().mean() - 0.5) < 0.03
    shares = [(chosen == k).float().mean().item() for k in (-1, 0, 1, 2)]
    assert shares == pytest.approx([0.25, 0.5625, 0.1875, 0.0], abs=0.02)
    rotate, blur = m[chosen == 0], m[chosen == 1]
    assert abs((rotate < 0).float().mean() - 0.5) < 0.03
    assert rotate.min().item() == pytest.approx(-0.2 * 0.5 * 20 / 30)
    assert rotate.max().item() == pytest.approx(0.4 * 0.5 * 20 / 30)
    levels = (blur / (3.0 * 0.5) * 30).round().int()
    assert levels.unique().tolist() == list(range(10, 21))
    assert levels.bincount()[10:].min() > 0.7 * len(blur) / 11
    apart = (chosen[:, 0] == 0) & (chosen[:, 1] == 0)
    assert abs(torch.corrcoef(m[apart].T)[0, 1]) < 0.1, "the two operations are independent"


def test_draw_with_one_side_only_negative():
    policy = {**POLICY, "levels": [30, 30], "ops": [op("gamma", 0.7, 0.0)]}
    m = sample_operations(policy, 0, torch.arange(50))[2]
    assert torch.equal(m, torch.full((50, 2), -0.7))


def test_load_policy(tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**EVERYTHING, "flip": 0.25}))
    assert load_policy(str(path)) == {**EVERYTHING, "flip": 0.25}
    path.write_text(json.dumps({"ops": []}))
    assert load_policy(str(path)) == FLIP
    path.write_text(json.dumps({"flip": 0.25}))
    assert load_policy(str(path)) == {**FLIP, "flip": 0.25}
    path.write_text(json.dumps({"ops": [{"name": "rotate", "m_pos": 180}]}))
    assert load_policy(str(path)) == {**FLIP, "num_ops": 1, "ops": [op("rotate", 0.0, 180)]}
    path.write_text(json.dumps({"always": [{"name": "mixup", "m_pos": 0.5}]}))
    mixup = {"name": "mixup", "m_neg": 0.0, "m_pos": 0.5, "p": 1.0}
    assert load_policy(str(path), target="class") == {**FLIP, "always": [mixup]}
    with pytest.raises(UserError, match="policy.json: mixup blends images, which masks cannot follow"):
        load_policy(str(path))
    for name, policy in POLICIES.items():
        path.write_text(json.dumps(policy))
        assert load_policy(str(path)) == policy, name
    assert load_policy("trivial") is POLICIES["trivial"]


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "no such file"),
        (b"{", "not JSON"),
        (b"\x80\x02", "not JSON"),
        (json.dumps({"ops": [op("rotate"), op("spin")]}).encode(), "spin"),
        (b"{}", "not a policy, which has at least"),
        *[
            (json.dumps({"ops": [], **wrong}).encode(), says)
            for wrong, says in [
                ({"scale": "1"}, "scale 1: need a number"),
                ({"scale": -0.1}, "scale -0.1"),
                ({"scale": math.nan}, "scale nan"),
                ({"schedule": []}, "schedule: need"),
                ({"schedule": [0.5]}, "schedule: need"),
                ({"schedule": [[0, 0.5, 1]]}, "schedule: need"),
                ({"schedule": [[10, 0.5]]}, "whole steps from 0 on"),
                ({"schedule": [[0, 0.5], [1.5, 1]]}, "whole steps from 0 on"),
                ({"schedule": [[0, 0.5], [9, -1]]}, "scales of 0 or more"),
                ({"schedule": [[0, 0.5], [9, 1], [9, 0]]}, r"the steps \[0, 9, 9\] do not rise"),
                ({"allocation": {"ft": ["a"]}}, "a file of ids says who trains"),
                ({"ops": {}}, r"not a policy, which has at least"),
                ({"num_op": 2}, "unknown: num_op; known: flip, num_ops"),
                ({"flip": 1.5}, "flip 1.5: need a probability"),
                ({"p_identity": -0.1}, "p_identity -0.1: need a probability"),
                ({"p_identity": True}, "p_identity True: need a probability"),
                ({"num_ops": 1.5}, "num_ops 1.5: need a whole number from 0 to 20"),
                ({"num_ops": 10**6}, "num_ops 1000000: need a whole number"),
                ({"levels": [9]}, r"levels \[9\]: need two whole numbers"),
                ({"levels": [20, 9]}, r"levels \[20, 9\]: need 0 <= first <= second <= 30"),
                ({"ops": ["rotate"]}, "operation rotate: unknown"),
                ({"ops": [{"name": "rotate"}]}, "without m_pos"),
                ({"ops": [{**op("rotate"), "m": 3}]}, "operation rotate, unknown: m"),
                ({"ops": [op("rotate", 0, math.inf)]}, "operation rotate, m_pos inf: need a number"),
                ({"ops": [op("rotate", "3")]}, "operation rotate, m_neg 3: need a number"),
                ({"ops": [{**op("rotate"), "weight": -1}]}, "operation rotate, weight -1: need a number"),
                ({"ops": [{**op("rotate"), "weight": 0}]}, "every operation has weight 0"),
                ({"num_ops": 0, "ops": [op("rotate")]}, "num_ops 0: none of the 1 operations"),
                ({"ops": [op("rotate", 0, 1e9)]}, r"rotate, m_pos 1e\+09: need at most 180 \(degrees\)"),
                ({"ops": [op("posterise", 1)]}, "posterise, m_neg 1: need at most 0"),
                ({"ops": [op("brightness", 2, 2)]}, "brightness, m_neg 2: need at most 1"),
                ({"scale": 9, "ops": [op("rotate", 30, 0)]}, r"m_neg 30 \(times .*: 270\): need at most 180"),
                ({"schedule": [[0, 1], [5, 9]], "ops": [op("rotate", 30)]}, r"m_neg 30 \(times .*: 270\)"),
                ({"ops": [op("mixup", 0)]}, r"mixup, m_pos 1: need at most 0.5 \(share of the other image\)"),
                ({"ops": [{**op("rotate"), "p": 0.5}]}, "operation rotate, unknown: p"),
                ({"always": always("crop")[0]}, "always: need a list"),
                ({"always": always("crop") * 21}, "always: need a list of at most 20"),
                ({"always": [op("rotate")]}, "operation rotate, unknown: weight"),
                ({"always": always("spin")}, "spin"),
                ({"always": always("rotate", p=1.5)}, "operation rotate, p 1.5: need a probability"),
                ({"always": always("rotate", p=None)}, "operation rotate, p None: need a probability"),
                ({"scale": 0, "always": always("crop", 0.0, 2)}, "crop, m_pos 2: need at most 1 "),
                ({"always": always("crop", 0.1)}, "crop, m_neg 0.1: need at most 0 "),
            ]
        ],
    ],
)
def test_load_policy_refuses(tmp_path, content, says):
    path = tmp_path / "policy.json"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        load_policy(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["flip", "erase", "cutmix", "rotate"])
def test_weights_go_where_labels_go(name):
    """Weights that are 1 for a pixel's class and 0 elsewhere stay so, and are 0 where labels are 255."""
    images, labels = batch(6)
    ops = [] if name == "flip" else [op(name, 0.0, 30.0 if name == "rotate" else 0.5)]
    labels = labels[:, ::6, ::6].repeat_interleave(6, 1).repeat_interleave(6, 2)  # squares of one class
    policy = {**POLICIES["flip"], "num_ops": len(ops), "levels": [20, 30], "ops": ops}
    k = int(labels.max()) + 1
    weights = torch.nn.functional.one_hot(labels.long(), k).movedim(-1, 1).float()
    rest = policy, 3, torch.arange(6), [(1, 2)]
    moved, expected = augment(images, labels, *rest)
    same, weights = augment(images, weights, *rest)
    assert torch.equal(moved, same) and (expected != labels).any()
    valid = expected != IGNORE
    right = weights.argmax(1)[valid] == expected[valid].long()
    assert right.float().mean() > (0.9 if name == "rotate" else 0.9999)
    assert (~valid).any() == (name in ("erase", "rotate"))
    assert (weights.sum(1)[~valid] < (0.76 if name == "rotate" else 1e-9)).all()


def test_a_schedule_holds_from_each_step_to_the_next(tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**EVERYTHING, "scale": 0.9, "schedule": [[0, 0.2], [200, 0.5], [201, 0]]}))
    policy = load_policy(str(path))
    scales = [at_step(policy, step)["scale"] for step in (0, 1, 199, 200, 201, 10**6)]
    assert scales == [0.2, 0.2, 0.2, 0.5, 0, 0]
    assert at_step(EVERYTHING, 7) == EVERYTHING and policy["scale"] == 0.9
    assert scaled(at_step(policy, 200), 0.5)["scale"] == 0.25


def test_what_is_no_photo_earns_no_reward():
    ops = [{"name": n, "m_neg": 0.0, "m_pos": 0.5, "weight": 1.0} for n in ("cutmix", "rotate", "erase")]
    kept = without_regularisers({**FLIP, "num_ops": 1, "ops": ops})
    assert [op["name"] for op in kept["ops"]] == ["rotate"] and kept["flip"] == 0.5 and len(ops) == 3
    policy = {**FLIP, "always": always("mixup") + always("crop") + always("cutmix")}
    assert without_regularisers(policy) == {**FLIP, "always": always("crop")}


def test_every_map_goes_with_the_image_and_vectors_pass():
    """Keys mean nothing here: ids are swapped in the map that is named, and what is no map comes out as it
    went in."""
    images, labels = batch(6)
    weights = F.one_hot(labels.long(), 4).movedim(-1, 1).float()
    given = {"image": images, "a": labels, "b": labels, "weights": weights, "class": torch.arange(6)}
    given |= {"yaw": torch.linspace(-90, 90, 6), "name": "six photos"}
    ops, positions = [op("rotate", 0.0, 30.0), op("cutmix", 0.0, 0.5), op("erase", 0.0, 0.3)], torch.arange(6)
    policy = {**FLIP, "num_ops": 2, "levels": [20, 30], "ops": ops}
    moved = augmentation.augment(given, policy, 3, positions, {"a": [(1, 2)]})
    assert moved["class"] is given["class"] and moved["yaw"] is given["yaw"] and moved["name"] == "six photos"
    assert torch.equal(given["a"], labels) and given["image"].dtype == torch.uint8  # what was given is whole
    for key, pairs in (("a", [(1, 2)]), ("b", [])):  # each as if it were alone
        image, alone = augment(images, labels, policy, 3, positions, pairs)
        assert torch.equal(moved["image"], image) and torch.equal(moved[key], alone)
    assert (moved["a"] != moved["b"]).any() and ((moved["a"] == IGNORE) == (moved["b"] == IGNORE)).all()
    alone = augment(images, weights, policy, 3, positions, [])[1]
    assert torch.equal(moved["weights"], alone) and (alone != weights).any()


# ---- shares of classes


COLOURS = torch.eye(3).repeat(4, 1)  # (12, 3): red, green, blue, ... the class of each image is its colour


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("names", ["cutmix", "mixup", "cutmix mixup", "mixup cutmix", "mixup mixup", "erase"])
def test_shares_of_classes_are_those_of_the_pixels(names, drawn):
    """The mean colour of images of pure colours is the shares of their classes, whatever was mixed in which
    order; a box that was cut at the border counts as what was pasted."""
    images = (COLOURS * 255).to(torch.uint8)[..., None, None].expand(-1, 3, 24, 24)
    labels = {"class": COLOURS, "domain": torch.arange(12), "yaw": torch.linspace(-90, 90, 12)}
    policy = {**FLIP, "always": [entry for name in names.split() for entry in always(name, 0.0, 0.5)]}
    if drawn:  # one of them an image, so that some are mixed with those that were mixed just before
        ops = [op(name, 0.0, 0.5) for name in names.split()]
        policy = {**FLIP, "num_ops": 1, "p_identity": 0.2, "levels": [20, 30], "ops": ops}
    out = augmentation.augment({"image": images, **labels}, policy, 2, torch.arange(12), {})
    shares = out["class"]
    assert out["domain"] is labels["domain"] and out["yaw"] is labels["yaw"]
    if names == "erase":
        assert torch.equal(shares, COLOURS) and (out["image"].mean((2, 3)) - shares).abs().max() > 0.05
        return
    torch.testing.assert_close(shares, out["image"].mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(shares.sum(1), torch.ones(12))
    assert torch.equal(labels["class"], torch.eye(3).repeat(4, 1)), "inputs were changed"
    assert (shares.amax(1) < 0.9).sum() >= 3


def test_shares_by_hand():
    """CutMix, then MixUp with what CutMix has made of the image before."""
    positions = torch.arange(12)
    images = (COLOURS * 255).to(torch.uint8)[..., None, None].expand(-1, 3, 24, 24)
    batch = {"image": images, "class": COLOURS}
    policy = {**FLIP, "flip": 0.0, "always": always("cutmix", 0.0, 1.0) + always("mixup")}
    cutmix = {**policy, "always": policy["always"][:1]}
    pasted = augmentation.augment(batch, cutmix, 0, positions, {})["image"]
    pasted = (pasted != images.float() / 255).any(1).float().mean((1, 2))[:, None]
    before = COLOURS.roll(1, 0)
    cut = (1 - pasted) * COLOURS + pasted * before
    nominal, m = sample_operations(policy, 0, positions)[2].split(1, 1)
    assert (nominal**2 - pasted).abs().max() > 0.1, "no box is cut at the border: no test"
    assert 0 < m.min() and 0.4 < m.max() <= 0.5
    moved = augmentation.augment(batch, policy, 0, positions, {})
    torch.testing.assert_close(moved["class"], (1 - m) * cut + m * cut.roll(1, 0))


# ---- what is done to every image


def test_crop_is_a_crop_of_the_image_padded_with_its_mirror_image():
    """By whole pixels, anywhere within an eighth of the side; the map is 255 where the image is mirrored."""
    side, most, n = 32, 4, 400
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 4, (side, side), dtype=torch.uint8, generator=generator)
    pad = (most, most)
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), pad, pad), "symmetric"))
    padded_mask = torch.from_numpy(np.pad(mask.numpy(), pad, constant_values=IGNORE))
    policy = {**POLICIES["crop"], "flip": 0.0}
    images, masks = image.expand(n, -1, -1, -1), mask.expand(n, -1, -1)
    images, masks = augment(images, masks, policy, 0, torch.arange(n), [])
    images = (images * 255).round().to(torch.uint8)
    shifts = set()
    for i in range(n):
        found = [
            (y, x)
            for y in range(2 * most + 1)
            for x in range(2 * most + 1)
            if torch.equal(masks[i], padded_mask[y : y + side, x : x + side])
        ]
        ((y, x),) = found
        assert torch.equal(images[i], padded[:, y : y + side, x : x + side])
        shifts.add((y, x))
    assert len(shifts) > 75, "of 81, x and y each by itself"


def test_always_is_done_with_its_probability_and_leaves_what_is_drawn():
    often = always("rotate", 10.0, 20.0, 0.5) + always("blur", p=0.0) + always("gamma", 0.7, 0.0)
    policy = {**POLICIES["randaugment"], "always": often + always("crop", 0.0, 0.125)}
    positions = torch.arange(4000)
    flip, op, m = sample_operations(policy, 7, positions)
    alone = sample_operations(POLICIES["randaugment"], 7, positions)
    for drawn, expected in zip((flip, op[:, 4:], m[:, 4:]), alone, strict=True):
        assert torch.equal(drawn, expected)
    first = len(policy["ops"])  # after the operations that are drawn
    done = op[:, :4] == torch.arange(first, first + 4)
    assert ((op[:, :4] == -1) | done).all()
    assert done.float().mean(0).tolist() == pytest.approx([0.5, 0, 1, 1], abs=0.03)
    rotate, gamma, crop = m[done[:, 0], 0], m[:, 2], m[:, 3]
    assert abs((rotate < 0).float().mean() - 0.5) < 0.04 and (crop == 0.125).all()
    for strength in (-rotate[rotate < 0] / 10, rotate[rotate >= 0] / 20, -gamma / 0.7):
        assert strength.min() >= 0 and strength.max() <= 1
        assert strength.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx(
            [0.25, 0.5, 0.75], abs=0.05
        )
    both = torch.stack([m[:, 0].abs(), m[:, 2]])[:, done[:, 0]]
    assert abs(torch.corrcoef(both)[0, 1]) < 0.1, "each is independent"
    assert abs(torch.corrcoef(torch.stack([done[:, 0], flip]).float())[0, 1]) < 0.1
    weak = sample_operations({**policy, "scale": 0.0, "levels": [1, 1]}, 7, positions)
    assert torch.equal(weak[2][:, :4], m[:, :4]) and not weak[2][:, 4:].any()
    op, m = sample_operations({**POLICIES["flip"], "always": often}, 7, positions)[1:]
    assert torch.equal(op >= 0, done[:, :3]) and torch.equal(m[:, 2], gamma)


def test_always_comes_before_what_is_drawn():
    policy = {**FLIP, "flip": 0.0, "num_ops": 1, "levels": [30, 30], "ops": [op("solarise", 0.0, 1.0)]}
    policy["always"] = always("posterise", 0.0, 7)
    image = (smooth() * 255).to(torch.uint8)
    out = augment(image, discs(), policy, 0, torch.tensor([1]), [])[0]
    bits = sample_operations(policy, 0, torch.tensor([1]))[2][0, 0].round()
    assert bits >= 2
    first = COLOUR["posterise"](image.float() / 255, magnitude(bits.item()))
    torch.testing.assert_close(out, 1 - first)
    assert (COLOUR["posterise"](1 - image.float() / 255, magnitude(bits.item())) - out).abs().max() > 0.01


HASHES = {"randaugment": "6197033a2bf79cf6", "cutmix": "7f9e1847b8b4d9de"}
BOXES = "1fc38cfba5cdfa60"


def test_what_policies_draw_stays():
    """A table made again later sees the same images. The hashes are those of commit 021ad81."""

    def digest(*tensors):
        return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in tensors)).hexdigest()[:16]

    draws = {name: digest(*sample_operations(POLICIES[name], 5, torch.arange(64))) for name in HASHES}
    assert draws == HASHES
    policy = {**POLICY, "ops": [op("erase", 0.0, 0.5), op("cutmix", 0.0, 0.5)]}
    images, labels = augment(*batch(6), policy, 5, torch.arange(6), [(1, 2)])
    assert digest((images * 255).round().to(torch.uint8), labels) == BOXES


# ---- instances


def test_cutmix_keeps_ids_of_two_images_apart():
    """Image 0 is of ids 1 and 2, halves of it; image 1 of 1, 200 and 255, with nothing counted below."""
    ids = torch.ones(2, SIDE, SIDE, dtype=torch.uint8)
    ids[0, :, SIDE // 2 :] = 2
    ids[1, :, SIDE // 3 :] = 200
    ids[1, :, -SIDE // 4 :] = IGNORE
    ids[1, SIDE // 2 :] = 0
    policy = POLICY | {"flip": 0.0, "num_ops": 1, "levels": [30, 30], "ops": [op("cutmix", 0.7, 0.7)]}
    image = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    given = {"image": image, "instance": ids, "semantic": ids.clone()}
    seen = set()
    for start in range(0, 40, 2):
        out = augmentation.augment(given, policy, 0, torch.arange(start, start + 2), {})
        first, second = out["instance"]
        pasted = first != ids[0]
        assert set(first[pasted].tolist()) <= {3, 202, IGNORE, 0}, "1 and 200 are 2 higher"
        assert torch.equal(first[pasted] == 0, ids[1][pasted] == 0)
        assert torch.equal(first[pasted] == IGNORE, ids[1][pasted] == IGNORE)
        pasted = second != ids[1]
        assert set(second[pasted].tolist()) <= {201, 202}
        kept = out["semantic"] == ids
        assert set(out["semantic"][~kept].tolist()) <= {0, 1, 2, 200, IGNORE}, "other maps as they are"
        seen |= set(out["instance"].unique().tolist())
    assert {3, 201, 202} <= seen


def test_ids_beyond_the_last_one_are_unknown():
    source = torch.tensor([[[0, 1, 54, 55, 254, IGNORE]]], dtype=torch.uint8)
    target = torch.tensor([[[200, 3, 0, IGNORE, 0, 0]]], dtype=torch.uint8)
    assert augmentation.apart(source, target).tolist() == [[[0, 201, 254, IGNORE, IGNORE, IGNORE]]]


def test_what_is_erased_or_from_outside_has_no_known_instance():
    ids = torch.full((4, SIDE, SIDE), 7, dtype=torch.uint8)
    given = {"image": torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8), "instance": ids}
    for name, m in (("erase", 0.5), ("translate_x", 0.3)):
        policy = POLICY | {"num_ops": 1, "levels": [30, 30], "ops": [op(name, m, m)]}
        out = augmentation.augment(given, policy, 0, torch.arange(4), {"semantic": [(7, 8)]})
        assert set(out["instance"].unique().tolist()) == {7, IGNORE}
        assert (out["instance"] == IGNORE).flatten(1).any(1).all()
