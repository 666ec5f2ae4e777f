#!/usr/bin/env bash
# FASSEG V3 with 16 labels: the networks of pretrained.sh (SETS=16, ROWS="unet rate.2") and of student_16.sh
# (ROWS=batch, MODEL=unet and MODEL=lite), which come first, vote by the mean of their probabilities. Nothing trains.
# bash recipes/vote_16.sh FOLDER/V3
set -euo pipefail
data=${1:?usage: bash recipes/vote_16.sh FOLDER/V3}
start=runs/pretrained/16 student=runs/student_16 out=runs/vote_16
mkdir -p $out
vote() {
  name=$1; shift
  python evaluate.py --data "$data" --split test --json $out/"$name".json --init "$@"
}
for seed in ${SEEDS:-0 1 2}; do
  vote starts_"$seed" {$start/unet,$start/rate.2}/"$seed"/last.pt
  vote students_"$seed" $student/{unet,lite}/batch/"$seed"/last.pt
done
vote three_unet $start/unet/?/last.pt
vote three_lite $start/rate.2/?/last.pt
vote three_lite_hard $start/rate.2/?/last.pt --vote hard
vote three_students $student/lite/batch/?/last.pt
python recipes/summary.py $out/starts_?.json
python recipes/summary.py $out/students_?.json
