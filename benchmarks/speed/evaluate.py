"""evaluate.py and predict.py in images a second, beside a plain loop over photos.

Run:    python benchmarks/speed/evaluate.py
Needs:  nothing; photos and checkpoints are made
Writes: a Markdown table on stdout
Expect: docs/speed.md

Images for a CPU second of one thread: from the difference between --photos and a quarter of them, so that the
start does not count. evaluate.py reads the cache that its first run made; beside F1 it has boundaries,
calibration and intervals. predict.py writes a mask and an overlay for each photo. The plain loop (bare.py) takes
one photo at a time: open, resize, network, argmax; then it saves the mask, or counts it against the labels.
"""

import functools
import itertools
import tempfile

from common import in_turns, parser, photos, process, ratios, spread, table

from utils import cli

BARE = "benchmarks/speed/bare.py"


def get_parser():
    p = parser(__doc__)
    p.add_argument("--sizes", type=cli.positive, nargs="+", default=[128, 512], help="sides, pixels")
    p.add_argument("--photos", type=cli.positive, default=64, help="photos that are made, 8 or more")
    p.add_argument("--side", type=cli.positive, default=512, help="of the photos, pixels")
    return p


def main(args):
    # ---- setup ----
    few, numbers = max(2, args.photos // 4), itertools.count()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        folders = {n: photos(f"{work}/{n}", n, args.side) for n in (few, args.photos)}
        run = functools.partial(process, cache=f"{work}/cache")

        def fresh():
            return f"{work}/out{next(numbers)}"

        def evaluate(init, count):
            return run("evaluate.py", "--init", init, "--data", folders[count], "--split", "train", *cpu)

        def predict(init, count):
            return run("predict.py", "--init", init, folders[count] / "images", "--out", fresh(), "--device", "cpu")

        def counted(init, count):
            return run(BARE, "photos", "--init", init, "--data", folders[count], "--count", count)

        def saved(init, count):
            return run(BARE, "photos", "--init", init, "--data", folders[count], "--count", count, "--out", fresh())

        cpu = ["--device", "cpu", "--amp", "off"]
        for size in args.sizes:
            # ---- model ----
            init, flags = fresh(), ["--size", size, "--batch-size", 2, "--steps", 1, "--val-fraction", 0]
            run("train_finetune.py", "--data", folders[few], *flags, *cpu, "--augment", "none", "--out", init)
            init += "/last.pt"
            for count in folders:
                evaluate(init, count)  # makes the cache

            # ---- test ----
            def rate(contender, init=init):
                """Images for a CPU second."""
                costs = [contender(init, count).cpu for count in (few, args.photos)]
                return (args.photos - few) / max(costs[1] - costs[0], 1e-9)

            contenders = [evaluate, counted, predict, saved]
            found = in_turns({c: functools.partial(rate, c) for c in contenders}, args.repeats)
            for ours, plain in ((evaluate, counted), (predict, saved)):
                shares = spread(ratios(found[ours], found[plain]))
                rates = [spread(found[each]) for each in (ours, plain)]
                rows.append([f"`{ours.__name__}.py`, {size} px", *rates, shares])

    # ---- finish ----
    heads = [f"photos of {args.side} px", "images / CPU s", "plain loop", "ratio"]
    table(heads, rows)


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
