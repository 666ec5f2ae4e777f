#!/usr/bin/env bash
# Do scores add to what a teacher gives? From a row of student_frontal.sh (frontal starts, ROW=start, or students:
# ROW=ema, ROW=pair), 1,000 scores of masks about 16 photos of FASSEG V3, then 2,200 about 32. Last weights.
# ROW=ema MODEL=lite STAGES=1 SEEDS="0 1 2" bash recipes/student_scores.sh FOLDER/V3
set -euo pipefail
data=${1:?usage: bash recipes/student_scores.sh FOLDER/V3} model=${MODEL:-unet} row=${ROW:-ema}
for seed in ${SEEDS:-0 1 2}; do
  init=runs/student_frontal/V2/$model/$row/$seed/last.pt stage=0
  while read -r budget photos && [ $stage -lt "${STAGES:-1}" ]; do
    stage=$((stage + 1)) out=runs/student_scores/$model/$row/$seed/$stage
    python train_scores.py --init "$init" --unlabelled "$data" --reward recipes/hidden_masks.py:f1 \
      --score-budget "$budget" --limit "$photos" --steps 300 --eval-every 300 --amp bf16 --seed "$seed" \
      --out "$out" < /dev/null
    python evaluate.py --init "$out"/last.pt --data "$data" --split test --json "$out"/test.json
    init=$out/last.pt
  done <<< "1000 16
2200 32"
done
for stage in $(seq "${STAGES:-1}"); do
  echo "$model $row, stage $stage"
  python recipes/summary.py runs/student_scores/"$model"/"$row"/?/"$stage"/test.json
done
