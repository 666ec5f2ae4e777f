"""Styles of features: restyling, MixStyle, banks and where they fit."""

import pytest
import torch
from conftest import refusal

from models import build_model, freeze
from models.styles import (
    ANY,
    BankStyles,
    MixStyle,
    attach,
    digest,
    dominant,
    embed,
    features_after,
    load_bank,
    network_of,
    restyle,
    split,
    style,
)
from utils import checkpoint

CLASSES = ["background", "skin", "hair"]


def bank(count=4, channels=3, **more):
    """Styles of which each is told by its mean: row i has i everywhere."""
    values = torch.arange(float(count))[:, None].expand(-1, channels).clone()
    kinds = torch.full((count,), ANY)
    plain = {"phrase": ["at night"] * count, "classes": CLASSES, "patches": 1, "mix": "none", "relu": False}
    where = {"stage": 1, "preprocess": "none", "digest": "0"}
    return {"mean": values, "std": values + 1, "class": kinds, **plain, **where, **more}


def photos(count=2, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("p", [1, 3])
def test_restyle_gives_the_style_asked_for(p):
    torch.manual_seed(0)
    features = torch.randn(2, 5, 12, 18) * 3 + 1
    torch.testing.assert_close(restyle(features, *style(features, p)), features)
    mean, std = torch.randn(2, 5, p, p), torch.rand(2, 5, p, p) + 0.5
    restyled = restyle(features, mean, std)
    for i in range(p):
        for j in range(p):
            h, w = 12 // p, 18 // p
            patch = restyled[:, :, i * h : (i + 1) * h, j * w : (j + 1) * w]
            torch.testing.assert_close(patch.mean((2, 3)), mean[..., i, j])
            torch.testing.assert_close(patch.std((2, 3), correction=0), std[..., i, j])
    lasting = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(restyle(lasting, mean, std), restyled)
    assert restyle(features.bfloat16(), mean, std).dtype == torch.bfloat16
    # the features' own style is a constant to the gradient
    features.requires_grad_()
    own = style(features, p)
    assert not own[0].requires_grad and not own[1].requires_grad
    restyle(features, mean, std).sum().backward()
    scale = (std / own[1]).repeat_interleave(12 // p, 2).repeat_interleave(18 // p, 3)
    torch.testing.assert_close(features.grad, scale)


def test_a_map_of_one_pixel_has_a_style():
    features = torch.rand(3, 4, 1, 1)
    torch.testing.assert_close(restyle(features, *style(features)), features)


def test_mixstyle_is_the_formula():
    layer = MixStyle(p=1.0)
    features = torch.randn(64, 3, 5, 5) + torch.arange(64).view(-1, 1, 1, 1)
    torch.manual_seed(1)
    out = layer(features)
    own, partners = layer.shares, layer.partners
    assert (own >= 0.5).all() and (own <= 1).all() and len(own.unique()) > 20
    assert sorted(partners.tolist()) == list(range(64)) and partners.tolist() != list(range(64))
    for i in (0, 17, 63):
        a, b, share = features[i], features[partners[i]], own[i]
        mean = share * a.mean((1, 2)) + (1 - share) * b.mean((1, 2))
        std = share * a.std((1, 2), correction=0) + (1 - share) * b.std((1, 2), correction=0)
        flat = (a - a.mean((1, 2))[:, None, None]) / a.std((1, 2), correction=0)[:, None, None]
        torch.testing.assert_close(
            out[i], flat * std[:, None, None] + mean[:, None, None], rtol=1e-4, atol=1e-4
        )
    torch.manual_seed(1)
    assert torch.equal(layer(features), out)  # a function of the seed


def test_mixstyle_acts_on_half_of_the_batches():
    layer, features = MixStyle(), torch.randn(2, 1, 2, 2)
    acted = []
    for seed in range(400):
        torch.manual_seed(seed)
        layer(features)
        acted.append(layer.partners is not None)
    assert 150 < sum(acted) < 250
    layer.eval()(features)
    assert layer.partners is None


def test_patches_of_a_map_that_they_do_not_divide():
    features = torch.randn(2, 3, 10, 8)
    torch.testing.assert_close(restyle(features, *style(features, 3)), features)
    mean, std = torch.randn(2, 3, 3, 3), torch.rand(2, 3, 3, 3) + 0.5
    restyled = restyle(features, mean, std)
    assert restyled.shape == features.shape
    torch.testing.assert_close(restyled[..., :4, :3].mean((2, 3)), mean[..., 0, 0])  # whole patches
    assert split(features, 3).shape == (2, 3, 3, 3, 4, 3)


def test_the_dominant_class_of_a_patch():
    labels = torch.zeros(1, 6, 6, dtype=torch.uint8)
    labels[0, :2, 2:] = 2
    labels[0, 2:, :2] = 255
    labels[0, 4, 4] = 1  # one pixel of four
    assert dominant(labels, 3).tolist() == [[[0, 2, 2], [255, 0, 0], [255, 0, 0]]]
    assert dominant(labels, 1).tolist() == [[[0]]]
    labels = torch.zeros(1, 7, 7, dtype=torch.uint8)
    labels[0, 6:] = 1  # of a row of patches 3, 3 and 1 high, the last is repeated
    assert dominant(labels, 3).tolist() == [[[0] * 3, [0] * 3, [1] * 3]]


# ---- banks


def test_a_bank_gives_its_styles_in_training_only():
    styles = BankStyles(bank())
    features = torch.randn(64, 3, 8, 8)
    torch.manual_seed(0)
    restyled = styles(features)
    mean, std = style(restyled)
    drawn = mean.round()
    assert set(drawn.flatten().tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(mean, drawn, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(std, drawn + 1, rtol=1e-3, atol=1e-3)  # of the same row
    torch.manual_seed(0)
    assert torch.equal(styles(features), restyled)  # a function of the seed
    assert styles.eval()(features) is features
    assert not styles.state_dict()


def test_each_patch_has_its_own_style():
    mean, _ = style(BankStyles(bank(patches=3))(torch.randn(8, 3, 9, 9)), 3)
    assert (mean.round().flatten(2).amax(2) != mean.round().flatten(2).amin(2)).any(1).all()


@pytest.mark.parametrize(("mix", "low", "high"), [("uniform", 0.45, 0.55), ("beta", 0.4, 0.6)])
def test_a_bank_is_mixed_with_the_images_own_style(mix, low, high):
    features = torch.randn(400, 3, 6, 6) + 5
    own_mean, own_std = style(features)
    styles = BankStyles(bank(count=1, mix=mix))
    mean, std = style(styles(features))
    share = mean / own_mean  # the bank's mean is 0, its deviation 1
    assert -1e-3 < share.min() and share.max() < 1.001 and low < share.mean() < high
    torch.testing.assert_close(std, share * own_std + (1 - share), rtol=1e-3, atol=1e-3)
    assert (share[:, 0] - share[:, 1]).abs().max() > 0.5  # each channel's own
    extreme = ((share < 0.05) | (share > 0.95)).float().mean()
    assert (extreme > 0.5) == (mix == "beta")


def test_a_bank_by_class_gives_each_patch_a_style_of_its_class():
    kinds = torch.tensor([0, 1, ANY, 1])
    styles = BankStyles(bank(patches=3) | {"class": kinds})
    labels = torch.zeros(30, 9, 9, dtype=torch.uint8)
    labels[:, :3] = 1
    labels[:, 6:] = 2  # none of this class
    styles.labels = labels
    mean = style(styles(torch.randn(30, 3, 9, 9)), 3)[0].mean(1).round()
    assert set(mean[:, 0].flatten().tolist()) == {1, 3}
    assert set(mean[:, 1].flatten().tolist()) == {0}
    assert set(mean[:, 2].flatten().tolist()) == {2}, "any, where there is none of a class"
    styles.classes = torch.tensor([0, 1, 1, 1])
    mean = style(styles(torch.randn(30, 3, 9, 9)), 3)[0].mean(1).round()
    assert set(mean[:, 2].flatten().tolist()) == {0, 1, 2, 3}, "one of all, where there is none for any"


def test_features_that_are_never_below_zero_stay_so():
    features = torch.rand(4, 3, 8, 8)
    assert BankStyles(bank(count=1))(features).min() < -1
    restyled = BankStyles(bank(count=1, relu=True))(features)
    assert restyled.min() == 0 and restyled.max() > 1


def test_a_bank_comes_back_from_its_file(tmp_path):
    made = bank()
    checkpoint.save(tmp_path / "bank.pt", **made)
    found = load_bank(tmp_path / "bank.pt")
    assert torch.equal(found["std"], made["std"]) and found["phrase"] == made["phrase"]
    checkpoint.save(tmp_path / "other.pt", mean=1, model={})
    assert "no bank of styles" in refusal(load_bank, tmp_path / "other.pt")
    checkpoint.save(tmp_path / "short.pt", **made | {"std": made["std"][1:]})
    assert "no bank of styles" in refusal(load_bank, tmp_path / "short.pt")
    checkpoint.save(tmp_path / "nan.pt", **made | {"std": made["std"] * torch.nan})
    assert "not finite" in refusal(load_bank, tmp_path / "nan.pt")
    assert "no such checkpoint" in refusal(load_bank, tmp_path / "none.pt")


def test_a_digest_is_of_values_whatever_they_are_called():
    a, b = torch.randn(3, 2), torch.arange(4)
    assert digest([a.half(), b]) == digest([b.float(), a.half().float()])
    assert len({digest([a, b]), digest([a]), digest([a.T, b]), digest([a, b, b]), digest([a, b + 1])}) == 5


def test_a_bank_fits_the_stages_that_it_was_mined_after():
    torch.manual_seed(0)
    model = build_model("unet", 3)
    where = network_of(model, 2)
    model.stages[0].norm1.num_batches_tracked += 1
    model.stages[2].conv1.weight.data += 1
    assert network_of(model, 2) == where, "a counter, and what comes later, changes nothing"
    made = bank(channels=48) | where
    freeze(model, "2")
    assert isinstance(attach(model, made, "bank.pt", CLASSES), BankStyles)

    for change in (
        lambda m: m.stages[1].norm2.running_mean.add_(1e-3),
        lambda m: m.stages[0].conv1.weight.data.mul_(1.001),
        lambda m: setattr(m.normalise, "preprocess", "grey-world"),
    ):
        torch.manual_seed(0)
        other = build_model("unet", 3)
        freeze(other, "2")
        change(other)
        assert "for another network" in refusal(attach, other, made, "bank.pt", CLASSES)
    torch.manual_seed(0)
    model = build_model("unet", 3)
    freeze(model, "1")
    assert "would be trained away" in refusal(attach, model, made, "bank.pt", CLASSES)
    freeze(model, "backbone")
    by_class = made | {"class": torch.zeros(4).long()}
    assert "styles of the classes background skin hair" in refusal(
        attach, model, by_class, "bank.pt", ["background", "hair", "skin"]
    )
    assert isinstance(attach(model, made | {"mix": "batch"}, "bank.pt", CLASSES), MixStyle)


@pytest.mark.parametrize("name", ["unet", "fpn_resnet18"])
def test_all_that_a_head_reads_has_the_styles(name):
    torch.manual_seed(0)
    model = build_model(name, 3).eval()
    freeze(model, "backbone")
    names = model.state_dict().keys()
    stage = model.style_stage
    channels = features_after(model, photos(), stage).shape[1]
    plain = model(photos())["semantic"]
    made = bank(1, channels) | network_of(model, stage)
    made["std"] = made["std"] * 0  # a constant map: nothing of the photo is left
    attach(model, made, "bank.pt", CLASSES)
    assert torch.equal(model(photos())["semantic"], plain), "not in evaluation"
    model.styles.train()
    first, second = model(photos())["semantic"]
    torch.testing.assert_close(first, second)
    assert not torch.allclose(plain[0], plain[1], atol=1e-3)
    assert model.state_dict().keys() == names


def test_an_embedding_is_of_the_last_stage():
    model = build_model("unet", 3).eval()
    with torch.no_grad():
        features = features_after(model, photos(), 2)
        last = features_after(model, photos(), 5)
        torch.testing.assert_close(embed(model, features, 2), last.mean((2, 3)))
        model = build_model("clip_unet", 3).eval()
        features = features_after(model, photos(), 2)
        torch.testing.assert_close(embed(model, features, 2), model.embed(features, 2))
