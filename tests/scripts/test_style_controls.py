"""recipes/style_controls.py: styles at random, as far away as mined ones, and those of photos."""

import numpy as np
import pytest
import torch
from PIL import Image

from models import freeze, restore
from models.styles import ANY, attach, features_after, load_bank, network_of, style
from recipes import style_controls
from utils import checkpoint


@pytest.fixture
def network(finetuned):
    state = checkpoint.load(finetuned / "last.pt")
    return restore(state, "cpu"), state


@pytest.fixture
def own(network, tmp_path):
    """The file of a bank with the styles of six images."""
    model, state = network
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (values.flatten(1) for values in style(features_after(model, images, 1)))
    rows = {"mean": mean, "std": std, "class": torch.full((6,), ANY), "phrase": ["own"] * 6}
    about = {"classes": state["data"]["classes"], "patches": 1, "mix": "uniform", "relu": True}
    about["flags"] = {"images": 6, "seed": 0}
    checkpoint.save(tmp_path / "own.pt", **rows, **about, **network_of(model, 1))
    return tmp_path / "own.pt"


def write(*flags):
    args = style_controls.get_parser().parse_args([str(flag) for flag in flags])
    style_controls.main(args)
    return load_bank(args.out)


def fits(bank, network):
    """Whether training takes it."""
    model, state = network
    freeze(model, "backbone")
    return attach(model, bank, "a bank", state["data"]["classes"])


def away(bank, own):
    changes = [bank[key] - own[key] for key in ("mean", "std")]
    return torch.cat(changes, 1).norm(dim=1).mean().item()


def test_random_styles_are_as_far_away_as_those_mined(own, network, tmp_path):
    begin = load_bank(own)
    like = tmp_path / "mined.pt"
    checkpoint.save(like, **begin | {"mean": begin["mean"] + torch.arange(6)[:, None] * 0.01, "mix": "none"})
    banks = [write("random", own, "--like", like, "--seed", s, "--out", tmp_path / f"{s}.pt") for s in (0, 1)]
    wanted = away(load_bank(like), begin)
    for bank in banks:
        assert away(bank, begin) == pytest.approx(wanted, rel=1e-4) and wanted > 0.05
        assert bank["mix"] == "uniform" and (bank["std"] > 0).all()
        assert torch.equal(bank["mean"].sign(), begin["mean"].sign())
    assert not torch.equal(banks[0]["mean"], banks[1]["mean"])
    assert fits(banks[0], network)


def test_styles_of_photos_are_their_own(own, network, finetuned, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    photo = tmp_path / "photo.png"
    Image.fromarray(pixels).save(photo)
    init = finetuned / "last.pt"
    bank = write("photo", own, "--init", init, "--photo", photo, photo, "--out", tmp_path / "photo.pt")
    features = features_after(network[0], torch.tensor(pixels).movedim(-1, 0)[None] / 255, 1)
    for key, values in zip(("mean", "std"), style(features), strict=True):
        torch.testing.assert_close(bank[key], values[:, :, 0, 0].expand(2, -1))
    assert bank["phrase"] == [str(photo)] * 2 and bank["class"].tolist() == [ANY, ANY]
    assert fits(bank, network)


def test_mistakes(own, finetuned, complaint, tmp_path):
    other = tmp_path / "other.pt"
    checkpoint.save(other, **load_bank(own) | {"digest": "another"})
    random = ["random", own, "--out", tmp_path / "new.pt"]
    assert "random: --like BANK says how far" in complaint(style_controls, *random)
    said = complaint(style_controls, *random, "--like", other)
    assert "other.pt: not of the images, network and stage of" in said
    checkpoint.save(tmp_path / "seed.pt", **load_bank(own) | {"flags": {"images": 6, "seed": 1}})
    said = complaint(style_controls, *random, "--like", tmp_path / "seed.pt")
    assert "seed.pt: not of the images" in said and said.count("\n") == 1
    before = own.read_bytes()
    assert "own.pt: is there already" in complaint(style_controls, "random", own, "--like", own, "--out", own)
    assert own.read_bytes() == before
    photo = ["photo", other, "--out", tmp_path / "new.pt"]
    assert "photo: --init CHECKPOINT and --photo FILE say of what" in complaint(style_controls, *photo)
    flags = ["--init", finetuned / "last.pt", "--photo", tmp_path / "photo.png"]
    assert "not the network that the bank of own styles is for" in complaint(style_controls, *photo, *flags)
    assert not (tmp_path / "new.pt").exists()
