#!/usr/bin/env bash
# FASSEG V3 with 16 labels, spread over six people and thirteen poses; the seventh person validates (26 more
# labels, never trained on). The baselines: AUGMENT=flip or AUGMENT=none bash recipes/fasseg_v3_16.sh FOLDER/V3
set -euo pipefail
data=${1:?usage: bash recipes/fasseg_v3_16.sh FOLDER/V3} augment=${AUGMENT:-trivial}
for seed in ${SEEDS:-0 1 2}; do
  out=runs/fasseg_v3_16_$augment/$seed
  python train_finetune.py --data "$data" --size 128 --limit 16 --augment "$augment" --seed $seed --out $out
  python evaluate.py --init $out/best.pt --split test --json $out/test.json
done
python recipes/summary.py runs/fasseg_v3_16_"$augment"/?/test.json
