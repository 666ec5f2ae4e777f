#!/usr/bin/env bash
# Scenes of up to four faces of FASSEG V3 (people 01 to 07 train, 08 to 11 test), 160 px: the classes alone (`semantic`)
# against the classes and whose each pixel is, by the weights of the centres and the offsets; and `single`, a parser of
# photos of one face each. Last weights; the test is 256 scenes of up to four faces, 256 of one face (small.json), and
# the photos themselves (photos.json).
# ROWS="semantic 200_0.01" SEEDS="0 1 2" bash recipes/scenes.sh FOLDER/V3
set -euo pipefail
data=${1:?usage: bash recipes/scenes.sh FOLDER/V3}
for row in ${ROWS:-single semantic 200_0.01 10_0.01 400_0.01 200_0.001 200_0.1}; do
  case $row in
    single) flags="--model unet --loss ce=1 dice=1" ;;
    semantic) flags="--model unet --scenes 4" ;;
    *) flags="--model panoptic_unet --scenes 4 --loss ce=1 dice=1 center=${row%_*} offset=${row#*_}" ;;
  esac
  for seed in ${SEEDS:-0 1 2}; do
    out=runs/scenes/$row/$seed
    # shellcheck disable=SC2086
    python train_finetune.py --data "$data" $flags --size 160 --steps "${STEPS:-400}" --amp bf16 --val-fraction 0 \
      --seed "$seed" --out "$out"
    python evaluate.py --init "$out"/last.pt --scenes 4 --split test --json "$out"/test.json
    python evaluate.py --init "$out"/last.pt --scenes 1 --split test --json "$out"/small.json
    python evaluate.py --init "$out"/last.pt --scenes 0 --split test --json "$out"/photos.json
  done
  echo "$row"; python recipes/summary.py runs/scenes/"$row"/?/test.json
done
