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
from models.stages import values_of


class UNet(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> {"semantic": (B, num_classes, H, W)}; any H and W.

    norm: `batch` or `group`. preprocess: see `Normalise`. widths: channels at strides 2, 4, 8, ... instances:
    whether there are a "center" and an "offset" as well, see `InstanceDecoder`. embedding: size of what
    `embed` gives, for the image encoder of a CLIP; 0: there is none.

    Parameters with 19 classes: 1,549,492; with instances 2,108,840; with an embedding of 64 1,561,844.
    """

    style_stage = 1  # the first whose map the head reads

    def __init__(
        self,
        num_classes,
        norm="batch",
        preprocess="none",
        widths=(24, 48, 96, 128, 192),
        instances=False,
        embedding=0,
    ):
        super().__init__()
        self.normalise = Normalise(preprocess)
        inputs = (3 * 4, *widths[:-1])
        self.stages = nn.ModuleList(
            Block(i, o, norm, pool=number > 0)
            for number, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.lateral, self.decoder = build_decoder(widths, norm)
        self.head = nn.Conv2d(widths[0], num_classes * 4, 3, padding=1)
        self.instances = InstanceDecoder(widths, norm) if instances else None
        # no loss of a parser reads it, and DDP waits for every parameter that has a gradient
        self.embedding = nn.Linear(widths[-1], embedding).requires_grad_(False) if embedding else None

    @property
    def backbone(self):
        return self.stages

    def forward(self, images):
        height, width = images.shape[-2:]
        stride = 2 ** len(self.stages)
        x = F.pad(self.normalise(images), (0, -width % stride, 0, -height % stride), mode="replicate")
        x = F.pixel_unshuffle(x, 2)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        logits = F.pixel_shuffle(self.head(decode(self.lateral, self.decoder, skips)), 2)
        found = self.instances(skips, height, width) if self.instances else {}
        return {"semantic": logits[..., :height, :width], **found}

    def embed(self, features, stage):
        """Features after stage number `stage`, counted from 1 -> (B, embedding), float32."""
        for block in self.stages[stage:]:
            features = block(features)
        return self.embedding(features.mean((2, 3))).float()

    def tower_tensors(self):
        """Everything that an embedding depends on but the normalisation, a list of tensors."""
        return values_of(self.stages, self.embedding)
