"""The head of DeepLabV3+.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution", 2018 (1802.02611), sec. 3.1, with plain
convolutions: what DeepLabV3 reads off the last map is brought to the size of an early one, put beside it, and
convolved. In training mode it needs at least two images in a batch, as `models.torchvision_seg` says.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP

RATES = (6, 12, 18)  # dilations of ASPP at output stride 16
DROPOUT = 0.1  # torchvision's ASPP has .5
WIDTH = 256
LOW_WIDTH = 48  # channels that the early map is brought down to


def convolution(inputs, outputs, kernel):
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


class DeepLabPlus(nn.Module):
    """Maps (B, low, H / 4, W / 4) and (B, high, H / 16, W / 16) -> logits (B, num_classes, H / 4, W / 4)."""

    def __init__(self, low, high, num_classes):
        super().__init__()
        self.aspp = ASPP(high, RATES, WIDTH)
        self.aspp.project[-1].p = DROPOUT
        self.low = nn.Sequential(*convolution(low, LOW_WIDTH, 1))
        self.merge = nn.Sequential(
            *convolution(LOW_WIDTH + WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, num_classes, 1)
        )

    def forward(self, low, high):
        high = F.interpolate(self.aspp(high), size=low.shape[-2:], mode="bilinear")
        return self.merge(torch.cat([self.low(low), high], 1))
