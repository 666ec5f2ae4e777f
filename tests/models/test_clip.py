"""Parsers on the image encoder of a CLIP: equal to open_clip's, filled from files of it, and not trained."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_model, freeze, keep_frozen_eval
from models.styles import digest
from models.weights import TOWER, fill, image_encoder
from utils.errors import UserError

torch.set_num_threads(1)


def assert_same_direction(embeddings, wanted):
    torch.testing.assert_close(F.normalize(embeddings), F.normalize(wanted), atol=1e-6, rtol=0)


def smooth(seed):
    """Two images of random colours, as a CLIP sees them: (2, 3, 224, 224) in 0 to 1."""
    colours = torch.rand(2, 3, 7, 7, generator=torch.manual_seed(seed))
    return F.interpolate(colours, size=(224, 224), mode="bilinear")


@pytest.fixture(scope="module")
def visual():
    """open_clip's image encoder of RN50, in eval mode, of random weights that fp16 holds. As it is made its
    blocks do nothing, and without statistics in BatchNorm what differs between images fades."""
    resnet = pytest.importorskip("open_clip.modified_resnet", reason="pip install open_clip_torch")
    torch.manual_seed(0)
    visual = resnet.ModifiedResNet([3, 4, 6, 3], output_dim=1024, heads=32, image_size=224, width=64)
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    with torch.no_grad():
        visual(smooth(2))
    return visual.half().float().eval()


@pytest.fixture(scope="module")
def parser(visual, tmp_path_factory):
    """Filled from a whole CLIP in fp16, as OpenAI publishes it."""
    state = {f"visual.{name}": value.half() for name, value in visual.state_dict().items()}
    state |= {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.weight": torch.ones(512)}
    file = tmp_path_factory.mktemp("clip") / "RN50.pt"
    torch.save(state, file)
    return build_model("clip_resnet50", 5, weights=file).eval()


@torch.no_grad()
def test_it_is_the_image_encoder_of_open_clip(visual, parser):
    images = smooth(1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    wanted = visual((images - mean) / std)
    features = parser.normalise(images)
    for stage in (1, 2, 3, 4):
        features = parser.stages[stage - 1](features)
        if stage in (2, 4):
            assert_same_direction(parser.embed(features, stage), wanted)
    assert_same_direction(parser.embed(visual.layer4(features), 5), wanted)
    assert F.cosine_similarity(*wanted, dim=0) < 0.95, "embeddings that are the same say nothing"


@torch.no_grad()
def test_the_parser_has_half_the_stride_and_dilates_the_last_block(visual, parser):
    """As PODA does it with CLIP's own modules."""
    features = torch.rand(1, 1024, 9, 14, generator=torch.manual_seed(1))
    layer4 = visual.layer4
    before = layer4[0].avgpool, layer4[0].downsample[0]
    layer4[0].avgpool, layer4[0].downsample[0] = nn.Identity(), nn.Identity()
    layer4[-1].conv2.dilation = layer4[-1].conv2.padding = (2, 2)
    wanted = layer4(features)
    layer4[0].avgpool, layer4[0].downsample[0] = before
    layer4[-1].conv2.dilation = layer4[-1].conv2.padding = (1, 1)
    torch.testing.assert_close(parser.stages[4](features), wanted)


def test_an_embedding_has_a_gradient_at_any_size(parser):
    features = torch.rand(1, 256, 30, 41, generator=torch.manual_seed(1), requires_grad=True)
    embedding = parser.embed(features, 2)
    assert embedding.shape == (1, 1024) and embedding.dtype == torch.float32
    embedding.sum().backward()
    assert features.grad.isfinite().all() and features.grad.abs().sum() > 0


def test_the_digest_of_the_tower_is_that_of_its_file(visual, parser):
    theirs = [v for name, v in visual.state_dict().items() if "num_batches_tracked" not in name]
    assert digest(parser.tower_tensors()) == digest(theirs)


def test_files_for_the_tower(visual, parser):
    """Of `visual` alone; with a part that is missing or of another network."""
    alone = visual.state_dict()
    state = image_encoder(alone)
    fill(parser, state, "visual.pt", only=TOWER)
    whole = image_encoder({f"visual.{name}": value for name, value in alone.items()} | {"text": alone})
    assert whole.keys() == state.keys()
    cut = {name: value for name, value in alone.items() if name != "attnpool.c_proj.bias"}
    with pytest.raises(UserError, match=r"a.pt does not fit this model: 1 missing \(embedding.c_proj.bias\)"):
        fill(parser, image_encoder(cut), "a.pt", only=TOWER)
    longer = alone | {"layer3.6.conv1.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"1 unexpected \(layer3.6.conv1.weight\)"):
        fill(parser, image_encoder(longer), "RN101.pt", only=TOWER)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_an_archive_of_torchscript_is_refused(tmp_path):
    file = tmp_path / "RN50.pt"
    torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), file)
    with pytest.raises(UserError, match="RN50.pt is a TorchScript archive.*embed_prompts.py .*--tower FILE"):
        build_model("clip_unet", 5, weights=file)


@torch.no_grad()
def test_the_unet_embeds_its_last_stage(tmp_path, capsys):
    torch.manual_seed(0)
    model = build_model("clip_unet", 5).eval()
    maps = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output))
    model(torch.rand(2, 3, 64, 64))
    wanted = F.linear(maps[-1].mean((2, 3)), model.embedding.weight, model.embedding.bias)
    assert wanted.shape == (2, 64)
    for stage, features in enumerate(list(maps), start=1):
        assert torch.equal(model.embed(features, stage), wanted)

    file = tmp_path / "tower.pt"
    tower = {name: v for name, v in model.state_dict().items() if name.startswith(("stages.", "embedding."))}
    torch.save(tower, file)
    other = build_model("clip_unet", 3, weights=file)
    assert capsys.readouterr().out == ""
    assert digest(other.tower_tensors()) == digest(model.tower_tensors())
    assert not torch.equal(other.lateral[0].weight, model.lateral[0].weight), "the decoder is not in the file"
    for lost in ("embedding.bias", "stages.4.norm2.running_var"):
        torch.save({name: value for name, value in tower.items() if name != lost}, file)
        with pytest.raises(UserError, match=rf"does not fit this model: 1 missing \({lost}\)"):
            build_model("clip_unet", 3, weights=file)


@pytest.mark.parametrize("name", ["clip_unet", "clip_resnet50"])
def test_training_the_head_leaves_the_tower_as_it_is(name):
    torch.manual_seed(0)
    model = build_model(name, 3)
    frozen = freeze(model, "backbone")
    model.train()
    keep_frozen_eval(frozen)
    before = [tensor.clone() for tensor in model.tower_tensors()]
    head = [p.clone() for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    model(torch.rand(2, 3, 48, 48))["semantic"].square().mean().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.tower_tensors(), before, strict=True))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert not any(torch.equal(a, b) for a, b in zip(trained, head, strict=True))
