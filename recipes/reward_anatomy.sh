#!/usr/bin/env bash
# No label and no scorer: the starts of frontal_start.sh tuned on the poses of FASSEG V3 by the `anatomy` of
# their masks. KL=1 ties the network to its start.
set -euo pipefail
data=${1:?usage: bash recipes/reward_anatomy.sh FOLDER/V3} kl=${KL:-0}
for seed in ${SEEDS:-0 1 2}; do
  out=runs/reward_anatomy_$kl/$seed
  python train_scores.py --init runs/frontal_start/"$seed"/best.pt --unlabelled "$data" --reward anatomy \
    --estimator rloo --samples 4 --standardise --steps 80 --lr 1e-4 --augment flip --kl "$kl" \
    --amp "${AMP:-bf16}" --seed "$seed" --out "$out"
  python evaluate.py --init "$out"/last.pt --data "$data" --split test --json "$out"/test.json
done
python recipes/summary.py runs/reward_anatomy_"$kl"/?/test.json
