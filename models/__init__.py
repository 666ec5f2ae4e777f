"""The models by name, how to restore and to freeze them, and how a head is carried over.

Every model maps images (B, 3, H, W) in 0 to 1 to {"semantic": logits (B, num_classes, H, W)}, and where it
separates instances "center" and "offset" (`InstanceDecoder`); a classifier, to {"class": logits (B,
num_classes)} and perhaps "domain". It owns its normalisation and preprocessing (`normalise`). `stages` are
the parts of its pretrained half from the input side, each called with the output of the one before it, and
`backbone` is all of them (a classifier's, all but its heads). A parser's `style_stage` is the number of the
stage, counted from 1, after which styles are changed by default: the first whose map its head reads. A model
on the image encoder of a CLIP (`clip_`) has `embed` and `tower_tensors` besides.
"""

import difflib
from functools import partial

import torch

from models.backbones import OWN
from models.classifier import build_classifier
from models.unet import UNet
from models.unet_backbone import BackboneUNet
from models.weights import SCRATCH, load_pretrained
from utils.errors import UserError

EMBEDDING = 64  # of `clip_unet`


def build_model(name, num_classes, weights="none", preprocess="none"):
    """The model called `name`, on the CPU and in training mode.

    name: `unet`, `unet_gn` (GroupNorm), `clip_unet`, `panoptic_unet`, `unet_`, `fpn_` or `panoptic_` and a
    backbone, one of torchvision's three segmentation networks, or `clip_resnet50`. weights: `none`, or see
    `load_pretrained`. preprocess: see `Normalise`.
    """
    instances = has_instances(name)
    if name in SCRATCH:
        norm = "group" if name.endswith("_gn") else "batch"
        embedding = EMBEDDING if name == "clip_unet" else 0
        model = UNet(num_classes, norm, preprocess, instances=instances, embedding=embedding)
    elif name in ("unet_efficientnet_lite0", "panoptic_efficientnet_lite0"):
        model = BackboneUNet(num_classes, "efficientnet_lite0", preprocess, instances)
    else:
        model = from_torchvision(name, num_classes, preprocess)
    if weights != "none":
        load_pretrained(model, name, weights)
    return model


def has_instances(name):
    """Whether the model called `name` separates instances, with a "center" and an "offset"."""
    return name.startswith("panoptic_")


def without_instances(name):
    """The model that `name` is but for its instances: `unet` of `panoptic_unet`, `unet_resnet18` of
    `panoptic_resnet18`; of another model its own name."""
    if not has_instances(name):
        return name
    return name.removeprefix("panoptic_") if name in SCRATCH else name.replace("panoptic_", "unet_", 1)


def from_torchvision(name, num_classes, preprocess):
    """A model with parts of torchvision. Imported here, since it takes a second that the others can spare."""
    import torchvision

    from models.clip_resnet import ClipResNet
    from models.fpn import FPN
    from models.torchvision_seg import STAGE_ENDS, TorchvisionSegmenter

    if name == "clip_resnet50":
        return ClipResNet(num_classes, preprocess)
    if name in STAGE_ENDS:
        return TorchvisionSegmenter(name, num_classes, preprocess)
    backbones = [*OWN, *torchvision.models.list_models(module=torchvision.models)]
    families = {"fpn_": FPN, "unet_": BackboneUNet, "panoptic_": partial(BackboneUNet, instances=True)}
    for prefix, model in families.items():
        if name.startswith(prefix) and name.removeprefix(prefix) in backbones:
            return model(num_classes, name.removeprefix(prefix), preprocess)
    names = [*SCRATCH, "clip_resnet50", *STAGE_ENDS]
    near = difflib.get_close_matches(name, [*names, *(f"{p}{b}" for b in backbones for p in families)])
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(
        f"no model is called {name}: choose {', '.join(names)}, or unet_BACKBONE, fpn_BACKBONE or "
        f"panoptic_BACKBONE with {', '.join(OWN)} or a torchvision backbone, such as unet_resnet18.{hint}"
    )


def build_like(state, name, weights="none"):
    """A new model called `name` for what the checkpoint `state` was trained for: its classes, and its
    preprocessing or, of a `Classifier`, its kind of heads. weights: see `build_model`, `build_classifier`."""
    args, data = state["args"], state["data"]
    if data.get("target") != "class":
        return build_model(name, len(data["classes"]), weights, args.get("preprocess", "none"))
    heads = {"class": len(data["classes"])}
    if data["domains"]:
        heads["domain"] = len(data["domains"])
    return build_classifier(name, heads, weights, args["head"], args["dropout"])


def restore(state, device, source="checkpoint"):
    """The model of a checkpoint (a dict with `args`, `data` and `model`) on a device, in eval mode: a
    `Classifier` where the data's `target` is `class`.

    source: its file, for the UserError where its weights are of another model.
    """
    model = build_like(state, state["args"]["model"])
    load_weights(model, state["model"], source)
    return model.to(device, memory_format=torch.channels_last).eval()


def load_weights(model, state, source):
    """Load {name: tensor} into a model, strictly. Raises UserError naming `source`, its file, and the first
    names that do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        faults = [line.strip() for line in str(error).splitlines()[1:]]
        raise UserError(f"{source}: weights of another model: {'; '.join(faults[:2])[:300]}") from None


def freeze(model, what):
    """Stop the gradient of a part of the model's backbone; returns the frozen modules, a list.

    what: `none`, `backbone`, or how many of `model.stages`, counted from the input side.
    """
    if what == "none":
        frozen = []
    elif what == "backbone":
        frozen = [model.backbone]
    elif not str(what).isdecimal():
        raise UserError(f"cannot freeze {what}: give none, backbone or a number of stages")
    elif int(what) > len(model.stages):
        raise UserError(f"cannot freeze {what} stages: this model has {len(model.stages)}")
    else:
        frozen = list(model.stages[: int(what)])
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def keep_frozen_eval(frozen):
    """Call after `model.train()`: BatchNorm in frozen modules neither uses nor updates the batch's
    statistics."""
    for module in frozen:
        module.eval()


def carry_over(model, name, state, classes, own_classes):
    """Load a trained model's state dict into `model`, built by `name` for other classes perhaps.

    The head keeps the rows of the class names that both lists have. Returns the names of
    `own_classes` that it begins anew. A decoder of instances that the state lacks stays as it is.
    """
    own = model.state_dict()
    state = {key: value for key, value in own.items() if key.startswith("instances.")} | state
    if list(classes) != list(own_classes):
        # the tensors that count classes are those that one class more would change
        wider = build_model(name, len(own_classes) + 1).state_dict()
        shared = [(own_classes.index(n), classes.index(n)) for n in classes if n in own_classes]
        for key in [k for k in own if own[k].shape != wider[k].shape]:
            rows = len(own[key]) // len(own_classes)  # for each class; more than one in `unet`
            old = state[key].unflatten(0, (-1, rows))
            new = own[key].unflatten(0, (-1, rows)).clone()
            for i, j in shared:
                new[i] = old[j]
            state = {**state, key: new.flatten(0, 1)}
    load_weights(model, state, "the checkpoint to start from")
    return [n for n in own_classes if n not in classes]
