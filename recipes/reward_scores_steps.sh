#!/usr/bin/env bash
# What to hold reward_scores.sh against, from the same starts and with the same hidden masks: estimators that
# push the network by the scores of each step. METHOD is reinforce, rloo2, rloo4, rloo8, rloo16, class4 (one
# number for each class), block or scales (rloo4 with cells of 32 pixels that halve down to one).
set -euo pipefail
usage="usage: bash recipes/reward_scores_steps.sh FOLDER/V3 METHOD BUDGET"
data=${1:?$usage} method=${2:?$usage} budget=${3:?$usage} score=f1 flags=
case $method in
  reinforce) flags="--estimator reinforce --samples 2 --lr 1e-4" ;;
  rloo2) flags="--estimator rloo --samples 2 --lr 1e-4" ;;
  rloo4) flags="--estimator rloo --samples 4 --lr 3e-4" ;;
  rloo8) flags="--estimator rloo --samples 8 --lr 3e-4" ;;
  rloo16) flags="--estimator rloo --samples 16 --lr 3e-4" ;;
  class4) flags="--estimator rloo --samples 4 --lr 3e-4" score=f1_per_class ;;
  block) flags="--estimator block --samples 4 --lr 3e-4" ;;
  scales) flags="--estimator rloo --samples 4 --lr 3e-4 --cell 32" ;;
  *) echo "no method $method"; exit 2 ;;
esac
for seed in ${SEEDS:-0 1 2}; do
  out=runs/reward_scores_$method/$budget/$seed
  # shellcheck disable=SC2086
  python train_scores.py --init runs/frontal_start/"$seed"/best.pt --unlabelled "$data" --augment flip \
    --reward recipes/hidden_masks.py:$score --score-budget "$budget" $flags --standardise \
    --amp "${AMP:-bf16}" --seed "$seed" --out "$out"
  python evaluate.py --init "$out"/last.pt --data "$data" --split test --json "$out"/test.json
done
python recipes/summary.py runs/reward_scores_"$method"/"$budget"/?/test.json
