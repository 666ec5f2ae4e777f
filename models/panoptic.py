"""The instance decoder of the `panoptic_` networks.

Cheng et al., "Panoptic-DeepLab", 2020 (1911.10194), sec. 3: on one encoder stand a decoder for classes and
one for a heat-map of the centres of instances and, at each pixel, the offset to the centre of its own. Both
are decoders of `unet`. `utils.instances` has the targets, the losses and the grouping of pixels.
"""

import torch.nn.functional as F
from torch import nn

from models.decoder import build_decoder, decode

STRIDE = 2  # of the map that the head reads


class InstanceDecoder(nn.Module):
    """Skips of the encoder, and height and width of the input -> {"center": (B, 1, H, W), heat of about 0 to
    1, "offset": (B, 2, H, W), rows then columns, in pixels of the input}.

    widths: channels of the skips, at strides 2, 4, 8, ... norm: `batch` or `group`.
    """

    def __init__(self, widths, norm):
        super().__init__()
        self.lateral, self.decoder = build_decoder(widths, norm)
        self.head = nn.Conv2d(widths[0], 3 * 4, 3, padding=1)

    def forward(self, skips, height, width):
        maps = F.pixel_shuffle(self.head(decode(self.lateral, self.decoder, skips)), 2)
        maps = maps[..., :height, :width]
        # as in the paper: offsets are learned in steps of the map that the head reads
        return {"center": maps[:, :1], "offset": maps[:, 1:] * STRIDE}
