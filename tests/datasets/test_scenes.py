"""Scenes: whose each pixel is, and that faces come out as they went in, of the right people, and visible."""

import numpy as np
import pytest
import torch
from conftest import FASSEG, needs_fasseg, refusal, write
from PIL import Image

from datasets import batches, scenes, splits, summary, synthetic
from datasets.augmentation import augment
from datasets.scenes import FixedScenes, Scenes, box, silhouette, without_face
from utils import metrics

SIZE = 48
CLASSES = ["background", "skin", "left eye", "right eye"]
GREEN = (0, 160, 0)  # the background of all photos


def save(root, name, photo, mask):
    for folder, pixels in (("images", photo), ("labels", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, np.uint8)).save(root / folder / f"{name}.png")


def disc(width, height, radius=20):
    y, x = np.mgrid[:height, :width] + 0.5
    return (x - width / 2) ** 2 + (y - height / 2) ** 2 < radius**2, x < width / 2


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Eight people with round faces, each of a colour of its own, on photos upright, wide and square. Those
    of an even number are skin throughout, the others are left eye and right eye, in halves."""
    root = tmp_path_factory.mktemp("people")
    for i in range(8):
        width, height = [(44, 66), (66, 44), (50, 50)][i % 3]
        face, left = disc(width, height)
        photo = np.where(face[..., None], colour(i), GREEN)
        mask = face * (1 if i % 2 == 0 else np.where(left, 2, 3))
        save(root, i, photo, mask)
    flips = [["left eye", "right eye"]]
    write(root / "classes.json", {"classes": CLASSES, "flip_pairs": flips})
    return str(root)


def colour(i):
    """Of person i: the share of red tells, also where the background, green or black, shines through."""
    return (30 * i + 20, 0, 250 - 30 * i)


def person(pixels):
    """Who has the colours (..., 3) of pixels."""
    red, _, blue = pixels.float().unbind(-1)
    return ((270 * red / (red + blue) - 20) / 30).round().long()


@pytest.fixture
def plain(monkeypatch):
    """Faces keep their colours, and backgrounds are flat and black."""
    monkeypatch.setattr(scenes, "LIGHT", (0.0, 0.0, 0.0))
    monkeypatch.setattr(scenes, "backdrop", lambda s, i, u, k, n: torch.zeros(len(u), 3, n, n))
    monkeypatch.setattr(scenes, "KINDS", (2.0, 2.0, 2.0))


def opened(people, most=4, **options):
    return splits.open_data(people, scenes=most, **options)


def train(people, most=4, seed=0):
    return batches.load(opened(people, most), "train", SIZE, seed)


def inner(mask):
    """Pixels whose neighbours, too, are of the mask (H, W)."""
    return -torch.nn.functional.max_pool2d(-mask[None].float(), 3, 1, 1)[0] > 0


def test_a_pixel_shows_the_face_that_its_id_and_class_name(people, plain):
    data = train(people)
    checked = mixed = 0
    batch = data[list(range(24))]
    assert batch["image"].shape == (24, 3, SIZE, SIZE) and batch["index"].tolist() == list(range(24))
    assert {batch[key].dtype for key in ("image", "semantic", "instance")} == {torch.uint8}
    assert ((batch["instance"] == 0) == (batch["semantic"] == 0)).all()
    assert ((batch["instance"] == 255) == (batch["semantic"] == 255)).all()
    for image, label, ids in zip(*(batch[key] for key in ("image", "semantic", "instance")), strict=True):
        who = person(image.permute(1, 2, 0))
        n = int(ids[ids < 255].max())
        assert set(ids.unique().tolist()) - {0, 255} == set(range(1, n + 1)), "none left out"
        shown = []
        for k in range(1, n + 1):
            inside = inner(ids == k)
            if not inside.any():
                continue
            face = int(who[inside].mode().values)
            assert (who[inside] == face).float().mean() > 0.9, "one id, one face"
            assert set(label[ids == k].tolist()) <= ({1} if face % 2 == 0 else {2, 3})
            shown.append(face)
            checked += int(inside.sum())
        mixed += len(shown) > 1
        assert len(set(shown)) == len(shown), "eight people: none twice among four"
    assert checked > 2000 and mixed >= 8


def test_people_stay_on_their_side(people, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "SCENES", {"train": 100, "val": 24})
    sides = {"train": [f"train/{i}" for i in range(5)], "val": [f"train/{i}" for i in range(5, 8)]}
    faces = opened(people, ids=write(tmp_path / "ids.json", sides))
    for side, members in (("train", set(range(5))), ("val", {5, 6, 7})):
        data = batches.load(faces, side, SIZE)
        assert set(data.source.groups) == set(sides[side])
        batch = data[list(range(24))]
        seen = set()
        for image, ids in zip(batch["image"], batch["instance"], strict=True):
            seen |= set(person(image.permute(1, 2, 0))[inner(ids > 0)].tolist())
        assert seen == members


def test_a_scene_depends_on_seed_and_index_alone(people):
    data = train(people)
    whole = data[[5, 2, 11, 7, 0, 3]]
    alone = [data[[i]] for i in (5, 2, 11, 7, 0, 3)]
    for key, values in whole.items():
        assert torch.equal(values, torch.cat([one[key] for one in alone])), key
    again = train(people)[[2, 5]]
    assert torch.equal(again["image"], whole["image"][[1, 0]])
    other = train(people, seed=1)[[5, 2]]
    assert not torch.equal(other["instance"], whole["instance"][:2])
    assert not torch.equal(whole["instance"][0], whole["instance"][1])


@pytest.mark.parametrize("most", [1, 3])
def test_one_to_so_many_faces(people, most):
    ids = train(people, most)[list(range(40))]["instance"]
    most_of_each = ids.masked_fill(ids == 255, 0).flatten(1).amax(1).tolist()
    assert set(most_of_each) == set(range(1, most + 1))


def test_faces_are_round_and_left_stays_left(people, plain, monkeypatch):
    """Photos of 2:3 and 3:2 were stretched to the square; a mirrored face has its eyes' names swapped."""
    monkeypatch.setattr(scenes, "STRETCH", 0.0)
    monkeypatch.setattr(scenes, "OUTSIDE", 0.0)
    batch = train(people, 1)[list(range(60))]
    left, _, right, _ = box(batch["instance"] == 1).unbind(1)
    _, top, _, bottom = box(batch["instance"] == 1).unbind(1)
    wide, high = (right - left) * SIZE, (bottom - top) * SIZE
    assert ((wide - high).abs() <= 2).all(), "turned or not, a disc"
    assert high.min() < 12 and high.max() > 36 and high.median() < 26, "any size, small ones often"
    column = torch.arange(SIZE).float()
    halves = [batch["semantic"] == 2, batch["semantic"] == 3]
    both = halves[0].flatten(1).any(1) & halves[1].flatten(1).any(1)
    assert both.sum() > 15
    first, second = ((half * column).sum((1, 2)) / half.sum((1, 2)) for half in halves)
    assert (first < second)[both].all()


def test_faces_are_mirrored_turned_and_lit(people, monkeypatch):
    """Of one photo, half white and half black."""
    face, left = disc(100, 100, 40)
    photo = np.where((face & left)[..., None], [200] * 3, np.where(face[..., None], 40, 0))
    sample = {"image": torch.tensor(photo).permute(2, 0, 1)[None].repeat(64, 1, 1, 1).to(torch.uint8)}
    sample |= {"label": torch.tensor(face)[None].repeat(64, 1, 1).to(torch.uint8), "aspect": torch.ones(64)}
    u = torch.rand(64, 10, generator=torch.Generator().manual_seed(0))
    found = scenes.cut_out(sample, torch.full((64,), 0.6), u, [], SIZE)
    lit = found["image"][:, 0] > 0.45
    dark = (found["label"] > 0) & ~lit
    place = lambda mask, axis: (
        (mask * torch.arange(SIZE).view(-1, *[1] * axis)).sum((1, 2)) / mask.sum((1, 2))
    )
    across = place(lit, 0) - place(dark, 0)
    assert ((across > 0) == (u[:, 2] < 0.5)).all(), "mirrored"
    whole = (u[:, 4:6] - 0.5).abs().amax(1) < 0.2
    turned = torch.rad2deg(torch.atan((place(lit, 1) - place(dark, 1)) / across))
    assert (turned - scenes.TURN * (2 * u[:, 6] - 1))[whole].abs().max() < 3
    assert found["image"].flatten(1).amax(1).std() > 0.05
    pixels = (found["label"] > 0).flatten(1).sum(1)
    area = np.pi / 4 * (0.6 * SIZE) ** 2
    assert (found["area"] / area - 1).abs().max() < 0.12
    assert (pixels / found["area"] - 1)[whole].abs().max() < 0.1


def test_what_is_hidden_is_nobodys(people, monkeypatch):
    maps = []
    for share in (0.0, scenes.SEEN, 2.0):
        monkeypatch.setattr(scenes, "SEEN", share)
        maps.append(train(people)[list(range(40))])
    everyone, default, nobody = (batch["instance"].long() for batch in maps)
    assert (everyone < 255).all() and set(nobody.unique().tolist()) == {0, 255}
    assert all(torch.equal(batch["image"], maps[0]["image"]) for batch in maps)
    assert torch.equal(maps[1]["semantic"] == 255, default == 255)
    hidden = 0
    for all_ids, ids in zip(everyone, default, strict=True):
        for k in range(1, int(all_ids.max()) + 1):
            now = ids[all_ids == k].unique().tolist()
            assert len(now) == 1 and now[0] > 0
            hidden += now == [255]
        assert (ids[all_ids == 0] == 0).all()
    assert 0 < hidden < 15


def test_seams_are_of_the_face_and_its_fringe_is_not():
    label = torch.zeros(9, 9, dtype=torch.uint8)
    label[1:8, 1:8] = 255  # the fringe
    label[2:7, 2:7] = 1
    label[4, 2:7] = 255  # a seam through the face, which ends in the fringe
    label[6, 5] = 0  # the background is seen through a hole
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[2:7, 2:7] = True
    expected[6, 5] = False
    found = silhouette(torch.stack([label, label.T]))
    assert torch.equal(found[0], expected) and torch.equal(found[1], expected.T)
    assert (box(found[:1]) * 9).round().tolist() == [[2, 2, 7, 7]]
    label = torch.zeros(1, 20, 20, dtype=torch.uint8)
    label[0, 2:18, 2:18] = 1
    label[0, 4:16, 4:16] = 255  # glasses, say
    assert torch.equal(silhouette(label), label > 0)


def test_seams_stay_unknown_and_keep_their_id(tmp_path):
    face, left = disc(50, 50)
    mask = face * np.where(left, 1, 2)
    mask[:, 24:26] = np.where(face[:, 24:26], 255, 0)
    for i in range(2):
        save(tmp_path, i, np.zeros((50, 50, 3)), mask)
    write(tmp_path / "classes.json", {"classes": CLASSES})
    batch = batches.load(opened(str(tmp_path), 1, val_fraction=0), "train", SIZE)[list(range(8))]
    seam = (batch["semantic"] == 255) & (batch["instance"] == 1)
    assert seam.flatten(1).any(1).sum() >= 6 and not (batch["instance"] == 255).any()


def test_backgrounds_show_no_face(people):
    data = train(people)
    photos = data._photos(torch.arange(data.total))
    found = without_face(photos)
    assert (photos["image"][:, 0] > 60).any() and found[:, [0, 2]].max() < 0.02
    assert (found[:, 1] - 160 / 255).abs().max() < 0.01
    drawn = data[list(range(60))]
    behind = drawn["image"].movedim(1, 3)[0 == drawn["instance"]].float()
    kinds = {tuple(color.tolist()) for color in behind[::50]}
    assert len(kinds) > 50 and GREEN in kinds


def test_shrunk_faces_do_not_alias(tmp_path, plain, monkeypatch):
    """Stripes of a pixel are grey from afar."""
    monkeypatch.setattr(scenes, "HEIGHTS", (0.2, 0.2))
    stripes = np.where(np.arange(48)[:, None, None] % 2 == 0, 255, 0) * np.ones((48, 48, 3))
    mask = np.zeros((48, 48))
    mask[2:46, 2:46] = 1
    for i in range(2):
        save(tmp_path, i, stripes, mask)
    write(tmp_path / "classes.json", {"classes": CLASSES[:2]})
    batch = batches.load(opened(str(tmp_path), 1, val_fraction=0), "train", SIZE)[list(range(12))]
    inside = torch.stack([inner(ids == 1) for ids in batch["instance"]])
    shown = batch["image"][:, 0][inside].float()
    assert len(shown) > 100 and (shown - 127.5).abs().max() < 40


def test_photos_without_a_face_are_in_no_scene(people, tmp_path):
    save(tmp_path, "bare", np.zeros((50, 50, 3)), np.zeros((50, 50)))
    write(tmp_path / "classes.json", {"classes": CLASSES})
    faces = opened(str(tmp_path), val_fraction=0)
    assert "none of 1 photo shows a labelled face" in refusal(batches.load, faces, "train", SIZE)
    face, _ = disc(50, 50)
    save(tmp_path, "face", np.zeros((50, 50, 3)), face)
    data = batches.load(opened(str(tmp_path), val_fraction=0), "train", SIZE)
    assert data.notes == [
        "1 photo without a labelled face (train/bare): in no scene",
        "its scenes of up to 4 faces show no more than 2 people",
    ]
    assert (data[list(range(12))]["instance"] > 0).flatten(1).any(1).all()


def test_what_is_told_of_scenes(people):
    single = batches.load(splits.open_data(people), "train", SIZE)
    found = {n: summary.inspect({"train": train(people, n)}, CLASSES)["train"] for n in (2, 3)}
    facts = summary.inspect({"train": single}, CLASSES)["train"]
    for n in (2, 3):
        assert found[n]["aspects"] == [1.0, 1.0, 1.0] != facts["aspects"]
        for key in ("photos", "people", "pixels", "sizes", "ids", "digests", "sha256", "contents"):
            assert found[n][key] == facts[key], key
    assert len({found[2]["digest"], found[3]["digest"], facts["digest"]}) == 3
    assert train(people, 2).source.memory.filename == single.memory.filename, "one cache"
    twice = {side: train(people) for side in ("train", "val")}
    assert "are in train, too" in summary.inspect(twice, CLASSES)["val"]["notes"][-1]


def test_fixed_scenes(people, monkeypatch):
    monkeypatch.setattr(batches, "SCENES", {"val": 20, "test": 4})
    data = batches.load(opened(people), "val", SIZE, seed=3)
    assert isinstance(data, FixedScenes) and len(data) == len(data.ids) == len(data.yaws) == 20
    ids = data.batch["instance"]
    largest = [max(int((one == k).sum()) for k in range(1, 5)) / SIZE**2 for one in ids]
    assert np.allclose(data.shares, largest) and data.shares.min() > 0.01
    assert torch.equal(data[[7, 2]]["image"], batches.load(opened(people), "val", SIZE)[[7, 2]]["image"])
    assert metrics.bootstrap(np.ones((20, 4, 4), np.int64), data.groups) is None
    assert "no split test" in refusal(batches.load, opened(people), "test", SIZE)
    assert "scenes have the splits val, test; not unlabelled" in refusal(
        batches.load, opened(people), "unlabelled", SIZE
    )


def test_scenes_of_synthetic_faces(people, monkeypatch):
    monkeypatch.setattr(batches, "SYNTHETIC", {"train": 50, "val": 6})
    monkeypatch.setattr(batches, "SCENES", {"train": 50, "val": 6})
    faces = splits.open_data("synthetic", "fasseg", scenes=3)
    assert faces.things == {"face": [1, 2, 3, 4, 5]}
    for split in ("train", "val"):
        data = batches.load(faces, split, 32)
        batch = data[[3, 1]]
        assert torch.equal(batch["image"][1:], data[[1]]["image"]) and batch["instance"].max() > 0
    assert data.digest is None and summary.inspect({"val": data}, faces.classes)["val"]["photos"] == 6
    made = synthetic.faces(0, torch.arange(12), 32)
    assert 0.4 < made["aspect"].min() < made["aspect"].max() < 1.1
    said = "these faces are all synthetic already"
    assert said in refusal(batches.mix, batches.load(faces, "train", 32), 0.5, faces.classes, 32, 0, "cpu")


def test_a_share_of_synthetic_faces_beside_scenes_is_scenes_of_them(folder):
    faces = splits.open_data(folder, scenes=2)
    real = batches.load(faces, "train", 32)
    mixed = batches.mix(real, 0.5, faces.classes, 32, 0, "cpu")
    n = len(real)
    batch = mixed[[n + 4, 3, n]]
    assert torch.equal(batch["image"][1], real[[3]]["image"][0])
    assert batch["instance"].flatten(1).any(1).all() and batch["instance"].max() <= 2
    assert isinstance(mixed.synthetic, Scenes)
    assert isinstance(mixed.synthetic.source, synthetic.SyntheticFaces)


def test_scenes_that_cannot_be(people, tmp_path):
    save(tmp_path, "a", np.zeros((4, 4, 3)), np.ones((4, 4)))
    write(tmp_path / "classes.json", {"classes": ["skin", "background"]})
    assert "is skin, not background" in refusal(opened, str(tmp_path))
    alone = splits.open_data(people)
    assert alone.things == {} and alone.scenes == 0
    said = refusal(lambda: batches.load(alone, "train", SIZE, instances=True))
    assert said.startswith("folder: nothing says where one thing ends") and "--scenes N" in said


def test_a_policy_goes_over_scenes(people):
    batch = train(people)[list(range(8))]
    ops = [
        {"name": name, "m_neg": m, "m_pos": m, "weight": 1} for name, m in (("rotate", 20), ("cutmix", 0.8))
    ]
    policy = {"flip": 0.5, "num_ops": 2, "p_identity": 0.0, "levels": [20, 30], "scale": 1.0, "ops": ops}
    moved = augment(batch, policy, 0, torch.arange(8), {"semantic": [(2, 3)]})
    assert moved["instance"].dtype == torch.uint8 and moved["image"].shape == batch["image"].shape
    assert ((moved["instance"] == 0) == (moved["semantic"] == 0)).all()
    assert not torch.equal(moved["instance"], batch["instance"])


@needs_fasseg
def test_real_faces():
    faces = splits.open_data(FASSEG / "V3", scenes=4)
    batch = batches.load(faces, "train", 64, count=26)[list(range(32))]
    ids, label = batch["instance"], batch["semantic"]
    assert {len(one[one < 255].unique()) - 1 for one in ids} == {1, 2, 3, 4}
    for one, classes in zip(ids, label, strict=True):
        for k in range(1, int(one[one < 255].max()) + 1):
            assert {1, 2} & set(classes[one == k].tolist()), "skin or hair"
    assert ((label == 255) & (ids < 255) & (ids > 0)).any(), "seams"
    assert ((label == 255) & (ids == 0)).sum() == 0, "no fringe"
