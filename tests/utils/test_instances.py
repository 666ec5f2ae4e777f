"""Instances: from ids to targets to ids, losses, segments. All on drawn shapes."""

import pytest
import torch

from utils.instances import LOSSES, MOST, SMALLEST, group, segments, targets

THINGS = {"face": [1, 2], "hat": [3]}


def grid(height, width):
    return torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")


def discs(seed, height=96, width=128, count=5):
    """(H, W) uint8 of discs, the later in front, with centres of what is visible that are far apart."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = grid(height, width)
    ids = torch.zeros(height, width, dtype=torch.uint8)
    for i in range(1, count + 1):
        row, column = (torch.randint(side, (), generator=draw) for side in (height, width))
        radius = torch.randint(8, 20, (), generator=draw)
        ids[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = i
    return ids


def centers_of(ids):
    return {i: (ids == i).nonzero().double().mean(0) for i in ids.unique().tolist() if 0 < i < 255}


def regrouped(ids):
    """(H, W) uint8 -> the ids that come out of its targets, named as they were; the scores."""
    wanted = targets(ids[None])
    foreground = (ids > 0) & (ids < 255)
    found, centers, scores = group(wanted["center"][0], wanted["offset"][0], foreground)
    names = torch.zeros(len(centers) + 1, dtype=torch.uint8)
    for i, center in centers_of(ids).items():
        names[1 + (centers - center).square().sum(1).argmin()] = i
    return names[found], scores


# ---- targets


def test_targets_say_where_each_pixel_belongs():
    ids = torch.stack([discs(seed) for seed in range(3)])
    ids[:, :7] = 255
    wanted = targets(ids)
    rows, columns = grid(*ids.shape[1:])
    for n in range(3):
        heat = torch.zeros(ids.shape[1:])
        for i, center in centers_of(ids[n]).items():
            mask = ids[n] == i
            row, column = center.round()
            sigma = 128 / 40
            distances = (rows - row) ** 2 + (columns - column) ** 2
            heat = torch.maximum(heat, torch.exp(-distances / (2 * sigma**2)).float())
            ends = torch.stack([rows, columns])[:, mask] + wanted["offset"][n][:, mask]
            assert (ends - center[:, None]).abs().max() < 1e-4
        torch.testing.assert_close(wanted["center"][n, 0], heat)
    counted = (ids > 0) & (ids < 255)
    assert torch.equal(wanted["center_weight"][:, 0].bool(), ids != 255)
    assert torch.equal(wanted["offset_weight"][:, 0].bool(), counted)
    assert not wanted["offset"][(~counted)[:, None].expand(-1, 2, -1, -1)].any()
    assert all(value.dtype == torch.float32 for value in wanted.values())


def test_images_of_a_batch_do_not_see_one_another():
    ids = torch.stack([discs(seed, count=count) for seed, count in ((0, 5), (1, 0), (2, 2))])
    ids[2][ids[2] == 1] = 254
    wanted = targets(ids)
    for order in ([2, 0, 1], [0], [2], [1]):
        alone = targets(ids[order])
        assert all(torch.equal(alone[key], value[order]) for key, value in wanted.items())


def test_everything_is_made_on_the_device_of_the_input():
    """Where another one is the default, as a GPU could be."""
    ids = discs(0)
    probs = torch.nn.functional.one_hot((ids > 0).long(), 4).movedim(-1, 0).float()
    with torch.device("meta"):
        wanted = targets(ids[None])
        for key, loss in LOSSES.items():
            assert loss(wanted[key], wanted)[0] == 0
        found, listed = segments(probs, wanted["center"][0], wanted["offset"][0], THINGS)
    assert len(listed) == 5 and found.max() == 5


# ---- losses


def test_losses_are_means_over_weighted_pixels():
    wanted = targets(torch.stack([discs(0), discs(1)]))
    wanted["center_weight"][:, :, :50] = 0
    center, offset = (wanted[key] + 0.5 for key in ("center", "offset"))
    center[:, :, :50] = 7
    total, count = LOSSES["center"](center, wanted)
    assert count == 2 * 46 * 128 and total / count == pytest.approx(0.25)
    offset[wanted["offset_weight"].expand_as(offset) == 0] = 7
    total, count = LOSSES["offset"](offset, wanted)
    assert count == wanted["offset_weight"].sum() and total / count == pytest.approx(1)  # .5 down, .5 across


@pytest.mark.parametrize("key", LOSSES)
def test_without_a_weighted_pixel_a_loss_is_finite_and_has_gradients(key):
    wanted = targets(torch.full((2, 16, 16), 255, dtype=torch.uint8))
    prediction = torch.randn(wanted[key].shape, requires_grad=True)
    total, count = LOSSES[key](prediction, wanted)
    (total / count.clamp_min(1)).backward()
    assert total == count == 0 and torch.equal(prediction.grad, torch.zeros_like(prediction))


# ---- grouping


@pytest.mark.parametrize("seed", range(8))
def test_the_truth_groups_into_itself(seed):
    ids = discs(seed)
    ids[:5] = 255
    centers = torch.stack(list(centers_of(ids).values()))
    assert torch.pdist(centers).min() > 6, "a scene that can be grouped; choose another seed"
    found, scores = regrouped(ids)
    assert torch.equal(found, ids.where(ids < 255, 0)) and (scores == 1).all()


def test_centres_may_lie_outside_of_their_instances():
    rows, columns = grid(90, 140)
    ids = torch.zeros(90, 140, dtype=torch.uint8)
    for i, (row, column) in enumerate([(30, 35), (30, 75), (60, 105)], start=1):
        distances = ((rows - row) ** 2 + (columns - column) ** 2).sqrt()
        ids[(distances > 15) & (distances < 25)] = i
    for i, center in centers_of(ids).items():
        assert ids[tuple(center.round().long())] == 0, f"{i} is a ring, cut by the next"
    assert torch.equal(regrouped(ids)[0], ids)


def test_a_plateau_is_one_centre():
    foreground = torch.ones(80, 80, dtype=torch.bool)
    offset = torch.zeros(2, 80, 80)
    for shape in ((1, 2), (2, 1), (2, 2), (5, 4), (1, 20), (80, 80)):
        heat = torch.zeros(1, 80, 80)
        heat[0, : shape[0], : shape[1]] = 0.5
        ids, centers, scores = group(heat, offset, foreground)
        assert scores.tolist() == [0.5] and (ids == 1).all(), shape


def test_weak_and_close_peaks_are_no_centres():
    heat = torch.zeros(1, 80, 80)
    heat[0, 20, 20], heat[0, 20, 22], heat[0, 20, 23], heat[0, 60, 60] = 0.9, 0.8, 0.7, 0.1
    ids, centers, scores = group(heat, torch.zeros(2, 80, 80), torch.ones(80, 80, dtype=torch.bool))
    # at 20, 22 is within 80 / 40 = 2 pixels of a higher one, and so is the next of that
    assert centers.tolist() == [[20, 20]] and scores.tolist() == [pytest.approx(0.9)]
    ids, centers, scores = group(heat / 10, torch.zeros(2, 80, 80), ids > 0)
    assert not ids.any() and centers.shape == (0, 2) and scores.shape == (0,)


def test_a_large_image_full_of_centres_is_grouped_in_parts(monkeypatch):
    """As in one piece; no piece holds more than it may."""
    seen = []
    cdist = torch.cdist

    def watched(a, b, **how):
        seen.append(len(a) * len(b))
        return cdist(a, b, **how)

    monkeypatch.setattr(torch, "cdist", watched)
    heat = torch.rand(1, 300, 300, generator=torch.manual_seed(0)) * 0.5
    heat[0, ::12, ::12] = 1 - torch.rand(25, 25) * 0.1
    foreground = torch.ones(300, 300, dtype=torch.bool)
    offset = torch.randn(2, 300, 300)
    ids, centers, scores = group(heat, offset, foreground)
    assert len(centers) == MOST == len(scores) and scores.min() > 0.9
    assert torch.equal(scores, scores.sort(descending=True).values)
    assert len(seen) > 1 and max(seen) <= 2**22 and sum(seen) == 300 * 300 * MOST
    aims = torch.stack(grid(300, 300)).float() + offset
    far = (aims[:, 100:110, :, None] - centers.T[:, None, None]).square().sum(0)
    assert torch.equal(far.argmin(-1) + 1, ids[100:110])


# ---- segments


def scene(confidence=0.8):
    """A face, a hat with a corner like a face, and a speck of a face: probs, center, offset, ids."""
    ids = torch.zeros(100, 100, dtype=torch.uint8)
    ids[10:40, 10:50], ids[60:90, 40:60], ids[5, 95] = 1, 2, 3
    classes = torch.zeros(100, 100, dtype=torch.long)
    classes[ids == 1] = 1
    classes[20:30, 20:30] = 2
    classes[ids == 2] = 3
    classes[60:65, 40:45] = 1
    classes[ids == 3] = 1
    probs = torch.full((4, 100, 100), (1 - confidence) / 3).scatter(0, classes[None], confidence)
    wanted = targets(ids[None])
    return probs, wanted["center"][0], wanted["offset"][0], ids


def test_segments_of_a_scene():
    probs, center, offset, ids = scene()
    center = center * 0.9
    center[:, 10:40] *= 0.98  # less sure of its centre, but more of its classes
    found, listed = segments(probs, center, offset, THINGS)
    assert torch.equal(found, ids.where(ids != 3, 0).long()), "the speck is left out"
    third = 0.2 / 3
    face, hat = 0.882 * (0.8 + third), 0.9 * (0.8 * 575 + third * 25) / 600
    assert listed == [
        {"id": 1, "thing": "face", "score": pytest.approx(face), "area": 1200, "box": [10, 10, 40, 30]},
        {"id": 2, "thing": "hat", "score": pytest.approx(hat), "area": 600, "box": [40, 60, 20, 30]},
    ]
    center[:, 10:40] *= 0.2
    swapped, listed = segments(probs, center, offset, THINGS)
    assert [(s["id"], s["thing"]) for s in listed] == [(1, "hat"), (2, "face")]
    assert torch.equal(swapped, torch.tensor([0, 2, 1])[found])
    center[:, 10:40] = 50 * center[:, 10:40]
    assert segments(probs, center, offset, THINGS)[1][0]["score"] == 1.0


def test_what_is_no_thing_has_no_segment():
    probs, center, offset, ids = scene()
    found, listed = segments(probs, center, offset, {"hat": [3]})
    assert [s["thing"] for s in listed] == ["hat"]
    assert torch.equal(found == 1, (ids == 2) & (probs.argmax(0) == 3))
    for things, heat in (({}, center), (THINGS, center * 0)):
        found, listed = segments(probs, heat, offset, things)
        assert listed == [] and found.dtype == torch.int64 and not found.any()


def test_segments_of_a_few_pixels_are_left_out():
    probs, center, offset, _ = scene()
    assert 2 < 100 * 100 * SMALLEST < 3
    for area, kept in ((2, 0), (3, 1)):
        few = torch.zeros_like(probs)
        few[0] = 1
        few[:, 15, 15 : 15 + area] = torch.tensor([0.0, 1, 0, 0])[:, None]
        assert len(segments(few, center, offset, THINGS)[1]) == kept
