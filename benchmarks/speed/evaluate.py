"""evaluate.py and predict.py in images a second, beside a plain loop over photos.

Run:    python benchmarks/speed/evaluate.py
Needs:  nothing; photos and checkpoints are made
Writes: a Markdown table on stdout
Expect: docs/speed.md

Images for a CPU second of one thread: from the difference between --photos and a quarter of them, so that
the start does not count. evaluate.py reads the cache that its first run made; beside F1 it has boundaries,
calibration and intervals. predict.py writes a mask and an overlay for each photo. The plain loop (bare.py)
takes one photo at a time: open, resize, network, argmax; then it saves the mask, or counts it against the
labels.
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
    numbers = "photos at each size, 8 or more"
    p.add_argument("--photos", type=cli.positive, nargs="+", default=[400, 80], help=numbers)
    p.add_argument("--side", type=cli.positive, default=512, help="of the photos, pixels")
    return p


def rates(args, size, most, work):
    """{contender: images for a CPU second, of each round} at one size."""
    few, numbers = max(2, most // 4), itertools.count()
    folders = {n: photos(f"{work}/{n}", n, args.side) for n in (few, most)}
    run, cpu = functools.partial(process, cache=f"{work}/cache"), ["--device", "cpu"]

    def fresh():
        return f"{work}/out{next(numbers)}"

    def evaluate(init, count):
        return run("evaluate.py", "--init", init, "--data", folders[count], "--split", "train", *cpu)

    def predict(init, count):
        return run("predict.py", "--init", init, folders[count] / "images", "--out", fresh(), *cpu)

    def plain(init, count, *flags):
        return run(BARE, "photos", "--init", init, "--data", folders[count], "--count", count, *flags)

    init, flags = fresh(), ["--size", size, "--batch-size", 2, "--steps", 1, "--val-fraction", 0, *cpu]
    run("train_finetune.py", "--data", folders[few], *flags, "--augment", "none", "--out", init)
    init += "/last.pt"
    for count in folders:
        evaluate(init, count)  # makes the cache

    def rate(contender):
        short, long = (contender(init, count).cpu for count in (few, most))
        return (most - few) / max(long - short, 1e-9)

    contenders = {
        "evaluate": evaluate,
        "counted": plain,
        "predict": predict,
        "saved": lambda init, count: plain(init, count, "--out", fresh()),
    }
    return in_turns({name: functools.partial(rate, each) for name, each in contenders.items()}, args.repeats)


def main(args):
    # ---- test ----
    rows = []
    for size, most in zip(args.sizes, args.photos, strict=True):
        with tempfile.TemporaryDirectory() as work:
            found = rates(args, size, most, work)
        for script, loop in (("evaluate", "counted"), ("predict", "saved")):
            shown = [spread(found[script]), spread(found[loop]), spread(ratios(found[script], found[loop]))]
            rows.append([f"`{script}.py`, {size} px", *shown])

    # ---- finish ----
    table([f"photos of {args.side} px", "images / CPU s", "plain loop", "ratio"], rows)


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
