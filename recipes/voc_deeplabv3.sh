#!/usr/bin/env bash
# torchvision's DeepLabV3-R101 with COCO weights, fine-tuned on Pascal VOC 2012: AdamW at 9e-6, 30 epochs of its 1,464
# training images in batches of 16, at 224 px with flips. Best and last weights, on val; the masks of test are not
# published. The note that this follows reached 76.12 mIoU with the rate times .8 every 5 epochs, weight decay .0001
# and a dropout of .5 behind the pyramid; here it is a warm-up and half a cosine, .01 and torchvision's dropout.
# Flags behind FOLDER go to train_finetune.py. A try on a few photos and a CPU, which says nothing of the figure:
# WEIGHTS=none STEPS=3 SEEDS=0 bash recipes/voc_deeplabv3.sh FOLDER --size 64 --batch-size 2 --allow-empty bird cow sheep
# SEEDS="0 1 2" bash recipes/voc_deeplabv3.sh FOLDER, VOC2012 or what is above it
set -euo pipefail
data=${1:?usage: bash recipes/voc_deeplabv3.sh FOLDER, VOC2012 or what is above it}
for seed in ${SEEDS:-0 1 2}; do
  out=runs/voc_deeplabv3/$seed
  python train_finetune.py --data "$data" --model deeplabv3_resnet101 --weights "${WEIGHTS:-coco}" --augment flip \
    --size 224 --batch-size 16 --steps "${STEPS:-2745}" --lr 9e-6 --seed "$seed" --out "$out" "${@:2}"
  for weights in best last; do
    python evaluate.py --init "$out/$weights".pt --split val --json "$out/$weights".json
  done
done
for weights in best last; do
  echo "$weights"; python recipes/summary.py runs/voc_deeplabv3/?/"$weights".json
done
