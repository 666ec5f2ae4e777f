#!/usr/bin/env bash
# Which augmentation should the engine's other arms have to beat? Asked on the training people of FASSEG V3 alone:
# two of the seven are held out, in turn, all their photos; N labels of the other five are trained on.
set -euo pipefail
usage="usage: bash recipes/engine_safe.sh FOLDER/V3 N"
data=${1:?$usage} n=${2:?$usage}
out=runs/engine_safe/$n
mkdir -p "$out"
python - "$data" "$n" "$out" <<'PY'
import json, sys
from pathlib import Path
sys.path.insert(0, ".")
from datasets import splits
from datasets.faces import limit
data, n, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
photos = splits.open_any(data).splits["train"]
people = sorted({s.group for s in photos})
for k, person in enumerate(people):
    pair = person, people[(k + 1) % len(people)]
    train = limit([s for s in photos if s.group not in pair], n, 100 + k)  # draws that no other table has
    ids = {"train": [s.id for s in train], "val": [s.id for s in photos if s.group in pair]}
    (out / f"{k}.json").write_text(json.dumps(ids))
PY
for ids in "$out"/?.json; do
  k=$(basename "$ids" .json)
  for arm in randaugment cutmix; do
    run=$out/$arm/$k
    if [ ! -f "$run/val.json" ]; then
      rm -rf "$run"
      python train_finetune.py --data "$data" --ids "$ids" --seed "$k" --size 96 --batch-size 8 --amp bf16 \
        --steps 600 --eval-every 600 --augment $arm --out "$run"
      python evaluate.py --init "$run/last.pt" --data "$data" --ids "$ids" --split val --json "$run/val.json"
    fi
  done
done
python - "$out" "$n" > "$out/safe.jsonl" <<'PY'
import json, sys
from pathlib import Path
for path in sorted(Path(sys.argv[1]).glob("*/*/val.json")):
    found, arm, pair = json.loads(path.read_text()), path.parts[-3], int(path.parts[-2])
    worst = min(v["f1"] for name, v in found["per_class"].items() if name != "background")
    row = {"n": int(sys.argv[2]), "pair": pair, "arm": arm, "mean_f1": found["mean_f1"], "miou": found["miou"]}
    print(json.dumps(row | {"worst_f1": worst}))
PY
python recipes/summary.py "$out"/cutmix/?/val.json -- "$out"/randaugment/?/val.json
