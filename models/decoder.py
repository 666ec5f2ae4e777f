"""The decoder that `unet`, `unet_` and `panoptic_` networks share.

From coarse to fine, each level is brought to twice its size, added to the skip of that stride, as in FPN
(1612.03144), rather than concatenated, and convolved.
"""

import torch.nn.functional as F
from torch import nn


def normalisation(norm, channels):
    """`batch`, or `group` (8 channels a group), which has no batch statistics."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(channels // 8, channels)


class Block(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H, W): two 3x3 convolutions, the second with a residual.

    pool: whether 2x2 max pooling comes before them; then to (B, outputs, H / 2, W / 2).
    """

    def __init__(self, inputs, outputs, norm, pool=False):
        super().__init__()
        self.pool = pool
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = normalisation(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = normalisation(norm, outputs)

    def forward(self, x):
        if self.pool:
            x = F.max_pool2d(x, 2)
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(x)))


def build_decoder(widths, norm):
    """(laterals, blocks), a `ModuleList` each, from the coarsest level on. widths: channels at strides 2, 4,
    8, ...; norm: `batch` or `group`."""
    up = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
    laterals = nn.ModuleList(nn.Conv2d(deep, skip, 1) for deep, skip in up)
    return laterals, nn.ModuleList(Block(skip, skip, norm) for _, skip in up)


def decode(laterals, blocks, skips):
    """Maps (B, widths[i], H / 2 ** (i + 1), W / 2 ** (i + 1)) -> (B, widths[0], H / 2, W / 2)."""
    x = skips[-1]
    for lateral, block, skip in zip(laterals, blocks, skips[-2::-1], strict=True):
        x = block(F.interpolate(lateral(x), scale_factor=2, mode="nearest") + skip)
    return x
