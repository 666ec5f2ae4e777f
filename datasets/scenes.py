"""Scenes of several faces, made on the fly from photos of one face each: whose nose is this?

Faces are cut out along their masks and put anywhere onto a background that shows none, at any size, the larger
in front of the smaller. Who a pixel belongs to is therefore known exactly. Nothing is on disk.
"""

import hashlib

import numpy as np
import torch
import torch.nn.functional as F

from datasets.faces import counted, some
from datasets.synthetic.render import clouds
from utils import rng
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX

HEIGHTS = (0.15, 0.95)  # of the box around a face, shares of the frame; each octave is as likely as another
OUTSIDE = 0.15  # the share of its box, at most, by which a face reaches out of the frame at a side
TURN = 15  # degrees, at most, to either side
STRETCH = 0.1  # octaves of the width alone, at most
COLOUR = (0.25, 0.2, 0.4)  # brightness, contrast, saturation: shares of themselves, at most
SEEN = 0.25  # a face of which less is in view is nobody's: 255 in both maps
FACE = 0.01  # the share of a photo that a face must cover to be used
KINDS = (0.15, 0.35, 0.55)  # flat below the first, then gradient, noise, and from the last on blurred photos
COARSE = 4  # pixels: blurred backgrounds are made of the photo shrunk by so much
STREAM = 3000  # of the random numbers: this one and the next
GREY = (0.2989, 0.587, 0.114)


class Scenes:
    """`count` scenes of one to `most` faces of `source`, a data set of single faces: `CachedFaces` of one split,
    whose people thereby stay on its side, or `SyntheticFaces`.

    `data[[3, 1]]` -> "image" (2, 3, size, size), "semantic" and "instance" (2, size, size), all uint8, and
    "index" (2,). Instances are 1 to n, the larger in front. A scene depends on (seed, index) alone, on the CPU
    bit for bit. flip_pairs: [(left, right)], class ids that a mirror image swaps. notes: for the user.
    """

    aspects = (1.0, 1.0, 1.0)  # width / height of the scenes: the smallest, median and largest

    def __init__(self, source, most, size, seed=0, flip_pairs=(), count=100_000, device="cpu"):
        self.source, self.most, self.size, self.seed = source, most, size, seed
        self.flip_pairs, self.count, self.device = flip_pairs, count, device
        self.notes, self.digest, self.rows = list(getattr(source, "notes", [])), None, None
        if hasattr(source, "counts"):
            shares = source.counts[:, 1:-1].sum(1) / source.counts.sum(1).clip(1)
            self.rows = np.flatnonzero(shares >= FACE)
            bare = [source.ids[i] for i in np.flatnonzero(shares < FACE)]
            if len(bare) == len(source):
                raise UserError(f"scenes: no face on any of {counted(len(source), 'photo')} is labelled")
            if bare:
                self.notes.append(f"{len(bare)} photos show no labelled face ({some(bare, 3)}): in no scene")
            self.digest = hashlib.sha256(f"{source.digest} scenes {most}".encode()).hexdigest()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        index = torch.as_tensor(index, dtype=torch.int64, device=self.device)
        b, n = len(index), self.most
        u = rng.uniform(self.seed, index, 16 + 12 * n, STREAM)
        u, v = u[:, :16], u[:, 16:].view(b, n, 12)
        people = 1 + (u[:, 0] * n).long()
        present = torch.arange(n, device=self.device) < people[:, None]
        kind = torch.bucketize(u[:, 1].contiguous(), torch.tensor(KINDS, device=self.device), right=True)

        # each from another part of the photos, so that hardly ever two are the same
        part = (torch.arange(n, device=self.device) + v[..., 0].double()) / people[:, None]
        photos = torch.cat([(u[:, 2:3].double() + part)[present] % 1, u[kind == len(KINDS), 3].double()])
        photos = self._photos(photos)
        num_faces = int(present.sum())
        faces, behind = (
            {k: t[half] for k, t in photos.items()} for half in (slice(num_faces), slice(num_faces, None))
        )

        low, high = HEIGHTS
        height = (low * (high / low) ** v[..., 1]).masked_fill(~present, torch.inf).sort(1).values
        scene = present.nonzero()[:, 0]
        layers = cut_out(faces, height[present], v[present], self.flip_pairs, self.size)

        image = backdrop(self.seed, index, u, kind, behind, self.size)
        label = torch.zeros(b, self.size, self.size, dtype=torch.uint8, device=self.device)
        owner = torch.zeros_like(label)
        for k in range(n):  # from far to near
            here = present[:, k]
            rows = (present.cumsum(1)[:, k] + (people.cumsum(0) - people) - 1)[here]
            shown = layers["label"][rows]
            image[here] = image[here] * (1 - layers["alpha"][rows]) + layers["image"][rows]
            label[here] = torch.where(shown > 0, shown, label[here])
            owner[here] = torch.where(shown > 0, k + 1, owner[here])

        places = torch.arange(b, device=self.device).view(-1, 1, 1) * 256 + owner
        pixels = torch.bincount(places.flatten(), minlength=256 * b).view(b, 256)
        full = torch.zeros(b, n, device=self.device)
        full[present] = layers["area"]
        seen = present & (pixels[:, 1 : n + 1] >= (SEEN * full).clamp_min(1))
        ids = torch.full((b, 256), IGNORE_INDEX, dtype=torch.uint8, device=self.device)
        ids[:, 0] = 0
        ids[:, 1 : n + 1][seen] = seen.cumsum(1)[seen].to(torch.uint8)
        instance = ids.gather(1, owner.flatten(1).long()).view_as(owner)
        return {
            "image": (image.clamp(0, 1) * 255).round().to(torch.uint8),
            "semantic": label.masked_fill(instance == IGNORE_INDEX, IGNORE_INDEX),
            "instance": instance,
            "index": index,
        }

    def _photos(self, places):
        """What single faces at `places` (N,) in [0, 1) of the source are: `image` (N, 3, S, S) in [0, 1],
        `label` (N, S, S) uint8, `aspect` (N,), width / height of the photo, which is stretched to the square."""
        rows = len(self.source) if self.rows is None else len(self.rows)
        rows = (places * rows).long().clamp_max(rows - 1).tolist()
        if self.rows is not None:
            rows = self.rows[rows].tolist()
        batch = self.source[rows]
        aspect = batch.get("aspect")
        if aspect is None:
            width, height = torch.as_tensor(self.source.sizes[rows]).float().unbind(1)
            aspect = width / height
        found = {"image": batch["image"], "label": batch["semantic"], "aspect": aspect}
        found = {key: value.to(self.device) for key, value in found.items()}
        return found | {"image": found["image"].float() / 255}


class FixedScenes(Scenes):
    """Scenes that are made once and kept in memory. shares: (count,), of the frame, which the largest face of
    each covers. All are of one group, since each mixes people: no interval can be bootstrapped over people."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        rows = list(range(self.count))
        pieces = [super(FixedScenes, self).__getitem__(rows[i : i + 16]) for i in rows[::16]]
        self.batch = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
        self.ids, self.groups = [f"scene {i}" for i in rows], ["scenes"] * self.count
        self.yaws = [None] * self.count
        found = [
            np.bincount(ids.flatten(), minlength=256)[1:IGNORE_INDEX] for ids in self.batch["instance"].cpu()
        ]
        self.shares = np.stack(found).max(1) / self.size**2

    def __getitem__(self, index):
        return {key: value[index] for key, value in self.batch.items()}


def silhouette(label):
    """(N, S, S) bool of labels (N, S, S) uint8: the pixels of a face, which are those of a known class but 0,
    and of 255 those that have such pixels to the left, to the right, above and below: seams between classes, and
    not the fringe around the face, which shows the background, too."""
    known = (label > 0) & (label < IGNORE_INDEX)
    inside = label == IGNORE_INDEX
    for axis in (1, 2):
        before = known.cumsum(axis, dtype=torch.int32)
        inside &= (before > 0) & (before < before.narrow(axis, -1, 1))
    return known | inside


def box(mask):
    """(N, 4) of (N, S, S) bool: left, top, right, bottom in shares of the sides."""
    found = []
    for axis in (1, 2):  # over rows, then over columns
        line = mask.any(axis).to(torch.uint8)
        found.append((line.argmax(1) / line.shape[1], 1 - line.flip(1).argmax(1) / line.shape[1]))
    (left, right), (top, bottom) = found
    return torch.stack([left, top, right, bottom], 1)


def cut_out(faces, height, u, flip_pairs, size):
    """Single faces alone, each where it is in its scene.

    faces: `image`, `label` and `aspect` of N photos, see `Scenes._photos`. height: (N,) of their boxes, shares
    of the frame. u: (N, 12) uniform numbers. Returns `image` (N, 3, size, size), multiplied by `alpha`
    (N, 1, size, size), how much of a pixel the face covers; `label` (N, size, size) uint8, 0 where it is not;
    `area` (N,), the pixels of the frame that it would cover alone, those outside of the frame counted.
    """
    mask = silhouette(faces["label"])
    left, top, right, bottom = box(mask).unbind(1)
    mirrored = u[:, 2] < 0.5
    scale = height / (bottom - top)  # of the photo's height, in shares of the frame
    wide = scale * faces["aspect"] * torch.exp2(STRETCH * (2 * u[:, 3] - 1))
    sizes = torch.stack([(right - left) * wide, height], 1)
    margin = ((0.5 - OUTSIDE) * sizes).clamp_max(0.5)
    x, y = (margin + u[:, 4:6] * (1 - 2 * margin)).unbind(1)  # of the middle of the box
    angle = torch.deg2rad(TURN * (2 * u[:, 6] - 1))
    c, s = angle.cos(), angle.sin()
    across = torch.where(mirrored, -1.0, 1.0) / wide
    theta = [across * c, across * s, (left + right) / 2 - across * (c * x + s * y)]
    theta += [-s / scale, c / scale, (top + bottom) / 2 - (c * y - s * x) / scale]
    a, b, shift, d, e, drop = (value.view(-1, 1, 1) for value in theta)
    line = (torch.arange(size, device=u.device) + 0.5) / size
    columns, rows = line.view(1, 1, -1), line.view(1, -1, 1)
    grid = torch.stack([a * columns + (b * rows + shift), d * columns + (e * rows + drop)], 3) * 2 - 1

    table = torch.arange(256, dtype=torch.uint8, device=u.device)
    for one, other in flip_pairs:
        table[one], table[other] = other, one
    label = faces["label"]
    label = torch.where(mirrored.view(-1, 1, 1), table[label.long()], label).masked_fill(~mask, 0)
    nearest = F.grid_sample(label[:, None].float(), grid, "nearest", "zeros", align_corners=False)
    pixels = torch.cat([faces["image"], torch.ones_like(faces["image"][:, :1])], 1) * mask[:, None]
    pixels = _resample(pixels, grid, label.shape[-1] / size * (scale * wide).rsqrt())
    return {
        "image": _recolour(pixels[:, :3], pixels[:, 3:], u[:, 7:10]),
        "alpha": pixels[:, 3:],
        "label": nearest[:, 0].to(torch.uint8),
        "area": mask.flatten(1).sum(1) * scale * wide * (size / label.shape[-1]) ** 2,
    }


def _resample(pixels, grid, shrunk):
    """`grid_sample` of pixels (N, C, S, S), bilinear, of averages over 2, 4 or 8 pixels where these become about
    one: without them shrunk faces would alias. shrunk: (N,), by how much each is."""
    level = shrunk.log2().round().clamp(0, 3).long()
    found = torch.empty(*pixels.shape[:2], *grid.shape[1:3], device=pixels.device)
    for i in level.unique().tolist():
        rows = level == i
        coarse = F.adaptive_avg_pool2d(pixels[rows], max(1, pixels.shape[-1] >> i)) if i else pixels[rows]
        found[rows] = F.grid_sample(coarse, grid[rows], "bilinear", "zeros", align_corners=False)
    return found


def _recolour(images, alpha, u):
    """Images (N, 3, H, W), multiplied by alpha (N, 1, H, W), in another light. u: (N, 3) uniform numbers."""
    amount = 1 + torch.tensor(COLOUR, device=u.device) * (2 * u - 1)
    brightness, contrast, saturation = amount[..., None, None, None].unbind(1)
    grey = sum(weight * images[:, i : i + 1] for i, weight in enumerate(GREY))
    images = (grey + saturation * (images - grey)) * brightness
    images = 0.5 * alpha + contrast * (images - 0.5 * alpha)
    return images.clamp_min(0).minimum(alpha)


def backdrop(seed, index, u, kind, photos, size):
    """Backgrounds (B, 3, size, size) in [0, 1] that show no face. u: (B, 16) uniform numbers; kind: (B,), see
    `KINDS`; photos: those of the last kind."""
    one, other = u[:, 4:7, None, None], u[:, 7:10, None, None]
    x = ((torch.arange(size, device=u.device) + 0.5) / size).view(1, 1, 1, -1)
    y = x.transpose(2, 3)
    angle = (2 * torch.pi * u[:, 10]).view(-1, 1, 1, 1)
    along = 0.5 + 0.7 * (angle.cos() * (x - 0.5) + angle.sin() * (y - 0.5))
    image = one + (other - one) * torch.where((kind == 1).view(-1, 1, 1, 1), along, 0.0)
    if (rows := kind == 2).any():
        drawn = index[rows]
        fine = rng.uniform(seed, drawn, size * size, STREAM + 1).view(-1, 1, size, size) - 0.5
        cloud = clouds(seed, drawn, size, STREAM + 2, channels=3)
        image[rows] = one[rows] + (0.3 * cloud + fine * u[rows, 11].view(-1, 1, 1, 1)) * other[rows]
    if (rows := kind == len(KINDS)).any():
        image[rows] = _zoomed(without_face(photos), photos["aspect"], u[rows, 11:15], size)
    return image.clamp(0, 1)


def without_face(photos):
    """Photos (N, 3, S, S) blurred and shrunk by `COARSE`, the face filled in from the background around it by
    normalised convolution (Knutsson and Westin, CVPR 1993)."""
    around = 2 * (photos["image"].shape[-1] // 64) + 1  # pixels beside the face that may show it
    known = 1 - F.max_pool2d((photos["label"] > 0).float()[:, None], around, 1, around // 2)
    pixels = torch.cat([photos["image"] * known, known], 1)
    side = max(1, pixels.shape[-1] // COARSE)
    pixels = F.adaptive_avg_pool2d(pixels, side)
    wide = pixels
    width = 2 * (side // 8) + 1
    for _ in range(3):  # nearly a Gaussian
        wide = F.avg_pool2d(wide, width, 1, width // 2)
    average = F.adaptive_avg_pool2d(pixels, 1)
    wide = wide + 1e-3 * average + 1e-6 * 0.5  # where no background is near
    filled = pixels[:, :3] + (1 - pixels[:, 3:]) * wide[:, :3] / wide[:, 3:]
    return F.avg_pool2d(filled, 3, 1, 1, count_include_pad=False)


def _zoomed(images, aspect, u, size):
    """A part (N, 3, size, size) of images stretched to squares, undistorted, mirrored or not. aspect: (N,), their
    width / height before; u: (N, 4) uniform numbers."""
    share = 1 - 0.4 * u[:, 0]
    wide, high = share / aspect.clamp_min(1), share * aspect.clamp_max(1)
    left, top = u[:, 1] * (1 - wide), u[:, 2] * (1 - high)
    line = (torch.arange(size, device=u.device) + 0.5) / size
    columns = torch.where(u[:, 3:] < 0.5, line, 1 - line)
    x = (left[:, None] + wide[:, None] * columns)[:, None, :].expand(-1, size, -1)
    y = (top[:, None] + high[:, None] * line)[:, :, None].expand(-1, -1, size)
    return F.grid_sample(images, torch.stack([x, y], 3) * 2 - 1, "bilinear", "border", align_corners=False)
