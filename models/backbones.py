"""Classification networks without their heads, cut into stages: what `fpn_` and `unet_` are built on."""

import torch
from torch import nn

from models import efficientnet_lite, xception
from models.normalise import IMAGENET_MEAN, IMAGENET_STD
from models.stages import cut
from utils.errors import UserError

OWN = ("efficientnet_lite0", "xception65")  # all others are torchvision's
STRIDES = (4, 8, 16, 32)  # at which a backbone needs maps
# The children of a classification network that lead from the image to its last feature map.
TRUNKS = (
    ("features",),  # mobilenet, efficientnet, convnext, densenet, vgg
    ("stem", "trunk_output"),  # regnet
    ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),  # resnet, resnext
    ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),  # shufflenet
)


def load_backbone(name):
    """(`Stages`, {stride: channels of the last map of each stage}, (mean, std) that it expects).

    name: one of `OWN`, or of a model of `torchvision.models` with maps at `STRIDES`. Random weights;
    `models.weights` fills them. Raises UserError where maps are missing.
    """
    if name == "efficientnet_lite0":
        net = efficientnet_lite.EfficientNetLite0()
        scale = efficientnet_lite.MEAN, efficientnet_lite.STD
    elif name == "xception65":
        net = xception.Xception65()
        scale = IMAGENET_MEAN, IMAGENET_STD
    else:
        import torchvision  # here, since it takes a second

        net = torchvision.models.get_model(name, weights=None)
        scale = IMAGENET_MEAN, IMAGENET_STD
    blocks = trunk_of(net)
    maps = measure([block for _, block in blocks])
    if not maps.keys() >= set(STRIDES):
        raise UserError(
            f"{name} has no feature maps (B, C, H, W) at strides 4, 8, 16 and 32, which fpn_ and unet_ need: "
            "choose a resnet, mobilenet, efficientnet, convnext or regnet"
        )
    stages = cut(blocks, [end for end, _ in maps.values()])
    return stages, {int(stride): channels for stride, (_, channels) in maps.items()}, scale


def trunk_of(net):
    """[(name in the state dict, block)] of a classification network without its head; [] if it has none of
    `TRUNKS`. Sequential parts are taken apart."""
    parts = dict(net.named_children())
    trunk = next((names for names in TRUNKS if parts.keys() >= set(names)), ())
    blocks = []
    for name in trunk:
        inner = parts[name].named_children() if isinstance(parts[name], nn.Sequential) else ()
        blocks += [(f"{name}.{child}", block) for child, block in inner] or [(name, parts[name])]
    return blocks


@torch.no_grad()
def measure(blocks):
    """Try one image: {stride: (blocks up to its last map, channels of that map)}."""
    maps = {}
    x = torch.zeros(1, 3, 64, 64)
    for end, block in enumerate(blocks, start=1):
        x = block.eval()(x)  # keeps the statistics of BatchNorm as they are
        if x.ndim == 4 and x.shape[2] == x.shape[3]:  # else not (B, C, H, W)
            maps[64 / x.shape[3]] = end, x.shape[1]
    for block in blocks:
        block.train()
    return maps
