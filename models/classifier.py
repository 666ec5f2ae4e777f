"""Classification networks with one head for each thing that an image is: its class, its domain."""

import difflib

import torch
from torch import nn

from models import efficientnet_lite
from models.backbones import measure, trunk_of
from models.cnn import CNN
from models.normalise import Normalise
from models.styles import MixStyle
from models.weights import fill, read_state, torchvision_weights
from utils.errors import UserError

CNNS = ("cnn", "cnn_plain")
CNN_HIDDEN = 128  # width of its hidden layer
# with auxiliary outputs beside the last layer, or with a convolution as the last layer
UNFIT = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")


def build_classifier(
    name, heads, weights="none", head="linear", dropout=0.0, stochastic_depth=0.0, mixstyle=()
):
    """The `Classifier` called `name`, on the CPU and in training mode.

    name: `cnn`, `cnn_plain` (without BatchNorm), `efficientnet_lite0` or a classification network of
    torchvision. heads: {key: number of classes}. weights: `none`, `imagenet`, or a file with the network's
    state dict, of any classes, with the names that torchvision or those who published it give to its parts.
    head: `linear` (Dropout, Linear) or `mlp` (Linear, ReLU, Dropout, Linear). dropout: before the last
    layer, in place of the network's own. stochastic_depth: see `load_network`. mixstyle: numbers of the
    stages, counted from 1, after which `MixStyle` acts.
    """
    backbone = load_network(name, stochastic_depth)
    width = remove_last_layer(backbone)
    if weights != "none":
        load_weights_of(backbone, name, weights)
    hidden = CNN_HIDDEN if name in CNNS else width
    outputs = {key: build_head(head, width, hidden, count, dropout) for key, count in heads.items()}
    if name in CNNS:
        normalise = nn.Identity()
    elif name == "efficientnet_lite0":
        normalise = Normalise("none", efficientnet_lite.MEAN, efficientnet_lite.STD)
    else:
        normalise = Normalise()
    return Classifier(normalise, backbone, nn.ModuleDict(outputs), mixstyle)


def load_network(name, stochastic_depth):
    """A classification network, complete, with random weights.

    stochastic_depth: probability to skip the last residual block, for an image in training; from the first
    block on it grows linearly (Huang et al., 2016, 1603.09382). Raises UserError where the network cannot.
    """
    if name in CNNS:
        network = CNN(norm=name == "cnn")
    elif name == "efficientnet_lite0":
        return efficientnet_lite.EfficientNetLite0(stochastic_depth=stochastic_depth)
    else:
        network = from_torchvision(name)
    # by its name: torchvision is not imported for the others
    skips = [layer for layer in network.modules() if type(layer).__name__ == "StochasticDepth"]
    if stochastic_depth and not skips:
        raise UserError(
            f"{name} has no stochastic depth: choose 0, or efficientnet_lite0 or an efficientnet, convnext, "
            "swin or maxvit of torchvision"
        )
    for i, layer in enumerate(skips, start=1):
        layer.p = stochastic_depth * i / len(skips)
    return network


def from_torchvision(name):
    """A classification network of torchvision. Imported here, since it takes a second."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name in UNFIT:
        raise UserError(f"{name} does not end in one linear layer: choose another network, such as resnet50")
    if name not in names:
        near = difflib.get_close_matches(name, [*CNNS, "efficientnet_lite0", *names])
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"no classifier is called {name}: choose {', '.join(CNNS)}, efficientnet_lite0 or a "
            f"classification network of torchvision, such as resnet50.{hint}"
        )
    return torchvision.models.get_model(name, weights=None)


def remove_last_layer(network):
    """Take the last linear layer and a Dropout right before it out of a network, in place; returns the
    number of features that the layer had read."""
    layers = [(name, layer) for name, layer in network.named_modules() if not list(layer.children())]
    (before, dropout), (last, linear) = layers[-2:]
    network.set_submodule(last, nn.Identity())
    if isinstance(dropout, nn.Dropout):
        network.set_submodule(before, nn.Identity())
    return linear.in_features


def load_weights_of(network, name, weights):
    """Fill `network`, called `name`, in place. weights: see `build_classifier`."""
    lite = name == "efficientnet_lite0"
    if weights == "coco" or (weights == "imagenet" and name in CNNS):
        choice = "none or" if name in CNNS else "none, imagenet or"
        raise UserError(f"{name} has no {weights} weights: choose {choice} a file")
    if weights == "imagenet" and not lite:
        state, weights = torchvision_weights(name), f"imagenet weights of {name}"
    else:
        weights = efficientnet_lite.published_file() if weights == "imagenet" else weights
        state = read_state(weights)
    fill(network, efficientnet_lite.convert(state, weights) if lite else state, weights)


def build_head(kind, width, hidden, num_classes, dropout):
    """(B, width) -> (B, num_classes). kind: `linear`, or `mlp` with a hidden layer."""
    if kind == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_classes))
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
    )


class Classifier(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> {key: (B, number of classes) logits}.

    backbone: a network that gives (B, width), with torchvision's names in the state dict. heads: an
    `nn.ModuleDict` of what reads these features. stages: the parts of the network from the input side, as far
    as the last of each stride; none where it has no maps (vit, swin). mixstyle: see `build_classifier`; the
    last stage is refused, since its style is the class.

    Parameters of `cnn` with 10 classes and the head `mlp`: 184,778.
    """

    def __init__(self, normalise, backbone, heads, mixstyle=()):
        super().__init__()
        self.normalise = normalise
        self.backbone = backbone
        self.heads = heads
        blocks = trunk_of(backbone)
        ends = [end for end, _ in measure([block for _, block in blocks]).values()]
        names = [name for name, _ in blocks]
        self.stage_names = [names[i:j] for i, j in zip([0, *ends], ends, strict=False)]
        self.mixstyles = nn.ModuleList()
        count = len(self.stage_names)
        for number in sorted(set(mixstyle)):
            if number not in range(1, count):
                raise UserError(
                    f"no MixStyle after stage {number}: this network has {count} stages; choose any but the "
                    "last, whose style is the class"
                )
            self.mixstyles.append(MixStyle())
            block = backbone.get_submodule(self.stage_names[number - 1][-1])
            block.register_forward_hook(self.mixstyles[-1].hook)

    @property
    def stages(self):
        """Found by their names, since modules may be replaced (SyncBatchNorm)."""
        return [nn.Sequential(*map(self.backbone.get_submodule, names)) for names in self.stage_names]

    def forward(self, images):
        features = self.backbone(self.normalise(images))
        return {key: head(features) for key, head in self.heads.items()}

    def follow(self, shares):
        """Shares of the domains (B, D), rows that sum to 1 -> those of the styles that every `MixStyle` gave
        in the last forward pass."""
        for mixstyle in self.mixstyles:
            shares = mixstyle.follow(shares)
        return shares

    def set_dropout(self, p):
        """Change the heads' probability of dropout; the network's own inside stays."""
        for layer in self.heads.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = p


@torch.no_grad()
def check_size(model, size):
    """Try an empty image. Raises UserError where the network takes none of size x size (a vit takes its own
    only, a densenet none of 28). The model is in training mode afterwards."""
    try:
        model.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"this network takes no images of {size} x {size} pixels ({reason}): choose others"
        ) from None
    model.train()


def without_domains(state):
    """The checkpoint of a classifier without its head for domains."""
    model = {name: tensor for name, tensor in state["model"].items() if not name.startswith("heads.domain.")}
    return {**state, "data": {**state["data"], "domains": []}, "model": model}


def carry_over(model, state, names):
    """What a trained classifier, the checkpoint `state`, hands on to `model`, of the same network and kind of
    head: a state dict of `model`, and the names that begin anew.

    names: {key: those of each head of `model`}. Last layers keep the rows of the names that both have.
    """
    own = model.state_dict()
    trained = {name: tensor for name, tensor in state["model"].items() if name in own}
    fresh = []
    for key, wanted in names.items():
        last = f"heads.{key}.{len(model.heads[key]) - 1}"
        had = state["data"]["classes" if key == "class" else "domains"]
        if f"{last}.weight" not in trained:
            had = []
        for name in (f"{last}.weight", f"{last}.bias") if had else ():
            rows = own[name].clone()
            for i, j in [(wanted.index(n), had.index(n)) for n in wanted if n in had]:
                rows[i] = trained[name][j]
            trained[name] = rows
        fresh += [name for name in wanted if name not in had]
    return own | trained, fresh
