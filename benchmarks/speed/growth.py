"""How cost grows with photos, pixels, classes and processes: measured, and the exponent fitted.

Run:    python benchmarks/speed/growth.py
        python benchmarks/speed/growth.py --only classes
Needs:  nothing; photos are made, of many photos as links to a few files, each of which is read and digested
Writes: Markdown tables on stdout
Expect: docs/speed.md

Of each row: CPU seconds of one thread at every value (the median), and the slope of their logarithm by that
of the value, between the last two and over all (least squares). 1 is linear. What costs next to nothing at
small values has a slope below that of its growth, so the last one counts.
"""

import functools
import math
import os
import pathlib
import shutil
import statistics
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from common import begin, call, in_turns, parser, photos, process, table

from datasets import batches, cache, splits, summary
from datasets.augmentation import augment
from datasets.faces import Sample, limit, split_by_group
from datasets.policies import POLICIES
from models import build_model
from utils import cli, metrics, rng
from utils.rewards.rewards import build

PARTS = ["photos", "pixels", "classes", "processes"]
EACH = 3  # photos of one person, where people are split
COST = 3.0  # seconds after which a row takes no more turns, but for the first


def get_parser():
    p = parser(__doc__)
    p.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="some of the tables")
    p.add_argument("--photos", type=cli.positive, nargs="+", default=[1000, 10_000, 100_000])
    p.add_argument("--sizes", type=cli.positive, nargs="+", default=[64, 128, 256, 512], help="sides, pixels")
    p.add_argument("--classes", type=cli.positive, nargs="+", default=[2, 10, 50, 150])
    p.add_argument("--batch-size", type=cli.positive, default=2, help="images, of pixels and classes")
    p.add_argument("--steps", type=cli.positive, default=40, help="of a run of one process, or of two")
    return p


def slope(values, costs):
    return np.polyfit(np.log(values), np.log(np.maximum(costs, 1e-9)), 1)[0]


def show(what, values, costs):
    """costs: {row: [CPU seconds at each value]}."""
    rows = []
    for name, row in costs.items():
        last = slope(values[-2:], row[-2:]) if len(values) > 1 else math.nan
        whole = slope(values, row) if len(values) > 1 else math.nan
        rows.append([name, *(f"{cost:.3g}" for cost in row), f"{last:.2f}", f"{whole:.2f}"])
    table([f"CPU s by {what}", *(f"{value:,}" for value in values), "exponent, last two", "all"], rows)


def median(function, repeats):
    """CPU seconds of a call, the median; of a call that takes long, of fewer."""
    found = []
    while len(found) < repeats and sum(found) < COST:
        found.append(call(function).cpu)
    return statistics.median(found)


# ---- photos


def people(count):
    """Samples that lie nowhere, of a third as many people, at 25 angles."""
    made = [(f"{i:06}", f"person {i // EACH}", 15.0 * (i * 7 % 25 - 12)) for i in range(count)]
    return [Sample(name, name, name, person, yaw) for name, person, yaw in made]


def by_photos(args):
    costs = {}

    def note(name, seconds):
        costs.setdefault(name, []).append(seconds)

    for count in args.photos:
        with tempfile.TemporaryDirectory() as work:
            folder = str(photos(pathlib.Path(work, "photos"), count, 32, few=True))
            cache.ROOT = pathlib.Path(work, "cache")
            held = {}

            def opened(folder=folder, held=held):
                held["faces"] = splits.open_data(folder)

            def scanned(held=held):
                held["data"] = batches.load(held["faces"], "train", 16)

            def inspected(held=held):
                summary.inspect({"train": held["data"]}, held["faces"].classes)

            def epoch(count=count):
                for _ in batches.Order(count, 16, 0, 0, count // 16):
                    pass

            note("open the folder", median(opened, args.repeats))
            note("scan: digest, decode, resize", call(scanned).cpu)  # there is one first time
            note("the next time", median(scanned, args.repeats))
            note("the table before the first step", median(inspected, args.repeats))
            note("the order of an epoch", median(epoch, args.repeats))
        listed = people(count)
        note("split by people", median(lambda listed=listed: split_by_group(listed, 0.15), args.repeats))
        half = lambda listed=listed: limit(listed, len(listed) // 2, 0)
        note("--limit, half of them", median(half, args.repeats))
        confusions = torch.ones(count, 11, 11, dtype=torch.long)
        groups = [s.group for s in listed]
        score = lambda confusions=confusions, groups=groups: metrics.bootstrap(confusions, groups)
        note("an interval over people", median(score, args.repeats))
    show("photos", args.photos, costs)


# ---- pixels and classes


def of_networks(batch_size, size, classes, repeats):
    """{what: CPU seconds} of a batch of size x size photos with so many classes."""
    torch.manual_seed(0)
    model = build_model("unet", classes).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    pixels = torch.randint(256, (batch_size, 3, size, size), dtype=torch.uint8)
    blocks = torch.randint(classes, (batch_size, 1, size // 8, size // 8))
    labels = F.interpolate(blocks.float(), (size, size))[:, 0].long()
    images = (pixels.float() / 255).to(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = model(images)["semantic"].contiguous()
    preds, positions = logits.argmax(1), torch.arange(batch_size)
    batch = {"image": pixels, "semantic": labels.byte()}
    names = [f"class {i}" for i in range(classes)]
    rewards = {name: build([name], names)[0] for name in ("f1", "boundary_f1")}

    def step():
        loss = F.cross_entropy(model(images)["semantic"], labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def predict(_):
        return logits

    class Held:
        def __len__(self):
            return batch_size

        def __getitem__(self, rows):
            return {"image": pixels[rows], "semantic": labels[rows]}

    from train_reward import local

    def estimate(name):
        with torch.no_grad():
            u = rng.uniform(0, positions, 2 * labels[0].numel(), 9).view(batch_size, 2, size, size)
            local(logits, labels, rewards[name], u)

    calls = {
        "a step of training, `unet`": step,
        "augmentation, RandAugment": lambda: augment(batch, POLICIES["randaugment"], 0, positions, {}),
        "metrics of a batch": lambda: metrics.measure(predict, Held(), "semantic", classes, batch_size),
        "confusion alone": lambda: metrics.confusion(preds, labels, classes),
        "boundaries alone": lambda: metrics.boundary_counts(preds, labels, classes),
        "calibration alone": lambda: metrics.calibration_counts(logits.softmax(1), labels),
        "estimator local": lambda: estimate("f1"),
        "estimator local of boundary_f1": lambda: estimate("boundary_f1"),
    }
    for function in calls.values():
        function()  # the first time allocates
    return {name: median(function, repeats) for name, function in calls.items()}


def by_pixels(args):
    found = [of_networks(args.batch_size, size, 19, args.repeats) for size in args.sizes]
    costs = {name: [row[name] for row in found] for name in found[0]}
    show("pixels of a photo, 19 classes", [size**2 for size in args.sizes], costs)


def by_classes(args):
    side = args.sizes[min(1, len(args.sizes) - 1)]
    found = [of_networks(args.batch_size, side, classes, args.repeats) for classes in args.classes]
    costs = {name: [row[name] for row in found] for name in found[0]}
    show(f"classes, {side} px", args.classes, costs)


# ---- processes


def by_processes(args):
    """The same images in all, by one process or two: CPU and wall seconds for a step."""
    with tempfile.TemporaryDirectory() as work:
        folder = photos(pathlib.Path(work, "photos"), 32, 128)
        same = ["--data", folder, "--val-fraction", 0, "--size", 96, "--device", "cpu", "--eval-every", 10**6]
        short = max(1, args.steps // 10)

        def seconds(processes, steps):
            out = pathlib.Path(work, "out")
            shutil.rmtree(out, ignore_errors=True)
            flags = [*same, "--batch-size", 16 // processes, "--steps", steps, "--out", out]
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            launch = launch if processes > 1 else []
            return process(*launch, "train_finetune.py", *flags, cache=f"{work}/cache")

        def step(processes):
            first, last = seconds(processes, short), seconds(processes, args.steps)
            return [(getattr(last, w) - getattr(first, w)) / (args.steps - short) for w in ("cpu", "wall")]

        seconds(1, 1)
        found = in_turns({n: functools.partial(step, n) for n in (1, 2)}, args.repeats)
        costs = {
            name: [statistics.median(cost[i] for cost in found[n]) for n in (1, 2)]
            for i, name in enumerate(("CPU s", "wall s"))
        }
        show(f"processes, a step of 16 images in all, {os.cpu_count()} cores", [1, 2], costs)


def main(args):
    # ---- finish ----
    begin()
    tables = {"photos": by_photos, "pixels": by_pixels, "classes": by_classes, "processes": by_processes}
    for name in args.only:
        tables[name](args)


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
