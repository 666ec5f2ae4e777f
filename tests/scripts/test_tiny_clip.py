"""The tiny CLIP of rendered faces: what it writes, and what it refuses."""

import json
import random

import pytest
import torch
import torch.nn.functional as F

from datasets.synthetic.domains import DOMAINS
from models import build_model
from models.styles import digest
from recipes import tiny_clip
from utils.errors import UserError


def run(*flags):
    args = tiny_clip.get_parser().parse_args([str(flag) for flag in flags])
    tiny_clip.main(args)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("clip") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_clip, "HELD_OUT", 24)
        run("train", "--out", out, "--faces", 24, "--steps", 4, "--batch-size", 6, "--device", "cpu")
    return out


def test_train_writes_both_encoders_and_figures(trained):
    found = json.loads((trained / "zero_shot.json").read_text())
    assert found.keys() >= {"domain", "glasses", "hair", "class of a crop", "mean rank of 120"}
    assert all(0 <= value <= 1 for name, value in found.items() if "rank" not in name)
    assert 1 <= found["mean rank of 120"] <= 24
    state = torch.load(trained / "tower.pt", weights_only=True)
    model = build_model("clip_unet", 3, weights=str(trained / "tower.pt"))
    own = {k for k in model.state_dict() if k.startswith(("stages.", "embedding."))}
    assert state.keys() == own
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert not torch.equal(state["embedding.weight"], build_model("clip_unet", 3).embedding.weight)


def test_targets(trained, tmp_path):
    phrases = ["a face at night", "The {class} of a face, in fog."]
    run("embed", "--clip", trained, *phrases, "--classes", "nose", "hair", "--out", tmp_path / "targets.pt")
    targets = torch.load(tmp_path / "targets.pt", weights_only=True)
    assert targets["phrases"] == [phrases[0], phrases[1], phrases[1]]
    assert targets["classes"] == [None, "nose", "hair"]
    assert targets["embeddings"].shape == (3, 64) and targets["embeddings"].dtype == torch.float32
    assert torch.allclose(targets["embeddings"].norm(dim=1), torch.ones(3), atol=1e-5)
    assert not torch.allclose(targets["embeddings"][1], targets["embeddings"][2])
    model = build_model("clip_unet", 11, weights=str(trained / "tower.pt"))
    assert targets["tower"] == digest(model.tower_tensors()) and targets["clip"] == "tiny_clip"


def test_mistakes_take_one_line(trained, tmp_path, complaint):
    embed = ["embed", "--clip", trained, "--out", tmp_path / "t.pt"]
    said = complaint(tiny_clip, *embed, "a moose at night")
    assert "does not know moose; it knows" in said and "glasses" in said and said.count("\n") == 1
    for words in (["the {class} of a face"], ["a face", "--classes", "nose"]):
        assert "of no use without the other" in complaint(tiny_clip, *embed, *words)
    assert "25 words" in complaint(tiny_clip, *embed, " ".join(["face"] * 25))
    assert "0 words" in complaint(tiny_clip, *embed, "...")
    assert "no tower.pt" in complaint(
        tiny_clip, "embed", "--clip", tmp_path, "a face", "--out", tmp_path / "t.pt"
    )
    assert "holds a tower.pt" in complaint(tiny_clip, "train", "--out", trained)
    assert not (tmp_path / "t.pt").exists()
    assert "is there already" in complaint(tiny_clip, *embed[:3], "a face", "--out", trained / "text.pt")


def test_captions_are_true_and_in_the_vocabulary():
    chance = random.Random(0)
    for facts in (set(), {"glasses", "long hair", "left"}, {"hat", "beard", "camera"}):
        seen = [tiny_clip.caption(chance, facts, domain) for domain in DOMAINS for _ in range(20)]
        tiny_clip.tokens(seen)
        absent = [" ".join(phrase.partition("without")[1:]) for phrase in seen]
        present = [phrase.partition("without")[0] for phrase in seen]
        for name in ("glasses", "hat", "beard"):
            assert any(name in phrase for phrase in present) == (name in facts), name
            assert any(name in phrase for phrase in absent) == (name not in facts), name
    assert tiny_clip.caption(random.Random(1), (), "fog", "nose").startswith("the nose of a face")


def test_the_class_of_a_crop_is_in_its_middle():
    """On photos that show the ids of their labels, in daylight."""
    labels = torch.zeros(1, 96, 96, dtype=torch.uint8)
    labels[:, 56:68, 28:40] = nose = tiny_clip.PARTS.index("nose")
    pool = (20 * labels)[:, None].expand(1, 3, 96, 96), labels, [set()]
    seen = set()
    for step in range(40):
        _, crops, domains, shown = tiny_clip.photos(pool, torch.tensor([0]), torch.tensor([step]), 0)
        assert domains == ["daylight"] and crops.shape == (1, 3, 32, 32)
        seen |= {*shown}
        if shown == ["nose"]:  # far enough from the edge for a crop around it
            middle = crops[..., 15:17, 15:17].max() * 255
            assert abs(middle - 20 * nose) < 10
    assert seen == {"background", "nose"}


def test_contrast_is_least_where_pairs_agree():
    a = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    same = torch.eye(5)
    expected = F.cross_entropy(a @ a.T * 9, torch.arange(5))
    assert torch.isclose(tiny_clip.contrast(a * 9, a, same), expected)
    assert tiny_clip.contrast(a * 9, a, same) < tiny_clip.contrast(a * 9, a.roll(1, 0), same)
    twins = torch.cat([a, a])  # equal captions share the target, so nobody pays for them but once
    alike = torch.eye(5).repeat(2, 2)
    assert torch.isclose(tiny_clip.contrast(twins * 9, twins, alike), expected + torch.tensor(2.0).log())


def test_a_phrase_does_not_depend_on_those_beside_it():
    torch.manual_seed(0)
    text = tiny_clip.TextTower(len(tiny_clip.VOCABULARY)).eval()
    phrases = ["a face at night", "a photo of a face with glasses and long hair looking left in mist"]
    together = tiny_clip.embed_phrases(text, phrases)
    assert torch.allclose(together[:1], tiny_clip.embed_phrases(text, phrases[:1]), atol=1e-5)
    with pytest.raises(UserError, match="does not know dusk"):
        tiny_clip.tokens(["a face at dusk"])
