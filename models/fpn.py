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
    """(B, 3, H, W) -> {"semantic": (B, num_classes, H, W)}; any H and W.

    backbone: a name from `torchvision.models`, with feature maps at strides 4, 8, 16 and 32. Its
    parameters keep torchvision's names, so that torchvision's files fit `self.backbone`.
    channels: width of the pyramid, a multiple of 32 (the groups of its normalisation).

    Parameters with 19 classes and 128 channels: resnet18 12,040,403; resnet50 24,740,563;
    mobilenet_v3_large 3,858,371; efficientnet_v2_s 21,117,155; convnext_tiny 28,743,923.
    """

    def __init__(self, num_classes, backbone="resnet18", channels=128):
        super().__init__()
        self.backbone = torchvision.models.get_model(backbone, weights=None)
        children = dict(self.backbone.named_children())
        trunk = next((names for names in TRUNKS if children.keys() >= set(names)), ())
        for name in children.keys() - set(trunk):
            delattr(self.backbone, name)  # the classification head

        self.ends, widths = self.measure() if trunk else ({}, {})
        if not self.ends.keys() >= set(STRIDES):
            raise UserError(
                f"{backbone} has no feature maps (B, C, H, W) at strides 4, 8, 16 and 32, which an "
                "FPN needs: choose a resnet, mobilenet, efficientnet, convnext or regnet"
            )
        self.pyramid = FeaturePyramidNetwork([widths[s] for s in STRIDES], channels)
        self.merge = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(32, channels),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    @property
    def blocks(self):
        """The backbone as a list of modules to be called one after the other."""
        parts = self.backbone.children()
        return [b for part in parts for b in (part if isinstance(part, nn.Sequential) else [part])]

    @property
    def stages(self):
        """The blocks of each stride, from the input side (ResNet: conv1, layer1, ... layer4)."""
        ends = list(self.ends.values())
        blocks = self.blocks
        return [nn.Sequential(*blocks[i:j]) for i, j in zip([0, *ends[:-1]], ends, strict=True)]

    @torch.no_grad()
    def measure(self):
        """Try one image: {stride: blocks up to its last map} and {stride: channels of that map}."""
        ends, widths = {}, {}
        x = torch.zeros(1, 3, 64, 64)
        self.backbone.eval()  # keeps the statistics of BatchNorm as they are
        for end, block in enumerate(self.blocks, start=1):
            x = block(x)
            if x.ndim == 4 and x.shape[2] == x.shape[3]:  # else not (B, C, H, W)
                stride = 64 / x.shape[3]
                ends[stride], widths[stride] = end, x.shape[1]
        self.backbone.train()
        return ends, widths

    def forward(self, images):
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % 32, 0, -height % 32), mode="replicate")
        padded = x.shape[-2:]
        taps = [self.ends[stride] for stride in STRIDES]
        levels = {}
        for end, block in enumerate(self.blocks, start=1):
            x = block(x)
            if end in taps:
                levels[end] = x
        finest, *coarser = self.pyramid(levels).values()  # each (B, channels, H / s, W / s)
        for level in coarser:
            finest = finest + F.interpolate(level, size=finest.shape[-2:], mode="bilinear")
        logits = self.classifier(self.merge(finest))
        logits = F.interpolate(logits, size=padded, mode="bilinear")
        return {"semantic": logits[..., :height, :width]}
