#!/usr/bin/env bash
# 100 more steps with the masks at hand, by one METHOD, from the same starts of five seeds: LAST weights on
# the test people. The starts: SEEDS="0 1 2 3 4" bash recipes/fasseg_v3.sh FOLDER/V3, and fasseg_v3_16.sh.
# Rates are from 3e-5, 1e-4, 3e-4, 1e-3, by the validation person, seed 0: with 16 labels all four were tried
# for ce, reinforce and local, three for rloo and the mixes with sampling, two (3e-4, 1e-3) for the others;
# with all labels, all four, but three for ce, two for local_boundary_ce, and for reinforce that of 16. local_batch, for
# which 1e-5 was added, is the setting that never fell.
set -euo pipefail
usage="usage: bash recipes/reward_masks.sh FOLDER/V3 BUDGET(all|16) METHOD [RATE]"
data=${1:?$usage} budget=${2:?$usage} method=${3:?$usage}
case $method in
  ce) rate=1e-3 flags="--loss ce=1" ;;
  ce_dice) rate=1e-3 flags="--loss ce=1 dice=1" ;;
  ce_jaccard) rate=1e-3 flags="--loss ce=1 jaccard=1" ;;
  lovasz) rate=1e-3 flags="--loss lovasz=1" ;;
  reinforce) rate=3e-5 flags="--estimator reinforce" ;;
  reinforce_ce) rate=1e-3 flags="--estimator reinforce --ce-weight 10" ;;
  rloo) rate=3e-5 flags="--estimator rloo --samples 8" ;;
  rloo_ce) rate=3e-4 flags="--estimator rloo --samples 8 --ce-weight 10" ;;
  local) rate=1e-3 flags="--estimator local" ;;
  local_batch) rate=3e-5 flags="--estimator local --reward-level batch" ;;
  local_ce) rate=1e-3 flags="--estimator local --ce-weight 1" ;;
  local_boundary) rate=1e-3 flags="--estimator local --reward boundary_f1=1" ;;
  local_boundary_ce) rate=1e-3 flags="--estimator local --reward boundary_f1=1 --ce-weight 1" ;;
  *) echo "no method $method"; exit 2 ;;
esac
rate=${4:-$rate} script=train_reward.py starts=runs/fasseg_v3_trivial more=
case $flags in *--loss*) script=train_finetune.py ;; esac
if [ "$budget" = all ] && [ -z "${4:-}" ]; then
  case $method in
    ce | reinforce_ce | rloo | local_ce) rate=1e-4 ;;
    ce_dice | ce_jaccard | local_boundary) rate=3e-5 ;;
    local_batch) rate=1e-5 ;;
  esac
fi
if [ "$budget" = 16 ]; then starts=runs/fasseg_v3_16_trivial more="--limit 16"; fi
for seed in ${SEEDS:-0 1 2 3 4}; do
  out=runs/reward_masks_$budget/$method${4:+_$4}/$seed
  # shellcheck disable=SC2086
  python $script --init $starts/$seed/best.pt --data "$data" $more --augment trivial --steps 100 --lr $rate \
    --eval-every 100 --seed $seed --amp "${AMP:-bf16}" $flags --out $out
  python evaluate.py --init $out/last.pt --split test --json $out/test.json
  if [ "${4:-}" ]; then python evaluate.py --init $out/last.pt --split val --json $out/val.json; fi
done
