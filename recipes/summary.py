"""Mean and standard deviation over seeds of what evaluate.py wrote.

python recipes/summary.py A/?/test.json                       each figure
python recipes/summary.py A/?/test.json -- B/?/test.json      and, seed by seed, A minus B, 95 % interval
"""

import json
import statistics
import sys

from scipy import stats

files = sys.argv[1:]
cut = files.index("--") if "--" in files else len(files)
results, others = ([json.load(open(path)) for path in part] for part in (files[:cut], files[cut + 1 :]))
for line in (line for each in [*results, *others] for line in each.get("unfinished", [])):
    print(line)
if others and len(others) != len(results):
    sys.exit(f"error: {len(results)} results against {len(others)}; give one of each seed, in one order")


def row(name, values, against):
    if None in [*values, *against]:  # a class that is in no mask, and nobody found it
        return print(f"{name:<16}      -")
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    each = "  ".join(f"{v:.3f}" for v in values)
    text = f"{name:<16}{statistics.mean(values):7.3f} ± {spread:.3f}   {each}"
    if against and len(values) > 1:
        change = [a - b for a, b in zip(values, against, strict=True)]
        half = stats.sem(change) * stats.t.ppf(0.975, len(change) - 1)
        text += f"   {statistics.mean(change):+.4f} ± {half:.4f}"
    print(text)


def figures(name, pick):
    row(name, [pick(r) for r in results], [pick(r) for r in others])


def worst(r):
    return min(v["f1"] for k, v in r["per_class"].items() if k != "background" and v["f1"] is not None)


if "accuracy" in results[0]:  # of classifiers
    for key in ("accuracy", "macro_f1", "map", "ece"):
        figures(key, lambda r, key=key: r[key])
    if all("domain" in r for r in results + others):
        figures("domain map", lambda r: r["domain"]["map"])
    sys.exit()
for key in ("mean_f1", "miou", "pixel_accuracy", "boundary_f1", "ece"):
    figures(key, lambda r, key=key: r[key])
figures("worst class F1", worst)
for name in results[0]["per_class"]:
    figures(f"F1 {name}", lambda r, name=name: r["per_class"][name]["f1"])
for kind, heading in {"yaw": "|yaw|", "share": "share"}.items():
    for name in results[0]["slices"].get(kind, []):
        if not all(name in r["slices"].get(kind, []) for r in results + others):
            continue  # scenes against photos
        figures(f"F1 {heading} {name}", lambda r, kind=kind, name=name: r["slices"][kind][name]["mean_f1"])
if all("panoptic" in r for r in results + others):
    for key in ("pq", "sq", "rq"):
        figures(key, lambda r, key=key: r["panoptic"][key])
    for key in ("found", "missed", "invented"):
        figures(key, lambda r, key=key: sum(row[key] for row in r["panoptic"]["per_category"].values()))
    if all("parts" in r["panoptic"] for r in results + others):
        figures("parts F1", lambda r: r["panoptic"]["parts"]["mean_f1"])
