"""What recipes/engine.sh measured: each arm over label draws, and paired differences with 95 % intervals.

python recipes/engine_table.py runs/engine [--write benchmarks/engine]     also copies what it was made from

F1 is mean F1 on the test people; an interval is Student's, over draws; cost is all pixels that an arm trained
on, its search included, in multiples of one run on all labels without a search.
"""

import argparse
import json
import re
import statistics
from pathlib import Path

from scipy import stats

ARMS = {  # {arm: (what it is, the search that it needed)}
    "none": ("`none`: no augmentation", None),
    "flip": ("`flip`", None),
    "randaugment": ("`randaugment`: N = 2, M = 9, as published", None),
    "trivial": ("`trivial`: TrivialAugment, wide", None),
    "cutmix": ("RandAugment as published, CutMix on every other image", None),
    "gate_only": ("gate alone: all operations up to what it accepts", None),
    "randaugment_tuned": ("`randaugment_tuned`: N and M searched", "randaugment_tuned"),
    "ungated": ("engine without gate", "ungated"),
    "engine": ("**engine**", "engine"),
    "engine_synthetic": ("engine + synthetic faces, 25 %", "engine"),
    "engine_more": ("engine, a third more steps of fine-tuning", "engine"),
    "allocation": ("engine + allocation + its tuning, a third more steps", "engine"),
}
LONG = "1000 steps of 16 images at 128 px"
ARMS |= {
    "randaugment_128": (f"`randaugment`, {LONG}", None),
    "cutmix_128": (f"the same with CutMix, {LONG}", None),
    "engine_128": (f"engine, {LONG}", "engine"),
}
AGAINST = "trivial", "randaugment", "randaugment_tuned"


def short(text):
    return re.sub(r"(?<!\d)0\.", ".", text).replace("-", "−")


def interval(change):
    if len(change) < 2:
        return short(f"{change[0]:+.3f}")
    half = stats.sem(change) * stats.t.ppf(0.975, len(change) - 1)
    return short(f"{statistics.mean(change):+.3f} ± {half:.3f}")


def pixels(folder, steps=None):
    """That the script of this folder trained on; or would in so many steps."""
    told = json.loads((folder / "args.json").read_text())["args"]
    return (steps or told["steps"]) * told["batch_size"] * told["size"] ** 2


def searched(folder, whole):
    """Pixels of a search: of the runs in its arms.jsonl; not whole: without the allocation's."""
    rows = [json.loads(line) for line in open(folder / "arms.jsonl")]
    return pixels(folder, sum(row["steps"] for row in rows if whole or row["run"].startswith("search/")))


def main(args):
    root = Path(args.root)
    rows = {}
    raw = []
    for path in sorted(root.glob("*/*/final/*/test.json")):
        n, draw, _, arm, _ = path.relative_to(root).parts
        if arm not in ARMS:
            continue
        result = json.loads(path.read_text())
        search = ARMS[arm][1]
        full = pixels(path.parents[1] / "randaugment")
        taken = pixels(path.parent)
        taken += full if arm in ("engine_more", "allocation") else 0
        taken += searched(root / n / draw / search, arm == "allocation") if search else 0
        worst = min(v["f1"] for k, v in result["per_class"].items() if k != "background")
        policy = json.loads((root / n / draw / f"{search}.json").read_text())["kind"] if search else arm
        row = {"n": int(n), "draw": int(draw), "arm": arm, "policy": policy, "runs": round(taken / full, 2)}
        row |= {"mean_f1": result["mean_f1"], "miou": result["miou"], "worst_f1": worst}
        raw.append(row)
        rows.setdefault(int(n), {}).setdefault(arm, {})[int(draw)] = row
    for n, arms in sorted(rows.items()):
        print(f"\n{n} labels\n")
        print(
            "| arm | mean F1 | mIoU | worst class | cost | "
            + " | ".join(f"minus `{a}`" for a in AGAINST)
            + " |"
        )
        print("|---|" + "---|" * (4 + len(AGAINST)))
        most = max(map(len, arms.values()))
        for arm in [a for a in ARMS if a in arms]:
            values = [row["mean_f1"] for row in arms[arm].values()]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            means = (statistics.mean(r[k] for r in arms[arm].values()) for k in ("miou", "worst_f1", "runs"))
            cells = ["{:.3f}", "{:.3f}", "{:.1f}"]
            cells = [short(cell.format(v)) for cell, v in zip(cells, means, strict=True)]
            for other in AGAINST:
                other += "_128" * arm.endswith("_128")
                both = sorted(arms[arm].keys() & arms.get(other, {}).keys())
                change = [arms[arm][d]["mean_f1"] - arms[other][d]["mean_f1"] for d in both]
                cells.append(interval(change) if other != arm and both else "")
            who = f"{ARMS[arm][0]}" + (f" ({len(values)} of {most} draws)" if len(values) < most else "")
            cells = [who, short(f"{statistics.mean(values):.3f}{spread}"), *cells]
            print(f"| {' | '.join(cells)} |")
        chosen = [f"{d}: {row['policy']}" for d, row in sorted(arms.get("engine", {}).items())]
        print(f"\nThe engine chose: {', '.join(chosen)}")
    if args.write:
        out = Path(args.write)
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in raw))
        for path in sorted(root.glob("*/*/*/arms.jsonl")):
            n, draw, search, _ = path.relative_to(root).parts
            if search in ARMS:
                (out / f"arms_{n}_{draw}_{search}.jsonl").write_text(path.read_text())


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("root")
p.add_argument("--write", metavar="DIR")
main(p.parse_args())
