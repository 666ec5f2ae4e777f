"""What an image is to a KS test: a few numbers, the same for every image, fixed before looking."""

import numpy as np
import torch
import torch.nn.functional as F

from utils.errors import UserError

MAX_FEATURES = 24  # numbers of an image: each one more costs the others power
LARGE = 0.02  # mean share from which a class has a place worth testing


def _centroids(weights):
    """(B, K, H, W) non-negative -> (B, K, 2): x and y in [-1, 1]; the middle if there is next to nothing."""
    height, width = weights.shape[-2:]
    x = (torch.arange(width, device=weights.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=weights.device) * 2 + 1) / height - 1
    mass = weights.mean((2, 3)) + 1e-3
    moments = (weights * x).mean((2, 3)), (weights * y[:, None]).mean((2, 3))
    return torch.stack([moment / mass for moment in moments], 2)


def bbsd(probs):
    """Softmax (B, K, H, W) of a parser -> (B, 3 K + 1): each class's share of the image, mean entropy in
    nats, each class's soft centroid. Black-box shift detection for soft predictions (Lipton et al.,
    1802.03916; the best single reducer in Rabanser et al., 1810.11953), with places added: shares alone
    do not see a translation."""
    entropy = torch.special.entr(probs).sum(1).mean((1, 2))
    return torch.cat([probs.mean((2, 3)), entropy[:, None], _centroids(probs).flatten(1)], 1)


def bbsd_columns(shares, classes, most=MAX_FEATURES):
    """Which columns of `bbsd` are tested: [(column, name)], at most `most`. shares: (K,) mean share of each
    class over all images of both sides, so that the choice knows nothing of who is on which side."""
    count = len(classes)
    columns = [(k, f"share {name}") for k, name in enumerate(classes)] + [(count, "entropy")]
    for k in sorted(range(count), key=lambda k: -shares[k]):
        if shares[k] >= LARGE and len(columns) + 2 <= most:
            columns += [(count + 1 + 2 * k + i, f"{axis} {classes[k]}") for i, axis in enumerate("xy")]
    return columns[:most]


def mask(labels, num_classes):
    """(B, H, W) uint8 masks -> (B, K): each class's share of the labelled pixels."""
    counts = torch.stack([(labels == k).sum((1, 2)) for k in range(num_classes)], 1).float()
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


PIXEL = ["luma", "contrast", "dark", "bright", "saturation", "red", "blue"]
PIXEL += ["x luma", "y luma", "x edges", "y edges", "middle"]
SHOWN = ["sharpness", "gradient"]  # an interpolation alone moves these, so they are shown and never tested


def pixel(images):
    """(B, 3, H, W) in [0, 1] -> (B, 12), `PIXEL`: mean, deviation and 5th and 95th percentile of the luma,
    saturation, share of red and blue, centroids of luma and of its edges, the middle's luma against all."""
    luma = (images * images.new_tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    total = images.sum(1).clamp_min(1e-3)
    high = images.amax(1)
    low = images.amin(1)
    h, w = luma.shape[1:]
    middle = luma[:, h // 4 : -(h // 4), w // 4 : -(w // 4)].mean((1, 2))
    flat = luma.flatten(1)
    numbers = [flat.mean(1), flat.std(1), flat.quantile(0.05, 1), flat.quantile(0.95, 1)]
    numbers += [((high - low) / high.clamp_min(1e-3)).mean((1, 2))]
    numbers += [(images[:, c] / total).mean((1, 2)) for c in (0, 2)]
    centroids = _centroids(torch.stack([luma, edges(luma)], 1)).flatten(1)
    return torch.cat([torch.stack(numbers, 1), centroids, (middle - flat.mean(1))[:, None]], 1)


def edges(luma):
    """(B, H, W) -> the length of the gradient, one pixel apart, zero at the last row and column."""
    dx = F.pad(luma.diff(dim=2), (0, 1))
    dy = F.pad(luma.diff(dim=1), (0, 0, 0, 1))
    return (dx**2 + dy**2).sqrt()


def shown(images):
    """(B, 3, H, W) in [0, 1] -> (B, 2), `SHOWN`: log variance of the Laplacian, mean gradient."""
    luma = images.mean(1)
    laplacian = 4 * luma[:, 1:-1, 1:-1] - luma[:, :-2, 1:-1] - luma[:, 2:, 1:-1]
    laplacian = laplacian - luma[:, 1:-1, :-2] - luma[:, 1:-1, 2:]
    return torch.stack([torch.log(laplacian.var((1, 2)) + 1e-8), edges(luma).mean((1, 2))], 1)


def encode(maps):
    """Feature maps [(B, C, h, w)] of a backbone -> (B, sum of 16 C): means over 4 x 4 cells of the image, as
    means over all of it, or over its quarters, hardly see a translation."""
    return torch.cat([F.adaptive_avg_pool2d(m.float(), 4).flatten(1) for m in maps], 1)


def principal(table, count=8):
    """A PCA of an (N, D) numpy table: the mean (D,) and the first `count` directions (D, count)."""
    mean = table.mean(0)
    return mean, np.linalg.svd(table - mean, full_matrices=False)[2][:count].T


def thumbnails(images, size=16):
    """(B, 3, H, W) -> (B, size, size) grey: what `copies` in test.py compares."""
    return F.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), size)[:, 0]


def extractor(kinds, net, num_classes, device, batch_size):
    """A function of images (N, 3, S, S) uint8 and labels (N, H, W) -> {kind: (N, d)} numpy tables, for each
    of `kinds` (bbsd, encoder, pixel, mask) and `shown`. net: a model of `models`; its softmax and the maps
    that its last two stages give are what is read."""
    maps = []
    for stage in net.stages[-2:] if "encoder" in kinds else []:
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output))

    def rows(images, labels):
        maps.clear()
        found = {"shown": shown(images.float() / 255)}
        if "bbsd" in kinds or "encoder" in kinds:
            logits = net(images.float() / 255)["semantic"].float()
        if "bbsd" in kinds:
            found["bbsd"] = bbsd(logits.softmax(1))
        if "encoder" in kinds:
            found["encoder"] = encode(maps)
        if "pixel" in kinds:
            found["pixel"] = pixel(images.float() / 255)
        if "mask" in kinds:
            found["mask"] = mask(labels, num_classes)
        return found

    @torch.no_grad()
    def extract(images, labels):
        parts = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        pieces = [rows(image.to(device), label) for image, label in parts]
        return {kind: torch.cat([p[kind] for p in pieces]).double().cpu().numpy() for kind in pieces[0]}

    return extract


def choose_columns(found, classes):
    """[(kind, column, name)] of the numbers that are tested, of the tables (rows, d) of each kind."""
    names = {"pixel": PIXEL, "mask": [f"mask {c}" for c in classes]}
    columns = [
        (kind, i, names[kind][i] if kind in names else f"direction {i + 1}")
        for kind in sorted(found.keys() - {"shown", "bbsd"})
        for i in range(found[kind].shape[1])
    ]
    if "bbsd" in found:  # its places give way to others
        chosen = bbsd_columns(found["bbsd"].mean(0), classes, MAX_FEATURES - len(columns))
        columns = [("bbsd", *column) for column in chosen] + columns
    if len(columns) > MAX_FEATURES:
        raise UserError(f"features: {len(columns)} numbers an image; at most {MAX_FEATURES}, choose fewer")
    return columns
