#!/usr/bin/env bash
# The data engine, what needs no search, and a search among RandAugments of the same cost, on N labels of FASSEG
# V3, one label draw. A search sees the labelled people only; then each arm is one run on all N labels, its LAST
# weights on the test people. GATE is the same for all draws, and needs photos, not labels:
#   python ks_test.py --real PHOTOS --ops --drop-copies --size 96 --out runs/gate
# ARMS="..." does some of the arms, in this order; what is there already is not done again. After that:
#   python recipes/engine_table.py runs/engine
set -euo pipefail
usage="usage: bash recipes/engine.sh FOLDER/V3 GATE N DRAW"
data=${1:?$usage} gate=${2:?$usage} n=${3:?$usage} draw=${4:?$usage}
steps=${STEPS:-600} out=${OUT:-runs/engine}/$n/$draw
every=(--data "$data" --seed "$draw" --size 96 --batch-size 8 --amp bf16)
who=(--limit "$n" --val-fraction 0) # trains: all labels, but where the engine allocated them

search() { # NAME FLAGS...: its policy is NAME.json
  if [ ! -f "$out/$1/policy.json" ]; then
    python augment.py "${every[@]}" --limit "$n" --steps "$steps" --out "$out/$1" "${@:2}"
  fi
  cp "$out/$1/policy.json" "$out/$1.json"
}

flags_of() { python -c 'import json, sys; print(*json.load(sys.stdin)["search"]["flags"])' < "$1"; }

final() { # ARM SCRIPT STEPS FLAGS...
  local run=$out/final/$1
  if [ -f "$run/test.json" ]; then return; fi
  rm -rf "$run"
  python "$2" "${every[@]}" "${who[@]}" --steps "$3" --eval-every "$3" --out "$run" "${@:4}" ||
    [ $? = 3 ] # reward tuning that collapsed has weights, too
  python evaluate.py --init "$run/last.pt" --data "$data" --split test --json "$run/test.json"
}

full() { final "$1" train_finetune.py "$steps" --augment "${@:2}"; }

mkdir -p "$out"
python - "$out" "$gate/policy.json" <<'PY'
import json, sys
from pathlib import Path
sys.path.insert(0, ".")
from datasets.policies import POLICIES
from utils.engine.decisions import scaled
out, gate = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
(out / "gate_only.json").write_text(json.dumps(scaled(gate["ops"], gate["scale"])))
for n, m in (1, 9), (1, 14), (2, 5), (2, 14), (3, 5), (3, 9):  # about RandAugment's two knobs, N = 2 and M = 9
    policy = {**POLICIES["randaugment"], "num_ops": n, "levels": [m, m]}
    (out / f"{n}_{m}.json").write_text(json.dumps(policy))
PY
searched="engine engine_128 engine_synthetic allocation randaugment_tuned ungated"
arms=${ARMS:-none flip randaugment trivial cutmix gate_only randaugment_128 cutmix_128 $searched}
more=$((steps / 3))
for arm in $arms; do
  # shellcheck disable=SC2046
  case $arm in
    gate_only) full $arm "$out/gate_only.json" ;;
    engine)
      search engine --gate-on "$gate"
      full $arm "$out/engine.json" $(flags_of "$out/engine.json") ;;
    engine_128 | cutmix_128 | randaugment_128) # larger photos, more steps: what a user would run in the end
      policy=${arm%_128} flags=
      if [ $arm = engine_128 ]; then policy=$out/engine.json flags=$(flags_of "$out/engine.json"); fi
      final $arm train_finetune.py 1000 --size 128 --batch-size 16 --augment "$policy" $flags ;;
    engine_synthetic) full $arm "$out/engine.json" $(flags_of "$out/engine.json") --synthetic 0.25 ;;
    allocation) # a third more steps: as the engine would, and plainly
      policy=$out/engine.json plain=$(flags_of "$out/engine.json") script=train_finetune.py ids=finetune
      final engine_more $script $more --init "$out/final/engine/last.pt" --lr 1e-3 --augment "$policy" $plain
      all=("${who[@]}") who=(--ids "$out/engine/finetune.ids.json")
      full allocated "$policy" $plain
      if grep -qE '"allocation": "(shared|routed|disjoint)"' "$policy"; then
        script=train_reward.py plain="--ce-weight 1" ids=reward
      fi
      who=(--ids "$out/engine/$ids.ids.json")
      final $arm $script $more --init "$out/final/allocated/last.pt" --lr 1e-3 --augment "$policy" $plain
      who=("${all[@]}") ;;
    randaugment_tuned | ungated)
      only=(--no-gate --no-allocation)
      if [ $arm = randaugment_tuned ]; then only+=(--arms randaugment "$out"/?_*.json); fi
      search $arm "${only[@]}"
      full $arm "$out/$arm.json" $(flags_of "$out/$arm.json") ;;
    *) full "$arm" "$arm" ;;
  esac
done
