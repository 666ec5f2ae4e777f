#!/usr/bin/env bash
# Distillation: `unet` begins anew, taught by `unet_efficientnet_lite0`, on FASSEG V3 with 16 labels and all 156
# training photos without. The teachers are those of pretrained.sh (SETS=16, ROWS=rate.2), which comes first; what it is compared
# with is ROWS=unet of it. Last weights, persons 08 to 11.
# ROWS="labelled both" SEEDS="0 1 2" bash recipes/student_small.sh FOLDER/V3
set -euo pipefail
data=${1:?usage: bash recipes/student_small.sh FOLDER/V3}
for row in ${ROWS:-labelled unlabelled both hard}; do
  case $row in
    labelled) flags="--distill 0.9" ;;
    unlabelled) flags="--unlabelled $data --target soft --temperature 2" ;;
    both) flags="--unlabelled $data --target soft --distill 0.9" ;;
    hard) flags="--unlabelled $data" ;;
  esac
  for seed in ${SEEDS:-0 1 2}; do
    out=runs/student_small/$row/$seed
    # shellcheck disable=SC2086
    python train_student.py --teacher runs/pretrained/16/rate.2/"$seed"/last.pt --students unet --limit 16 $flags \
      --amp bf16 --seed "$seed" --out "$out"
    python evaluate.py --init "$out"/last.pt --split test --json "$out"/test.json
  done
  echo "$row"
  python recipes/summary.py runs/student_small/"$row"/?/test.json
done
