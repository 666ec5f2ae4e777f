"""Xception-65: its form is DeepLab's, and it serves as a backbone, from scratch."""

import pytest
import torch
from torch import nn

import train_finetune
from models import build_model
from models.xception import Xception65
from utils.errors import UserError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Xception65().eval()


def test_its_form(network):
    """65 layers: two convolutions, and three separable ones in each of 21 blocks."""
    assert sum(p.numel() for p in network.parameters()) == 37_867_312
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    depthwise = [m for m in convolutions if m.groups > 1]
    assert all(m.kernel_size == (3, 3) and m.groups == m.in_channels == m.out_channels for m in depthwise)
    shortcuts = [name for name, m in network.named_modules() if name.endswith("shortcut.0")]
    assert len(shortcuts) == 4, "where a stride or the channels change"
    separable = len(depthwise)
    assert separable == 3 * 21 and len(convolutions) == 2 + 2 * separable + len(shortcuts)
    assert network(torch.zeros(1, 3, 33, 64)).shape == (1, 2048, 2, 2)


def test_relus_leave_what_the_shortcut_adds_alone(network):
    """An identity block adds its input as it came in, negative values too."""
    block = network.features[5]
    x = torch.randn(1, 728, 4, 4)
    with torch.no_grad():
        added = block(x.clone()) - block.layers(x.clone())
    torch.testing.assert_close(added, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "parameters"), [("fpn_xception65", 39_012_803), ("unet_xception65", 38_974_172)]
)
def test_it_is_a_backbone(name, parameters):
    model = build_model(name, 19)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.strides == [2, 4, 8, 16, 32] and [len(stage) for stage in model.stages] == [1, 1, 1, 17, 2]
    with torch.no_grad():
        assert model.eval()(torch.rand(1, 3, 40, 50))["semantic"].shape == (1, 19, 40, 50)


def test_a_file_of_its_weights_fits(network, tmp_path):
    path = tmp_path / "weights.pt"
    state = {key: value.half() for key, value in network.state_dict().items()}  # a smaller file
    torch.save(state, path)
    stages = build_model("unet_xception65", 3, weights=path).stages
    for key, value in stages.state_dict().items():
        assert torch.equal(value, state[stages.torchvision_name(key)].to(value.dtype)), key


def test_there_are_no_imagenet_weights(complaint, tmp_path):
    with pytest.raises(UserError, match="fpn_xception65 has no coco weights: choose none or a file"):
        build_model("fpn_xception65", 3, weights="coco")
    flags = [
        "--data",
        "synthetic",
        "--size",
        32,
        "--steps",
        1,
        "--model",
        "unet_xception65",
        "--device",
        "cpu",
    ]
    said = complaint(train_finetune, *flags, "--weights", "imagenet", "--out", tmp_path / "run")
    assert said.count("\n") == 1 and "unet_xception65 has no imagenet weights: choose none or a file" in said
