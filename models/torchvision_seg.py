"""torchvision's segmentation networks behind the interface of this repository.

DeepLabV3: Chen et al., 2017 (1706.05587). LR-ASPP: Howard et al., "Searching for MobileNetV3", 2019
(1905.02244). The auxiliary head is not built.

In training mode DeepLabV3 needs at least two images in a batch (on each device): its image pooling
has one value per channel and image, of which BatchNorm cannot take a variance.
"""

import torch.nn.functional as F
import torchvision
from torch import nn

RESNET = (3, 5, 6, 7, 8)  # conv1 to relu; maxpool and layer1; layer2; layer3; layer4
MOBILENET_V3 = (2, 4, 7, 13, 17)  # blocks of strides 2, 4, 8, 16, 32 (here the last is dilated)
# How many of the backbone's children each stage ends after.
STAGE_ENDS = {
    "deeplabv3_resnet50": RESNET,
    "deeplabv3_resnet101": RESNET,
    "lraspp_mobilenet_v3_large": MOBILENET_V3,
}


class TorchvisionSegmenter(nn.Module):
    """(B, 3, H, W) -> {"semantic": (B, num_classes, H, W)}; any H and W.

    name: a key of `STAGE_ENDS`. Parameters keep torchvision's names, so that its files fit.

    Parameters with 19 classes: deeplabv3_resnet50 39,638,355; deeplabv3_resnet101 58,630,483;
    lraspp_mobilenet_v3_large 3,221,198.
    """

    def __init__(self, name, num_classes):
        super().__init__()
        net = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=False
        )
        self.backbone, self.classifier = net.backbone, net.classifier
        self.ends = STAGE_ENDS[name]

    @property
    def stages(self):
        """Five parts of the backbone, from the input side."""
        children = list(self.backbone.children())
        starts = (0, *self.ends[:-1])
        return [nn.Sequential(*children[i:j]) for i, j in zip(starts, self.ends, strict=True)]

    def forward(self, images):
        features = self.backbone(images)  # a dict: DeepLab's head reads one map, LR-ASPP's two
        logits = self.classifier(features.get("out", features))
        return {"semantic": F.interpolate(logits, size=images.shape[-2:], mode="bilinear")}
