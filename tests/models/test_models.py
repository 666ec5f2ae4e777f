"""The models: shapes, sizes, weights from files, freezing. No network is needed or used."""

import gzip
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import ROOT

from models import build_model, carry_over, freeze, keep_frozen_eval, restore
from models.weights import fill, their_name
from utils import checkpoint
from utils.errors import UserError

torch.set_num_threads(1)  # on a busy machine, threads over tiny tensors wait for one another
PARAMETERS = {  # with 19 classes
    "unet": 1_549_492,
    "unet_gn": 1_549_492,
    "clip_unet": 1_561_844,
    "fpn_resnet18": 12_040_403,
    "fpn_resnet50": 24_740_563,
    "fpn_mobilenet_v3_large": 3_858_371,
    "fpn_efficientnet_v2_s": 21_117_155,
    "fpn_convnext_tiny": 28_743_923,
    "fpn_efficientnet_lite0": 3_763_347,
    "unet_efficientnet_lite0": 3_627_820,
    "unet_resnet18": 11_912_684,
    "unet_convnext_tiny": 28_638_700,
    "deeplabv3_resnet50": 39_638_355,
    "deeplabv3_resnet101": 58_630_483,
    "lraspp_mobilenet_v3_large": 3_221_198,
    "clip_resnet50": 54_570_195,
}


def state_of(name, **options):
    """A state dict of a torchvision model that no fresh model has, in BatchNorm's buffers too."""
    model = torchvision.models.get_model(name, weights=None, **options)
    return {k: v + 1 for k, v in model.state_dict().items()}


def put_in_hub(folder, name, state):
    """Save `state` where torch.hub would cache torchvision's file of `name`."""
    torch.hub.set_dir(folder)
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    (folder / "checkpoints").mkdir()
    torch.save(state, folder / "checkpoints" / url.rsplit("/", 1)[1])


@pytest.fixture
def hub(tmp_path):
    before = torch.hub.get_dir()
    yield tmp_path
    torch.hub.set_dir(before)


# ---- shapes ----


@pytest.mark.parametrize("name", PARAMETERS)
def test_output_has_the_size_of_the_input(name):
    with torch.device("meta"):  # shapes and counts only, nothing is computed
        model = build_model(name, 19)
        for size in ((64, 64), (61, 75)):
            assert model(torch.zeros(2, 3, *size))["semantic"].shape == (2, 19, *size)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        "unet_gn",
        "unet_efficientnet_lite0",
        "unet_convnext_tiny",
        "fpn_resnet18",
        "fpn_regnet_y_400mf",
        "lraspp_mobilenet_v3_large",
        "clip_unet",
        "clip_resnet50",
    ],
)
def test_forward_and_backward(name):
    torch.manual_seed(0)
    model = build_model(name, 3)
    logits = model(torch.randn(2, 3, 61, 75))["semantic"]
    assert logits.shape == (2, 3, 61, 75) and logits.isfinite().all()
    F.cross_entropy(logits, torch.randint(3, (2, 61, 75))).backward()
    # none unused, as DDP demands
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("embedding."))


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x1_0"])
def test_fpn_finds_the_levels_of_other_backbones(backbone):
    with torch.device("meta"):
        model = build_model(f"fpn_{backbone}", 5)
        x = torch.zeros(1, 3, 64, 64)
        sizes = []
        for stage in model.stages:
            x = stage(x)
            sizes.append(x.shape[-1])
    assert sizes == [32, 16, 8, 4, 2]


@pytest.mark.parametrize(
    "name", ["fpn_vit_b_16", "fpn_swin_t", "fpn_alexnet", "fpn_mnasnet0_5", "unet_swin_t", "unet_alexnet"]
)
def test_a_backbone_without_the_strides_is_refused(name):
    backbone = name.split("_", 1)[1]
    with torch.device("meta"), pytest.raises(UserError, match=f"{backbone} .*strides 4, 8, 16"):
        build_model(name, 5)


def test_a_decoder_reaches_stride_2():
    """With the backbone's own map; with a block on the image where the backbone begins at stride 4; with no
    use for one of stride 1."""
    with torch.device("meta"):
        models = {name: build_model(f"unet_{name}", 5) for name in ("resnet18", "convnext_tiny", "vgg11")}
        sizes = {}
        for name, model in models.items():
            keep = lambda module, inputs, output, name=name: sizes.update({name: output.shape[2:]})
            model.decoder[-1].register_forward_hook(keep)
            model(torch.zeros(1, 3, 70, 90))
    assert sizes == dict.fromkeys(models, (48, 48))
    assert [model.strides[0] for model in models.values()] == [2, 4, 1]
    assert [model.style_stage for model in models.values()] == [1, 1, 2]
    assert [model.stem is None for model in models.values()] == [True, False, True]


@pytest.mark.parametrize("name", ["fpn_resnet18", "unet_efficientnet_lite0"])
def test_a_backbone_gets_whole_strides(name):
    model = build_model(name, 3)
    assert model.training
    assert not any(v for k, v in model.state_dict().items() if "num_batches" in k)  # measured, not trained
    model.eval()
    images = torch.randn(1, 3, 33, 50)
    padded = F.pad(images, (0, 14, 0, 31), mode="replicate")  # to 64 x 64
    with torch.no_grad():
        expected = model(padded)["semantic"][..., :33, :50]
        torch.testing.assert_close(model(images)["semantic"], expected)


def test_an_unknown_name_lists_the_names():
    with pytest.raises(
        UserError,
        match="unet, .*clip_unet, clip_resnet50, .*lraspp.*unet_BACKBONE, fpn_BACKBONE or panoptic_BACKBONE",
    ):
        build_model("segformer", 5)
    for typed, meant in (
        ("fpn_convnext_tny", "fpn_convnext_tiny"),
        ("unet_resnet19", "unet_resnet18"),
        ("unet_efficientnet_lite", "unet_efficientnet_lite0"),
        ("efficientnet_lite0", "unet_efficientnet_lite0"),
    ):
        with pytest.raises(UserError, match=f"Did you mean .*{meant}"):
            build_model(typed, 5)


def test_loss_falls_on_one_batch():
    torch.manual_seed(0)
    model = build_model("unet", 3)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    images = torch.randn(4, 3, 32, 32)
    labels = images.argmax(1)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(images)["semantic"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- preprocessing ----


@pytest.mark.parametrize("how", ["grey-world", "standardise"])
def test_preprocessing_takes_out_the_light_wherever_the_model_is_restored(how):
    photos = torch.rand(2, 3, 32, 32, generator=torch.manual_seed(0)) * 0.5 + 0.2
    tinted = photos * torch.tensor([1.1, 1.0, 0.8]).view(3, 1, 1)
    model = build_model("unet_gn", 3, preprocess=how)
    args, data = {"model": "unet_gn", "preprocess": how}, {"classes": ["a", "b", "c"]}
    restored = restore({"args": args, "data": data, "model": model.state_dict()}, "cpu")
    older = restore({"args": {"model": "unet_gn"}, "data": data, "model": model.state_dict()}, "cpu")
    change = [(net(photos)["semantic"] - net(tinted)["semantic"]).abs().max() for net in (restored, older)]
    # the grey world keeps the brightness, which the tint changes a little
    assert change[0] < (1e-4 if how == "standardise" else 0.35 * change[1])


def test_a_model_owns_its_normalisation():
    """It is in the state dict, and ImageNet's where a file has none."""
    model, images = build_model("unet_gn", 3).eval(), torch.rand(1, 3, 32, 32)
    state = model.state_dict()
    assert state["normalise.mean"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    other = build_model("unet_gn", 3).eval()
    other.load_state_dict({**state, "normalise.mean": state["normalise.mean"] + 0.1})
    with torch.no_grad():
        shifted = other(images + 0.1)["semantic"]
        assert torch.allclose(shifted, model(images)["semantic"], atol=1e-4)
        assert not torch.allclose(other(images)["semantic"], shifted, atol=1e-3)
    other.load_state_dict({k: v for k, v in state.items() if not k.startswith("normalise.")})
    assert torch.equal(other.normalise.mean, model.normalise.mean)


def test_a_checkpoint_of_format_1_gives_what_it_gave(tmp_path):
    """Written before models owned their normalisation, when a backbone kept torchvision's names. `expected`
    are the logits that the code of then gave for a picture of 32 x 32 pixels."""
    path = tmp_path / "format1.pt"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "format1.pt.gz").read_bytes()))
    state = checkpoint.load(path)
    assert state["format"] == 1 and "backbone.features.0.0.weight" in state["model"]
    images = (torch.arange(3 * 32 * 32).view(1, 3, 32, 32) * 7 % 256).to(torch.uint8)
    model = restore(state, "cpu")
    with torch.no_grad():
        assert torch.allclose(model(images.float() / 255)["semantic"], state["expected"], atol=1e-5)
    name, classes = state["args"]["model"], state["data"]["classes"]
    carried = build_model(name, len(classes))  # as --init does
    assert carry_over(carried, name, state["model"], classes, classes) == []
    carried, model = carried.state_dict(), model.state_dict()
    assert all(torch.equal(carried[key], value) for key, value in model.items())


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_hook_on_a_stage_or_on_the_backbone_fires(name):
    with torch.device("meta"):
        model = build_model(name, 3).eval()
        seen, sizes = [], []
        for stage in model.stages:
            stage.register_forward_hook(lambda module, inputs, output: seen.append(module))
            stage.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
        model(torch.rand(2, 3, 64, 64))
    assert seen == list(model.stages) and sizes == sorted(sizes, reverse=True)
    assert model.backbone is model.stages


STYLE_STAGES = {  # and whether the head reads no earlier map
    "unet": (1, True),
    "panoptic_unet": (1, True),
    "unet_resnet18": (1, True),
    "fpn_resnet18": (2, True),
    "lraspp_mobilenet_v3_large": (3, True),
    "deeplabv3_resnet50": (2, False),
    "clip_resnet50": (2, True),
    "unet_convnext_tiny": (1, True),
}


@pytest.mark.parametrize("name", STYLE_STAGES)
@torch.no_grad()
def test_stages_chain_and_all_that_the_head_reads_comes_after_the_stage_of_styles(name):
    torch.manual_seed(0)
    model = build_model(name, 3).eval()
    number, first = STYLE_STAGES[name]
    assert model.style_stage == number
    if getattr(model, "stem", None):  # reads the image besides
        model.stem.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    begins, maps = [], []
    hooks = [model.stages[0].register_forward_pre_hook(lambda module, inputs: begins.append(inputs[0]))]
    for stage in model.stages:
        hooks.append(stage.register_forward_hook(lambda module, inputs, output: maps.append(output)))
    dark, light = torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    model(light)
    features = begins[0]
    for stage, seen in zip(model.stages, list(maps), strict=True):
        features = stage(features)
        assert torch.equal(features, seen)
    for hook in hooks:
        hook.remove()

    def is_blind_after(number):
        hook = model.stages[number - 1].register_forward_hook(
            lambda module, inputs, output: torch.zeros_like(output)
        )
        a, b = model(dark), model(light)
        hook.remove()
        return all(torch.equal(a[key], b[key]) for key in a)

    assert is_blind_after(number)
    if first:
        assert not is_blind_after(number + 1)


# ---- freezing ----


@pytest.mark.parametrize("what", [2, "backbone"])
@pytest.mark.parametrize(
    "name", ["unet", "unet_efficientnet_lite0", "fpn_resnet18", "lraspp_mobilenet_v3_large"]
)
def test_frozen_modules_do_not_change(name, what):
    torch.manual_seed(0)
    model = build_model(name, 3)
    frozen = freeze(model, what)
    assert len(frozen) == (1 if what == "backbone" else what)
    model.train()
    keep_frozen_eval(frozen)

    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in frozen]
    whole = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    model(torch.randn(2, 3, 64, 64))["semantic"].square().mean().backward()
    optimizer.step()

    assert all(p.grad is None for m in frozen for p in m.parameters())
    for module, old in zip(frozen, before, strict=True):
        assert old and all(torch.equal(v, old[k]) for k, v in module.state_dict().items())
    stay = {id(p) for m in frozen for p in m.parameters()}
    for key, p in model.named_parameters():
        assert (id(p) in stay) == torch.equal(p, whole[key]), key


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_stages_make_up_the_backbone(name):
    with torch.device("meta"):
        model = build_model(name, 3)
    stages = [{id(p) for p in stage.parameters()} for stage in model.stages]
    assert len(stages) == (4 if name.endswith("convnext_tiny") else 5) and all(stages)
    assert sum(map(len, stages)) == len(set().union(*stages))
    assert set().union(*stages) == {id(p) for p in model.backbone.parameters()}


def test_freeze_nothing_and_too_much():
    model = build_model("unet", 3)
    assert freeze(model, "none") == freeze(model, "0") == []
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(UserError, match="cannot freeze 6 stages: this model has 5"):
        freeze(model, 6)
    with pytest.raises(UserError, match="none, backbone or a number"):
        freeze(model, "-1")


# ---- weights ----


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("fpn_resnet18", ""), ("fpn_resnet18", "module._orig_mod."), ("unet_resnet18", "")],
)
def test_a_file_fills_the_backbone(tmp_path, capsys, name, prefix):
    state = state_of("resnet18")
    torch.save({prefix + k: v for k, v in state.items()}, tmp_path / "resnet18.pt")
    model = build_model(name, 3, weights=str(tmp_path / "resnet18.pt"))
    loaded = {model.stages.torchvision_name(k): v for k, v in model.stages.state_dict().items()}
    assert loaded.keys() == {k for k in state if not k.startswith("fc.")}
    assert all(torch.equal(v, state[k]) for k, v in loaded.items())
    assert capsys.readouterr().out == ""


def test_older_files_without_batch_counters_fit(tmp_path):
    state = {k: v for k, v in state_of("resnet18").items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    model = build_model("fpn_resnet18", 3, weights=tmp_path / "old.pth")
    assert torch.equal(model.stages[0][1].running_var, state["bn1.running_var"])


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    file = tmp_path / "weights.pt"
    state = state_of("resnet18")
    torch.save({k: v for k, v in state.items() if k != "conv1.weight"}, file)
    with pytest.raises(UserError, match=r"weights.pt does not fit .*: 1 missing \(conv1.weight\)"):
        build_model("fpn_resnet18", 3, weights=file)
    torch.save(state | {"extra.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"1 unexpected \(extra.weight\)"):
        build_model("fpn_resnet18", 3, weights=file)
    torch.save(state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, file)
    with pytest.raises(UserError, match=r"1 of another shape \(conv1.weight\)"):
        build_model("fpn_resnet18", 3, weights=file)
    torch.save(state, file)
    with pytest.raises(UserError, match=r"missing \(features.*unexpected \("):
        build_model("fpn_mobilenet_v3_large", 3, weights=file)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    file = tmp_path / "weights.pt"
    with pytest.raises(UserError, match="no weights at"):
        build_model("unet", 3, weights=file)
    file.write_text("<html>404</html>")
    with pytest.raises(UserError, match="is no file of weights"):
        build_model("unet", 3, weights=file)
    torch.save({"model": {}, "step": 3}, file)
    with pytest.raises(UserError, match="start from it instead"):
        build_model("unet", 3, weights=file)
    torch.save(torch.nn.Conv2d(1, 1, 1), file)  # code, which weights_only does not run
    with pytest.raises(UserError, match="is no file of weights"):
        build_model("unet", 3, weights=file)


@pytest.mark.parametrize(
    "name", ["unet", "unet_efficientnet_lite0", "fpn_resnet18", "lraspp_mobilenet_v3_large"]
)
def test_a_whole_model_with_other_classes(tmp_path, capsys, name):
    torch.manual_seed(0)
    saved = build_model(name, 3).state_dict()
    torch.save(saved, tmp_path / "whole.pt")
    same = build_model(name, 3, weights=tmp_path / "whole.pt").state_dict()
    assert all(torch.equal(v, saved[k]) for k, v in same.items())
    assert capsys.readouterr().out == ""

    other = build_model(name, 4, weights=tmp_path / "whole.pt").state_dict()
    head = [k for k, v in other.items() if v.shape != saved[k].shape]
    assert all(torch.equal(v, saved[k]) for k, v in other.items() if k not in head)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and line.strip().endswith("random initialisation: " + ", ".join(head))


@pytest.mark.parametrize(
    "name, backbone",
    [
        ("fpn_resnet18", "resnet18"),
        ("unet_resnet18", "resnet18"),
        ("lraspp_mobilenet_v3_large", "mobilenet_v3_large"),
        ("deeplabv3_resnet50", "resnet50"),
    ],
)
def test_imagenet_weights_come_from_the_hub_folder(hub, name, backbone):
    state = state_of(backbone)
    put_in_hub(hub, backbone, state)
    stages = build_model(name, 3, weights="imagenet").stages
    inner = "features." if name.startswith("lraspp") else ""
    for key, value in stages.state_dict().items():
        assert torch.equal(value, state[inner + stages.torchvision_name(key)]), key


def test_the_old_names_of_densenet():
    saved, model = (torchvision.models.DenseNet(8, (2, 2), 16) for _ in range(2))
    old = {
        re.sub(r"(denselayer\d)\.(norm|conv)(\d)", r"\1.\2.\3", k): v + 1
        for k, v in saved.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    fill(model, old, "a file")
    wanted = saved.state_dict()
    assert all(torch.equal(v, wanted[k] + 1) for k, v in model.state_dict().items())


def test_coco_weights_but_for_the_last_layers(hub, capsys):
    name = "lraspp_mobilenet_v3_large"
    state = state_of(name, weights_backbone=None) | {"aux_classifier.0.weight": torch.zeros(1)}
    put_in_hub(hub, name, state)
    model = build_model(name, 3, weights="coco")
    loaded = {their_name(model, k): v for k, v in model.state_dict().items() if k[:10] != "normalise."}
    random = [k for k, v in loaded.items() if not torch.equal(v, state[k])]
    assert random == [
        f"classifier.{level}_classifier.{kind}" for level in ("low", "high") for kind in ("weight", "bias")
    ]
    assert ", ".join(random) in capsys.readouterr().out


def test_weights_that_do_not_exist():
    for name, weights, instead in (
        ("unet", "imagenet", "none or a file"),
        ("unet_gn", "coco", "none or a file"),
        ("clip_unet", "imagenet", "none or a file"),
        ("clip_resnet50", "imagenet", "none or a file"),
        ("fpn_resnet18", "coco", "none, imagenet or a file"),
        ("unet_efficientnet_lite0", "coco", "none, imagenet or a file"),
    ):
        with pytest.raises(UserError, match=f"{name} has no {weights} weights: choose {instead}"):
            build_model(name, 3, weights=weights)


def test_without_a_network_one_line_says_what_to_do(start, tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from models import build_model
from utils.cli import run
run(lambda _: build_model("fpn_resnet18", 3, weights="imagenet"), None)
"""
    script, said, told = (tmp_path / name for name in ("build.py", "said", "told"))
    script.write_text(code)
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**nowhere, "no_proxy": "", "TORCH_HOME": str(tmp_path)}
    status = start(script, stdout=said, stderr=told, **environment).wait()
    assert status == 2, told.read_text()
    told = told.read_text()
    assert told.count("\n") == 1 and said.read_text() == ""
    assert told.startswith("error: cannot fetch https://download.pytorch.org/models/resnet18")
    assert f"put resnet18-f37072fd.pth into {tmp_path / 'hub' / 'checkpoints'}" in told


# ---- heads


@pytest.mark.parametrize("name", ["unet", "unet_gn", "unet_efficientnet_lite0"])
def test_carry_over_by_class_name(name):
    old, new = ["background", "skin", "hair", "nose"], ["background", "hat", "hair", "skin"]
    torch.manual_seed(0)
    trained, model = build_model(name, 4).eval(), build_model(name, 4).eval()
    head = model.head.weight.detach().clone()
    assert carry_over(model, name, trained.state_dict(), old, new) == ["hat"]
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before, after = trained(images)["semantic"], model(images)["semantic"]
    for k in ("background", "skin", "hair"):
        assert torch.equal(before[:, old.index(k)], after[:, new.index(k)]), k
    assert torch.equal(model.head.weight[4:8], head[4:8]), "the new class begins at random"
    assert not torch.equal(model.head.weight[:4], head[:4])


def test_carry_over_to_more_and_to_the_same_classes():
    old, new = ["background", "skin"], ["background", "hair", "skin", "hat"]
    trained, model = build_model("unet", 2).eval(), build_model("unet", 4).eval()
    assert carry_over(model, "unet", trained.state_dict(), old, new) == ["hair", "hat"]
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before, after = trained(images)["semantic"], model(images)["semantic"]
    torch.testing.assert_close(after[:, [0, 2]], before)
    twin = build_model("unet", 2)
    assert carry_over(twin, "unet", trained.state_dict(), old, old) == []
    for key, value in trained.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), key
