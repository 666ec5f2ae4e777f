"""Instances by their centres: the targets of a network, its losses, and the grouping of pixels.

Cheng et al., "Panoptic-DeepLab", 2020 (1911.10194), sec. 3. The centre of an instance is the mean of its
visible pixels, and need not lie on one of them. Instances whose centres are within `REACH` of one another
cannot be told apart. Coordinates and offsets are rows, then columns, in pixels. Results are on the device of
the inputs.
"""

import torch
import torch.nn.functional as F

UNKNOWN = 255  # the id of pixels that are neither learned nor scored
# Shares of the input's longer side, 4 pixels of 160. The paper has 8 and 3 pixels of 2049, for street scenes.
SIGMA = 1 / 40  # of the Gaussian around a centre
REACH = 1 / 40  # a centre is the maximum of the heat within so many rows and columns
THRESHOLD = 0.1  # heat that a centre exceeds
MOST = 200  # centres that are kept, the hottest
SMALLEST = 1 / 4000  # share of the input that a segment covers at least
PAIRS = 2**22  # of pixels and centres whose distances are held at once


def called(things):
    """What is counted, in a word: "face" where it is nothing else, "instance" of other or several things."""
    return "face" if list(things) == ["face"] else "instance"


def targets(instance):
    """{"center": (B, 1, H, W) heat, 0 to 1, "offset": (B, 2, H, W) centre - pixel, "center_weight" and
    "offset_weight": (B, 1, H, W)}, float32.

    instance: (B, H, W) uint8: 0 nothing that is counted, 1 to 254 an id within this image, 255 unknown. The
    heat is the maximum of Gaussians around the centres, each rounded to a pixel. The heat has weight 1 where
    the id is known, the offset where it is an instance's; else 0.
    """
    batch, height, width = instance.shape
    ids = instance.long()
    rows, columns = (torch.arange(side, device=ids.device) for side in (height, width))
    counted = (ids > 0) & (ids < UNKNOWN)

    def sums(values):  # (B, 256) of each id, int64: exact in any order
        empty = torch.zeros(batch, UNKNOWN + 1, dtype=torch.long, device=ids.device)
        return empty.scatter_add(1, ids.flatten(1), values.expand_as(ids).flatten(1))

    area = sums(torch.ones_like(rows[:, None]))
    center = torch.stack([sums(rows[:, None]), sums(columns)], 1) / area[:, None].clamp_min(1).double()
    center = center.float()  # (B, 2, 256)

    def gaussian(places, mean):  # (L,), (B, 256) -> (B, 256, L)
        distance = (places - mean.round()[..., None]) / (SIGMA * max(height, width))
        return (-(distance**2) / 2).exp()

    # of two dimensions it is the product of two of one
    down = gaussian(rows, center[:, 0]) * (area > 0)[..., None]
    across = gaussian(columns, center[:, 1])
    heat = torch.zeros(batch, height, width, device=ids.device)
    for i in range(1, int(ids.where(counted, 0).max()) + 1):  # the one wait for a GPU: for the largest id
        heat = torch.maximum(heat, down[:, i, :, None] * across[:, i, None, :])
    own = center.gather(2, ids.flatten(1)[:, None].expand(-1, 2, -1)).unflatten(2, (height, width))
    here = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)])
    return {
        "center": heat[:, None],
        "offset": (own - here) * counted[:, None],
        "center_weight": (ids != UNKNOWN)[:, None].float(),
        "offset_weight": counted[:, None].float(),
    }


def center_loss(prediction, targets):
    """Squared error of the heat (MSE)."""
    weight = targets["center_weight"]
    return ((prediction - targets["center"]) ** 2 * weight).sum(), weight.sum()


def offset_loss(prediction, targets):
    """Absolute error of the offset (L1), in pixels, rows and columns added up."""
    weight = targets["offset_weight"]
    return ((prediction - targets["offset"]).abs() * weight).sum(), weight.sum()


# Each takes the network's output of this key, float32, and what `targets` gave, and returns (sum, count) over
# weighted pixels, scalar tensors, as `utils.losses`. Without a weighted pixel both are 0, and all gradients.
LOSSES = {"center": center_loss, "offset": offset_loss}


def highest(x, reach):
    """(H, W) -> (H, W): the highest value within `reach` rows and columns."""
    x = F.max_pool2d(x[None, None], (2 * reach + 1, 1), 1, (reach, 0))
    return F.max_pool2d(x, (1, 2 * reach + 1), 1, (0, reach))[0, 0]


@torch.no_grad()
def group(center, offset, foreground):
    """Pixels by the centre that is nearest to where their offset points.

    center (1, H, W), offset (2, H, W): float32 outputs of a network. foreground: (H, W) bool, the pixels that
    are of any instance. Returns ids (H, W) int64, 0 none, 1 to n the centres; centers (n, 2) float; scores
    (n,), the heat of each, the highest first. Without a centre all ids are 0. Of equal neighbours in the heat
    the last one is a centre.
    """
    height, width = foreground.shape
    heat = center[0]
    reach = max(1, round(REACH * max(height, width)))
    peak = (heat == highest(heat, reach)) & (heat > THRESHOLD)
    place = (torch.arange(heat.numel(), device=heat.device).view(height, width) * peak).double()
    peak &= place == highest(place, reach)
    scores, order = heat[peak].sort(descending=True, stable=True)
    scores, centers = scores[:MOST], peak.nonzero()[order[:MOST]].float()
    ids = torch.zeros(height, width, dtype=torch.long, device=heat.device)
    if len(centers):
        aims = (foreground.nonzero() + offset[:, foreground].T).split(PAIRS // len(centers))  # (N, 2) each
        exact = "donot_use_mm_for_euclid_dist"  # a product of matrices would round large places
        nearest = [torch.cdist(aim, centers, compute_mode=exact).argmin(1) for aim in aims]
        ids[foreground] = torch.cat(nearest) + 1
    return ids, centers, scores


@torch.no_grad()
def segments(probs, center, offset, things):
    """The instances of an image: (ids (H, W) int64: 0 none, 1 to n; [{"id", "thing": name, "score": 0 to 1,
    "area": pixels, "box": [x, y, width, height]}], the highest score first).

    probs: (K, H, W) probabilities of the classes. center, offset: see `group`. things: {name: [class ids]}.
    Pixels whose likeliest class is a thing's are grouped, and the majority of its pixels says which thing an
    instance is. Its score is the heat of its centre times the mean over its pixels of the probability of the
    thing's classes. Instances smaller than `SMALLEST` are left out: their pixels get 0.
    """
    preds = probs.argmax(0)
    member = torch.zeros(len(things), len(probs), dtype=torch.bool, device=probs.device)  # class of thing
    for row, own in zip(member, things.values(), strict=True):
        row[own] = True
    foreground = member.any(0)[preds]
    ids, centers, heat = group(center, offset, foreground)
    owners, order = ids[foreground].sort(stable=True)
    parts = foreground.nonzero()[order].split(owners.bincount(minlength=len(centers) + 1).tolist())
    found = []
    for pixels, peak in zip(parts[1:], heat, strict=True):  # pixels (N, 2)
        if len(pixels) < SMALLEST * preds.numel():
            continue
        rows, columns = pixels.T
        thing = int(member[:, preds[rows, columns]].sum(1).argmax())
        prob = probs[:, rows, columns][member[thing]].sum(0).mean()
        found.append((float((peak * prob).clamp(max=1)), thing, pixels))
    found.sort(key=lambda segment: -segment[0])
    ids = torch.zeros_like(ids)
    listed = []
    for number, (score, thing, pixels) in enumerate(found, start=1):
        ids[pixels[:, 0], pixels[:, 1]] = number
        (top, left), (bottom, right) = pixels.amin(0).tolist(), pixels.amax(0).tolist()
        listed.append(
            {
                "id": number,
                "thing": list(things)[thing],
                "score": score,
                "area": len(pixels),
                "box": [left, top, right - left + 1, bottom - top + 1],
            }
        )
    return ids, listed
