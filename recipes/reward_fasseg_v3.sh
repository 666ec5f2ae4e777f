#!/usr/bin/env bash
# Algorithm 2 at a small rate after recipes/fasseg_v3.sh (with the same AUGMENT), last weights and not the best
# ones: what the masks' own score adds where the masks were already used for cross-entropy.
set -euo pipefail
augment=${AUGMENT:-trivial} root=runs/reward_fasseg_v3_$augment
for seed in ${SEEDS:-0 1 2}; do
  out=$root/$seed
  python train_reward.py --init "runs/fasseg_v3_$augment/$seed/best.pt" --estimator reinforce --lr 1e-5 \
    --seed $seed --out "$out"
  python evaluate.py --init "$out/last.pt" --split test --json "$out/test.json"
done
echo before; python recipes/summary.py "runs/fasseg_v3_$augment"/?/test.json
echo after; python recipes/summary.py "$root"/?/test.json
