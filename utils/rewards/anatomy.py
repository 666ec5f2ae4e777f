"""A reward that needs no label: how far a predicted mask alone could be a face, front view or profile.

Every rule is a number in [0, 1] for each image, graded so that an improvement in part is rewarded in
part; `anatomy` is their mean. Pixels of ids that `names` lacks (255) are nothing and nowhere.

The limits hold the 156 training labels of FASSEG V3 (six people, yaw to +-90 degrees) and some 99 % of
synthetic faces (yaw to +-95), with room for people unlike them. Where glasses hide the eyes in the label
(sunglasses in LaPa, all in CelebAMask-HQ's `farl` order), a right mask misses the rules of the eyes.
"""

import re

import numpy as np
import scipy  # its parts load when they are first used
import torch

from utils.errors import UserError

SIDES = set(
    "l r u left right upper lower inner".split()
)  # words that are dropped from class names: u_lip is a lip
PARTS = {
    "skin": {"skin"},
    "glasses": {"glasses", "eye_g"},
    "eyes": {"eye", "eyes"},
    "brows": {"brow", "brows", "eyebrow", "eyebrows"},
    "nose": {"nose"},
    "mouth": {"mouth", "lip", "lips"},
    "outside": {"background", "cloth"},
}  # hair, hats, ears and necks need no rule: they may be there or not, and may hide a part
# Labels of V3 span .25 to .70, synthetic faces .09 to .59 of the frame. Of the face, a nose takes .026 to
# .087 (synthetic: .02 to .095), a mouth .008 to .055 (.003 to .09), all eyes .004 to .038 (.004 to .05).
FACE = (0.08, 0.75)
SIZES = {"nose": (0.015, 0.12), "mouth": (0.005, 0.12), "eyes": (0.003, 0.06)}
LEVEL = 0.1  # of the root of the face's area, over which `order` rises; 15 degrees of tilt cost < .01
CLOSED = 0.4  # of the border around a piece; of a nose in profile, .46 (.37) at least is face or hair
EIGHT = np.ones((3, 3), bool)  # pixels that share a corner are connected


def anatomy(preds, names):
    """preds (B, H, W) integer class ids, names [K] -> (B,) float64 in [0, 1] on the device of preds.

    The mean of `rules`: a label scores about 1, background alone 0. Raises UserError.
    """
    return torch.stack(list(rules(preds, names).values())).mean(0)


def rules(preds, names):
    """{rule: (B,) float64 in [0, 1]} of the rules that apply to a class list, 1 where fulfilled. A part
    that is absent has 0 in its own rule and in its pairs of `order`: predicting nothing gains nothing.

    `nose`, `mouth`: one piece of a plausible size. `eyes`: so are at most two, one of each side where
    sides are classes. `order`: eyes above nose above mouth. `inside`: these and the brows lie against
    the face. `face`: skin with all that is on it is one piece that fills a plausible part of the frame.
    """
    ids = parts(names)
    if not ids["skin"] or not any(ids[part] for part in SIZES):
        raise UserError(f"anatomy needs skin and eyes, nose or mouth; the classes are {' '.join(names)}")
    masks = preds.cpu().numpy()
    regions = {part: np.isin(masks, found) for part, found in ids.items()}
    inner = regions["eyes"] | regions["brows"] | regions["nose"] | regions["mouth"]
    face = inner | regions["skin"] | regions["glasses"]
    area = face.sum((1, 2))
    found = {}
    for part in (part for part in SIZES if ids[part]):
        sided = part == "eyes" and len(ids[part]) > 1  # then one piece of each class, else two of one
        pieces = [masks == i for i in ids[part]] if sided else [regions[part]]
        found[part] = compact(pieces, area, *SIZES[part], most=2 if part == "eyes" and not sided else 1)
    if len(found) > 1:
        found["order"] = order([regions[part] for part in ("eyes", "nose", "mouth") if ids[part]], area)
    found["inside"] = inside(inner, regions["outside"])
    found["face"] = compact([face], face[0].size, *FACE)
    return {name: torch.from_numpy(value).to(preds.device) for name, value in found.items()}


def parts(names):
    """{part of `PARTS`: its ids}; every underscore, blank and case of a name is the same, and class 0
    is outside whatever it is called, as in every data set here."""
    words = [re.findall("[a-z]+", name.lower()) for name in names]
    plain = ["_".join(w for w in name if w not in SIDES) for name in words]
    found = {part: [i for i, name in enumerate(plain) if name in known] for part, known in PARTS.items()}
    return found | {"outside": sorted({0, *found["outside"]})}


def compact(masks, whole, low, high, most=1):
    """Masks (B, H, W) of a part's classes -> (B,): the share of their pixels in the `most` largest pieces
    of each, times how plausible the size of these is: 1 where it is low to high of `whole` (pixels, one
    number or (B,)), less in proportion beyond. 0 without any, so that neither nothing nor a dot will do."""
    kept = sum(largest(mask, most) for mask in masks)
    size = kept / np.maximum(whole, 1)
    plausible = np.minimum(1, np.minimum(size / low, high / np.maximum(size, high)))
    return plausible * kept / np.maximum(sum(mask.sum((1, 2)) for mask in masks), 1)


def largest(mask, most):
    """(B, H, W) bool -> (B,) pixels in the `most` largest connected pieces of each image."""
    sizes = [np.bincount(scipy.ndimage.label(m, EIGHT)[0][m]) for m in mask]
    return np.array([np.sort(s)[-most:].sum() for s in sizes], np.float64)


def order(masks, area):
    """Masks (B, H, W) from the upper to the lower -> (B,): the mean over pairs of how far one centroid
    lies above the other, by face size; 1/2 at one height, since photos are tilted; 0 where one lacks."""
    size = np.array([mask.sum((1, 2)) for mask in masks])
    y = np.array([mask.sum(2) @ np.arange(mask.shape[1]) for mask in masks]) / np.maximum(size, 1)
    upper, lower = np.triu_indices(len(masks), 1)
    drop = (y[lower] - y[upper]) / np.sqrt(np.maximum(area, 1))
    return (np.clip(0.5 + drop / LEVEL, 0, 1) * (size[upper] * size[lower] > 0)).mean(0)


def inside(inner, outside):
    """(B, H, W) bool both -> (B,): mean over the inner pixels of how far their piece is enclosed: the
    share of the pixels around it that are not outside, of which `CLOSED` is enough, since nose and mouth
    in profile are half against the background. It punishes parts adrift, not a ragged profile."""
    scores = []
    for mask, out in zip(inner, outside, strict=True):
        label, n = scipy.ndimage.label(mask, EIGHT)
        # the number of the piece next to it
        around = (scipy.ndimage.maximum_filter(label, 3) * ~mask).ravel()
        border = np.bincount(around, minlength=n + 1)
        opened = np.bincount(around, out.ravel(), n + 1)
        closed = np.minimum(1, (border - opened) / np.maximum(border, 1) / CLOSED)
        scores.append(closed[label[mask]].sum() / max(mask.sum(), 1))
    return np.array(scores)
