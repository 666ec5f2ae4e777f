#!/usr/bin/env bash
# FASSEG V3, 156 labels of six people (the seventh validates), persons 08 to 11 test. About four minutes a
# seed on two idle CPU cores. The baseline: AUGMENT=flip bash recipes/fasseg_v3.sh FOLDER/V3
set -euo pipefail
data=${1:?usage: bash recipes/fasseg_v3.sh FOLDER/V3} augment=${AUGMENT:-trivial}
for seed in ${SEEDS:-0 1 2}; do
  out=runs/fasseg_v3_$augment/$seed
  python train_finetune.py --data "$data" --size 128 --augment "$augment" --seed $seed --out $out
  python evaluate.py --init $out/best.pt --split test --json $out/test.json
done
python recipes/summary.py runs/fasseg_v3_"$augment"/?/test.json
