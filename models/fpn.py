"""A light feature pyramid on a torchvision classification network.

Lin et al., "Feature Pyramid Networks", 2017 (1612.03144), for the pyramid; Kirillov et al.,
"Panoptic Feature Pyramid Networks", 2019 (1901.02446), for reading a segmentation off it: all
levels are brought to stride 4 and added, then convolved and classified.
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from models.normalise import Normalise
from models.stages import cut, read_torchvision_names
from utils.errors import UserError

STRIDES = (4, 8, 16, 32)
# The children of a classification network that lead from the image to its last feature map.
TRUNKS = (
    ("features",),  # mobilenet, efficientnet, convnext, densenet, vgg
    ("stem", "trunk_output"),  # regnet
    ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),  # resnet, resnext
    ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),  # shufflenet
)


class FPN(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> {"semantic": (B, num_classes, H, W)}; any H and W.

    backbone: a name from `torchvision.models`, with feature maps at strides 4, 8, 16 and 32; its files fit.
    preprocess: see `Normalise`. channels: width of the pyramid, a multiple of 32 (the groups of its
    normalisation). stages: the blocks of each stride, from the input side (ResNet: conv1, layer1 to layer4).

    Parameters with 19 classes and 128 channels: resnet18 12,040,403; resnet50 24,740,563;
    mobilenet_v3_large 3,858,371; efficientnet_v2_s 21,117,155; convnext_tiny 28,743,923.
    """

    def __init__(self, num_classes, backbone="resnet18", preprocess="none", channels=128):
        super().__init__()
        self.normalise = Normalise(preprocess)
        blocks = trunk_of(torchvision.models.get_model(backbone, weights=None))
        maps = measure([block for _, block in blocks])
        if not maps.keys() >= set(STRIDES):
            raise UserError(
                f"{backbone} has no feature maps (B, C, H, W) at strides 4, 8, 16 and 32, which an "
                "FPN needs: choose a resnet, mobilenet, efficientnet, convnext or regnet"
            )
        self.stages = cut(blocks, [end for end, _ in maps.values()])
        self.strides = list(maps)  # of each stage
        self.pyramid = FeaturePyramidNetwork([maps[s][1] for s in STRIDES], channels)
        self.merge = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(32, channels),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.register_load_state_dict_pre_hook(read_torchvision_names)

    @property
    def backbone(self):
        return self.stages

    def forward(self, images):
        height, width = images.shape[-2:]
        x = F.pad(self.normalise(images), (0, -width % 32, 0, -height % 32), mode="replicate")
        padded = x.shape[-2:]
        levels = {}
        for stride, stage in zip(self.strides, self.stages, strict=True):
            x = stage(x)
            if stride in STRIDES:
                levels[str(stride)] = x
        finest, *coarser = self.pyramid(levels).values()  # each (B, channels, H / s, W / s)
        for level in coarser:
            finest = finest + F.interpolate(level, size=finest.shape[-2:], mode="bilinear")
        logits = self.classifier(self.merge(finest))
        logits = F.interpolate(logits, size=padded, mode="bilinear")
        return {"semantic": logits[..., :height, :width]}


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
