"""Pretrained weights: from torchvision, from a file, and into a model, strictly."""

import pickle
import re
import zipfile
from pathlib import Path

import torch

from models import efficientnet_lite
from utils.errors import UserError

# nobody has pretrained weights for them
SCRATCH = ("unet", "unet_gn", "panoptic_unet", "panoptic_unet_gn", "clip_unet")
TOWER = ("stages.", "backbone.", "embedding.")  # names in the image encoder of a CLIP
HEADS = ("fc.", "classifier.", "head.", "heads.")  # may be absent from a file, or of other classes


def load_pretrained(model, name, weights):
    """Fill `model`, called `name`, in place.

    weights: `imagenet` (the backbone's, by torchvision, or of efficientnet_lite0 by its pip package); `coco`
    (a segmentation network's, by torchvision); or a file with a state dict of the whole model or of its
    backbone, with the names that torchvision or those who published it give to its parts. Of a CLIP:
    the backbone and the embedding; for `clip_resnet50` also OpenAI's or open_clip's, whole or its `visual`.
    """
    scratch = name in (*SCRATCH, "clip_resnet50") or name.endswith("_xception65")
    lite = name.endswith("_efficientnet_lite0")
    if weights == "imagenet" and lite:
        weights = efficientnet_lite.published_file()
    if weights == "imagenet" and not scratch:
        backbone = name.split("_", 1)[1]  # unet_resnet18, deeplabv3_resnet50, lraspp_mobilenet_...
        fill_backbone(model, torchvision_weights(backbone), f"imagenet weights of {backbone}")
    elif weights == "coco" and not scratch and not name.startswith(("fpn_", "unet_", "panoptic_")):
        fill(model, torchvision_weights(name), f"coco weights of {name}")
    elif weights in ("imagenet", "coco"):
        choice = "none or" if scratch else "none, imagenet or"
        raise UserError(f"{name} has no {weights} weights: choose {choice} a file")
    else:
        state = read_state(weights)
        if lite:
            state = efficientnet_lite.convert(state, weights)
        if name == "clip_resnet50":
            state = image_encoder(state)
        tower = getattr(model, "embedding", None) and all(key.startswith(TOWER) for key in state)
        whole = any(key.startswith(("backbone.", "stages.")) for key in state)
        if tower:
            fill(model, state, weights, only=TOWER)
        else:
            (fill if whole else fill_backbone)(model, state, weights)


def image_encoder(state):
    """The state dict of a CLIP of OpenAI's or open_clip's, whole or its `visual` alone -> that of `visual`,
    with names that `fill` reads. One with our names stays as it is."""
    if any(key.startswith("stages.") for key in state):
        return state
    visual = {key.removeprefix("visual."): v for key, v in state.items() if key.startswith("visual.")}
    named = {f"backbone.{key}": value for key, value in (visual or state).items()}
    return {key.replace("backbone.attnpool.", "embedding."): value for key, value in named.items()}


def is_torchscript(file):
    """Whether a file is an archive of TorchScript, which holds code beside weights."""
    return zipfile.is_zipfile(file) and any(
        name.endswith("/constants.pkl") for name in zipfile.ZipFile(file).namelist()
    )


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
        if zipfile.is_zipfile(file) and (damaged := zipfile.ZipFile(file).testzip()):  # torch does not look
            raise UserError(f"{file} is damaged (checksum of {damaged}); fetch it again")
        if is_torchscript(file):
            raise UserError(
                f"{file} is a TorchScript archive, not a state dict; if it is OpenAI's CLIP, "
                f"recipes/embed_prompts.py --pretrained {file} --tower FILE writes what is needed"
            )
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"no weights at {file}: give none, imagenet, coco or a file with a state dict"
        ) from None
    except UserError:
        raise
    except pickle.UnpicklingError:  # torch's advice would be to run what is in there
        raise UserError(f"{file} is no file of weights, or holds more than plain data") from None
    except Exception as error:  # zipfile and torch raise many kinds on files of another kind
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file} cannot be read as a state dict: {reason}") from None
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise UserError(
            f"{file} holds no state dict (names to tensors); if it is a checkpoint of this "
            "repository, start from it instead"
        )
    if strange := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise UserError(f"{file} holds values that are not finite, in {strange[0]}: fetch or train it again")
    return {k.replace("_orig_mod.", "").removeprefix("module."): v for k, v in state.items()}


def fill_backbone(model, state, source):
    """`fill` for the state dict of a backbone alone, with torchvision's names where it is torchvision's."""
    # LR-ASPP's backbone is the inside of mobilenet's "features"
    inner = not any(name.startswith("features.") for name in getattr(model.stages, "prefixes", {}).values())
    names = {key: key.removeprefix("features.") if inner else key for key in state}
    state = {
        name if name.startswith(HEADS) else f"backbone.{name}": state[key] for key, name in names.items()
    }
    fill(model, state, source, only=("stages.",))


def fill(model, state, source, only=("",)):
    """Load `state` into `model`, strictly but for classification heads; say what stays random.

    only: beginnings of the names that the file is to hold. Raises UserError with names as in the file.
    """
    own = {k: v for k, v in model.state_dict().items() if k.startswith((*only, "normalise."))}
    # Older files of torchvision: densenet's "norm.1"
    state = {re.sub(r"(\.denselayer\d+\.\w+)\.(\d\.)", r"\1\2", k): v for k, v in state.items()}
    names = {own_name(model, key): key for key in state}
    state = {name: state[key] for name, key in names.items()}
    # ... and no counter in BatchNorm; nobody's file holds our normalisation
    implied = [k for k in own if k.endswith(".num_batches_tracked") or k.startswith("normalise.")]
    state = {k: own[k] for k in implied} | state

    def other_classes(key):
        return key.startswith(HEADS) and state[key].shape[1:] == own[key].shape[1:]

    def listed(keys):
        shown = sorted(names.get(k, their_name(model, k)).removeprefix("backbone.") for k in keys)
        return f"({', '.join(shown[:3])}{', ...' if len(shown) > 3 else ''})"

    misshapen = [k for k in own.keys() & state if own[k].shape != state[k].shape]
    problems = {
        "missing": [k for k in own.keys() - state if not k.startswith(HEADS)],
        "unexpected": [k for k in state.keys() - own if not k.startswith((*HEADS, "aux_"))],
        "of another shape": [k for k in misshapen if not other_classes(k)],
    }
    if any(problems.values()):
        found = [f"{len(keys)} {what} {listed(keys)}" for what, keys in problems.items() if keys]
        raise UserError(f"{source} does not fit this model: {'; '.join(found)}")

    fitting = {k: v for k, v in state.items() if k in own and k not in misshapen}
    model.load_state_dict(fitting, strict=False)
    if random := [k for k in own if k not in fitting]:
        print(f"{source}: loaded; these stay at random initialisation: {', '.join(random)}")


def own_name(model, key):
    """A name in a file, perhaps backbone.NAME with torchvision's NAME -> the name in `model`."""
    name = key.removeprefix("backbone.")
    if name == key or not hasattr(model, "stages"):
        return key
    return f"stages.{model.stages.own_name(name) if hasattr(model.stages, 'own_name') else name}"


def their_name(model, key):
    """The inverse of `own_name`."""
    if not key.startswith("stages.") or not hasattr(model.stages, "torchvision_name"):
        return key
    return f"backbone.{model.stages.torchvision_name(key.removeprefix('stages.'))}"
