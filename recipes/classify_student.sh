#!/usr/bin/env bash
# Five yoga poses from 10 labelled images of each, and all 224 training images without labels: a student of the start,
# which is classify_yoga.sh's (ROWS=all LIMITS=50, first), and as control the start trained on for as many steps on the
# labelled images alone. Last weights, 72 test images.
# ROWS="control ema" SEEDS="0 1 2" bash recipes/classify_student.sh FOLDER, of TRAIN/ and TEST/
set -euo pipefail
data=${1:?usage: bash recipes/classify_student.sh FOLDER, of TRAIN/ and TEST/}
for row in ${ROWS:-control ema}; do
  for seed in ${SEEDS:-0 1 2}; do
    start=runs/classify_yoga/all/50/$seed/last.pt
    out=runs/classify_student/$row/$seed
    common="--limit 50 --steps 100 --lr 5e-4 --augment cutmix --seed $seed --out $out"
    # shellcheck disable=SC2086
    case $row in
      control) python train_classify.py --init "$start" --batch-size 16 $common ;;
      ema) python train_student.py --teacher "$start" --unlabelled "$data" --batch-size 32 $common ;;
    esac
    python evaluate.py --init "$out"/last.pt --split test --json "$out"/test.json
  done
  echo "$row"; python recipes/summary.py runs/classify_student/"$row"/?/test.json
done
