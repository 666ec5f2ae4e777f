#!/usr/bin/env bash
# From frontal labels to profiles: what 156 photos of FASSEG V3 that nobody labelled add to frontal labels and
# synthetic faces. LABELS=V2: its 17 labels, another camera; LABELS=0: V3's twelve photos at 0 degrees, the same one.
# Last weights, test persons 08 to 11. MODEL=unet, or lite: from ImageNet weights. The row `pair` has the students
# of the row `ema` of both as teachers, and goes on from MODEL's; `ensemble` those of three seeds.
# ROWS="start ema" LABELS=V2 MODEL=unet SEEDS="0 1 2" bash recipes/student_frontal.sh FOLDER, with V2 and V3 in it
set -euo pipefail
faces=${1:?usage: bash recipes/student_frontal.sh FOLDER, with V2 and V3 in it}
labels=${LABELS:-V2} model=${MODEL:-unet}
runs=runs/student_frontal/$labels/$model
mkdir -p "$runs"
data=(--data "$faces/V2")
if [ "$labels" = 0 ]; then
  data=(--data "$faces/V3" --ids "$runs/ids.json")
  python recipes/ids_at_yaw.py "$faces/V3" 0 > "$runs/ids.json"
fi
case $model in
  unet) network="--model unet --steps 800" ;;
  lite) network="--model unet_efficientnet_lite0 --weights imagenet --backbone-lr-scale 0.2 --steps 600" ;;
esac
rows="start continued statistics clean fixed rounds ema global no_cutmix batch measured yaw random ensemble masks"
for row in ${ROWS:-$rows}; do
  for seed in ${SEEDS:-0 1 2}; do
    out=$runs/$row/$seed start=$runs/start/$seed/last.pt
    other=${runs%/*}/$([ "$model" = unet ] && echo lite || echo unet)
    photos="python train_student.py --unlabelled $faces/V3"
    student="$photos --teacher $start"
    case $row in
      start) command="python train_finetune.py $network" ;;
      continued) command="python train_student.py --teacher $start" ;;
      statistics) command="$student --ema 0 --bn unlabelled --steps 1 --lr 1e-12" ;;
      clean) command="$student --ema 0 --augment flip" ;;
      fixed) command="$student --ema 0" ;;
      rounds) command="$student --ema 0 --rounds 3 --steps 1200" ;;
      global) command="$student --threshold 0.95 --keep 0" ;;
      ema) command="$student" ;;
      no_cutmix) command="$student --augment randaugment" ;;
      batch) command="$student --bn batch" ;;
      measured) command="$student --bn unlabelled" ;;
      yaw) command="$student --order yaw" ;;
      random) command="$student --order random" ;;
      ensemble) command="$photos --teacher $(echo "$runs"/ema/{0,1,2}/last.pt)" ;;
      pair) command="$photos --teacher $runs/ema/$seed/last.pt $other/ema/$seed/last.pt" ;;
      masks) command="python train_finetune.py --init $start --steps 400 --lr 5e-4" ;;
    esac
    own=("${data[@]}" --synthetic 0.25)
    [ "$row" = masks ] && own=(--data "$faces/V3")
    # shellcheck disable=SC2086
    $command "${own[@]}" --amp bf16 --seed "$seed" --out "$out"
    python evaluate.py --init "$out"/last.pt --data "$faces"/V3 --split test --json "$out"/test.json
  done
  echo "$labels $model $row"
  python recipes/summary.py "$runs/$row"/?/test.json
done
