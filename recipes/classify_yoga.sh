#!/usr/bin/env bash
# Five yoga poses from 10, 25 and 45 images of each: from scratch, from ImageNet weights with all layers (the backbone
# at a tenth of the rate), with half of its stages frozen, and the head alone. Last weights, 72 test images.
# ROWS="scratch head" LIMITS="50 125" SEEDS="0 1 2" bash recipes/classify_yoga.sh FOLDER, of TRAIN/ and TEST/
set -euo pipefail
data=${1:?usage: bash recipes/classify_yoga.sh FOLDER, of TRAIN/ and TEST/}
for row in ${ROWS:-scratch all half head}; do
  case $row in
    scratch) flags="" ;;
    all) flags="--weights imagenet --backbone-lr-scale 0.1" ;;
    half) flags="--weights imagenet --backbone-lr-scale 0.1 --freeze 3" ;;
    head) flags="--weights imagenet --freeze backbone" ;;
  esac
  for limit in ${LIMITS:-50 125 224}; do
    for seed in ${SEEDS:-0 1 2}; do
      out=runs/classify_yoga/$row/$limit/$seed
      # shellcheck disable=SC2086
      python train_classify.py --data "$data" --model efficientnet_lite0 $flags --augment randaugment --size 96 \
        --limit "$limit" --val-fraction 0 --batch-size 16 --steps 200 --seed "$seed" --out "$out"
      python evaluate.py --init "$out"/last.pt --split test --json "$out"/test.json
    done
    echo "$row $limit"; python recipes/summary.py runs/classify_yoga/"$row"/"$limit"/?/test.json
  done
done
