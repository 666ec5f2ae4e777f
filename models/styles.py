"""Style as the mean and standard deviation of each channel of a feature map, and mixing it between images."""

import hashlib

import torch
from torch import nn

EPS = 1e-6  # added to a variance


def split(features, p):
    """(B, C, H, W) -> its p x p patches (B, C, p, p, H / p, W / p). H and W are multiples of p."""
    b, c, h, w = features.shape
    return features.reshape(b, c, p, h // p, p, w // p).transpose(3, 4)


def style(features, p=1):
    """(B, C, H, W) -> mean and standard deviation, each (B, C, p, p), of its p x p patches: detached, in
    float32."""
    var, mean = torch.var_mean(split(features.detach().float(), p), (-2, -1), correction=0)
    return mean, (var + EPS).sqrt()


def restyle(features, mean, std):
    """Give each of the p x p patches of features (B, C, H, W) another mean and standard deviation.

    mean, std: (B, C, p, p); with p = 1 a style is the whole map's. AdaIN: Huang and Belongie, 2017
    (1703.06868). No gradient flows through the features' own style.
    """
    p = mean.shape[-1]
    own_mean, own_std = style(features, p)
    mean, std, own_mean, own_std = (s[..., None, None] for s in (mean, std, own_mean, own_std))
    patches = (split(features.float(), p) - own_mean) / own_std * std + mean
    return patches.transpose(3, 4).reshape(features.shape).to(features.dtype)


def digest(tensors):
    """Of tensors, whatever their names and order, as hexadecimal digits. Values in half precision count
    as the same in float32."""
    each = [
        hashlib.sha256(
            f"{tuple(t.shape)}".encode() + t.detach().float().cpu().contiguous().numpy().tobytes()
        ).hexdigest()
        for t in tensors
    ]
    return hashlib.sha256("".join(sorted(each)).encode()).hexdigest()


class MixStyle(nn.Module):
    """Features (B, C, H, W) whose style is mixed with that of another image of the batch, in training only.

    Zhou et al., "Domain Generalization with MixStyle", 2021 (2104.02008). p: probability that a batch is
    mixed at all. alpha: of Beta(alpha, alpha), which each image's share comes from; the greater of the two
    shares is the image's own. Draws from torch's generator of the CPU. No parameters, no buffers.
    """

    def __init__(self, p=0.5, alpha=0.1):
        super().__init__()
        self.p = p
        self.alpha = alpha
        self.partners = None  # of the last forward pass, (B,); None where nothing was mixed
        self.shares = None  # each image's own, (B,), 0.5 to 1

    def forward(self, features):
        self.partners = None
        if not self.training or torch.rand(()) >= self.p:
            return features
        shares = torch.distributions.Beta(self.alpha, self.alpha).sample((len(features),))
        self.shares = torch.maximum(shares, 1 - shares).to(features.device)
        self.partners = torch.randperm(len(features)).to(features.device)
        mean, std = style(features)
        return restyle(features, self.mix(mean), self.mix(std))

    def hook(self, block, inputs, output):
        """For `block.register_forward_hook`, so that the block's names in a state dict stay."""
        return self(output)

    def mix(self, values):
        """(B, ...) -> each image's mixed with its partner's."""
        shares = self.shares.view(-1, *[1] * (values.ndim - 1))
        return shares * values + (1 - shares) * values[self.partners]

    def follow(self, shares):
        """Shares of the domains (B, D) -> those of the styles that the last forward pass gave."""
        return shares if self.partners is None else self.mix(shares)
