"""Networks with an instance decoder. No network is needed or used."""

import json

import pytest
import torch
from conftest import refusal

from models import build_model, carry_over, freeze, has_instances, restore
from models.decoder import decode
from models.export import write_onnx
from utils.instances import LOSSES, targets

PARAMETERS = {  # with 19 classes
    "panoptic_unet": 2_108_840,
    "panoptic_efficientnet_lite0": 4_196_520,
    "panoptic_convnext_tiny": 29_207_400,
}
CHANNELS = {"semantic": 19, "center": 1, "offset": 2}
OURS = ["panoptic_unet", "panoptic_efficientnet_lite0"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_outputs_have_the_size_of_the_input(name):
    with torch.device("meta"):  # shapes and counts only, nothing is computed
        model = build_model(name, 19)
        outputs = model(torch.zeros(2, 3, 61, 75))
        assert {k: v.shape for k, v in outputs.items()} == {k: (2, n, 61, 75) for k, n in CHANNELS.items()}
        plain = build_model(name.replace("panoptic_unet", "unet").replace("panoptic_", "unet_"), 19)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    added = [key for key in model.state_dict() if key not in plain.state_dict()]
    assert plain.instances is None and added == [f"instances.{key}" for key in model.instances.state_dict()]
    assert has_instances(name) and not has_instances("unet_resnet18")


@pytest.mark.parametrize("name", OURS)
def test_the_classes_are_those_of_the_network_without(name):
    """Drawn from the same seed, and the instance decoder takes nothing from them."""
    images = torch.rand(1, 3, 45, 64)
    logits = []
    for built in (name, {"panoptic_unet": "unet"}.get(name, name.replace("panoptic_", "unet_"))):
        torch.manual_seed(0)
        model = build_model(built, 3).eval().to(memory_format=torch.channels_last)
        with torch.no_grad():
            logits.append(model(images)["semantic"])
    assert torch.equal(*logits)


def test_offsets_are_in_pixels_of_the_input():
    """Twice what the head says at stride 2; the heat is as it says, without a sigmoid."""
    model = build_model("panoptic_unet", 3).eval().instances
    skips = [torch.randn(1, c, 32 // 2**i, 48 // 2**i) for i, c in enumerate((24, 48, 96, 128, 192))]
    with torch.no_grad():
        said = model.head(decode(model.lateral, model.decoder, skips))[0]  # (3 x 2 x 2, 32, 48)
        outputs = model(skips, 61, 75)
        for y in range(2):
            for x in range(2):
                place = (slice(None), slice(y, None, 2), slice(x, None, 2))
                corner = said[2 * y + x :: 4]
                for key, planes in (("center", corner[:1]), ("offset", 2 * corner[1:])):
                    found = outputs[key][0][place]
                    assert torch.equal(found, planes[:, : found.shape[1], : found.shape[2]])
    assert outputs["center"].min() < 0


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("what", ["faces", "nothing"])
def test_every_parameter_has_a_gradient(name, what):
    """None is unused, as DDP demands, though nothing in the batch may be learned."""
    torch.manual_seed(0)
    model = build_model(name, 3)
    instance = torch.full((2, 61, 75), 255, dtype=torch.uint8)
    if what == "faces":
        instance[:, 10:40] = torch.tensor([0, 3])[:, None, None].to(torch.uint8)
    outputs, wanted = model(torch.rand(2, 3, 61, 75)), targets(instance)
    loss = 0 * outputs["semantic"].sum()
    for key, function in LOSSES.items():
        total, count = function(outputs[key], wanted)
        loss = loss + total / count.clamp_min(1)
    loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert gradients["instances.head.weight"].any() == (what == "faces")


def test_centres_and_offsets_are_learned():
    """Of two images with two squares each that look alike."""
    torch.manual_seed(0)
    model = build_model("panoptic_unet", 2)
    instance = torch.zeros(2, 32, 32, dtype=torch.uint8)
    instance[0, 2:12, 2:12], instance[0, 16:28, 16:30] = 1, 2
    instance[1, 4:16, 18:30], instance[1, 20:30, 2:14] = 1, 2
    images = (instance > 0)[:, None].expand(-1, 3, -1, -1).float()
    wanted = targets(instance)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    first = None
    for _ in range(12):
        outputs = model(images)
        losses = [loss(outputs[key], wanted) for key, loss in LOSSES.items()]
        center, offset = (total / count for total, count in losses)
        first = first or (center.item(), offset.item())
        optimizer.zero_grad()
        (20 * center + 0.1 * offset).backward()
        optimizer.step()
    assert center < 0.4 * first[0] and offset < 0.7 * first[1]


# ---- names, weights, other classes


def test_unknown_names_have_a_hint():
    said = refusal(build_model, "panoptic_resnet19", 5)
    assert "unet_BACKBONE, fpn_BACKBONE or panoptic_BACKBONE" in said and "panoptic_resnet18" in said
    assert "panoptic_unet_gn" in refusal(build_model, "panoptic_unet_ln", 5)
    with torch.device("meta"):
        assert "strides 4, 8, 16" in refusal(build_model, "panoptic_swin_t", 5)


def test_weights_of_a_backbone_and_of_a_whole_model(tmp_path, capsys):
    torch.manual_seed(0)
    name = "panoptic_mobilenet_v3_small"
    trained = build_model(name, 3)
    backbone = {trained.stages.torchvision_name(k): v for k, v in trained.stages.state_dict().items()}
    for state in (backbone, trained.state_dict()):
        torch.save(state, tmp_path / "weights.pt")
        model = build_model(name, 3, weights=tmp_path / "weights.pt")
        loaded = model.stages.state_dict()
        assert all(torch.equal(v, loaded[k]) for k, v in trained.stages.state_dict().items())
    assert torch.equal(model.instances.head.weight, trained.instances.head.weight)
    assert capsys.readouterr().out == ""
    build_model(name, 4, weights=tmp_path / "weights.pt")
    assert capsys.readouterr().out.strip().endswith("random initialisation: head.weight, head.bias")
    torch.save({k: v for k, v in state.items() if "instances" not in k}, tmp_path / "weights.pt")
    said = refusal(build_model, name, 3, tmp_path / "weights.pt")
    assert "missing (instances." in said
    for name, weights, instead in (
        ("panoptic_unet", "imagenet", "none or a file"),
        ("panoptic_unet", "coco", "none or a file"),
        ("panoptic_mobilenet_v3_small", "coco", "none, imagenet or a file"),
    ):
        said = refusal(build_model, name, 3, weights)
        assert f"{name} has no {weights} weights: choose {instead}" in said


def test_other_classes_keep_the_instance_decoder():
    old, new = ["background", "skin", "hair"], ["background", "hair", "hat", "skin"]
    torch.manual_seed(0)
    trained, model = (build_model("panoptic_unet", len(names)).eval() for names in (old, new))
    assert carry_over(model, "panoptic_unet", trained.state_dict(), old, new) == ["hat"]
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before, after = trained(images), model(images)
    assert all(torch.equal(before[key], after[key]) for key in ("center", "offset"))
    torch.testing.assert_close(after["semantic"][:, [0, 3, 1]], before["semantic"])


def test_restored_and_frozen():
    torch.manual_seed(0)
    model = build_model("panoptic_unet", 2).eval()
    state = {"args": {"model": "panoptic_unet"}, "data": {"classes": ["a", "b"]}, "model": model.state_dict()}
    state["data"]["target"] = "panoptic"
    restored, images = restore(state, "cpu"), torch.rand(1, 3, 33, 50)
    with torch.no_grad():
        for key, values in model(images).items():
            torch.testing.assert_close(restored(images)[key], values)
    freeze(model, "backbone")
    assert not any(p.requires_grad for p in model.stages.parameters())
    assert all(p.requires_grad for p in model.instances.parameters())


def test_onnx_has_all_outputs_by_name(tmp_path):
    reason = "pip install -r requirements-extra.txt"
    pytest.importorskip("onnx", reason=reason)
    runtime = pytest.importorskip("onnxruntime", reason=reason)
    torch.manual_seed(0)
    model = build_model("panoptic_unet", 2).eval()
    names = write_onnx(tmp_path / "model.onnx", model, 50, ["ground", "face"])
    assert names == ["logits", "center", "offset"]
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    channels = {"logits": 2, "center": 1, "offset": 2}
    assert {o.name: o.shape for o in session.get_outputs()} == {
        name: ["N", count, 50, 50] for name, count in channels.items()
    }
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["ground", "face"]
    images = torch.rand(3, 3, 50, 50)
    with torch.no_grad():
        outputs = model(images)
    for name, found in zip(names, session.run(None, {"images": images.numpy()}), strict=True):
        expected = outputs[{"logits": "semantic"}.get(name, name)]
        assert (torch.from_numpy(found) - expected).abs().max() < 1e-4
