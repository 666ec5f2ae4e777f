"""What training costs beside forward and backward, and beside torchvision's reference loop.

Run:    python benchmarks/speed/train.py
Needs:  nothing; photos are made. Set by --photos, --small and --large
Writes: Markdown tables on stdout
Expect: docs/speed.md

CPU seconds for an image of one thread: of each contender, as a process, the difference between a run of
--steps and one of SHORT steps, so that the start does not count. Bare: benchmarks/speed/bare.py.
"""

import functools
import itertools
import pathlib
import tempfile

from common import begin, call, in_turns, parser, per_unit, photos, process, ratios, spread, table

from datasets import batches, splits
from datasets import cache as cache_of_photos
from utils import cli

SHORT = 10  # steps of the shorter run; with --steps below it, one
BATCH = 16
CLASSES = 11  # of the photos that `common.photos` makes
BARE = "benchmarks/speed/bare.py"
LRASPP = "lraspp_mobilenet_v3_large"
OURS = "train_finetune.py"


def get_parser():
    p = parser(__doc__)
    p.add_argument("--only", choices=["bare", "reference"], help="one of the two tables")
    p.add_argument("--steps", type=cli.positive, default=110, help="of the longer run")
    p.add_argument("--size", type=cli.positive, default=128, help="side that photos are trained at, pixels")
    p.add_argument("--batch-size", type=cli.positive, default=BATCH)
    p.add_argument("--photos", type=cli.positive, default=64, help="photos that are made")
    p.add_argument("--small", type=cli.positive, default=256, help="side of small photos, pixels")
    p.add_argument("--large", type=cli.positive, default=1024, help="side of full-size photos, pixels")
    return p


def main(args):
    # ---- setup ----
    begin()
    short, work = min(SHORT, max(1, args.steps // 2)), tempfile.TemporaryDirectory()
    numbers, cache, images = itertools.count(), f"{work.name}/cache", (args.steps - short) * args.batch_size
    folders = {}
    for kind, side in (("small", args.small), ("large", args.large)):
        folders[kind] = photos(f"{work.name}/{kind}", args.photos, side)
    same = ["--size", args.size, "--batch-size", args.batch_size]

    def ours(steps, model, augment, folder, cache=cache):
        flags = ["--data", folder, "--model", model, "--augment", augment, "--val-fraction", 0]
        flags += ["--device", "cpu", "--amp", "off"]
        out = f"{work.name}/run{next(numbers)}"
        return process(
            OURS, *flags, *same, "--steps", steps, "--eval-every", steps, "--out", out, cache=cache
        )

    def bare(steps, model):
        return process(BARE, "tensors", "--model", model, *same, "--steps", steps)

    def reference(steps, folder):
        return process(BARE, "torchvision", "--data", folder, *same, "--steps", steps)

    def seconds(contender, **options):
        """CPU seconds for an image."""
        run = functools.partial(contender, **options)
        return per_unit(run(short), run(args.steps), images)

    def scan(folder):
        """CPU seconds for a photo that is read for the first time, in this process."""
        cache_of_photos.ROOT = pathlib.Path(f"{work.name}/cache{next(numbers)}")
        read = lambda: batches.load(splits.open_data(str(folder), val_fraction=0), "train", args.size)
        return call(read).cpu / args.photos

    for folder in folders.values():
        ours(1, "unet", "none", folder)  # the cache is warm from here on

    # ---- train ----
    if args.only in (None, "bare"):
        small = folders["small"]
        found = in_turns(
            {
                "bare": lambda: seconds(bare, model="unet"),
                "no augmentation": lambda: seconds(ours, model="unet", augment="none", folder=small),
                "RandAugment and CutMix": lambda: seconds(ours, model="unet", augment="cutmix", folder=small),
            },
            args.repeats,
        )
        shares = {name: ratios(found["bare"], values) for name, values in found.items()}
        rows = [[name, spread(values), spread(shares[name])] for name, values in found.items()]
        table([f"`unet`, {args.size} px", "CPU s an image", "share that the bare loop is of it"], rows)
    if args.only in (None, "reference"):
        contenders = {"bare": lambda: seconds(bare, model=LRASPP)}
        for kind, folder in folders.items():
            contenders[kind, "ours"] = functools.partial(
                seconds, ours, model=LRASPP, augment="cutmix", folder=folder
            )
            contenders[kind, "torchvision"] = functools.partial(seconds, reference, folder=folder)
            contenders[kind, "scan"] = functools.partial(scan, folder)
        found = in_turns(contenders, args.repeats)
        rows = [["bare loop over ready tensors", spread(found["bare"]), "", ""]]
        for kind, side in (("small", args.small), ("large", args.large)):
            warm, reading = found[kind, "ours"], found[kind, "scan"]
            cold = [a + b for a, b in zip(warm, reading, strict=True)]
            theirs = found[kind, "torchvision"]
            rows += [
                [f"photos of {side} px: torchvision's loop", spread(theirs), "1", ""],
                [f"... `{OURS}`, warm cache", spread(warm), spread(ratios(warm, theirs)), ""],
                ["... first epoch, cold cache", spread(cold), spread(ratios(cold, theirs)), spread(reading)],
            ]
        heads = [
            f"LR-ASPP, {args.size} px",
            "CPU s an image",
            "of torchvision's",
            "reading a photo once, CPU s",
        ]
        table(heads, rows)


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
