"""Style as the mean and standard deviation of each channel of a feature map; giving features another one.

It is that of another image (`MixStyle`), or one out of a bank (`BankStyles`). A bank is a file that
mine_styles.py writes: {"mean", "std": (M, C); "class": (M,), an id or `ANY`; "phrase": M phrases or photos
that they were mined for; "classes": the names of all ids; "patches": p; "mix": one of `MIXES`; "relu":
whether features are never below zero; and of the network that it fits, what `network_of` says}.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import nn

from models.stages import values_of
from utils import checkpoint, lineage
from utils.errors import UserError

EPS = 1e-6  # added to a variance
ANY = 255  # in place of a class: a style for whatever there is
# How the style of a bank is mixed with the image's own; batch: no bank, but the other images (`MixStyle`)
MIXES = ("none", "uniform", "beta", "batch")


def split(features, p):
    """(B, C, H, W) -> its p x p patches (B, C, p, p, h, w), from a map whose last row and column are repeated
    where H and W are no multiples of p."""
    features = F.pad(features, (0, -features.shape[3] % p, 0, -features.shape[2] % p), mode="replicate")
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
    restyled = patches.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return restyled[..., : features.shape[2], : features.shape[3]].to(features.dtype)


def dominant(labels, p):
    """(B, H, W) ids -> (B, p, p) int64: the id that most pixels of each patch have."""
    return split(labels[:, None].float(), p)[:, 0].flatten(3).mode(-1).values.long()


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


class BankStyles(nn.Module):
    """Features (B, C, H, W) that get styles out of a bank, in training only.

    Each patch gets a style drawn at random (PODA: Fahes et al., 2023, 2212.03241, with p = 1), where the bank
    has styles by class one of the class that most of its pixels have (FAMix: Fahes et al., 2024, 2311.17922).
    mix: `none`; or a share of the image's own style that is drawn for each image and channel: `uniform`, or
    `beta`, from Beta(0.1, 0.1). Draws from torch's generator of the CPU; nothing in the state dict.
    """

    def __init__(self, bank):
        super().__init__()
        self.p = bank["patches"]
        self.mix = bank["mix"]
        self.relu = bank["relu"]
        self.classes = bank["class"]
        self.by_class = bool((self.classes != ANY).any())
        self.labels = None  # (B, H, W) of the batch, for a bank by class: set before the forward pass
        self.register_buffer("mean", bank["mean"], persistent=False)
        self.register_buffer("std", bank["std"], persistent=False)

    def forward(self, features):
        if not self.training:
            return features
        rows = self.draw(len(features)).to(features.device)
        mean, std = self.mean[rows].permute(0, 3, 1, 2), self.std[rows].permute(0, 3, 1, 2)
        if self.mix != "none":
            shape = (*features.shape[:2], 1, 1)
            beta = torch.distributions.Beta(0.1, 0.1)
            share = (torch.rand(shape) if self.mix == "uniform" else beta.sample(shape)).to(features.device)
            own_mean, own_std = style(features, self.p)
            mean = share * own_mean + (1 - share) * mean
            std = share * own_std + (1 - share) * std
        restyled = restyle(features, mean, std)
        return restyled.relu() if self.relu else restyled

    def draw(self, count):
        """(count, p, p): a row of the bank for each patch. Where it has none of a class, one of `ANY`, else
        one of all."""
        wanted = torch.full((count, self.p, self.p), ANY)
        if self.by_class:
            wanted = dominant(self.labels, self.p).cpu()
        drawn = torch.empty_like(wanted)
        for each in wanted.unique():
            rows = (self.classes == each).nonzero()[:, 0]
            if not len(rows):
                rows = (self.classes == ANY).nonzero()[:, 0]
            if not len(rows):
                rows = torch.arange(len(self.classes))
            places = wanted == each
            drawn[places] = rows[torch.randint(len(rows), (int(places.sum()),))]
        return drawn

    def hook(self, block, inputs, output):
        """As `MixStyle.hook`."""
        return self(output)


def digest(tensors):
    """Of tensors, whatever their names and order, as hexadecimal digits. Values in half precision count as
    the same in float32."""
    each = [
        hashlib.sha256(
            f"{tuple(t.shape)}".encode() + t.detach().float().cpu().contiguous().numpy().tobytes()
        ).hexdigest()
        for t in tensors
    ]
    return hashlib.sha256("".join(sorted(each)).encode()).hexdigest()


def network_of(model, stage):
    """{"stage", "preprocess", "digest"}: the part of a model that gives the features after a stage, counted
    from 1."""
    tensors = values_of(model.normalise, *model.stages[:stage])
    return {"stage": stage, "preprocess": model.normalise.preprocess, "digest": digest(tensors)}


@torch.no_grad()
def features_after(model, images, stage):
    """(B, 3, H, W) in 0 to 1 -> (B, C, h, w) float32: what a model has after a stage, counted from 1."""
    found = []
    block = model.stages[stage - 1]
    handle = block.register_forward_hook(lambda module, inputs, output: found.append(output.float()))
    model(images)
    handle.remove()
    return found[0]


def embed(model, features, stage):
    """Features (B, C, h, w) after a stage, counted from 1 -> (B, D) float32: CLIP's embedding, or where a
    network has none the mean of its last stage's map."""
    if getattr(model, "embedding", None):
        return model.embed(features, stage)
    for block in model.stages[stage:]:
        features = block(features)
    return features.float().mean((-2, -1))


def load_bank(path):
    """The bank in a file. Raises UserError: missing, damaged, something else."""
    try:
        bank = checkpoint.load(path, holds="mean")
    except UserError as error:
        raise UserError(f"{error}; a bank is what mine_styles.py writes") from None
    rows = bank["mean"].shape if torch.is_tensor(bank["mean"]) else ()
    plain = {"phrase": list, "classes": list, "stage": int, "preprocess": str, "digest": str, "relu": bool}
    whole = len(rows) == 2 and bank.get("mix") in MIXES and isinstance(bank.get("patches"), int)
    whole = whole and all(isinstance(bank.get(key), kind) for key, kind in plain.items())
    whole = whole and all(torch.is_tensor(bank.get(key)) for key in ("std", "class"))
    whole = whole and bank["std"].shape == rows and bank["class"].shape == rows[:1]
    whole = whole and not ("lineage" in bank and lineage.fault_of(bank["lineage"]))
    if not whole or not (rows[0] or bank["mix"] == "batch"):
        raise UserError(f"{path}: is no bank of styles; mine_styles.py writes them")
    if not (bank["mean"].isfinite().all() and bank["std"].isfinite().all()):
        raise UserError(f"{path}: holds styles that are not finite; mine again, with a lower --lr")
    return bank


def attach(model, bank, source, classes):
    """Let a model's features have the styles of a bank in training; returns the module that gives them.

    source: the bank's file. classes: names of the model's classes. Raises UserError where the bank is of
    another network, of other classes, or the stages up to its own would be trained.
    """
    stage = bank["stage"]
    fits = stage <= len(model.stages) and network_of(model, stage)
    if not fits or any(fits[key] != bank[key] for key in fits):
        raise UserError(
            f"{source}: was mined for another network; mine for this one, or start from the checkpoint that "
            "it was mined with"
        )
    if any(p.requires_grad for p in model.stages[:stage].parameters()):
        raise UserError(
            f"{source}: holds styles after stage {stage}, which would be trained away from them: --freeze "
            f"backbone, or at least --freeze {stage}"
        )
    by_class = bool((bank["class"] != ANY).any())
    if by_class and bank["classes"] != list(classes):
        raise UserError(
            f"{source}: styles of the classes {' '.join(bank['classes'])}; the data has {' '.join(classes)}"
        )
    styles = MixStyle() if bank["mix"] == "batch" else BankStyles(bank)
    model.styles = styles.to(next(model.parameters()).device).train(model.training)
    model.stages[stage - 1].register_forward_hook(model.styles.hook)
    return model.styles
