"""What a predicted mask is worth: one number per image, by the functions that score a data set.

A reward is a score of summed local statistics. Because the sums are all that it needs, the change that
one pixel makes is exact and cheap to find; `local` in train_reward.py lives on that. Ignored pixels
never count. A class that neither mask has is not scored, as in utils/metrics.py; an image without a
scored class is worth 0 (`accuracy`: right pixels, whatever their class).
"""

import contextlib
import difflib
import functools
import importlib.util
import inspect
import itertools
import os
import pathlib
import reprlib
import textwrap
import traceback

import numpy as np
import torch
import torch.nn.functional as F

from utils import metrics
from utils.cli import named_weights
from utils.dist import Stopped
from utils.errors import UserError
from utils.files import file_of
from utils.rewards.anatomy import anatomy, parts

LARGEST = 1e9  # a score beyond it is a mistake, and leaves no digits for the others


class Reward:
    """reward(preds, labels) -> (B,) float64, for (B, H, W) integer masks; 255 in labels never counts.

    stats(preds, labels) -> (B, S, H, W) bool: maps whose sums over pixels are all the score needs.
    score(sums (..., S) float64) -> (...) float64, never NaN.
    radius: how far, in pixels, the label of one pixel reaches in `stats`.
    """

    def __init__(self, stats, score, radius, num_classes):
        self.stats, self.score, self.radius, self.num_classes = stats, score, radius, num_classes
        if radius == 0:  # what one pixel adds, by its label and prediction: (K, K, S)
            labels, preds = torch.meshgrid(*2 * [torch.arange(num_classes)], indexing="ij")
            one = stats(preds.reshape(-1, 1, 1), labels.reshape(-1, 1, 1)).double()
            self.table = one.view(num_classes, num_classes, -1)

    def sums(self, preds, labels):
        """(B, S) float64."""
        if self.radius:
            return metrics.count(self.stats(preds, labels)).double()
        counts = metrics.confusion(preds, labels, self.num_classes).double()
        return counts.flatten(1) @ self.table.flatten(0, 1).to(counts.device)

    def __call__(self, preds, labels):
        return self.score(self.sums(preds, labels))

    def changes(self, drawn, labels):
        """(B, K, H, W) float64, radius 0 only: how the reward would change with one pixel of `drawn`
        given another class, all others kept. It depends on the drawn, the true and the new class alone, so
        it is looked up in a K x K x K table for each image; and the true one matters only by whether it is
        the drawn one, the new one or a third, so 3 x K x K scores fill the table."""
        k = self.num_classes
        valid = labels != metrics.IGNORE_INDEX
        sums = self.sums(drawn, labels)
        ids = torch.arange(k, device=sums.device)
        old, new = torch.meshgrid(ids, ids, indexing="ij")
        few = ids[:3, None, None]
        third = ((few != old) & (few != new)).int().argmax(0)  # of two classes there is none, nor a use
        true = torch.stack([old, new, third])
        pixel = self.table.to(sums.device)  # (label, pred, S)
        step = pixel[true, new] - pixel[true, old]  # (3, drawn, new, S)
        change = self.score(sums[:, None, None, None] + step) - self.score(sums)[:, None, None, None]
        as_drawn, as_new, as_third = change.unbind(1)
        table = as_third[:, :, None].repeat(1, 1, k, 1)  # (B, drawn, label, new)
        table[:, old, new, new] = as_new
        table[:, ids, ids] = as_drawn
        row = (drawn * k + labels.where(valid, 0)).flatten(1)
        change = table.flatten(1, 2).gather(1, row[..., None].expand(-1, -1, k))
        return change.view(*labels.shape, k).movedim(-1, 1) * valid[:, None]

    def changes_to(self, drawn, other, labels):
        """(B, H, W) float64, any radius r: how the reward would change with one pixel of `drawn` given
        its class in `other`, all others kept.

        Pixels 2r + 1 apart touch different statistics, so a whole grid of them is changed at once, and
        each one's effect is the sum over the window around it: (2r + 1)^2 passes in all.
        """
        r = self.radius
        width = 2 * self.radius + 1
        small = torch.int8 if width**2 < 128 else torch.int16  # holds the sums over a window
        stats = self.stats(drawn, labels)
        before, sums = stats.to(small), metrics.count(stats).double()
        change = sums.new_zeros(labels.shape)
        padded = F.pad(torch.zeros_like(before), 4 * [2 * width])
        step = padded[..., 2 * width : -2 * width, 2 * width : -2 * width]
        for y, x in itertools.product(*(range(min(width, side)) for side in labels.shape[1:])):
            grid = (slice(None), slice(y, None, width), slice(x, None, width))
            changed = drawn.clone()
            changed[grid] = other[grid]
            step.copy_(self.stats(changed, labels)).sub_(before)
            top, left = (2 * width - r + first for first in (y, x))  # of the first pixel's window
            rows, columns = (n * width for n in change[grid].shape[1:])
            around = padded[..., top : top + rows, left : left + columns]
            around = sum(around[..., i::width, :] for i in range(width))
            around = sum(around[..., i::width] for i in range(width))
            change[grid] = self.score(sums[:, None, None] + around.movedim(1, -1))
        return change - self.score(sums)[:, None, None]

    def with_counts(self, rest):
        """The same reward of each image's counts added to `rest`, (B, S): the counts of the others of
        its batch, so that what is scored is the batch and what is changed is one image."""

        def score(sums):
            return self.score(sums + rest.view(len(rest), *(sums.dim() - 2) * [1], -1))

        return Reward(self.stats, score, self.radius, self.num_classes)


def combine(rewards, weights):
    """The weighted sum of rewards, itself a `Reward`; of radius-less callables, a plain callable."""
    if not all(isinstance(r, Reward) for r in rewards):
        return lambda preds, labels: sum(
            w * r(preds, labels).double() for r, w in zip(rewards, weights, strict=True)
        )
    if len(rewards) == 1 and weights[0] == 1:
        return rewards[0]
    k = rewards[0].num_classes
    pixel = torch.zeros(1, 1, 1, dtype=torch.long)
    sizes = [r.stats(pixel, pixel).shape[1] for r in rewards]

    def stats(preds, labels):
        return torch.cat([r.stats(preds, labels) for r in rewards], 1)

    def score(sums):
        parts = zip(weights, rewards, sums.split(sizes, -1), strict=True)
        return sum(w * r.score(s) for w, r, s in parts)

    return Reward(stats, score, max(r.radius for r in rewards), k)


# ---- rewards of radius 0: right, predicted and labelled pixels of each class


def areas(preds, labels, num_classes):
    """(B, 3K, H, W) bool: right, predicted and labelled, each class by itself."""
    pred, true = (
        metrics.one_hot(ids, labels != metrics.IGNORE_INDEX, num_classes) for ids in (preds, labels)
    )
    return torch.cat([pred & true, pred, true], 1)


def weighted(values, weights):
    """(..., K) -> (...): weighted mean over scored classes (not NaN), 0 where there is none."""
    weights = weights.to(values.device) * ~values.isnan()
    return (values.nan_to_num(0) * weights).sum(-1) / weights.sum(-1).clamp_min(1e-12)


def _areas(sums):
    return sums.unflatten(-1, (3, -1)).unbind(-2)


def _overlap(measure):
    def build(weights, tolerance):
        def score(sums):
            return weighted(measure(*_areas(sums)), weights)

        return functools.partial(areas, num_classes=len(weights)), score, 0

    return build


def _accuracy(weights, tolerance):
    def score(sums):
        right, _, labelled = _areas(sums)
        w = weights.to(sums.device)
        return (right * w).sum(-1) / (labelled * w).sum(-1).clamp_min(1e-12)

    return functools.partial(areas, num_classes=len(weights)), score, 0


def _worst(weights, tolerance):
    def score(sums):
        f1 = metrics.f1_of(*_areas(sums)).masked_fill(weights.to(sums.device) == 0, torch.nan)
        worst = f1.nan_to_num(torch.inf).amin(-1)
        return worst.where(worst < torch.inf, 0.0)

    return functools.partial(areas, num_classes=len(weights)), score, 0


def _boundary(weights, tolerance):
    def stats(preds, labels):
        return metrics.boundary_maps(preds, labels, len(weights), tolerance=tolerance).flatten(1, 2)

    def score(sums):
        return weighted(metrics.boundary_f1_of(*sums.unflatten(-1, (4, -1)).unbind(-2)), weights)

    return stats, score, 1 + tolerance


# name: (builder, whether background counts)
REWARDS = {
    "f1": (_overlap(metrics.f1_of), False),
    "dice": (_overlap(metrics.f1_of), True),
    "miou": (_overlap(metrics.iou_of), True),
    "accuracy": (_accuracy, True),
    "worst_f1": (_worst, False),
    "boundary_f1": (_boundary, False),
}
LABEL_FREE = {"anatomy": anatomy}  # (preds, class names) -> (B,): these need no label


def build(words, classes, class_weights=(), tolerance=1):
    """["f1=1", "boundary_f1=0.5"] -> (their weighted sum, {name: reward}).

    classes: names. class_weights: ["nose=3"], 1 for the others, in the means over classes; `f1`,
    `worst_f1` and `boundary_f1` leave background (class 0) out, `dice`, `miou` and `accuracy` have it.
    tolerance: of `boundary_f1`, pixels. Raises UserError, of a class weight without effect too.
    """
    weight_of = named_weights(class_weights, "class weights", classes)
    if any(weight < 0 for weight in weight_of.values()):
        raise UserError(f"class weights {' '.join(class_weights)}: weights are 0 or more")
    wanted = weights_of(words)
    built = {}
    k = len(classes)
    for name in wanted:
        if name not in REWARDS:
            built[name] = label_free(name, classes) if name in LABEL_FREE else checked(name)
            continue
        builder, background = REWARDS[name]
        weights = torch.tensor([weight_of.get(c, 1.0) for c in classes], dtype=torch.double)
        weights[0] *= background
        if not weights.any():
            raise UserError(f"class weights {' '.join(class_weights)}: leave no class to reward {name}")
        built[name] = Reward(*builder(weights, tolerance), k)
    for name, weight in weight_of.items():
        if weight != 1 and not any(hears(reward, classes.index(name), weight) for reward in wanted):
            raise UserError(f"class weight {name}={weight:g}: has no effect on reward {' '.join(wanted)}")
    return combine(list(built.values()), list(wanted.values())), built


def hears(reward, label, weight):
    """Whether a class id `label` that weighs `weight`, not 1, makes a difference to a reward, by its name."""
    if reward not in REWARDS or label == 0 and not REWARDS[reward][1]:
        return False
    return reward != "worst_f1" or weight == 0  # which leaves classes out, and weighs no other


def weights_of(words):
    """["f1=1", "my.py:reward=-1"] -> {"f1": 1.0, "my.py:reward": -1.0}. Raises UserError: below zero, but of
    a function of one's own, or all zero."""
    weights = named_weights(words, "reward")
    if not any(weights.values()) or any(w < 0 and not file_of(name) for name, w in weights.items()):
        raise UserError(
            f"reward {' '.join(words)}: need weights of at least zero, one of them above; FILE.py:FUNCTION "
            "alone may weigh less"
        )
    return weights


def describe(words, classes):
    """["anatomy=1", "my.py:score"] -> "anatomy=1 (of skin, eyes, nose) + my.py:score"."""
    seen = ", ".join(part for part, ids in parts(classes).items() if ids and part != "outside")
    names = named_weights(words, "reward")
    pairs = zip(words, names, strict=True)
    return " + ".join(f"{word} (of {seen})" if name in LABEL_FREE else word for word, name in pairs)


def label_free(name, classes):
    """(preds, anything) -> (B,) of a reward that looks at the prediction alone."""
    LABEL_FREE[name](torch.zeros(1, 1, 1), classes)  # a class list it cannot judge is refused now
    return lambda preds, _: LABEL_FREE[name](torch.as_tensor(preds), classes)


# ---- functions of a user's own


def load(source, known, takes):
    """The function of `FILE.py:FUNCTION`. For the message, known: names that could have been given; takes:
    the names of its two arguments. Raises UserError."""
    file = file_of(source)
    if not file:
        why = "needs labels" if source in REWARDS else f"is not known{nearest(source, known)}"
        raise UserError(f"reward {source} {why}; here: {', '.join(known)}, or FILE.py:FUNCTION")
    name = source.rpartition(":")[2]
    if not pathlib.Path(file).is_file():
        raise UserError(f"reward {source}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    try:
        with contextlib.chdir("."):  # the file may change the working directory: come back
            spec.loader.exec_module(module)
    except Stopped:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file may do
        raise UserError(f"reward {source}: {file} cannot be imported: {fault(file, error)}") from None
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(f"reward {source}: {file} has no function {name}{nearest(name, functions)}")
    try:
        inspect.signature(function).bind(*takes)
    except TypeError:
        declared = f"{name}{inspect.signature(function)}"
        raise UserError(f"reward {source}: need {name}({', '.join(takes)}), got {declared}") from None
    except ValueError:  # of a function that is not written in Python
        pass
    return function


def nearest(name, names):
    found = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def ask(source, function, *inputs):
    """What a user's function returns; the working directory is as before. Raises UserError, one line, for
    whatever else it may do."""
    try:
        with contextlib.chdir("."):
            return function(*inputs)
    except (UserError, Stopped):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"reward {source}: {fault(file_of(source), error)}") from None


def fault(file, error):
    """An exception as a line, with the last place in `file` that it came through, else the last at all."""
    if isinstance(error, SystemExit):
        return f"left by sys.exit({'' if error.code is None else repr(error.code)})"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(file, line) for name, line in places if os.path.abspath(name) == os.path.abspath(file)]
    name, line = (own or places)[-1]
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 200)} ({name}:{line})"


def numbers(source, answer):
    """What a user's function returned as a float64 array, NaN included. Raises UserError where it holds
    anything else, or more than `LARGEST`."""
    given = answer
    if torch.is_tensor(answer):
        given = answer.detach().cpu()
        given = given if given.is_complex() else given.double()
    try:
        array = np.asarray(given)
    except Exception:  # lists of unequal lengths, or of tensors on a GPU
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        one = isinstance(answer, list | tuple) and len(answer) == 1
        shown = reprlib.repr(answer[0] if one else answer)
        raise UserError(f"reward {source}: got {' '.join(shown.split())}")
    array = array.astype(np.float64)
    if (large := array[abs(array) > LARGEST]).size:
        raise UserError(f"reward {source}: got {large[0]:g}; need numbers of at most {LARGEST:g} in size")
    return array


def checked(source):
    """The function of `FILE.py:FUNCTION` as a reward, whose every answer must be one number an image."""
    function = load(source, [*REWARDS, *LABEL_FREE], ("preds", "labels"))

    def reward(preds, labels):
        values = numbers(source, ask(source, function, preds, labels))
        need = f"need one finite number for each of {len(preds)} masks"
        if values.shape != (len(preds),):
            raise UserError(f"reward {source}: {need}, got shape {values.shape}")
        if np.isnan(values).any():
            raise UserError(f"reward {source}: {need}, got nan")
        return torch.from_numpy(values).to(preds.device)

    return reward
