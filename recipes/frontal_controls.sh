#!/usr/bin/env bash
# From the starts of frontal_start.sh: cross-entropy with all 156 masks of FASSEG V3, which is what scores can
# at best replace, and self-training on the network's own masks, which needs neither masks nor scores.
set -euo pipefail
data=${1:?usage: bash recipes/frontal_controls.sh FOLDER/V3}
flags="--steps 400 --lr 1e-3 --augment trivial --amp ${AMP:-bf16}"
for seed in ${SEEDS:-0 1 2}; do
  start=runs/frontal_start/$seed/best.pt own=runs/frontal_self/$seed
  # shellcheck disable=SC2086
  python train_finetune.py --init $start --data "$data" $flags --seed "$seed" --out runs/frontal_masks/"$seed"
  mkdir -p "$own"/data/images "$own"/data/labels
  for yaw in "$data"/Train_RGB/*/; do
    python predict.py --init $start "$yaw" --out "$own"/predicted --overwrite
    cp "$yaw"/* "$own"/data/images
  done
  rm "$own"/data/images/personne04*  # the person who validates elsewhere
  for photo in "$own"/data/images/*; do
    name=$(basename "${photo%.*}")
    cp "$own"/predicted/"${name}"_mask.png "$own"/data/labels/"$name".png
  done
  echo '{"classes": ["background", "skin", "hair", "eyes", "nose", "mouth"]}' > "$own"/data/classes.json
  # shellcheck disable=SC2086
  python train_finetune.py --init $start --data "$own"/data --val-fraction 0 $flags --seed "$seed" --out "$own"/run
  for out in runs/frontal_masks/$seed $own/run; do
    python evaluate.py --init "$out"/last.pt --data "$data" --split test --json "$out"/test.json
  done
done
for rows in "runs/frontal_masks/?" "runs/frontal_self/?/run"; do
  echo "$rows"; python recipes/summary.py $rows/test.json
done
