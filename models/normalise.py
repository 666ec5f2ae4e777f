"""What a model does to a photo before its first layer, as a part of it: no caller can forget it."""

import torch
from torch import nn

# as torchvision's weights expect
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def grey_world(images):
    """Each channel's mean becomes that of all three (Buchsbaum, 1980): the light's colour is taken out."""
    means = images.mean((2, 3), keepdim=True)
    return (images * means.mean(1, keepdim=True) / means.clamp_min(1e-3)).clamp(0, 1)


def standardise(images):
    """Each channel to mean 0 and standard deviation 1 within the photo."""
    std, mean = torch.std_mean(images, (2, 3), keepdim=True)
    return (images - mean) / std.clamp_min(1e-3)


PREPROCESS = ("none", "grey-world", "standardise")


class Normalise(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> (B, 3, H, W) of about zero mean and unit variance.

    preprocess: one of `PREPROCESS`, done to every photo by itself. mean, std: of each channel, ImageNet's by
    default; buffers, so that a checkpoint holds them.
    """

    def __init__(self, preprocess="none", mean=IMAGENET_MEAN, std=IMAGENET_STD):
        super().__init__()
        self.preprocess = preprocess
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.register_load_state_dict_pre_hook(fill_in)

    def forward(self, images):
        if self.preprocess == "grey-world":
            images = grey_world(images)
        images = (images - self.mean) / self.std
        return standardise(images) if self.preprocess == "standardise" else images


def fill_in(module, state, prefix, *_):
    """Checkpoints of format 1 and weights of others hold no normalisation: it was ImageNet's."""
    for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        state.setdefault(prefix + name, torch.tensor(values).view(3, 1, 1))
