#!/usr/bin/env bash
# FASSEG V3 with 16 labels and all 156 training photos without: a student that goes on from its teacher. The starts
# are those of pretrained.sh (SETS=16, ROWS="unet rate.2"), which comes first. Last weights, persons 08 to 11.
# The row `pair` has the students of the row `batch` of both models as teachers.
# ROWS="frozen batch" MODEL=unet SEEDS="0 1 2" bash recipes/student_16.sh FOLDER/V3
set -euo pipefail
data=${1:?usage: bash recipes/student_16.sh FOLDER/V3} model=${MODEL:-unet}
case $model in
  unet) start=runs/pretrained/16/unet ;;
  lite) start=runs/pretrained/16/rate.2 ;;
esac
for row in ${ROWS:-frozen batch}; do
  for seed in ${SEEDS:-0 1 2}; do
    out=runs/student_16/$model/$row/$seed
    case $row in
      frozen) flags="--teacher $start/$seed/last.pt" ;;
      batch) flags="--teacher $start/$seed/last.pt --bn batch --steps 600 --lr 1e-3" ;;
      pair) flags="--teacher $(echo runs/student_16/{lite,unet}/batch/"$seed"/last.pt)" ;;
    esac
    # shellcheck disable=SC2086
    python train_student.py $flags --data "$data" --limit 16 --unlabelled "$data" --amp bf16 --seed "$seed" --out "$out"
    python evaluate.py --init "$out"/last.pt --split test --json "$out"/test.json
  done
  echo "$model $row"
  python recipes/summary.py runs/student_16/"$model"/"$row"/?/test.json
done
