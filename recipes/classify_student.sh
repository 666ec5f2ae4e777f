#!/usr/bin/env bash
# Five yoga poses from 5 labelled images of each and all 224 training images without labels: the start from ImageNet
# weights, its student (a teacher that follows, one that stays as it is, and the same with soft labels), and as
# control the start trained on for as many steps on the labelled images alone. Last weights, 72 test images.
# ROWS="start control ema" SEEDS="0 1 2" STEPS=200 bash recipes/classify_student.sh FOLDER, of TRAIN/ and TEST/
set -euo pipefail
data=${1:?usage: bash recipes/classify_student.sh FOLDER, of TRAIN/ and TEST/}
steps=${STEPS:-200}
for row in ${ROWS:-start control ema fixed soft}; do
  case $row in
    ema) flags="" ;;
    fixed) flags="--ema 0" ;;
    soft) flags="--ema 0 --target soft" ;;
  esac
  for seed in ${SEEDS:-0 1 2}; do
    start=runs/classify_student/start/$seed
    out=runs/classify_student/$row/$seed
    common="--limit 25 --seed $seed --out $out"
    # shellcheck disable=SC2086
    case $row in
      start)
        python train_classify.py --data "$data" --weights imagenet --backbone-lr-scale 0.1 --lr 3e-3 --batch-size 16 \
          --augment randaugment --size 128 --val-fraction 0 --steps 200 $common ;;
      control)
        python train_classify.py --init "$start"/last.pt --lr 5e-4 --batch-size 16 --augment cutmix \
          --steps "$steps" $common ;;
      *)
        python train_student.py --teacher "$start"/last.pt --unlabelled "$data" --lr 5e-4 --batch-size 32 \
          --augment cutmix --steps "$steps" $flags $common ;;
    esac
    python evaluate.py --init "$out"/last.pt --split test --json "$out"/test.json
  done
  echo "$row"; python recipes/summary.py runs/classify_student/"$row"/?/test.json
done
