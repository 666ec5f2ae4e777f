"""Pictures, on Pillow alone: coloured masks, overlays with a legend, and grids for the eye."""

import colorsys
import itertools
import math
import unicodedata

import numpy as np
import scipy  # its parts load when they are first used
import torch
from PIL import Image, ImageDraw, ImageFont

from utils import files, panoptic
from utils.instances import called, segments
from utils.metrics import IGNORE_INDEX

INK = (30, 30, 30)
PAPER = (250, 250, 250)
VOID = (90, 90, 90)  # pixels that never count
UNLABELLED = "not labelled"  # what a legend calls them
ALIKE = 100  # distance in RGB below which two colours could be taken for one another
SMALLEST = 256  # pixels: smaller photos are enlarged, or nobody could read a legend beside them
BAND = 256  # rows of a photo that are worked on at once, so that memory is bounded


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


def legend(classes, colors, width):
    """(H, width, 3) uint8: a swatch and a name for each class, in as many rows as it takes."""
    size = text_size(width)
    font = ImageFont.load_default(size)
    gap = size // 2
    row = size + gap + 3
    spots, x, y = [], gap, gap // 2
    classes = [drawable(name) for name in classes]
    for name in classes:
        step = int(font.getlength(name)) + size + 3 * gap
        if x + step > width and x > gap:
            x, y = gap, y + row
        spots.append((x, y))
        x += step
    image = Image.new("RGB", (width, y + row + gap // 2), PAPER)
    draw = ImageDraw.Draw(image)
    for (x, y), name, color in zip(spots, classes, colors, strict=True):
        box = (x, y + 2, x + size, y + 2 + size)
        draw.rectangle(box, fill=tuple(color), outline=INK, width=max(1, size // 13))
        draw.text((x + size + gap, y + 1), name, fill=INK, font=font)
    return np.asarray(image)


def text_size(width):
    """Pixels: what can be read where a picture of this width is shown on a screen."""
    return max(13, width // 80)


def face_colors(n, taken=()):
    """Black and n bright colours: of no instance, and of the instances 1 to n of an image; at last those like
    one of `taken`, the colours of classes."""
    golden = 0.618034  # of the circle of hues between two neighbours: the first few are far apart
    hues = np.arange(n) * golden % 1
    found = [tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.8, 1)) for hue in hues]
    found.sort(key=lambda color: any(math.dist(color, other) < ALIKE for other in taken))
    return [(0, 0, 0), *found]


def overlay(photo, ids, colors, classes, alpha=0.5, instances=None):
    """(H, W, 3) uint8 photo and (H, W) uint8 ids -> (H', W', 3) uint8: the photo with its parts tinted and
    outlined, and a legend of those seen. Background (class 0) stays as it is. Photos smaller than `SMALLEST`
    are enlarged. instances: (H, W) ids, 0 for none; see `numbered`."""
    if (scale := SMALLEST // max(ids.shape)) > 1:
        photo, ids = (array.repeat(scale, 0).repeat(scale, 1) for array in (photo, ids))
        instances = None if instances is None else instances.repeat(scale, 0).repeat(scale, 1)
    height, width = ids.shape
    entries = zip([*range(len(classes)), IGNORE_INDEX], [*classes, UNLABELLED], [*colors, VOID], strict=True)
    seen = [(name, color) for k, name, color in entries if k and (ids == k).any()]
    key = legend(*zip(*seen, strict=True), max(width, 160)) if seen else np.empty((0, width, 3), np.uint8)
    page = np.full((height + len(key), key.shape[1], 3), PAPER, np.uint8)
    page[height:] = key
    table = colorise(np.arange(256), colors).astype(np.uint16)
    lines = outlines(ids, max(1, text_size(width) // 10))
    for top in range(0, height, BAND):
        rows = slice(top, min(top + BAND, height))
        share = np.where(lines[rows], 256, round(256 * alpha)).astype(np.uint16)  # 256ths of the tint
        share = np.where(ids[rows] == 0, 0, share)[..., None].astype(np.uint16)
        page[rows, :width] = (photo[rows] * (256 - share) + table[ids[rows]] * share) // 256
    return page if instances is None else numbered(page, instances, face_colors(254, colors))


def numbered(page, instances, colors):
    """A picture with each instance outlined in its colour, and its id where it is highest, if the box of the
    instance has room for it.

    page: (H', W', 3) uint8, with the photo in its upper left corner; instances: (H, W) ids, 0 for none;
    colors: of all ids.
    """
    height, width = instances.shape
    size = text_size(width)
    lines = outlines(instances, max(2, size // 4))
    boxes = scipy.ndimage.find_objects(instances)  # None of an id that is nowhere
    page[:height, :width][lines] = np.uint8(colors)[instances[lines]]
    image = Image.fromarray(page)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(3 * size // 2)
    for i, place in enumerate(boxes, 1):
        if place is None:
            continue
        top, left = place[0].start, place[1].start
        left += int((instances[top, place[1]] == i).argmax())
        box = draw.textbbox((left, top), str(i), font=font)
        right, bottom = box[2] + 3, box[3] + 3
        if right - left > place[1].stop - place[1].start or bottom - top > place[0].stop - top:
            continue
        draw.rectangle((left, top, right, bottom), fill=colors[i])
        draw.text((left + 2, top), str(i), fill=INK, font=font)
    return np.asarray(image)


def outlines(ids, width):
    """(H, W) bool: pixels at most `width` above, below or beside a pixel of another class."""
    lines = np.zeros(ids.shape, bool)
    for a, b in ((np.s_[width:], np.s_[:-width]), (np.s_[:, width:], np.s_[:, :-width])):
        changes = ids[a] != ids[b]
        lines[a] |= changes
        lines[b] |= changes
    return lines


def unlike(colors):
    """(r, g, b): a bright colour, as far as can be from all of `colors`."""
    steps = range(0, 256, 51)
    bright = [color for color in itertools.product(steps, repeat=3) if max(color) == 255]
    taken = np.array([*colors, VOID, PAPER])
    return max(bright, key=lambda color: ((taken - color) ** 2).sum(1).min())


def comparison(images, labels, preds, colors, classes, scale=1, wrong=None):
    """image | truth | prediction | error for each sample, under one legend.

    images (B, 3, H, W); labels, preds (B, H, W) uint8 on the CPU; scale: an integer zoom; wrong: (B, H, W)
    bool, the errors to show (default all), in a colour that no class has, on the darkened photo.
    -> (H', W', 3) uint8.
    """
    photos = photos_of(images)
    truth = colorise(labels, colors)
    guess = colorise(preds, colors)
    wrong = (labels != preds) & (labels != IGNORE_INDEX) if wrong is None else wrong
    color = unlike(colors)
    errors = np.where(np.asarray(wrong)[..., None], np.uint8(color), photos // 4)
    panels = {"photo": photos, "truth": truth, "prediction": guess, "error": errors}
    more = [(UNLABELLED, VOID)] * bool((labels == IGNORE_INDEX).any()) + [("error", color)]
    return grid(panels, colors, classes, more, scale=scale)


def evenly(data, count):
    """A batch of `count` samples spread evenly over a data set, always the same ones, or all where there are
    fewer."""
    count = min(count, len(data))
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
def scenes(predict, data, things, colors, classes, count=8):
    """photo | true parts | predicted parts | true faces | predicted faces for a few scenes, always the same
    ones; classes and instances where other things than faces are counted. A predicted face has the colour of
    the true one that it is a match of (see `panoptic.matches`), else one that no other has.

    predict: (B, 3, H, W) uint8 -> {"semantic", "center", "offset"} as `panoptic.measure` takes it. data[[i]]
    -> {"image", "semantic", "instance"}. things: {name: [class ids]}.
    """
    batch = {key: value.cpu() for key, value in evenly(data, count).items()}
    outputs = {key: value.float().cpu() for key, value in predict(batch["image"]).items()}
    labels, instances = batch["semantic"], batch["instance"]
    truths, guesses = torch.zeros_like(instances), torch.zeros_like(instances)
    for i, label in enumerate(labels):
        probs = outputs["semantic"][i].softmax(0)
        ids, faces = segments(probs, outputs["center"][i], outputs["offset"][i], things)
        kinds = torch.tensor([0, *(list(things).index(each["thing"]) for each in faces)])
        unknown = instances[i] == IGNORE_INDEX
        truth, true_kinds = panoptic.true_instances(label, instances[i], things)
        void = unknown | (label == IGNORE_INDEX)
        iou, *_ = panoptic.matches(truth, ids, void, true_kinds, kinds)
        numbers = iou.argmax(0)  # of the true one that each is a match of, 0 of none
        alone = numbers == 0
        numbers[alone] = torch.arange(len(iou) - 1, len(iou) - 1 + int(alone.sum()))
        numbers[0] = 0
        truths[i] = truth.where(~unknown, IGNORE_INDEX)
        guesses[i] = numbers[ids].clamp(max=254)
    shades = face_colors(254)
    counted = f"{called(things)}s"
    parts = "parts" if counted == "faces" else "classes"
    panels = {
        "photo": photos_of(batch["image"]),
        f"true {parts}": colorise(labels, colors),
        f"predicted {parts}": colorise(outputs["semantic"].argmax(1).byte(), colors),
        f"true {counted}": colorise(truths, shades),
        f"predicted {counted}": colorise(guesses, shades),
    }
    more = [(UNLABELLED, VOID)] * bool((labels == IGNORE_INDEX).any() or (instances == IGNORE_INDEX).any())
    return grid(panels, colors, classes, more, scale=max(1, 192 // labels.shape[-1]))


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
    change = np.where(changed, new, photos // 4)
    panels = {"photo": photos, "before": old, "now": new, "change": change}
    return grid(panels, colors, classes, scale=max(1, 256 // after.shape[-1]))


def pairs(images, labels, colors, classes, columns=4):
    """image | mask for each sample, under one legend: what a network is fed. images: (B, 3, H, W);
    labels: (B, H, W)."""
    panels = {"photo": photos_of(images), "mask": colorise(labels, colors)}
    more = [(UNLABELLED, VOID)] * bool((labels == IGNORE_INDEX).any())
    return grid(panels, colors, classes, more, columns)


def taught(images, preds, pseudo, batch, colors, classes):
    """photo | what the teacher says | what of it is sure | what the student sees | what it is taught, for up
    to eight photos.

    images (B, 3, H, W); preds, pseudo (B, H, W), with ids beyond the classes where nothing is sure; batch:
    `image` and `semantic` as augmented.
    """
    panels = {
        "photo": photos_of(images),
        "teacher": colorise(preds, colors),
        "sure": colorise(pseudo, colors),
        "student sees": photos_of(batch["image"]),
        "is taught": colorise(batch["semantic"], colors),
    }
    panels = {heading: panel[:8] for heading, panel in panels.items()}
    return grid(panels, colors, classes, [("nothing", VOID)], scale=max(1, 192 // preds.shape[-1]))


def grid(panels, colors, classes, more=(), columns=2, scale=1):
    """Panels {heading: (B, H, W, 3) uint8} side by side for each sample, `columns` samples a row, under one
    legend. more: [(name, color)] of what the legend has beside the classes; scale: an integer zoom."""
    cells = np.concatenate(list(panels.values()), 2).repeat(scale, 1).repeat(scale, 2)
    columns = min(columns, len(cells))
    width = columns * (cells.shape[2] + 6) - 6
    panel = cells.shape[2] // len(panels)
    size = min(text_size(width), max(8, 3 * panel // (2 * max(map(len, panels)))))  # the longest one fits
    headings = np.concatenate([words(text, panel, size + 9, size) for text in panels], 1)
    names, shown = zip(*zip(classes, colors, strict=True), *more, strict=True)
    key = legend(names, shown, width)
    return sheet(cells, columns, np.concatenate([key, sheet(np.stack([headings] * columns), columns)]))


def captioned(images, captions, heading, columns=10):
    """Photos (B, 3, H, W) with up to two lines of words below each, and a heading above all."""
    photos = photos_of(images)
    scale = -(-128 // photos.shape[2])  # at least 128 pixels, for the words
    photos = photos.repeat(scale, 1).repeat(scale, 2)
    width = photos.shape[2]
    size = max(11, width // 12)
    below = np.stack([words(text, width, 3 * size, size) for text in captions])
    columns = max(4, min(columns, len(photos)))  # the heading needs room, too
    total = columns * (width + 6) - 6
    size = min(text_size(total), max(8, 3 * total // (2 * len(heading))))
    return sheet(np.concatenate([photos, below], 1), columns, words(heading, total, 2 * size, size))


def shares_in_words(shares, classes):
    """(K,) shares of classes, largest first, as up to two lines: "circle 70 %", "square 30 %"; the class
    alone where it has all, "not sure" where none has any."""
    (first, second), (i, j) = (found.tolist() for found in shares.topk(2))
    if first > 0.995:
        return classes[i]
    lines = [f"{classes[k]} {share:.0%}" for k, share in ((i, first), (j, second)) if share]
    return "\n".join(lines) or "not sure"


def verdict(truth, guess, probability):
    """What an image is taken for, and below it what it is, where that is something else."""
    return f"{probability:.0%} {guess}" + (f"\nit is {truth}" if guess != truth else "")


def guesses(measured, data, classes, count=32):
    """A picture of some images of a data set, always the same ones, with what they are taken for. measured:
    see `class_metrics.measure`, of one key."""
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count].tolist()
    labels = measured["labels"][rows].tolist()
    confidence, preds = (found.tolist() for found in measured["probs"][rows].max(1))
    captions = [
        verdict(classes[truth], classes[guess], share)
        for truth, guess, share in zip(labels, preds, confidence, strict=True)
    ]
    return captioned(data[rows]["image"], captions, "held-out images: what they are taken for", 8)


def taught_shares(images, probs, seen, shares, classes):
    """Up to eight images with what the teacher says of each, and beside it what the student sees of it and is
    taught. images (B, 3, H, W) uint8, seen the same in float; probs, shares (B, K)."""
    pairs = torch.stack([images[:8], (seen[:8] * 255).byte()], 1).flatten(0, 1)
    rows = torch.stack([probs[:8], shares[:8]], 1).flatten(0, 1)
    captions = [shares_in_words(row, classes) for row in rows]
    heading = "what the teacher says of an image; what the student sees of it and is taught"
    return captioned(pairs, captions, heading, 8)


def drawable(text):
    """A text without its accents, which Pillow's font has not; as it is where nothing would be left."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() or text


def words(text, width, height, size=13):
    """(height, width, 3) uint8: text on paper, in the middle of the left side."""
    image = Image.new("RGB", (width, height), PAPER)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text((6, height / 2), drawable(text), fill=INK, font=font, anchor="lm")
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


def write(path, picture):
    """Write (H, W, 3) uint8, or a PIL image, as a PNG, whole or not at all."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    with files.whole(path) as file:
        image.save(file, format="PNG", compress_level=3)  # a third of the time of 6, and as small for photos
