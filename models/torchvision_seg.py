"""torchvision's segmentation networks behind the interface of this repository.

DeepLabV3: Chen et al., 2017 (1706.05587). LR-ASPP: Howard et al., "Searching for MobileNetV3", 2019
(1905.02244). The auxiliary head is not built.

In training mode DeepLabV3 needs at least two images in a batch (on each device): its image pooling
has one value per channel and image, of which BatchNorm cannot take a variance.
"""

import torch.nn.functional as F
import torchvision
from torch import nn

from models.normalise import Normalise
from models.stages import cut, read_torchvision_names

RESNET = (3, 5, 6, 7, 8)  # conv1 to relu; maxpool and layer1; layer2; layer3; layer4
MOBILENET_V3 = (
    2,
    4,
    5,
    13,
    17,
)  # strides 2, 4, 8, 16, 16 (the last is dilated); the third is what LR-ASPP taps
# How many of the backbone's children each stage ends after.
STAGE_ENDS = {
    "deeplabv3_resnet50": RESNET,
    "deeplabv3_resnet101": RESNET,
    "lraspp_mobilenet_v3_large": MOBILENET_V3,
}


class TorchvisionSegmenter(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> {"semantic": (B, num_classes, H, W)}; any H and W.

    name: a key of `STAGE_ENDS`; torchvision's files fit. preprocess: see `Normalise`. stages: five parts of
    the backbone, from the input side.

    Parameters with 19 classes: deeplabv3_resnet50 39,638,355; deeplabv3_resnet101 58,630,483;
    lraspp_mobilenet_v3_large 3,221,198.
    """

    def __init__(self, name, num_classes, preprocess="none"):
        super().__init__()
        net = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=False
        )
        self.normalise = Normalise(preprocess)
        self.stages = cut(list(net.backbone.named_children()), STAGE_ENDS[name])
        self.classifier = net.classifier
        self.two_levels = name.startswith("lraspp")  # DeepLab's head reads one map, LR-ASPP's two
        self.style_stage = 3 if self.two_levels else 2  # what LR-ASPP taps; layer1
        self.register_load_state_dict_pre_hook(read_torchvision_names)

    @property
    def backbone(self):
        return self.stages

    def forward(self, images):
        maps = [self.normalise(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        features = {"low": maps[3], "high": maps[5]} if self.two_levels else maps[5]
        logits = self.classifier(features)
        return {"semantic": F.interpolate(logits, size=images.shape[-2:], mode="bilinear")}
