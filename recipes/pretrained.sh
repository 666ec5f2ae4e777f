#!/usr/bin/env bash
# `unet` against `unet_efficientnet_lite0`, the latter from ImageNet weights with its backbone at several rates or
# frozen to stage 2, and from scratch: on FASSEG V3 with 16 and with all labels, and from frontal labels (V2, a
# quarter of each batch synthetic) to V3's poses. Last weights, test persons 08 to 11.
# ROWS="unet rate.2" SETS="16 all frontal" SEEDS="0 1 2" bash recipes/pretrained.sh FOLDER, with V2 and V3 in it
set -euo pipefail
faces=${1:?usage: bash recipes/pretrained.sh FOLDER, with V2 and V3 in it}
lite="--model unet_efficientnet_lite0"
for row in ${ROWS:-unet rate.2 rate1 rate.1 freeze2 scratch}; do
  case $row in
    unet) model="--model unet" ;;
    rate*) model="$lite --weights imagenet --backbone-lr-scale ${row#rate}" ;;
    freeze2) model="$lite --weights imagenet --backbone-lr-scale 0.2 --freeze 2" ;;
    scratch) model="$lite" ;;
  esac
  for set in ${SETS:-16 all frontal}; do
    case $set in
      16) data="--data $faces/V3 --limit 16" steps=1000 ;;
      all) data="--data $faces/V3" steps=1000 ;;
      frontal) data="--data $faces/V2 --synthetic 0.25" steps=800 ;;
    esac
    [ "$row" = unet ] || steps=600
    for seed in ${SEEDS:-0 1 2}; do
      out=runs/pretrained/$set/$row/$seed
      # shellcheck disable=SC2086
      python train_finetune.py $data $model --steps $steps --amp bf16 --seed "$seed" --out "$out"
      python evaluate.py --init "$out"/last.pt --data "$faces"/V3 --split test --json "$out"/test.json
    done
    echo "$set $row"; python recipes/summary.py runs/pretrained/"$set"/"$row"/?/test.json
  done
done
