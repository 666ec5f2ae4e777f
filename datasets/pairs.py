"""Photos on disk as other tools want them: augmented with their masks, or as they are without."""

import json
import os
import pathlib
import shutil

import torch
from tqdm import tqdm

from datasets.augmentation import augment
from utils import draw
from utils.errors import UserError, printable
from utils.files import write_whole


def augmented(data, faces, policy, seed, rows, first=0):
    """Photos (B, 3, S, S) and masks (B, S, S), uint8, of some rows of a data set, as a run with this seed
    sees them at its positions first, first + 1, ..."""
    positions = torch.arange(first, first + len(rows))
    batch = augment(data[rows], policy, seed, positions, {faces.target: faces.flip_pairs})
    return (batch["image"] * 255).round().byte(), batch[faces.target]


def preview(data, faces, policy, seed, count=6, times=5):
    """A row for each of a few faces with its mask, as a picture: as it is, then several times as the policy
    changes it."""
    count = min(count, len(data))
    rows = [i * len(data) // count for i in range(count)]
    before = data[rows]
    seen = [augmented(data, faces, policy, seed, rows, count * t) for t in range(times)]
    images = torch.stack([before["image"], *(image for image, _ in seen)], 1).flatten(0, 1)
    labels = torch.stack([before[faces.target], *(label for _, label in seen)], 1).flatten(0, 1)
    return draw.pairs(images, labels, faces.colors, faces.classes, times + 1)


def write_folder(folder, faces, pairs):
    """A data set in a new folder: images/, labels/ (palette PNGs), classes.json, which keeps who is on each.

    pairs: iterable of (name, photo (3, H, W) uint8, mask (H, W) uint8, person). A name may begin with the
    split, "test/anna"; what follows is unique.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: is there already; name another folder")
    part = folder.with_name(folder.name + ".part")  # a kill leaves this, which nobody takes for the whole
    shutil.rmtree(part, ignore_errors=True)
    groups = {}
    for name, image, label, person in pairs:
        pictures = {
            "images": image.permute(1, 2, 0).numpy(),
            "labels": draw.index_mask(label.numpy(), faces.colors),
        }
        for kind, picture in pictures.items():
            path = part / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw.write(path, picture)
        groups[path.stem] = person
    write_info(part, faces, groups, {})
    part.rename(folder)


def write_samples(folder, samples, faces, masks=False):
    """A data set of your own, in a new folder, of samples of any: photos as they are, in unlabelled/ and
    without their masks; with `masks` in images/, and labels/ beside it. classes.json keeps what labels mean,
    who is on each photo and, where known, its yaw. Names that are no UTF-8 become such."""
    folder = pathlib.Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: is there already; name another folder")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    images = part / ("images" if masks else "unlabelled")
    images.mkdir(parents=True)
    groups, yaw = {}, {}
    for sample in samples:
        stem = printable(sample.id.replace("/", "__"))
        if stem in groups:
            raise UserError(f"{folder}: two photos would be called {stem}; rename one of them")
        shutil.copyfile(sample.image, images / (stem + os.path.splitext(sample.image)[1]))
        if masks:
            (part / "labels").mkdir(exist_ok=True)
            mask = draw.index_mask(faces.read_label(sample), faces.colors)
            draw.write(part / "labels" / f"{stem}.png", mask)
        groups[stem] = printable(sample.group)
        if sample.yaw is not None:
            yaw[stem] = sample.yaw
    write_info(part, faces, groups, yaw)
    part.rename(folder)


def write_info(folder, faces, groups, yaw):
    """classes.json of a folder. groups, yaw: by the name of a photo."""
    flips = [[faces.classes[a], faces.classes[b]] for a, b in faces.flip_pairs]
    what = {"classes": faces.classes, "flip_pairs": flips, "groups": groups} | ({"yaw": yaw} if yaw else {})
    write_whole(folder / "classes.json", json.dumps(what) + "\n")


def write_pairs(data, faces, policy, seed, count, folder):
    """`count` augmented pairs, the photos in turn, as a data set; 255 where a pixel came from outside."""

    def pairs():
        for n in tqdm(range(count), "writing pairs", disable=None):
            row = n % len(data)
            before = (n - 1) % len(data)  # CutMix takes from the photo before
            image, label = augmented(data, faces, policy, seed, [before, row], n)
            yield f"{n:06d}", image[1], label[1], data.groups[row]

    write_folder(folder, faces, pairs())
