"""Panoptic quality, against cases that are worked out by hand, and the parts given the right face."""

import math

import pytest
import torch

from utils import panoptic
from utils.instances import targets

CLASSES = ["background", "skin", "nose"]
FACE = {"face": [1, 2]}
SCENE = ["road", "sky", "car", "dog"]
THINGS = {"car": [2], "dog": [3]}


def outputs(semantic, instance, num_classes):
    """What a network would give that is sure of these maps (H, W): (K, H, W), (1, H, W), (2, H, W)."""
    probs = torch.nn.functional.one_hot(semantic.long(), num_classes).movedim(-1, 0).float()
    aims = targets(instance[None])
    return probs, aims["center"][0], aims["offset"][0]


def score(truth, guess, classes=CLASSES, things=FACE):
    """Counts of one image; truth, guess: (semantic, instance)."""
    return panoptic.score_image(*outputs(*guess, len(classes)), *truth, classes, things)


def scene(*boxes, side=40, fill=0):
    """(semantic, instance) with boxes ((top, left, bottom, right), class, id) painted in order."""
    semantic = torch.full((side, side), fill, dtype=torch.uint8)
    instance = torch.zeros(side, side, dtype=torch.uint8)
    for (top, left, bottom, right), k, i in boxes:
        semantic[top:bottom, left:right] = k
        instance[top:bottom, left:right] = i
    return semantic, instance


LEFT, RIGHT = (5, 2, 15, 12), (20, 20, 30, 30)  # of 100 pixels each


def test_the_truth_gives_one():
    """... whatever the ids are, and faces of two parts are one segment each."""
    truth = scene((LEFT, 1, 7), ((8, 5, 11, 9), 2, 7), (RIGHT, 1, 254), ((24, 24, 27, 27), 2, 254))
    counts, parts = score(truth, truth)
    assert counts.tolist() == [[2, 2, 0, 0]]
    assert torch.equal(parts, torch.diag(torch.tensor([1400, 179, 21])))


def test_a_case_by_hand():
    """Four true faces. One is found with 80 of 100 pixels right and 20 beyond: IoU 80 / 120. One of 100
    pixels with 50 in the prediction, IoU exactly a half, is none; so the 50 are invented. One is missed, one
    is found whole, and one more is invented."""
    truth = scene((LEFT, 1, 1), (RIGHT, 1, 2), ((5, 30, 10, 38), 1, 3), ((32, 2, 38, 8), 1, 4))
    guess = scene(
        ((5, 4, 15, 14), 1, 1), ((20, 20, 30, 25), 1, 2), ((32, 2, 38, 8), 1, 3), ((34, 30, 39, 38), 1, 4)
    )
    counts, _ = score(truth, guess)
    assert counts[0].tolist() == pytest.approx([80 / 120 + 1, 2, 2, 2])
    found = panoptic.summary(counts, ["face"])
    sq, rq = (80 / 120 + 1) / 2, 2 / (2 + 2 / 2 + 2 / 2)
    assert (found["sq"], found["rq"]) == pytest.approx((sq, rq), abs=1e-6)
    assert found["pq"] == pytest.approx(sq * rq, abs=1e-6)
    assert (
        found["per_category"]["face"] | {"found": 2, "missed": 2, "invented": 2}
        == (found["per_category"]["face"])
    )


def test_a_face_that_fills_the_image_is_no_background():
    nothing, face = scene(), scene(((0, 0, 40, 40), 1, 9))
    for truth, guess, expected in (
        (face, face, [1, 1, 0, 0]),
        (nothing, face, [0, 0, 0, 1]),
        (face, nothing, [0, 0, 1, 0]),
    ):
        assert score(truth, guess)[0].tolist() == [expected]


def test_void_is_in_no_union_and_nothing_is_invented_there():
    """A face of which 40 pixels are unknown is matched by the other 60; what lies in void by more than half
    is not invented, what lies there by half is."""
    semantic, instance = scene((LEFT, 1, 1))
    instance[5:9, 2:12] = 255
    semantic[20:30, 20:26] = 255
    truth = semantic, instance
    counts, parts = score(truth, scene((LEFT, 1, 1), (RIGHT, 1, 2)))
    assert counts.tolist() == [[1, 1, 0, 0]]
    assert parts.sum() == 1600 - 40 - 60 and parts[1].tolist() == [0, 60, 0] and parts[0, 1] == 40
    semantic[20:30, 25] = 0
    counts, _ = score(truth, scene((LEFT, 1, 1), (RIGHT, 1, 2)))
    assert counts.tolist() == [[1, 1, 0, 1]]
    instance[5:15, 2:12] = 255  # nothing of it is known: neither found nor missed
    counts, _ = score(truth, scene())
    assert counts.tolist() == [[0, 0, 0, 0]]


def test_stuff_is_one_segment_an_image_and_things_have_a_category():
    """A dog taken for a car is missed and invented. Of 1400 pixels of road 200 are taken for sky."""
    truth = scene((LEFT, 2, 1), (RIGHT, 3, 2))
    guess = scene(((35, 0, 40, 40), 1, 0), (LEFT, 2, 1), (RIGHT, 2, 2))
    counts, _ = score(truth, guess, SCENE, THINGS)
    names = [*THINGS, "road", "sky"]
    assert dict(zip(names, counts.tolist(), strict=True)) == {
        "car": [1, 1, 0, 1],
        "dog": [0, 0, 1, 0],
        "road": [1200 / 1400, 1, 0, 0],
        "sky": [0, 0, 0, 1],
    }
    found = panoptic.summary(counts, names)
    assert found["pq"] == pytest.approx((1 / 1.5 + 0 + 1200 / 1400 + 0) / 4, abs=1e-6)
    semantic, instance = truth
    instance[LEFT[0] : LEFT[2], LEFT[1] : LEFT[3]] = 255  # a crowd: void for things, no void for stuff
    counts, _ = score((semantic, instance), scene((RIGHT, 3, 2)), SCENE, THINGS)
    assert counts[:3].tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1400 / 1500, 1, 0, 0]]


def test_a_background_is_no_segment_and_what_never_occurs_no_category():
    truth = scene((LEFT, 1, 1))
    assert panoptic.stuff_of(CLASSES, FACE) == [] and panoptic.stuff_of(SCENE, THINGS) == [0, 1]
    assert panoptic.stuff_of(["Background", "sky", "car"], {"car": [2]}) == [1]
    assert panoptic.stuff_of(["none", "skin", "nose"], FACE) == [], "whatever it is called"
    counts, _ = score(truth, truth)
    found = panoptic.summary(torch.cat([counts, torch.zeros(1, 4)]), ["face", "never"])
    assert found["pq"] == 1 and found["per_category"]["never"]["pq"] is None


def test_a_part_counts_in_the_right_face_only():
    """Two faces that touch, and the border between them is seen 7 columns too far to the right: 70 pixels of
    skin are skin for `metrics`, and nobody's here. Skin beside the faces is an error of both."""
    truth = scene(((5, 2, 15, 15), 1, 1), ((5, 15, 15, 35), 1, 2), ((8, 25, 12, 29), 2, 2))
    guess = scene(((5, 2, 17, 22), 1, 1), ((5, 22, 15, 35), 1, 2), ((8, 25, 12, 29), 2, 2))
    counts, parts = score(truth, guess)
    assert counts[0, 1:].tolist() == [2, 0, 0]
    assert parts.tolist() == [[1600 - 330 - 40, 40, 0], [70, 330 - 70 - 16, 0], [0, 0, 16]]
    lost, _ = score(truth, scene(((5, 2, 15, 35), 1, 1)))
    assert lost[0, 1:].tolist() == [1, 1, 0]


class Scenes:
    """Five scenes of one to three faces each, and a network that sees the first one shifted."""

    def __init__(self):
        boxes = [(LEFT, 1, 1), (RIGHT, 1, 2), ((5, 25, 12, 35), 2, 3)]
        scenes = [scene(*boxes[: 1 + i % 3], *boxes[i % 2 : 1]) for i in range(5)]
        self.semantic, self.instance = (torch.stack(maps) for maps in zip(*scenes, strict=True))
        self.image = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 40, 40)

    def __len__(self):
        return 5

    def __getitem__(self, rows):
        return {key: getattr(self, key)[rows] for key in ("image", "semantic", "instance")}

    def predict(self, images):
        rows = images[:, 0, 0, 0].long().tolist()
        maps = [[x.roll(i % 4, 1) for x in (self.semantic[i], self.instance[i])] for i in rows]
        stacks = [torch.stack(x) for x in zip(*(outputs(*pair, 3) for pair in maps), strict=True)]
        return {"semantic": 9 * stacks[0], "center": stacks[1], "offset": stacks[2]}


def test_processes_and_batches_change_nothing(monkeypatch):
    """Whoever reads which images: what the processes find adds up to what one finds."""
    data = Scenes()
    whole = panoptic.measure(data.predict, data, CLASSES, FACE, batch_size=2)
    assert whole == panoptic.measure(data.predict, data, CLASSES, FACE, batch_size=5)
    assert whole["n_images"] == 5 and 0.5 < whole["sq"] < 1 and set(whole["parts"]["f1"]) == set(CLASSES)
    held = {"rows": [], "total": []}  # what each of two processes hands over
    monkeypatch.setattr(panoptic.dist, "gather_rows", lambda x, n: held["rows"].append(x) or x)
    monkeypatch.setattr(panoptic.dist, "total", lambda x: held["total"].append(x) or x)
    for rank in (0, 1):
        panoptic.measure(data.predict, data, CLASSES, FACE, 2, rank, 2)
    counts = torch.zeros(5, 1, 4, dtype=torch.double)
    counts[0::2], counts[1::2] = held["rows"]
    found = panoptic.summary(counts.sum(0), ["face"])
    assert {key: whole[key] for key in found} == found
    assert whole["parts"]["mean_f1"] == round(panoptic.metrics.mean_f1(sum(held["total"])).item(), 6)
    nobody = panoptic.measure(data.predict, data, CLASSES, FACE, 2, 7, 8)  # more processes than images
    assert nobody["pq"] is None and held["rows"][-1].shape == (0, 1, 4)


def test_a_network_that_is_lost_is_refused():
    data = Scenes()

    def predict(images):
        found = data.predict(images)
        return found | {"offset": found["offset"] * math.nan}

    with pytest.raises(panoptic.metrics.UserError, match="not finite"):
        panoptic.measure(predict, data, CLASSES, FACE)


def test_a_table_and_scalars():
    data = Scenes()
    found = panoptic.measure(data.predict, data, CLASSES, FACE)
    row = panoptic.table(found).splitlines()[-1].split()
    face = found["per_category"]["face"]
    assert "parts, given the right face" in panoptic.table(found)
    assert row[0] == "face" and row[4:] == [str(face[key]) for key in ("found", "missed", "invented")]
    tags = panoptic.scalars("val", found)
    assert tags["val/pq"] == tags["val/pq/face"] == found["pq"]
    assert tags["val/parts_f1"] == found["parts"]["mean_f1"]
    animal = panoptic.measure(data.predict, data, CLASSES, {"dog": [1, 2]})
    assert "parts, given the right instance" in panoptic.table(animal)
    assert "parts" not in panoptic.measure(data.predict, data, SCENE[:2] + ["car"], {"car": [2]})
