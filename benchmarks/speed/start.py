"""What the start costs: 10,000 photos the first time and the next, and --help of every script.

Run:    python benchmarks/speed/start.py
        python benchmarks/speed/start.py --only help
Needs:  nothing; photos are made
Writes: Markdown tables on stdout
Expect: docs/speed.md

Photos: from the name of the folder to the table that scripts show before the first step (open the folder,
digest every file, decode and resize into the cache, count the masks). The first time there is no cache and no
manifest, the next time both; one thread. Help: a process each, beside one that imports torch, and no more.
"""

import functools
import pathlib
import tempfile

from common import ROOT, begin, call, in_turns, parser, photos, process, spread, table

from datasets import batches, cache, splits, summary
from utils import cli


def get_parser():
    p = parser(__doc__)
    p.add_argument("--only", choices=["photos", "help"], help="one of the two tables")
    p.add_argument("--photos", type=cli.positive, default=10_000, help="photos that are made")
    p.add_argument("--side", type=cli.positive, default=96, help="of the files, pixels")
    p.add_argument("--size", type=cli.positive, default=64, help="that they are resized to, pixels")
    p.add_argument("--scripts", nargs="+", metavar="FILE", help="of --help; all where it is not given")
    return p


def look(folder, size):
    """As the scripts do it before the first step."""
    faces = splits.open_data(folder)
    data = {split: batches.load(faces, split, size) for split in ("train", "val")}
    summary.table(summary.inspect(data, faces.classes))


def photos_table(args, work):
    folder = str(photos(work / "photos", args.photos, args.side))
    costs = {"first": [], "next": []}
    for turn in range(args.repeats):
        cache.ROOT = work / f"cache{turn}"  # a new one: nothing is known of the files
        for time in costs:
            costs[time].append(call(look, folder, args.size))
    rows = [
        [f"the {time} time", *(spread([getattr(spent, what) for spent in found]) for what in ("cpu", "wall"))]
        for time, found in costs.items()
    ]
    table([f"{args.photos:,} photos of {args.side} px, kept at {args.size}", "CPU s", "wall s"], rows)


def help_table(args):
    scripts = args.scripts or sorted(p.name for p in ROOT.glob("*.py") if "def get_parser" in p.read_text())
    contenders = {"import torch": functools.partial(process, "-c", "import torch")}
    contenders |= {f"{name} --help": functools.partial(process, name, "--help") for name in scripts}
    found = in_turns(contenders, args.repeats)
    base = [spent.cpu for spent in found["import torch"]]
    rows = []
    for name, costs in found.items():
        above = [spent.cpu - torch for spent, torch in zip(costs, base, strict=True)]
        rows.append(
            [f"`{name}`", spread([s.cpu for s in costs]), spread(above, 2), spread([s.wall for s in costs])]
        )
    table(["command", "CPU s", "above import torch", "wall s"], rows)


def main(args):
    # ---- setup ----
    begin()
    with tempfile.TemporaryDirectory() as work:
        # ---- finish ----
        if args.only in (None, "photos"):
            photos_table(args, pathlib.Path(work))
        if args.only in (None, "help"):
            help_table(args)


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
