#!/usr/bin/env bash
# CamVid in SegNet's packaging, 11 classes: `unet_efficientnet_lite0` from ImageNet weights, with its backbone at a
# fifth of the rate, and from scratch, and `unet`. 192 px, pictures stretched to the square. Last weights on the
# test split: the figure is mIoU. All 367 training photos train: they are of three sequences, of which one would be
# held out. Beside it, at 360 x 480, trained to the end (Badrinarayanan, Kendall, Cipolla, "SegNet", 2017, 1511.00561):
# SegNet-Basic from scratch on the same 367 photos 47.7, or 46.3 without class weights (table 1); SegNet, with a
# pretrained encoder, on 3,433 photos of CamVid and three more sets 60.1 (tables 2 and 3).
# ROWS="unet pretrained" STEPS=1000 SEEDS="0 1 2" bash recipes/camvid.sh FOLDER, with train.txt in it
set -euo pipefail
data=${1:?usage: bash recipes/camvid.sh FOLDER, with train.txt in it}
for row in ${ROWS:-unet scratch pretrained}; do
  case $row in
    unet) model="--model unet" ;;
    scratch) model="--model unet_efficientnet_lite0" ;;
    pretrained) model="--model unet_efficientnet_lite0 --weights imagenet --backbone-lr-scale 0.2" ;;
  esac
  for seed in ${SEEDS:-0 1 2}; do
    out=runs/camvid/$row/$seed
    # shellcheck disable=SC2086
    python train_finetune.py --data "$data" --val-fraction 0 $model --size 192 --augment flip \
      --loss ce=1 dice=1 --steps "${STEPS:-300}" --amp bf16 --seed "$seed" --out "$out"
    python evaluate.py --init "$out"/last.pt --split test --json "$out"/test.json
  done
  echo "$row"; python recipes/summary.py runs/camvid/"$row"/?/test.json
done
