"""The image encoder of CLIP's RN50, as a parser.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021 (2103.00020),
sec. 2.4 (github.com/openai/CLIP, clip/model.py): a ResNet-50 with a stem of three convolutions, average
pooling in place of strides, and attention in place of the last pooling. As a parser it is PODA's (Fahes et
al., 2023, 2212.03241): layer4 has no stride, and its last block is dilated. `recipes/embed_prompts.py` embeds
phrases.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.deeplab_plus import DeepLabPlus
from models.normalise import Normalise
from models.stages import cut, read_torchvision_names, values_of

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# of each block of layer1 to layer4: (stride, stride and dilation in the parser)
LAYERS = (
    ((1, 1, 1),) * 3,
    ((2, 2, 1), *((1, 1, 1),) * 3),
    ((2, 2, 1), *((1, 1, 1),) * 5),
    ((2, 1, 1), (1, 1, 1), (1, 1, 2)),
)
WIDTHS = (64, 128, 256, 512)  # inside the blocks of each layer
GRIDS = (56, 56, 28, 14, 7)  # side of the map after each stage for the 224 pixels that CLIP was trained with
HEADS = 32
EMBEDDING = 1024


class Bottleneck(nn.Module):
    """(B, inputs, H, W) -> (B, 4 * width, H / stride, W / stride), rounded down.

    stride, dilation: in the parser. clip_stride: in CLIP, without dilation.
    """

    def __init__(self, inputs, width, clip_stride, stride, dilation):
        super().__init__()
        self.clip_stride, self.stride, self.dilation = clip_stride, stride, dilation
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if inputs != 4 * width:
            projection = nn.Conv2d(inputs, 4 * width, 1, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, x, clip=False):
        """clip: as in CLIP, rather than as in the parser."""
        stride, dilation = (self.clip_stride, 1) if clip else (self.stride, self.dilation)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.conv2d(y, self.conv2.weight, padding=dilation, dilation=dilation)
        y = F.relu(self.bn2(y))
        if stride > 1:
            x, y = F.avg_pool2d(x, stride), F.avg_pool2d(y, stride)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.downsample(x) if self.downsample else x))


class AttentionPool(nn.Module):
    """(B, channels, side, side) -> (B, outputs): the mean over positions attends to them and to itself."""

    def __init__(self, channels, side, heads, outputs):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, channels) / channels**0.5)
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, outputs)

    def forward(self, x):
        x = x.flatten(2).mT  # (B, positions, channels)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        projected = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        # each (B, heads, positions, channels / heads)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in projected)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))


def build_stages():
    """`Stages`, with CLIP's names: the stem (stride 4) and layer1 to layer4, of random weights."""
    blocks, inputs = [], 3
    for i, outputs in enumerate((32, 32, 64), start=1):
        stride = 2 if i == 1 else 1
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        blocks += [(f"conv{i}", conv), (f"bn{i}", nn.BatchNorm2d(outputs)), (f"relu{i}", nn.ReLU())]
        inputs = outputs
    blocks.append(("avgpool", nn.AvgPool2d(2)))
    ends = [len(blocks)]
    for number, (width, strides) in enumerate(zip(WIDTHS, LAYERS, strict=True), start=1):
        for i, numbers in enumerate(strides):
            blocks.append((f"layer{number}.{i}", Bottleneck(inputs, width, *numbers)))
            inputs = 4 * width
        ends.append(len(blocks))
    return cut(blocks, ends)


class ClipResNet(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> {"semantic": (B, num_classes, H, W)}; any H and W.

    preprocess: see `Normalise`. stages: the stem and layer1 to layer4. embedding: CLIP's attention, which the
    parser does not use.

    Parameters with 19 classes: 54,570,195.
    """

    style_stage = 2  # layer1, as in PODA: its map is the first that the head reads

    def __init__(self, num_classes, preprocess="none"):
        super().__init__()
        self.normalise = Normalise(preprocess, MEAN, STD)
        self.stages = build_stages()
        channels = 4 * WIDTHS[-1]
        # no loss of a parser reads it, and DDP waits for every parameter that has a gradient
        self.embedding = AttentionPool(channels, GRIDS[-1], HEADS, EMBEDDING).requires_grad_(False)
        self.classifier = DeepLabPlus(4 * WIDTHS[0], channels, num_classes)
        self.register_load_state_dict_pre_hook(read_torchvision_names)

    @property
    def backbone(self):
        return self.stages

    def forward(self, images):
        height, width = images.shape[-2:]
        x = F.pad(self.normalise(images), (0, -width % 16, 0, -height % 16), mode="replicate")
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        logits = self.classifier(maps[2], maps[5])
        logits = F.interpolate(logits, size=x.shape[-2:], mode="bilinear")
        return {"semantic": logits[..., :height, :width]}

    def embed(self, features, stage):
        """Features after stage number `stage`, counted from 1, of any size -> (B, 1024), float32, as CLIP
        embeds an image of 224 pixels: pooled to the map that this has there, and without dilation."""
        x = F.adaptive_avg_pool2d(features, GRIDS[stage - 1])
        for layer in self.stages[stage:]:
            for block in layer:
                x = block(x, clip=True)
        return self.embedding(x).float()

    def tower_tensors(self):
        """Everything that an embedding depends on but the normalisation, a list of tensors."""
        return values_of(self.stages, self.embedding)
