"""What a step of each training script costs, in steps of plain cross-entropy; and memory against masks.

Run:    python benchmarks/speed/steps.py
        python benchmarks/speed/steps.py --only memory
Needs:  nothing; photos and checkpoints are made
Writes: Markdown tables on stdout
Expect: docs/speed.md

Steps: of each script, as a process of one thread, the difference of CPU seconds between a run of --steps and
one of SHORT steps, over that of the bare loop on ready tensors of the same batch and network (bare.py), which
takes its turn right beside it. Every script has its defaults, but for --augment flip, and logs as it does.

Memory: the most that a process of train_reward.py held, by the number of masks that an estimator draws:
`local` one, `rloo` the others; batches of --memory-batch photos, --memory-size px, 19 classes.
"""

import functools
import itertools
import pathlib
import shutil
import statistics
import tempfile

from common import in_turns, parser, per_unit, photos, process, ratios, spread, table

from utils import cli

SHORT = 4
BARE = "benchmarks/speed/bare.py"
MASKS = [1, 2, 4, 8, 16]
SCORER = "def score(masks, photos):\n    return [float((mask > 0).mean()) for mask in masks]\n"


def get_parser():
    p = parser(__doc__)
    p.add_argument("--only", choices=["steps", "memory"], help="one of the two tables")
    p.add_argument("--steps", type=cli.positive, default=44, help="of the longer run")
    p.add_argument("--size", type=cli.positive, default=128, help="side of the images, pixels")
    p.add_argument("--batch-size", type=cli.positive, default=16)
    p.add_argument("--photos", type=cli.positive, default=32, help="photos that are made")
    p.add_argument("--memory-size", type=cli.positive, default=512, help="side of the images, pixels")
    p.add_argument("--memory-batch", type=cli.positive, default=2, help="images")
    p.add_argument("--masks", type=cli.positive, nargs="+", default=MASKS, help="drawn of an image")
    return p


def as_classes(folder, target):
    """The photos of a folder in two classes."""
    for i, path in enumerate(sorted((folder / "images").iterdir())):
        below = target / f"class {i % 2}"
        below.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, below)
    return target


def steps_table(args, work, run):
    short = min(SHORT, max(1, args.steps // 2))
    folder = photos(work / "photos", args.photos, 2 * args.size)
    pictures = as_classes(folder, work / "pictures")
    (work / "judge.py").write_text(SCORER)
    batch = ["--batch-size", args.batch_size]
    same = ["--size", args.size, *batch]
    data = ["--data", folder, "--val-fraction", 0]
    run("train_finetune.py", *data, *same, "--steps", 1, "--augment", "flip", "--out", work / "init")
    init = ["--init", work / "init/last.pt", *batch, "--augment", "flip"]
    scores = [*init, "--unlabelled", folder, "--val-fraction", 0, "--reward", f"{work}/judge.py:score"]
    reward = ["train_reward.py", *init, "--val-fraction", 0]
    student = ["--teacher", work / "init/last.pt", "--data", folder, "--unlabelled", folder, *batch]
    classify = ["--data", pictures, "--val-fraction", 0, "--model", "efficientnet_lite0", *same]
    commands = {
        "train_finetune.py": ["train_finetune.py", *data, *same, "--loss", "ce=1", "--augment", "flip"],
        "train_reward.py reinforce": [*reward, "--estimator", "reinforce"],
        "train_reward.py rloo, 8 masks": [*reward, "--estimator", "rloo"],
        "train_reward.py local": [*reward, "--estimator", "local"],
        "train_reward.py local, boundary_f1": [*reward, "--estimator", "local", "--reward", "boundary_f1"],
        "train_reward.py block": [*reward, "--estimator", "block"],
        "train_scores.py field": ["train_scores.py", *scores, "--samples", 10],
        "train_scores.py rloo, 8 masks": ["train_scores.py", *scores, "--estimator", "rloo"],
        "train_student.py, EMA teacher": ["train_student.py", *student, "--augment", "flip"],
        "train_classify.py": ["train_classify.py", *classify, "--augment", "flip"],
    }

    def seconds(command):
        each = [run(*command, "--steps", n) for n in (short, args.steps)]
        return per_unit(*each, args.steps - short)

    bare = [BARE, "tensors", *same]
    classifier = [BARE, "tensors", *same, "--classifier", "--model", "efficientnet_lite0", "--classes", 2]
    everything = {**commands, "bare": bare, "classifier": classifier}
    contenders = {name: functools.partial(seconds, words) for name, words in everything.items()}
    found = in_turns(contenders, args.repeats)
    rows = []
    for name in commands:
        base = found["classifier" if "classify" in name else "bare"]
        rows.append([f"`{name}`", spread(found[name]), spread(ratios(found[name], base))])
    heads = [f"a step of {args.batch_size} images, {args.size} px", "CPU s", "of cross-entropy's"]
    rows.append(["bare, `unet`", spread(found["bare"]), "1"])
    rows.append(["bare, `efficientnet_lite0`", spread(found["classifier"]), "1"])
    table(heads, rows)


def memory_table(args, work, run):
    folder = photos(work / "many", 2 * args.memory_batch, args.memory_size, classes=19)
    data = ["--data", folder, "--val-fraction", 0, "--size", args.memory_size, "--batch-size", 1]
    begin = [*data, "--augment", "none", "--steps", 1, "--out", work / "wide"]
    run("train_finetune.py", *begin)
    flags = ["--init", work / "wide/last.pt", "--val-fraction", 0, "--batch-size", args.memory_batch]

    def peak(masks):
        drawn = ["--estimator", "rloo", "--samples", masks] if masks > 1 else ["--estimator", "local"]
        return run("train_reward.py", *flags, "--augment", "none", *drawn, "--steps", 2).peak

    found = in_turns({masks: functools.partial(peak, masks) for masks in args.masks}, args.repeats)
    pixels = args.memory_batch * args.memory_size**2
    first = statistics.median(found[args.masks[0]])
    rows = []
    for masks, peaks in found.items():
        more = (statistics.median(peaks) - first) * 2**20 / pixels / max(1, masks - args.masks[0])
        rows.append([masks, spread(peaks, 4), f"{more:.1f}"])
    heads = [f"masks, {args.memory_size} px, 19 classes, {args.memory_batch} images", "peak, MB"]
    table([*heads, "bytes a pixel for each mask more"], rows)


def main(args):
    # ---- setup ----
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)

        def run(script, *flags):
            """A process with an --out of its own, where it has none, on the CPU."""
            if script != BARE:
                flags = [*flags, "--device", "cpu", "--amp", "off"]
                flags += [] if "--out" in flags else ["--out", work / f"run{next(numbers)}"]
                flags += [] if script == "train_scores.py" else ["--eval-every", 10**6]
            return process(script, *flags, cache=work / "cache")

        # ---- train ----
        for name, part in (("steps", steps_table), ("memory", memory_table)):
            if args.only in (None, name):
                part(args, work, run)


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
