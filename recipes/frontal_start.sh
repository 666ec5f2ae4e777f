#!/usr/bin/env bash
# A parser that has seen frontal faces only: 17 labels of FASSEG V2 (three more validate) and synthetic faces
# of every pose, half and half. The start of the experiments with scores instead of masks.
set -euo pipefail
data=${1:?usage: bash recipes/frontal_start.sh FOLDER/V2}
for seed in ${SEEDS:-0 1 2 3 4}; do
  python train_finetune.py --data "$data" --augment trivial --synthetic 0.5 --steps 800 --amp "${AMP:-bf16}" \
    --seed $seed --out runs/frontal_start/$seed
done
