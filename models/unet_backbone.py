"""A U-Net's decoder, down to stride 2, on a classification network.

Small faces lose eyes and mouth at stride 4, where `fpn` reads its classes off. So this is the decoder and the
head of `unet`: skips added (`models.decoder`), and logits of 2x2 pixels unfolded from stride 2 (1609.05158).
"""

import torch.nn.functional as F
from torch import nn

from models.backbones import load_backbone
from models.decoder import Block, build_decoder, decode
from models.normalise import Normalise
from models.panoptic import InstanceDecoder
from models.stages import read_torchvision_names

WIDTHS = {2: 32, 4: 48, 8: 96, 16: 128, 32: 192}  # channels of the decoder at each stride


class BackboneUNet(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> {"semantic": (B, num_classes, H, W)}; any H and W.

    backbone: see `load_backbone`; files with weights of the classification network fit. Where it begins at
    stride 4 (ConvNeXt), stride 2 is a block of our own on the image. preprocess: see `Normalise`. stages: the
    blocks of each stride of the backbone, from the input side. instances: whether there are a "center" and an
    "offset" as well, see `InstanceDecoder`.

    Parameters with 19 classes: efficientnet_lite0 3,627,820, with instances 4,196,520; resnet18 11,912,684.
    """

    def __init__(self, num_classes, backbone="efficientnet_lite0", preprocess="none", instances=False):
        super().__init__()
        self.stages, channels, scale = load_backbone(backbone)
        self.normalise = Normalise(preprocess, *scale)
        self.strides = list(channels)  # of each stage
        self.style_stage = 1 + next(i for i, stride in enumerate(channels) if stride in WIDTHS)
        self.stem = None if 2 in channels else Block(3 * 4, WIDTHS[2], "batch")
        widths = list(WIDTHS.values())
        taps = {stride: channels[stride] for stride in WIDTHS if stride in channels}
        self.reduce = nn.ModuleDict({str(s): nn.Conv2d(c, WIDTHS[s], 1) for s, c in taps.items()})
        self.lateral, self.decoder = build_decoder(widths, "batch")
        self.head = nn.Conv2d(widths[0], num_classes * 4, 3, padding=1)
        self.instances = InstanceDecoder(widths, "batch") if instances else None
        self.register_load_state_dict_pre_hook(read_torchvision_names)

    @property
    def backbone(self):
        return self.stages

    def forward(self, images):
        height, width = images.shape[-2:]
        x = F.pad(self.normalise(images), (0, -width % 32, 0, -height % 32), mode="replicate")
        skips = [] if self.stem is None else [self.stem(F.pixel_unshuffle(x, 2))]  # (B, C, H / s, W / s)
        for stride, stage in zip(self.strides, self.stages, strict=True):
            x = stage(x)
            if stride in WIDTHS:
                skips.append(self.reduce[str(stride)](x))
        logits = F.pixel_shuffle(self.head(decode(self.lateral, self.decoder, skips)), 2)
        found = self.instances(skips, height, width) if self.instances else {}
        return {"semantic": logits[..., :height, :width], **found}
