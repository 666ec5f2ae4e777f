"""Scenes of several faces, made on the fly from photos of one face each: whose nose is this?

Faces are cut out along their masks and put anywhere onto a background that shows none, at any size, the
larger in front of the smaller. So it is known exactly whose a pixel is. Nothing is on disk.
"""

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F

from datasets.faces import counted, some
from datasets.synthetic.render import clouds
from utils import rng
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX

HEIGHTS = (0.15, 0.95)  # of the box around a face, in shares of the frame; every octave is equally likely
OUTSIDE = 0.15  # the share of its box, at most, by which a face reaches out of the frame at each side
TURN = 15  # degrees, at most, to either side
STRETCH = 0.1  # octaves of the width alone, at most
LIGHT = (0.25, 0.2, 0.4)  # brightness, contrast, saturation: by what share of themselves they change, at most
SEEN = 0.25  # of a face: what is left of one that shows less is 255 in both maps, as nobody would find it
SEAM = 1 / 32  # of a photo's side: how far from a seam between two classes these may be
FACE = 0.01  # of a photo: one whose face covers less is in no scene
KINDS = (0.15, 0.35, 0.55)  # backgrounds are flat up to the first share, then gradient, noise, blurred photo
PHOTO = len(KINDS)
COARSE = 4  # pixels, by which photos are shrunk that become backgrounds
STREAM = 3000  # of random numbers: this one and the two that follow
GREY = (0.2989, 0.587, 0.114)


class Scenes:
    """`count` scenes of one to `most` faces of `source`, a data set of single faces: `CachedFaces` of one
    split, whose people thereby stay on its side, or `SyntheticFaces`.

    `data[[3, 1]]` -> "image" (2, 3, size, size), "semantic" and "instance" (2, size, size), all uint8, and
    "index" (2,). Ids of instances are 1 to n. A scene depends on (seed, index) alone, on the CPU bit for
    bit. flip_pairs: [(left, right)], class ids that a mirror image swaps. digest, notes: as `CachedFaces`.
    """

    aspects = (1.0, 1.0, 1.0)  # width / height of scenes: the smallest, median and largest

    def __init__(self, source, most, size, seed=0, flip_pairs=(), count=100_000, device="cpu"):
        self.source, self.most, self.size, self.seed = source, most, size, seed
        self.flip_pairs, self.count, self.device = flip_pairs, count, device
        self.rows, self.digest, self.notes = None, None, list(getattr(source, "notes", []))
        if hasattr(source, "counts"):
            shares = source.counts[:, 1:-1].sum(1) / source.counts.sum(1).clip(1)
            self.rows = np.flatnonzero(shares >= FACE)
            self.digest = hashlib.sha256(f"{source.digest} scenes of {most}".encode()).hexdigest()
            bare = [source.ids[i] for i in np.flatnonzero(shares < FACE)]
            if not self.rows.size:
                raise UserError(f"scenes: none of {counted(len(bare), 'photo')} shows a labelled face")
            if bare:
                shown = f"{counted(len(bare), 'photo')} without a labelled face ({some(bare, 3)})"
                self.notes.append(f"{shown}: in no scene")
            if (people := len(set(source.groups))) < most:
                self.notes.append(f"its scenes of up to {most} faces show no more than {people} people")
        self.total = len(source) if self.rows is None else len(self.rows)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        index = torch.as_tensor(index, dtype=torch.int64, device=self.device)
        b, n = len(index), self.most
        # of a scene: 0 how many, 1 background, 2 first photo, 3 photo behind, 4 to 14 what the background is
        # of a face: 0 photo, 1 height, 2 mirrored, 3 stretch, 4 and 5 place, 6 turn, 7 to 9 light
        u, of_faces = rng.uniform(self.seed, index, 15 + 10 * n, STREAM).split([15, 10 * n], 1)
        of_faces = of_faces.view(b, n, 10)
        people = 1 + (u[:, :1] * n).long()
        slots = torch.arange(n, device=self.device)
        present = slots < people
        low, high = HEIGHTS
        height = low * torch.exp(math.log(high / low) * of_faces[..., 1])
        height = height.masked_fill(~present, torch.inf).sort(1).values
        # each photo is from another part of the source, so that no two are the same where there are enough
        first, end = self.total * slots // people, self.total * (slots + 1) // people
        photo = first + (of_faces[..., 0].double() * (end - first)).long()
        photo = (photo + self._pick(u[:, 2:3])) % self.total

        image = self._backgrounds(index, u)
        label = torch.zeros(b, self.size, self.size, dtype=torch.uint8, device=self.device)
        owner = torch.zeros_like(label)  # the slot of each pixel's face, from 1
        full = torch.zeros(b, n, device=self.device)  # pixels that each face would cover alone
        for k in range(n):  # from far to near
            rows = present[:, k].nonzero()[:, 0]
            if not rows.numel():
                break
            photos = self._photos(photo[rows, k])
            face = cut_out(photos, height[rows, k], of_faces[rows, k], self.flip_pairs, self.size)
            image[rows] = (image[rows] * (1 - face["alpha"])).add_(face["image"])
            label[rows] = torch.where(face["label"] > 0, face["label"], label[rows])
            owner[rows] = owner[rows].masked_fill_(face["label"] > 0, k + 1)
            full[rows, k] = face["area"]

        pairs = 256 * torch.arange(b, device=self.device).view(-1, 1, 1) + owner
        pixels = torch.bincount(pairs.flatten(), minlength=256 * b).view(b, 256)[:, 1 : n + 1]
        found = present & (pixels >= (SEEN * full).clamp_min(1))
        ids = torch.zeros(b, n + 1, dtype=torch.uint8, device=self.device)  # of no face and of each slot
        ids[:, 1:] = torch.where(found, found.cumsum(1), IGNORE_INDEX)
        instance = ids.gather(1, owner.flatten(1).long()).view_as(owner)
        return {
            "image": (image.clamp_(0, 1) * 255).round_().to(torch.uint8),
            "semantic": label.masked_fill_(instance == IGNORE_INDEX, IGNORE_INDEX),
            "instance": instance,
            "index": index,
        }

    def _backgrounds(self, index, u):
        """(B, 3, size, size) in [0, 1]. u: (B, 15) uniform numbers."""
        kind = torch.bucketize(u[:, 1].contiguous(), torch.tensor(KINDS, device=self.device), right=True)
        image = backdrop(self.seed, index, u[:, 4:], kind, self.size)
        rows = (kind == PHOTO).nonzero()[:, 0]
        if rows.numel():
            photos = self._photos(self._pick(u[rows, 3]))
            image[rows] = zoomed(without_face(photos), photos["aspect"], u[rows, 4:8], self.size)
        return image

    def _pick(self, u):
        """One of the photos, 0 to total - 1, for each uniform number."""
        return (u.double() * self.total).long()

    def _photos(self, photo):
        """Single faces, (N,) from 0 to total - 1: `image` (N, 3, S, S) and `label` (N, S, S), uint8; `aspect`
        (N,), width / height of each photo, which is stretched to the square."""
        rows = photo.tolist() if self.rows is None else self.rows[photo.cpu().numpy()].tolist()
        batch = self.source[rows]
        aspect = batch.get("aspect")
        if aspect is None:
            width, height = torch.as_tensor(self.source.sizes[rows]).float().unbind(1)
            aspect = width / height
        found = {"image": batch["image"], "label": batch["semantic"], "aspect": aspect}
        return {key: value.to(self.device) for key, value in found.items()}


class FixedScenes(Scenes):
    """Scenes made once and kept in memory. shares: (count,), of the frame, how much of it the largest face of
    each covers. Every scene mixes people, so all are one group: no interval can be had over people."""

    def __init__(self, *args):
        super().__init__(*args)
        rows = list(range(self.count))
        pieces = [super(FixedScenes, self).__getitem__(rows[i : i + 16]) for i in rows[::16]]
        self.batch = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
        self.ids, self.groups = [f"scene {i}" for i in rows], ["scenes"] * self.count
        self.yaws = [None] * self.count
        maps = self.batch["instance"].cpu().numpy()
        pixels = [np.bincount(ids.ravel(), minlength=256)[1:IGNORE_INDEX].max() for ids in maps]
        self.shares = np.array(pixels) / self.size**2

    def __getitem__(self, index):
        return {key: value[index] for key, value in self.batch.items()}


# ---- faces


def silhouette(label):
    """(N, S, S) bool of labels (N, S, S) uint8: where the face is. Those are the pixels of a known class but
    0, and of 255 those between such pixels, on opposite sides: in rows and in columns, or in one of them and
    within `SEAM`. So seams between classes are the face's, but not the fringe around it, which shows the
    background, too."""
    known = (label > 0) & (label < IGNORE_INDEX)
    line = torch.arange(label.shape[-1], device=label.device)
    reach = max(2, round(SEAM * len(line)))
    enclosed, seam = torch.ones_like(known), torch.zeros_like(known)
    for axis in (1, 2):
        count = known.cumsum(axis, dtype=torch.int16)
        enclosed &= (count > 0) & (count < count.narrow(axis, -1, 1))
        lower = count.index_select(axis, (line - reach - 1).clamp_min(0))
        upper = count.index_select(axis, (line + reach).clamp_max(len(line) - 1))
        seam |= (lower < count) & (count < upper)
    return known | (label == IGNORE_INDEX) & (enclosed | seam)


def box(mask):
    """(N, 4) of (N, S, S) bool: left, top, right, bottom in shares of the sides."""
    found = []
    for axis in (1, 2):  # over rows, then over columns
        line = mask.view(torch.uint8).amax(axis)
        found += [line.argmax(1) / line.shape[1], 1 - line.flip(1).argmax(1) / line.shape[1]]
    return torch.stack([found[i] for i in (0, 2, 1, 3)], 1)


def cut_out(photos, height, u, flip_pairs, size):
    """Faces alone, each where it is in its scene.

    photos: N, see `Scenes._photos`. height: (N,) of the faces' boxes, shares of the frame. u: (N, 10) uniform
    numbers. Returns `image` (N, 3, size, size) in [0, 1], times `alpha` (N, 1, size, size), how much of a
    pixel the face covers; `label` (N, size, size) uint8, 0 where it is not; `area` (N,), the pixels that it
    would cover, were the frame large enough.
    """
    mask = silhouette(photos["label"])
    left, top, right, bottom = box(mask).unbind(1)
    scale = height / (bottom - top)  # height of the photo, in shares of the frame
    wide = scale * photos["aspect"] * torch.exp2(STRETCH * (2 * u[:, 3] - 1))  # and its width
    margin = (0.5 - OUTSIDE) * torch.stack([(right - left) * wide, height], 1)
    margin = margin.clamp_max(0.5)
    x, y = (margin + u[:, 4:6] * (1 - 2 * margin)).unbind(1)  # the middle of the box, in the frame

    angle = torch.deg2rad(TURN * (2 * u[:, 6] - 1))
    c, s = angle.cos(), angle.sin()
    mirrored = u[:, 2] < 0.5
    across = torch.where(mirrored, -1.0, 1.0) / wide
    to_photo = [  # from columns and rows of the frame, in shares of its side, to those of the photo
        (across * c, across * s, (left + right) / 2 - across * (c * x + s * y)),
        (-s / scale, c / scale, (top + bottom) / 2 - (c * y - s * x) / scale),
    ]
    line = (torch.arange(size, device=u.device) + 0.5) / size
    columns, rows = line.view(1, 1, -1), line.view(1, -1, 1)
    grid = []
    for of_column, of_row, shift in to_photo:  # no matrix product, whose sums depend on the batch
        of_column, of_row, shift = (2 * value.view(-1, 1, 1) for value in (of_column, of_row, shift))
        grid.append(of_column * columns + (of_row * rows + (shift - 1)))
    grid = torch.stack(grid, 3)

    table = torch.arange(256, dtype=torch.uint8, device=u.device)
    for one, other in flip_pairs:
        table[one], table[other] = other, one
    label = photos["label"]
    label = torch.where(mirrored.view(-1, 1, 1), table[label.long()], label).masked_fill_(~mask, 0)
    nearest = F.grid_sample(label[:, None].float(), grid, "nearest", "zeros", align_corners=False)
    pixels = torch.cat([photos["image"] * mask[:, None], 255 * mask[:, None].to(torch.uint8)], 1)
    side = label.shape[-1] / size
    pixels = _resample(pixels.float(), grid, side * (scale * wide).rsqrt())
    alpha = pixels[:, 3:] / 255
    return {
        "image": _relight(pixels[:, :3], alpha, u[:, 7:10]),
        "alpha": alpha,
        "label": nearest[:, 0].to(torch.uint8),
        "area": mask.flatten(1).sum(1) * scale * wide / side**2,
    }


def _resample(pixels, grid, shrunk):
    """`grid_sample`, bilinear, of pixels (N, C, S, S), or of their averages over 2, 4 or 8 where so many
    become about one, since faces would alias without. shrunk: (N,), how many become one."""
    level = shrunk.log2().round().clamp(0, 3).long()
    found = torch.empty(*pixels.shape[:2], *grid.shape[1:3], device=pixels.device)
    for i in level.unique().tolist():
        rows = level == i
        coarse = F.adaptive_avg_pool2d(pixels[rows], max(1, pixels.shape[-1] >> i)) if i else pixels[rows]
        found[rows] = F.grid_sample(coarse, grid[rows], "bilinear", "zeros", align_corners=False)
    return found


def _relight(images, alpha, u):
    """Images (N, 3, H, W) in [0, 255], times alpha (N, 1, H, W), in another light, and in [0, 1]. u: (N, 3)
    uniform numbers."""
    amount = 1 + torch.tensor(LIGHT, device=u.device) * (2 * u - 1)
    brightness, contrast, saturation = amount[..., None, None, None].unbind(1)
    gain = contrast * brightness / 255
    added = 0.5 * (1 - contrast) * alpha
    for i, weight in enumerate(GREY):
        added += gain * (1 - saturation) * weight * images[:, i : i + 1]
    return (gain * saturation * images).add_(added).clamp_min_(0).minimum(alpha)


# ---- backgrounds


def backdrop(seed, index, u, kind, size):
    """(B, 3, size, size) in [0, 1]: flat, gradients or noise. u: (B, 11) uniform numbers; kind: (B,), see
    `KINDS`."""
    one, other = u[:, :3, None, None], u[:, 3:6, None, None]
    angle, grain = 2 * torch.pi * u[:, 6].view(-1, 1, 1, 1), 0.5 * u[:, 7].view(-1, 1, 1, 1)
    x = ((torch.arange(size, device=u.device) + 0.5) / size - 0.5).view(1, 1, 1, -1)
    along = 0.5 + 0.7 * (angle.cos() * x + angle.sin() * x.transpose(2, 3))
    image = one + (other - one) * torch.where((kind == 1).view(-1, 1, 1, 1), along, 0.0)
    rows = (kind == 2).nonzero()[:, 0]
    if rows.numel():
        fine = rng.uniform(seed, index[rows], size * size, STREAM + 1).view(-1, 1, size, size) - 0.5
        cloud = clouds(seed, index[rows], size, STREAM + 2, channels=3)
        image[rows] = one[rows] + (0.3 * cloud + grain[rows] * fine) * other[rows]
    return image.clamp(0, 1)


def without_face(photos):
    """Photos (N, 3, S, S) uint8, see `Scenes._photos`, in [0, 1], shrunk by `COARSE` and blurred. Where the
    face is, the background around it is spread by normalised convolution (Knutsson and Westin, CVPR 1993)."""
    side = max(1, photos["image"].shape[-1] // COARSE)
    images = F.adaptive_avg_pool2d(photos["image"].float() / 255, side)
    face = F.adaptive_max_pool2d((photos["label"] > 0).float()[:, None], side)
    known = 1 - F.max_pool2d(face, 3, 1, 1)  # what is beside the face may show it, too
    pixels = wide = torch.cat([images * known, known], 1)
    width = 2 * (side // 8) + 1
    for _ in range(3):  # nearly a Gaussian
        wide = F.avg_pool2d(wide, width, 1, width // 2)
    wide = wide + 1e-3 * F.adaptive_avg_pool2d(pixels, 1)  # where no background is near
    filled = pixels[:, :3] + (1 - known) * (wide[:, :3] + 5e-7) / (wide[:, 3:] + 1e-6)
    return F.avg_pool2d(filled, 3, 1, 1, count_include_pad=False)


def zoomed(images, aspect, u, size):
    """A part (N, 3, size, size) of images (N, 3, S, S) that were stretched to squares, as they were before,
    mirrored or not. aspect: (N,), their width / height; u: (N, 4) uniform numbers."""
    share = 1 - 0.4 * u[:, 0]
    wide, high = share / aspect.clamp_min(1), share * aspect.clamp_max(1)
    left, top = u[:, 1] * (1 - wide), u[:, 2] * (1 - high)
    line = (torch.arange(size, device=u.device) + 0.5) / size
    columns = torch.where(u[:, 3:] < 0.5, line, 1 - line)
    x = (left[:, None] + wide[:, None] * columns)[:, None, :].expand(-1, size, -1)
    y = (top[:, None] + high[:, None] * line)[:, :, None].expand(-1, -1, size)
    return F.grid_sample(images, torch.stack([x, y], 3) * 2 - 1, "bilinear", "border", align_corners=False)
