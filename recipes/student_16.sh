#!/usr/bin/env bash
# FASSEG V3 with 16 labels and all 156 training photos without: a student that goes on from its teacher. The starts
# are those of pretrained.sh (SETS=16, ROWS="unet rate.2"), which comes first. Last weights, persons 08 to 11.
# ROWS="frozen batch" MODEL=unet SEEDS="0 1 2" bash recipes/student_16.sh FOLDER/V3
set -euo pipefail
data=${1:?usage: bash recipes/student_16.sh FOLDER/V3} model=${MODEL:-unet}
case $model in
  unet) start=runs/pretrained/16/unet ;;
  lite) start=runs/pretrained/16/rate.2 ;;
esac
for row in ${ROWS:-frozen batch}; do
  flags=""
  [ "$row" = batch ] && flags="--bn batch --steps 600 --lr 1e-3"
  for seed in ${SEEDS:-0 1 2}; do
    out=runs/student_16/$model/$row/$seed
    # shellcheck disable=SC2086
    python train_student.py --teacher "$start/$seed/last.pt" --limit 16 --unlabelled "$data" $flags --amp bf16 \
      --seed "$seed" --out "$out"
    python evaluate.py --init "$out"/last.pt --split test --json "$out"/test.json
  done
  echo "$model $row"
  python recipes/summary.py runs/student_16/"$model"/"$row"/?/test.json
done
