"""A compact U-Net for training from scratch, on a CPU too.

Ronneberger, Fischer, Brox, "U-Net", 2015 (1505.04597), made cheap where pixels are many: the stem
folds 2x2 pixels into channels and the head unfolds them again (Shi et al., 2016, 1609.05158), so
all work is done from stride 2 on; skips are added (`models.decoder`).
"""

import torch.nn.functional as F
from torch import nn

from models.decoder import Block, build_decoder, decode
from models.normalise import Normalise
from models.panoptic import InstanceDecoder


class UNet(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> {"semantic": (B, num_classes, H, W)}; any H and W.

    norm: `batch` or `group`. preprocess: see `Normalise`. widths: channels at strides 2, 4, 8, ... instances:
    whether there are a "center" and an "offset" as well, see `InstanceDecoder`.

    Parameters with 19 classes: 1,549,492; with instances 2,108,840.
    """

    def __init__(
        self, num_classes, norm="batch", preprocess="none", widths=(24, 48, 96, 128, 192), instances=False
    ):
        super().__init__()
        self.normalise = Normalise(preprocess)
        inputs = (3 * 4, *widths[:-1])
        self.stages = nn.ModuleList(Block(i, o, norm) for i, o in zip(inputs, widths, strict=True))
        self.lateral, self.decoder = build_decoder(widths, norm)
        self.head = nn.Conv2d(widths[0], num_classes * 4, 3, padding=1)
        self.instances = InstanceDecoder(widths, norm) if instances else None

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
        logits = F.pixel_shuffle(self.head(decode(self.lateral, self.decoder, skips)), 2)
        found = self.instances(skips, height, width) if self.instances else {}
        return {"semantic": logits[..., :height, :width], **found}
