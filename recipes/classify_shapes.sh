#!/usr/bin/env bash
# Ten shapes in four styles, rendered on the spot: docs/classify.md's first command, three seeds, 800 test images.
# bash recipes/classify_shapes.sh
set -euo pipefail
for seed in ${SEEDS:-0 1 2}; do
  out=runs/classify_shapes/$seed
  python train_classify.py --data shapes --seed "$seed" --out "$out"
  python evaluate.py --init "$out"/best.pt --split test --json "$out"/test.json
done
python recipes/summary.py runs/classify_shapes/?/test.json
