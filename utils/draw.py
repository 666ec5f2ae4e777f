"""Pictures, on Pillow alone: coloured masks, overlays with a legend, and grids for the eye."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from utils.files import whole
from utils.metrics import IGNORE_INDEX

INK = (30, 30, 30)
PAPER = (250, 250, 250)
VOID = (90, 90, 90)  # pixels that never count


def photos_of(images):
    """(B, 3, H, W) uint8, or float in 0 to 1, on any device -> (B, H, W, 3) uint8."""
    images = images if images.dtype == torch.uint8 else (images * 255).byte()
    return images.cpu().movedim(1, -1).numpy()


def colorise(ids, colors):
    """(..., H, W) class ids, an array or a tensor -> (..., H, W, 3) uint8."""
    table = np.full((256, 3), VOID, np.uint8)
    table[: len(colors)] = colors
    return table[ids.cpu().numpy() if torch.is_tensor(ids) else np.asarray(ids)]


def index_mask(ids, colors):
    """(H, W) uint8 -> a PIL image that holds the ids and shows the colours (palette PNG)."""
    image = Image.fromarray(np.asarray(ids))
    image.putpalette(sum((list(c) for c in colors), []) + list(VOID) * (256 - len(colors)))
    return image


def legend(classes, colors, width, size=13):
    """(H, width, 3) uint8: a swatch and a name for each class, in as many rows as it takes."""
    font = ImageFont.load_default(size)
    row = size + 9
    spots, x, y = [], 8, 4
    for name in classes:
        step = int(font.getlength(name)) + size + 22
        if x + step > width and x > 8:
            x, y = 8, y + row
        spots.append((x, y))
        x += step
    image = Image.new("RGB", (width, y + row + 4), PAPER)
    draw = ImageDraw.Draw(image)
    for (x, y), name, color in zip(spots, classes, colors, strict=True):
        draw.rectangle((x, y + 2, x + size, y + 2 + size), fill=tuple(color), outline=INK)
        draw.text((x + size + 6, y + 1), name, fill=INK, font=font)
    return np.asarray(image)


def overlay(photo, ids, colors, classes, alpha=0.5):
    """(H, W, 3) photo and (H, W) ids -> the photo with its parts tinted and a legend of those seen.
    Background (class 0) stays as it is."""
    tint = colorise(ids, colors)
    share = np.where((ids > 0)[..., None], alpha, 0.0)
    mixed = (photo * (1 - share) + tint * share).astype(np.uint8)
    seen = [k for k in range(1, len(classes)) if (ids == k).any()]
    if not seen:
        return mixed
    key = legend([classes[k] for k in seen], [colors[k] for k in seen], max(mixed.shape[1], 160))
    wide = np.full((mixed.shape[0], key.shape[1], 3), PAPER, np.uint8)
    wide[:, : mixed.shape[1]] = mixed
    return np.concatenate([wide, key])


def comparison(images, labels, preds, colors, classes, scale=1, wrong=None):
    """image | truth | prediction | error for each sample, under one legend.

    images (B, 3, H, W); labels, preds (B, H, W) uint8 on the CPU; scale: an integer zoom; wrong: (B, H, W)
    bool, the errors to show (default all). In the error panel right pixels are dim, wrong ones show the
    class they should have had. -> (H', W', 3) uint8.
    """
    photos = photos_of(images)
    truth = colorise(labels, colors)
    guess = colorise(preds, colors)
    wrong = (labels != preds) & (labels != IGNORE_INDEX) if wrong is None else wrong
    errors = np.where(np.asarray(wrong)[..., None], truth, photos // 4)
    return grid([photos, truth, guess, errors], colors, classes, scale=scale)


def evenly(data, count):
    """A batch of `count` samples spread evenly over a data set, always the same ones."""
    return data[[i * len(data) // count for i in range(count)]]


@torch.no_grad()
def validation(predict, data, key, colors, classes, count=8):
    """`comparison` of a few samples. predict: (B, 3, H, W) uint8 -> logits (B, K, H, W). data[[i, j]] ->
    {"image", key: labels}."""
    batch = evenly(data, count)
    preds = predict(batch["image"]).argmax(1).byte().cpu()
    scale = max(1, 256 // preds.shape[-1])
    return comparison(batch["image"], batch[key].cpu(), preds, colors, classes, scale)


@torch.no_grad()
def progress(predict, nets, data, colors, classes, count=8):
    """image | mask of the first net | mask of the second | change: `validation` where nobody knows the truth,
    of the same samples. In the last panel pixels that changed show their new class, others are dim.

    predict: (B, 3, H, W) uint8, net -> logits (B, K, H, W). data[[i, j]] -> {"image"}.
    """
    images = evenly(data, count)["image"]
    before, after = (predict(images, net).argmax(1).byte().cpu().numpy() for net in nets)
    photos = photos_of(images)
    changed = (before != after)[..., None]
    old = colorise(before, colors)
    new = colorise(after, colors)
    panels = [photos, old, new, np.where(changed, new, photos // 4)]
    return grid(panels, colors, classes, scale=max(1, 256 // after.shape[-1]))


def pairs(images, labels, colors, classes, columns=4):
    """image | mask for each sample, under one legend: what a network is fed. images: (B, 3, H, W);
    labels: (B, H, W)."""
    return grid([photos_of(images), colorise(labels, colors)], colors, classes, columns)


def grid(panels, colors, classes, columns=2, scale=1):
    """Panels (B, H, W, 3) uint8 side by side for each sample, `columns` samples a row, under one legend."""
    cells = np.concatenate(panels, 2).repeat(scale, 1).repeat(scale, 2)
    return sheet(cells, columns, legend(classes, colors, columns * (cells.shape[2] + 6) - 6))


def words(text, width, height, size=13):
    """(height, width, 3) uint8: text on paper, in the middle of the left side."""
    image = Image.new("RGB", (width, height), PAPER)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text((6, height / 2), text, fill=INK, font=font, anchor="lm")
    return np.asarray(image)


def sheet(cells, columns, header=None):
    """(B, H, W, 3) uint8 -> one picture with `columns` cells a row, below `header` if there is one."""
    batch, height, width, _ = cells.shape
    rows = -(-batch // columns)
    total = columns * (width + 6) - 6
    page = np.full((rows * (height + 6) - 6, total, 3), PAPER, np.uint8)
    for i, cell in enumerate(cells):
        y = i // columns * (height + 6)
        x = i % columns * (width + 6)
        page[y : y + height, x : x + width] = cell
    return page if header is None else np.concatenate([header[:, :total], page])


def write(path, array):
    """Write (H, W, 3) uint8 as a PNG."""
    with whole(path) as file:
        Image.fromarray(array).save(file, "PNG")
