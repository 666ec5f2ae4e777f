#!/usr/bin/env bash
# Algorithm 2 at a small rate after recipes/fasseg_v3.sh, last weights and not the best ones: what the
# masks' own score adds where the masks were already used for cross-entropy.
set -euo pipefail
for seed in ${SEEDS:-0 1 2}; do
  out=runs/reward_fasseg_v3/$seed
  python train_reward.py --init runs/fasseg_v3_trivial/$seed/best.pt --estimator reinforce --lr 1e-5 \
    --seed $seed --out $out
  python evaluate.py --init $out/last.pt --split test --json $out/test.json
done
echo before; python recipes/summary.py runs/fasseg_v3_trivial/?/test.json
echo after; python recipes/summary.py runs/reward_fasseg_v3/?/test.json
