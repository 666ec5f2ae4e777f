"""A compact U-Net for training from scratch, on a CPU too.

Ronneberger, Fischer, Brox, "U-Net", 2015 (1505.04597), made cheap where pixels are many: the stem
folds 2x2 pixels into channels and the head unfolds them again (Shi et al., 2016, 1609.05158), so
all work is done from stride 2 on; skips are added, as in FPN (1612.03144), rather than concatenated.
"""

import torch.nn.functional as F
from torch import nn

from models.normalise import Normalise


def normalisation(norm, channels):
    """`batch`, or `group` (8 channels a group), which has no batch statistics."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(channels // 8, channels)


class Block(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H, W): two 3x3 convolutions, the second with a residual."""

    def __init__(self, inputs, outputs, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = normalisation(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = normalisation(norm, outputs)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> {"semantic": (B, num_classes, H, W)}; any H and W.

    norm: `batch` or `group`. preprocess: see `Normalise`. widths: channels at strides 2, 4, 8, ...;
    1,549,492 parameters with 19 classes.
    """

    def __init__(self, num_classes, norm="batch", preprocess="none", widths=(24, 48, 96, 128, 192)):
        super().__init__()
        self.normalise = Normalise(preprocess)
        inputs = (3 * 4, *widths[:-1])
        self.stages = nn.ModuleList(Block(i, o, norm) for i, o in zip(inputs, widths, strict=True))
        up = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.lateral = nn.ModuleList(nn.Conv2d(deep, skip, 1) for deep, skip in up)
        self.decoder = nn.ModuleList(Block(skip, skip, norm) for _, skip in up)
        self.head = nn.Conv2d(widths[0], num_classes * 4, 3, padding=1)

    @property
    def backbone(self):
        return self.stages

    def forward(self, images):
        height, width = images.shape[-2:]
        stride = 2 ** len(self.stages)
        x = F.pad(self.normalise(images), (0, -width % stride, 0, -height % stride), mode="replicate")
        x = F.pixel_unshuffle(x, 2)
        skips = []
        for i, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        skips.pop()
        for lateral, block in zip(self.lateral, self.decoder, strict=True):
            x = block(F.interpolate(lateral(x), scale_factor=2, mode="nearest") + skips.pop())
        return {"semantic": F.pixel_shuffle(self.head(x), 2)[..., :height, :width]}
