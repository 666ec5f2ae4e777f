#!/usr/bin/env bash
# Scores instead of masks: FASSEG V3's masks hidden behind one number, mean F1, of each mask submitted. From
# the starts of frontal_start.sh: 1,000 scores about 16 photos, then 2,200 about 32, 6,800 about 64 and 20,000
# about all 156, each time with the network as it has become. Validation (person 04) is paid from the budget.
# SCORE=f1_per_class: one number for each class. STAGES=2 stops after 3,200.
set -euo pipefail
data=${1:?usage: bash recipes/reward_scores.sh FOLDER/V3} score=${SCORE:-f1}
for seed in ${SEEDS:-0 1 2 3 4}; do
  init=runs/frontal_start/$seed/best.pt stage=0
  while read -r budget photos steps rate && [ $stage -lt "${STAGES:-4}" ]; do
    stage=$((stage + 1)) out=runs/reward_scores_$score/$seed/$stage
    python train_scores.py --init $init --unlabelled "$data" --reward recipes/hidden_masks.py:"$score" \
      --score-budget "$budget" --limit "$photos" --steps "$steps" --lr "$rate" --eval-every "$steps" \
      --amp "${AMP:-bf16}" --seed "$seed" --out $out < /dev/null
    python evaluate.py --init $out/last.pt --data "$data" --split test --json $out/test.json
    init=$out/last.pt
  done <<< "1000 16 300 5e-4
2200 32 300 5e-4
6800 64 400 1e-3
20000 156 500 1e-3"
done
for stage in 1 2 3 4; do
  if compgen -G "runs/reward_scores_$score/?/$stage/test.json" > /dev/null; then
    echo "stage $stage"; python recipes/summary.py runs/reward_scores_"$score"/?/$stage/test.json
  fi
done
