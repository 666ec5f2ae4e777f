#!/usr/bin/env bash
# Cityscapes to ACDC with CLIP's RN50: PODA (Fahes et al., 2023, 2212.03241), FAMix (2024, 2311.17922), and what they
# have to be better than. Needs both data sets, open_clip with CLIP's weights, and a GPU: nobody has run it here.
# mIoU on val of each weather, last weights. Unlike the published commands: AdamW, a warm-up and half a cosine for SGD
# and a polynomial; photos stretched to squares, not crops; no jitter of colours in the source; FAMix with phrases of
# weather for those of made-up styles, in 2,000 steps from the source, without smoothed labels, and without styles for
# patches that nobody labelled, which FAMix mines for "photo".
#   source            the decoder on CLIP's frozen tower; all other rows go on from there
#   more, augment     without styles; without, but with RandAugment
#   night fog ...     PODA: styles mined for the phrase of this weather
#   famix             all four phrases for each class, 3 x 3 patches, mixed; the last stage of the tower trains, too
# ROWS="more night" SEEDS="0 1 2" SIZE=768 bash recipes/styles_acdc.sh CITYSCAPES ACDC OUT
set -euo pipefail
usage="usage: bash recipes/styles_acdc.sh CITYSCAPES ACDC OUT, a folder for targets and runs"
cityscapes=${1:?$usage} acdc=$(realpath "${2:?$usage}") out=${3:?$usage}
weathers="night fog rain snow"

phrase() { # WEATHER
  case $1 in
    night) echo "driving at night" ;;
    fog) echo "driving in fog" ;;
    rain) echo "driving under rain" ;;
    snow) echo "driving in snow" ;;
  esac
}

embed() { # NAME PHRASE...: CLIP's embeddings of phrases
  [ -f "$out/targets/$1.pt" ] ||
    python recipes/embed_prompts.py --clip RN50 "${@:2}" --out "$out/targets/$1.pt"
}

train() { # ROW FLAGS...: once, and score it in every weather
  local to=$runs/$1
  [ ! -f "$to/snow.json" ] || return 0
  python train_finetune.py --data "$cityscapes" --seed "$seed" --resume --out "$to" "${@:2}"
  for weather in $weathers; do
    python evaluate.py --init "$to/last.pt" --data "$out/$weather" --split val --json "$to/$weather.json"
  done
}

adapt() { # ROW FLAGS...
  train "$1" --init "$source" --batch-size 8 --lr 1e-3 --steps "${STEPS:-2000}" "${@:2}"
}

mine() { # ROW FLAGS...
  [ -f "$runs/banks/$1/bank.pt" ] ||
    python mine_styles.py --init "$source" --targets "$out/targets/$1.pt" --seed "$seed" --resume \
      --out "$runs/banks/$1" "${@:2}"
}

mkdir -p "$out/targets"
[ -f "$out/tower.pt" ] || python recipes/embed_prompts.py --clip RN50 --tower "$out/tower.pt"
for weather in $weathers; do # a folder for each weather, which links to ACDC's
  for part in rgb_anon gt; do
    mkdir -p "$out/$weather/$part"
    ln -sfn "$acdc/$part/$weather" "$out/$weather/$part/$weather"
  done
  embed "$weather" "$(phrase "$weather")"
done

for seed in ${SEEDS:-0 1 2}; do
  runs=$out/$seed source=$out/$seed/source/last.pt
  train source --model clip_resnet50 --weights "$out/tower.pt" --freeze backbone --size "${SIZE:-768}" --augment flip \
    --batch-size 2 --lr 1e-3 --steps "${SOURCE_STEPS:-200000}" --eval-every 10000
  for row in ${ROWS:-source more augment $weathers famix}; do
    case $row in
      source) ;;
      more) adapt more --freeze backbone --augment flip ;;
      augment) adapt augment --freeze backbone --augment randaugment ;;
      famix)
        phrases=()
        for weather in $weathers; do phrases+=("{class}, $(phrase "$weather")"); done
        embed famix "${phrases[@]}" --classes-of "$source"
        mine famix --per-class --patches 3 --mix beta
        adapt famix --freeze 4 --backbone-lr-scale 0.1 --augment flip --styles "$runs/banks/famix/bank.pt" ;;
      *)
        mine "$row"
        adapt "$row" --freeze backbone --augment none --styles "$runs/banks/$row/bank.pt" ;;
    esac
  done
done
python recipes/style_table.py "$out" --figure miou
