"""Mean and standard deviation over seeds of what evaluate.py wrote: recipes/summary.py A.json B.json"""

import json
import statistics
import sys

results = [json.load(open(path)) for path in sys.argv[1:]]


def row(name, values):
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    each = "  ".join(f"{v:.3f}" for v in values)
    print(f"{name:<16}{statistics.mean(values):7.3f} ± {spread:.3f}   {each}")


for key in ("mean_f1", "miou", "pixel_accuracy", "boundary_f1", "ece"):
    row(key, [r[key] for r in results])
for name in results[0]["per_class"]:
    row(f"F1 {name}", [r["per_class"][name]["f1"] for r in results])
for angle in results[0]["slices"]["yaw"]:
    row(f"F1 |yaw| {angle}", [r["slices"]["yaw"][angle]["mean_f1"] for r in results])
