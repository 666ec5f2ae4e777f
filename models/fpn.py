"""A light feature pyramid on a classification network.

Lin et al., "Feature Pyramid Networks", 2017 (1612.03144), for the pyramid; Kirillov et al.,
"Panoptic Feature Pyramid Networks", 2019 (1901.02446), for reading a segmentation off it: all
levels are brought to stride 4 and added, then convolved and classified.
"""

import torch.nn.functional as F
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from models.backbones import STRIDES, load_backbone
from models.normalise import Normalise
from models.stages import read_torchvision_names


class FPN(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> {"semantic": (B, num_classes, H, W)}; any H and W.

    backbone: see `load_backbone`; files with weights of the classification network fit.
    preprocess: see `Normalise`. channels: width of the pyramid, a multiple of 32 (the groups of its
    normalisation). stages: the blocks of each stride, from the input side (ResNet: conv1, layer1 to layer4).

    Parameters with 19 classes and 128 channels: resnet18 12,040,403; resnet50 24,740,563;
    mobilenet_v3_large 3,858,371; efficientnet_v2_s 21,117,155; convnext_tiny 28,743,923;
    efficientnet_lite0 3,763,347.
    """

    def __init__(self, num_classes, backbone="resnet18", preprocess="none", channels=128):
        super().__init__()
        self.stages, widths, scale = load_backbone(backbone)
        self.normalise = Normalise(preprocess, *scale)
        self.strides = list(widths)  # of each stage
        self.style_stage = 1 + next(i for i, stride in enumerate(widths) if stride in STRIDES)
        self.pyramid = FeaturePyramidNetwork([widths[s] for s in STRIDES], channels)
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
