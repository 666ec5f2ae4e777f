#!/usr/bin/env bash
# Twelve of 48 masks of FASSEG V3 made wrong: are those, and no others, suspect to the data engine?
set -euo pipefail
data=${1:?usage: bash recipes/engine_quarantine.sh FOLDER/V3}
out=runs/engine_quarantine
for seed in ${SEEDS:-3 4 5}; do
  if [ ! -f $out/$seed/faces/planted.json ]; then
    rm -rf $out/$seed
    python recipes/wrong_labels.py plant "$data" $out/$seed/faces --limit 48 --share 0.25 --seed $seed
  fi
  if [ ! -f $out/$seed/run/policy.json ]; then
    python augment.py --data $out/$seed/faces --size 96 --batch-size 8 --amp bf16 --steps 300 --arms randaugment \
      --no-gate --no-allocation --seed $seed --out $out/$seed/run
  fi
  python recipes/wrong_labels.py score $out/$seed/faces $out/$seed/run
done
