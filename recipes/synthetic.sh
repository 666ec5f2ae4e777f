#!/usr/bin/env bash
# The first command of the README over three seeds: 17 classes of synthetic faces, 256 held-out ones test.
set -euo pipefail
for seed in ${SEEDS:-0 1 2}; do
  out=runs/synthetic/$seed
  python train_finetune.py --data synthetic --seed $seed --out $out
  python evaluate.py --init $out/best.pt --split test --json $out/test.json
done
python recipes/summary.py runs/synthetic/?/test.json
