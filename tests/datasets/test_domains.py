"""Domains of rendered faces: a function of photo, seed and position; and the folders that a recipe writes."""

import pytest
import torch
from PIL import Image

from datasets import open_faces, synthetic
from datasets.synthetic.domains import DOMAINS, change
from recipes import domain_faces
from utils.errors import UserError


@pytest.fixture(scope="module")
def photos():
    return synthetic.faces(0, torch.arange(8), 48)["image"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_photo_does_not_depend_on_its_batch(photos, domain):
    before = photos.clone()
    together = change(photos, domain, 3, torch.arange(8))
    assert together.shape == photos.shape and together.dtype == torch.uint8
    assert torch.equal(photos, before)
    for i in (0, 4, 7):
        assert torch.equal(change(photos[[i]], domain, 3, torch.tensor([i]))[0], together[i])
    some = [6, 1, 3]
    assert torch.equal(change(photos[some], domain, 3, torch.tensor(some)), together[some])


@pytest.mark.parametrize("domain", DOMAINS[1:])
def test_seed_and_position_both_matter(photos, domain):
    same = photos[:1].expand(3, -1, -1, -1)
    a, b = (change(same, domain, seed, torch.tensor([0, 1, 2**33])) for seed in (0, 1))
    assert not torch.equal(a[0], b[0]) and len(a.flatten(1).unique(dim=0)) == 3


def test_what_domains_look_like(photos):
    seen = {domain: change(photos, domain, 0, torch.arange(8)).float() for domain in DOMAINS}
    mean = {domain: images.mean() for domain, images in seen.items()}
    assert torch.equal(seen["daylight"], photos.float())
    assert mean["night"] < 0.5 * mean["daylight"] < mean["daylight"] < mean["fog"]
    assert (seen["fog"].flatten(1).std(1) < photos.float().flatten(1).std(1)).all()
    assert mean["snow"] > mean["daylight"] and (seen["snow"] > 235).float().mean() > 0.02  # flakes
    assert (seen["sketch"].amax(1) - seen["sketch"].amin(1)).max() < 24  # grey, but for the paper's tint
    red, green, blue = seen["red light"].mean((0, 2, 3))
    assert red > 2 * max(green, blue)


@pytest.mark.parametrize("domain", DOMAINS)
def test_photos_need_not_be_square(photos, domain):
    assert change(photos[:2, :, :40, :33], domain, 0, torch.arange(2)).shape == (2, 3, 40, 33)


def test_attributes_say_what_the_renderer_draws():
    """By the pixels of the labels: whoever has a hat or glasses shows them, nobody else does."""
    positions = torch.arange(300, 400)
    said = synthetic.attributes(0, positions)
    made = synthetic.faces(0, positions, 40)
    names = synthetic.SCHEMES["full"].classes
    pixels = {n: (made["semantic"] == names.index(n)).sum((1, 2)) for n in ("hat", "glasses", "hair")}
    for name in ("hat", "glasses"):
        assert said[name].any() and torch.equal(said[name], pixels[name] > 0), name
    assert said["bald"].any() and pixels["hair"][said["bald"]].max() < 20
    long, short = (pixels["hair"][said[name]].float().mean() for name in ("long hair", "short hair"))
    assert long > 1.2 * short
    assert torch.equal(said["left"], made["yaw"] > 35) and torch.equal(said["right"], made["yaw"] < -35)
    assert all(value.shape == (100,) and value.dtype == torch.bool for value in said.values())


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    """Folders of 7 faces to train on and 2 to test on."""
    out = tmp_path_factory.mktemp("domains")
    flags = ["--out", str(out), "--size", "32", "--train", "7", "--test", "2"]
    domain_faces.main(domain_faces.get_parser().parse_args(flags))
    return out


def test_each_domain_is_a_data_set_of_the_same_faces(domains):
    expected = synthetic.faces(0, torch.arange(9), 32, "fasseg")
    for domain in DOMAINS:
        found = open_faces(domains / domain.replace(" ", "_"))
        assert found.classes == synthetic.SCHEMES["fasseg"].classes and not found.notes
        assert [len(found.splits[split]) for split in ("train", "test")] == [7, 2]
        assert not {s.group for s in found.splits["train"]} & {s.group for s in found.splits["test"]}
        for i, sample in enumerate(found.splits["train"] + found.splits["test"]):
            assert (found.read_label(sample) == expected["semantic"][i].numpy()).all()
        seen = change(expected["image"], domain, 0, torch.arange(9))[8].permute(1, 2, 0).numpy()
        assert (seen == Image.open(sample.image)).all()


def test_all_takes_turns_in_training_and_tests_every_domain(domains):
    found = open_faces(domains / "all")
    train = [sample.id.rpartition("_")[0].removeprefix("train/") for sample in found.splits["train"]]
    assert sorted(train) == sorted(domain.replace(" ", "_") for domain in (*DOMAINS, "daylight"))
    assert len(found.splits["test"]) == 2 * len(DOMAINS)
    assert {sample.group for sample in found.splits["test"]} == {"7", "8"}


def test_a_folder_that_is_there_is_refused(domains):
    with pytest.raises(UserError, match="daylight: is there already"):
        domain_faces.main(domain_faces.get_parser().parse_args(["--out", str(domains)]))
