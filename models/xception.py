"""Xception-65 as DeepLab has it, without its classification head.

Chollet, "Xception", 2017 (1610.02357), for the depthwise separable convolutions and the three flows; Chen et
al., "Encoder-Decoder with Atrous Separable Convolution" (DeepLabv3+), 2018 (1802.02611), figure 4, for this
form: a deeper middle flow, strides in place of max pooling, BatchNorm after each depthwise convolution. As in
github.com/tensorflow/models, research/deeplab/core/xception.py, at output stride 32.
"""

from torch import nn

EPSILON = 1e-3  # of BatchNorm, DeepLab's
# (channels of the three separable convolutions, stride of the last) of each block with a shortcut
BLOCKS = (
    *(((128,) * 3, 2), ((256,) * 3, 2), ((728,) * 3, 2)),  # entry flow
    *[((728,) * 3, 1)] * 16,  # middle flow
    ((728, 1024, 1024), 2),  # exit flow
)
LAST = (1536, 1536, 2048)


def convolution(inputs, outputs, kernel, stride=1, groups=1):
    """[convolution, BatchNorm]: (B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs, eps=EPSILON)]


class Block(nn.Module):
    """(B, inputs, H, W) -> (B, widths[-1], H / stride, W / stride), rounded up: separable convolutions, each
    after a ReLU, are added to the input, which is projected where it has another shape."""

    def __init__(self, inputs, widths, stride):
        super().__init__()
        layers = []
        for i, outputs in enumerate(widths):
            narrow = widths[i - 1] if i else inputs
            step = stride if i == len(widths) - 1 else 1
            layers += [nn.ReLU(), *convolution(narrow, narrow, 3, step, groups=narrow)]
            layers += convolution(narrow, outputs, 1)
        self.layers = nn.Sequential(*layers)
        same = stride == 1 and inputs == widths[-1]
        self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(inputs, widths[-1], 1, stride))

    def forward(self, x):
        return self.layers(x) + self.shortcut(x)


class Xception65(nn.Module):
    """(B, 3, H, W), normalised -> (B, 2048, H / 32, W / 32), rounded up.

    `features`: stem, 20 blocks with a shortcut, and a last one without. There are no weights for it here.
    37,867,312 parameters; 39,916,312 with a linear layer to 1000 classes.
    """

    def __init__(self):
        super().__init__()
        stem = [*convolution(3, 32, 3, stride=2), nn.ReLU(), *convolution(32, 64, 3), nn.ReLU()]
        blocks = [nn.Sequential(*stem)]
        inputs = 64
        for widths, stride in BLOCKS:
            blocks.append(Block(inputs, widths, stride))
            inputs = widths[-1]
        last = []  # here ReLU comes after each convolution
        for outputs in LAST:
            last += [*convolution(inputs, inputs, 3, groups=inputs), nn.ReLU()]
            last += [*convolution(inputs, outputs, 1), nn.ReLU()]
            inputs = outputs
        self.features = nn.Sequential(*blocks, nn.Sequential(*last))

    def forward(self, images):
        return self.features(images)
