"""The models by name, their pretrained weights, and how to freeze them.

Every model maps float images (B, 3, H, W), normalised, to {"semantic": logits (B, num_classes, H,
W)}. `backbone` is its pretrained part; `stages` lists the parts of that from the input side.
"""

import difflib
import pickle
import re
from pathlib import Path

import torch

from datasets.transforms import denormalise, normalise
from models.unet import UNet
from utils.errors import UserError

HEADS = ("fc.", "classifier.", "head.")  # may be absent from a file, or of other classes


def _grey_world(images):
    """Each channel's mean becomes that of all three (Buchsbaum, 1980): the light's colour is taken out."""
    pixels = denormalise(images)
    means = pixels.mean((2, 3), keepdim=True)
    return normalise((pixels * means.mean(1, keepdim=True) / means.clamp_min(1e-3)).clamp(0, 1))


def _standardise(images):
    """Each channel to mean 0 and standard deviation 1 within the photo."""
    std, mean = torch.std_mean(images, (2, 3), keepdim=True)
    return (images - mean) / std.clamp_min(1e-3)


PREPROCESS = {"grey-world": _grey_world, "standardise": _standardise}


def build_model(name, num_classes, weights="none", preprocess="none"):
    """The model called `name`, on the CPU and in training mode.

    name: `unet`, `unet_gn` (GroupNorm), `fpn_` and a torchvision backbone, or one of torchvision's
    three segmentation networks.
    weights: `none`; `imagenet` (the backbone's, by torchvision); `coco` (a segmentation network's,
    by torchvision); or a file with a state dict of the whole model or of its backbone.
    preprocess: `none`, or one of `PREPROCESS`, which the model does to every photo that it is given, in
    training and after: it is part of it, so no caller can forget it.
    """
    ours = name in ("unet", "unet_gn")
    if ours:
        model = UNet(num_classes, norm="group" if name == "unet_gn" else "batch")
    else:
        model = from_torchvision(name, num_classes)

    if weights == "imagenet" and not ours:
        backbone = name.split("_", 1)[1]  # fpn_resnet18, deeplabv3_resnet50, lraspp_mobilenet_...
        fill(model.backbone, torchvision_weights(backbone), f"imagenet weights of {backbone}")
    elif weights == "coco" and not ours and not name.startswith("fpn_"):
        fill(model, torchvision_weights(name), f"coco weights of {name}")
    elif weights in ("imagenet", "coco"):
        raise UserError(f"{name} has no {weights} weights: choose none or a file")
    elif weights != "none":
        state = read_state(weights)
        whole = any(k in model.state_dict() for k in state if not k.startswith(HEADS))
        fill(model if whole else model.backbone, state, weights)
    if preprocess != "none":
        model.register_forward_pre_hook(lambda _, images: PREPROCESS[preprocess](*images))
    return model


def from_torchvision(name, num_classes):
    """A model with a torchvision backbone. Imported here, since it takes a second that `unet` can spare."""
    import torchvision

    from models.fpn import FPN
    from models.torchvision_seg import STAGE_ENDS, TorchvisionSegmenter

    backbones = torchvision.models.list_models(module=torchvision.models)
    if name in STAGE_ENDS:
        return TorchvisionSegmenter(name, num_classes)
    if name.startswith("fpn_") and name.removeprefix("fpn_") in backbones:
        return FPN(num_classes, backbone=name.removeprefix("fpn_"))
    names = ["unet", "unet_gn", *STAGE_ENDS]
    near = difflib.get_close_matches(name, [*names, *(f"fpn_{b}" for b in backbones)])
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(
        f"no model is called {name}: choose {', '.join(names)}, or fpn_BACKBONE with a "
        f"torchvision backbone, such as fpn_resnet18.{hint}"
    )


def restore(state, device):
    """The model of a checkpoint (a dict with `args`, `data` and `model`) on a device, in eval mode."""
    how = state["args"].get("preprocess", "none")
    model = build_model(state["args"]["model"], len(state["data"]["classes"]), preprocess=how)
    model.load_state_dict(state["model"])
    return model.to(device, memory_format=torch.channels_last).eval()


def torchvision_weights(name):
    """torchvision's best state dict for its model `name`: from its cache folder, else fetched."""
    from torchvision.models import get_model_weights

    entry = get_model_weights(name).DEFAULT
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / entry.url.rsplit("/", 1)[1]
    if not file.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            digest = torch.hub.HASH_REGEX.search(file.name)[1]
            torch.hub.download_url_to_file(entry.url, str(file), digest)
        except (OSError, RuntimeError) as error:  # no network; not the promised content
            raise UserError(
                f"cannot fetch {entry.url} ({error}): put {file.name} into {folder} yourself"
            ) from None
    return read_state(file)


def read_state(file):
    """A state dict from a file: {name: tensor}, without what wrappers put before the names."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"no weights at {file}: give none, imagenet, coco or a file with a state dict"
        ) from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file} cannot be read as a state dict: {reason}") from None
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise UserError(
            f"{file} holds no state dict (names to tensors); if it is a checkpoint of this "
            "repository, give it to --init"
        )
    return {k.replace("_orig_mod.", "").removeprefix("module."): v for k, v in state.items()}


def fill(target, state, source):
    """Load `state` into `target`, strictly but for classification heads; say what stays random."""
    own = target.state_dict()
    # Older files of torchvision: densenet's "norm.1", no counter in BatchNorm; LR-ASPP's backbone
    # is the inside of mobilenet's "features".
    state = {re.sub(r"(\.denselayer\d+\.\w+)\.(\d\.)", r"\1\2", k): v for k, v in state.items()}
    if not any(k.startswith("features.") for k in own):
        state = {k.removeprefix("features."): v for k, v in state.items()}
    state = {k: v for k, v in own.items() if k.endswith(".num_batches_tracked")} | state

    def other_classes(key):
        return key.startswith(HEADS) and state[key].shape[1:] == own[key].shape[1:]

    misshapen = [k for k in own.keys() & state if own[k].shape != state[k].shape]
    problems = {
        "missing": [k for k in own.keys() - state if not k.startswith(HEADS)],
        "unexpected": [k for k in state.keys() - own if not k.startswith((*HEADS, "aux_"))],
        "of another shape": [k for k in misshapen if not other_classes(k)],
    }
    if any(problems.values()):
        listed = [
            f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in problems.items()
            if keys
        ]
        raise UserError(f"{source} does not fit this model: {'; '.join(listed)}")

    fitting = {k: v for k, v in state.items() if k in own and k not in misshapen}
    target.load_state_dict(fitting, strict=False)
    if random := [k for k in own if k not in fitting]:
        print(f"{source}: loaded; these stay at random initialisation: {', '.join(random)}")


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
    `own_classes` that it begins anew.
    """
    own = model.state_dict()
    if list(classes) != list(own_classes):
        # the tensors that count classes are those that one class more would change
        wider = build_model(name, len(own_classes) + 1).state_dict()
        shared = [(own_classes.index(n), classes.index(n)) for n in classes if n in own_classes]
        for key in [k for k in own if own[k].shape != wider[k].shape]:
            rows = len(own[key]) // len(own_classes)  # for each class; more than one in `unet`
            old, new = (
                state[key].unflatten(0, (-1, rows)),
                own[key].unflatten(0, (-1, rows)).clone(),
            )
            for i, j in shared:
                new[i] = old[j]
            state = {**state, key: new.flatten(0, 1)}
    model.load_state_dict(state)
    return [n for n in own_classes if n not in classes]
