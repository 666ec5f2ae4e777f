"""recipes/embed_prompts.py, with a tiny CLIP of open_clip's that has random weights."""

import copy
import importlib
import json
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from models.styles import digest

PHRASES = ["a face at night", "the {class} of a face in fog"]


@pytest.fixture(scope="module")
def recipe():
    """The module."""
    sys.path.insert(0, str(ROOT / "recipes"))
    yield importlib.import_module("embed_prompts")
    sys.path.remove(str(ROOT / "recipes"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(the model, its name, a file with its state dict)."""
    open_clip = pytest.importorskip("open_clip", reason="pip install open_clip_torch")
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny_rn.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny_rn.json")
    torch.manual_seed(0)
    model = open_clip.CLIP(**config, quick_gelu=True).eval()
    torch.save(model.state_dict(), folder / "clip.pt")
    return model, "tiny_rn", folder / "clip.pt"


def embed(recipe, *flags):
    recipe.main(recipe.get_parser().parse_args([str(flag) for flag in flags]))


@torch.no_grad()
def test_phrases_become_targets(recipe, clip, finetuned, tmp_path):
    import open_clip

    model, name, file = clip
    out, tower = tmp_path / "night.pt", tmp_path / "tower.pt"
    flags = ["--clip", name, "--pretrained", file, "--classes-of", finetuned / "best.pt"]
    embed(recipe, *PHRASES, *flags, "--out", out, "--tower", tower)

    targets = torch.load(out, weights_only=True)
    classes = torch.load(finetuned / "best.pt", weights_only=True)["data"]["classes"]
    assert targets["phrases"] == [PHRASES[0]] + [PHRASES[1]] * len(classes)
    assert targets["classes"] == [None, *classes] and targets["clip"] == name
    assert targets["embeddings"].dtype == torch.float32
    texts = [PHRASES[0], f"the {classes[3].replace('_', ' ')} of a face in fog"]
    tokenize = open_clip.get_tokenizer(name)
    assert len(open_clip.OPENAI_IMAGENET_TEMPLATES) == 80
    for text, row in zip(texts, targets["embeddings"][[0, 4]], strict=True):
        raw = [model.encode_text(tokenize([t(text)])) for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
        torch.testing.assert_close(row, F.normalize(torch.cat(raw).mean(0), dim=0))
    assert (targets["embeddings"][1:] @ targets["embeddings"][0]).max() < 0.9999

    written = torch.load(tower, weights_only=True)
    assert written.keys() == {key for key in model.state_dict() if key.startswith("visual.")}
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in written.items())
    kept = [value for key, value in written.items() if "num_batches_tracked" not in key]
    assert targets["tower"] == digest(kept)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_an_archive_as_openai_publishes_it(recipe, clip, tmp_path):
    model, name, _ = clip
    traced = copy.deepcopy(model)
    traced.attn_mask = None  # OpenAI's holds none
    archive, out = tmp_path / "RN50.pt", tmp_path / "tower.pt"
    example = torch.rand(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.int64)
    torch.jit.save(torch.jit.trace(traced, example, check_trace=False), archive)
    embed(recipe, "--clip", name, "--pretrained", archive, "--tower", out)
    written = torch.load(out, weights_only=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in written.items())


def test_mistakes(recipe, clip, complaint, finetuned, tmp_path):
    _, name, file = clip
    out, held = tmp_path / "out.pt", tmp_path / "held.pt"
    held.write_text("mine")
    fits = ["--clip", name, "--pretrained", file]
    cases = [
        ([*fits], "give phrases and --out FILE, or --tower FILE"),
        (["dusk", *fits], "give phrases and --out FILE"),
        (["dusk", *fits, "--out", held], "held.pt: is there already"),
        (["the {class}", *fits, "--out", out], "--classes-of"),
        (["dusk", *fits, "--out", out, "--classes", "hair"], "--classes-of"),
        (["dusk " * 80, *fits, "--out", out], "longer than the 77 tokens"),
        (["dusk", "--clip", "RN5", "--out", out], "--clip RN5: open_clip has no such CLIP; RN50"),
        (["dusk", "--pretrained", "nowhere.pt", "--out", out], "no such file, and none of openai, "),
        (
            ["dusk", "--clip", name, "--pretrained", finetuned / "best.pt", "--out", out],
            f"does not fit {name}",
        ),
    ]
    for flags, said in cases:
        told = complaint(recipe, *flags)
        assert told.count("\n") == 1 and said in told, (flags, told)
    assert held.read_text() == "mine" and not out.exists()


def test_without_open_clip_one_line_says_what_to_install(recipe, complaint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)  # what makes an import fail
    told = complaint(recipe, "dusk", "--out", tmp_path / "out.pt")
    assert told.count("\n") == 1 and "pip install open_clip_torch" in told
