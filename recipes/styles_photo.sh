#!/usr/bin/env bash
# A new domain from one photo, without CLIP: CamVid by day to CamVid at dusk (camvid_dusk.py), 192 px, 11 classes.
# `source` is `unet_efficientnet_lite0` from ImageNet weights, as in camvid.sh; every other row goes on from there,
# the decoder alone. Last weights on 62 photos at dusk: the figure is mIoU.
#   more                 as many steps, without styles
#   mined                styles mined towards one photo at dusk, which is none of the test's, nor beside one
#   uniform, beta        the same, mixed with the image's own style
#   adain                the style of that photo itself, for every image
#   random, own          styles drawn at random, as far from the images' own as those mined; other images' own
#   mixstyle             styles of the other images of the batch
#   augment, augmented   no styles, but RandAugment; the same from the beginning of the source on
#   labels               no styles, but labels of 62 photos at dusk: the upper bound
# What is there already is not done again. Of one core, a seed: six minutes for the source, two to three for the 200
# steps of a row, and as much for a bank that is mined.
# ROWS="more mined" SEEDS="0 1 2" STEPS=200 IMAGES=32 bash recipes/styles_photo.sh FOLDER/camvid OUT
set -euo pipefail
usage="usage: bash recipes/styles_photo.sh FOLDER/camvid OUT, a folder for lists and runs"
camvid=${1:?$usage} out=${2:?$usage}
data=$out/data steps=${STEPS:-200}
rate=${RATE:-10} # of mining: of 1/16, 1, 10 and 100 the one that comes nearest to the photo
unchanged=(--steps 1 --lr 1e-12) # mines the images' own styles

train() { # ROW DATA FLAGS...: once, and score it
  local to=$runs/$1
  [ ! -f "$to/dusk.json" ] || return 0
  python train_finetune.py --data "$data/$2" --val-fraction 0 --size 192 --loss ce=1 dice=1 --amp bf16 \
    --seed "$seed" --resume --out "$to" "${@:3}"
  python evaluate.py --init "$to/last.pt" --split test --json "$to/dusk.json"
}

begin() { # ROW POLICY
  train "$1" day --model unet_efficientnet_lite0 --weights "${WEIGHTS:-imagenet}" --backbone-lr-scale 0.2 \
    --augment "$2" --steps "${SOURCE_STEPS:-300}"
}

plain() { # ROW DATA POLICY [SOURCE]
  train "$1" "$2" --init "${4:-$source}" --freeze backbone --augment "$3" --lr 1e-3 --steps "$steps"
}

styled() { # ROW
  train "$1" day --init "$source" --freeze backbone --augment flip --lr 1e-3 --steps "$steps" \
    --styles "$runs/banks/$1/bank.pt"
}

mine() { # ROW FLAGS...
  if [ ! -f "$runs/banks/$1/bank.pt" ]; then
    python mine_styles.py --init "$source" --images "${IMAGES:-32}" --seed "$seed" --resume \
      --out "$runs/banks/$1" "${@:2}"
  fi
}

control() { # KIND ROW FLAGS...
  mine own --photo "$photo" "${unchanged[@]}"
  [ -f "$runs/banks/$2/bank.pt" ] ||
    python recipes/style_controls.py "$1" "$runs/banks/own/bank.pt" --out "$runs/banks/$2/bank.pt" "${@:3}"
}

mkdir -p "$out"
[ -d "$data" ] || python recipes/camvid_dusk.py "$camvid" "$data"
photo=$(cat "$data/photo.txt")
for seed in ${SEEDS:-0 1 2}; do
  runs=$out/$seed source=$out/$seed/source/last.pt
  begin source flip
  for row in ${ROWS:-source more mined uniform beta adain random own mixstyle augment augmented labels}; do
    case $row in
      source) continue ;;
      more) plain more day flip ;;
      augment) plain augment day randaugment ;;
      augmented)
        begin augmented_source randaugment
        plain augmented day randaugment "$runs/augmented_source/last.pt" ;;
      labels) plain labels labels flip ;;
      mined) mine mined --photo "$photo" --lr "$rate" ;;
      uniform | beta) mine "$row" --photo "$photo" --lr "$rate" --mix "$row" ;;
      own) mine own --photo "$photo" "${unchanged[@]}" ;;
      mixstyle) mine mixstyle --mix batch ;;
      adain) control photo adain --init "$source" --photo "$photo" ;;
      random)
        mine mined --photo "$photo" --lr "$rate"
        control random random --like "$runs/banks/mined/bank.pt" --seed "$seed" ;;
      *) echo "no row $row" >&2; exit 2 ;;
    esac
    if [ -f "$runs/banks/$row/bank.pt" ]; then styled "$row"; fi
  done
done
python recipes/style_table.py "$out" --figure miou
