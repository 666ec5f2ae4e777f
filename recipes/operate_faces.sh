#!/usr/bin/env bash
# The operator's loop from end to end on FASSEG: a clean batch, darkened ones, every pose; kills, a sabotaged
# candidate, a way back. Says where something is not as docs/operate.md has it. Persons 08 to 11 are in no part of
# the loop; what both champions say of them comes last.
# SEED=0 KILLS=1 bash recipes/operate_faces.sh FOLDER, with V2 and V3 in it; KILLS=0 leaves out those of `improve`
set -euo pipefail
faces=${1:?usage: bash recipes/operate_faces.sh FOLDER, with V2 and V3 in it}
seed=${SEED:-0}
runs=runs/operate_faces/$seed
ops=$runs/ops photos=$runs/photos

expect() { # the exit status that a command has to end with, or several that it may
  local wanted=$1 status=0
  shift
  echo "--- $*"
  "$@" || status=$?
  [[ " $wanted " = *" $status "* ]] || { echo "exit status $status, $wanted expected"; exit 1; }
}

killed() { # a command, killed as soon as a file is there
  local pattern=$1
  shift
  echo "--- killed at $pattern: $*"
  "$@" > /dev/null & local process=$!
  until compgen -G "$pattern" > /dev/null || ! kill -0 $process 2> /dev/null; do sleep 0.1; done
  kill -9 $process && wait $process 2> /dev/null || true
}

weights() { # a digest of the weights of a checkpoint, whatever paths it names
  python -c 'import sys, torch; from models.styles import digest
print(digest(list(torch.load(sys.argv[1])["ema"].values())))' "$1"
}

python recipes/operate_faces.py photos "$faces" "$photos"
python train_finetune.py --data "$photos/train" --size 96 --steps 600 --batch-size 8 --synthetic 0.25 --amp bf16 \
  --seed "$seed" --out "$runs/champion"
expect 0 python operate.py init --champion "$runs/champion/last.pt" --reference "$photos/reference" \
  --guard "$photos/guard" --student "--synthetic 0.25 --steps 250 --lr 1e-3 --amp bf16" \
  --search "--arms randaugment cutmix --folds 2 --steps 60 --batch-size 8 --no-gate --no-allocation --amp bf16" \
  --seed "$seed" --out "$ops"

expect 0 python operate.py watch "$ops" "$photos/day"
expect 0 python operate.py watch "$ops" "$photos/dark_a"
expect 1 python operate.py watch "$ops" "$photos/dark_b"
expect "0 1" python operate.py improve "$ops" --audit "$photos/audit_dark" # 1 where none is better, as with seed 0

expect 0 python operate.py watch "$ops" "$photos/poses_a"
expect 1 python operate.py watch "$ops" "$photos/poses_b"
[ "${KILLS:-1}" = 0 ] || cp -r "$ops" "$runs/killed"
improve=("--audit" "$photos/audit_poses")
expect 0 python operate.py improve "$ops" "${improve[@]}"
if [ "${KILLS:-1}" != 0 ]; then
  killed "$runs/killed/improve/002/search/arms.jsonl" python operate.py improve "$runs/killed" "${improve[@]}"
  killed "$runs/killed/improve/002/runs/student/*/*/metrics.jsonl" python operate.py improve "$runs/killed" "${improve[@]}"
  expect 0 python operate.py improve "$runs/killed" "${improve[@]}"
  for run in "$ops"/improve/002/runs/student/*/*; do
    [ "$(weights "$run/last.pt")" = "$(weights "$runs/killed/${run#"$ops"/}/last.pt")" ] || { echo "$run differs"; exit 1; }
  done
fi

python recipes/operate_faces.py shuffle "$ops" "$photos/poses_b" "$photos/shuffled"
python train_finetune.py --init "$runs/champion/last.pt" --data "$photos/shuffled" --steps 100 --lr 1e-3 --amp bf16 \
  --val-fraction 0 --out "$runs/sabotaged"
cp -r "$ops" "$runs/refuses"
expect 1 python operate.py promote "$runs/refuses" "$runs/sabotaged/last.pt" "${improve[@]}"

for seconds in 1 2 2.5 3 3.5; do
  killed "$ops/none" timeout -s KILL "$seconds" python operate.py promote "$ops"
  expect 0 python operate.py status "$ops"
done
python operate.py promote "$ops" || true # unless one of those had the time
python evaluate.py --init "$ops" --data "$faces/V3" --split test --json "$runs/second.json"
expect 0 python operate.py rollback "$ops"
cmp "$runs/champion/last.pt" "$(python operate.py status "$ops" | sed -n 's/.* is champion, \(.*\), of .*/\1/p')"
python evaluate.py --init "$ops" --data "$faces/V3" --split test --json "$runs/first.json"
python recipes/summary.py "${runs%/*}"/?/first.json
python recipes/summary.py "${runs%/*}"/?/second.json -- "${runs%/*}"/?/first.json
