#!/usr/bin/env bash
# MNIST, complete, 25 epochs of 60,000 digits, 100 a step, turned by up to 13 degrees; beside it without BatchNorm,
# with SGD for AdamW, at a constant rate, and with half a cosine. Last weights, the 10,000 digits of the test.
# STEPS=3000 is five epochs.
# ROWS="cosine cnn" STEPS=3000 SEEDS="0 1 2" bash recipes/classify_mnist.sh FOLDER, with MNIST/raw in it
set -euo pipefail
data=${1:?usage: bash recipes/classify_mnist.sh FOLDER, with MNIST/raw in it}
mkdir -p runs/classify_mnist
policy=runs/classify_mnist/rotate.json
echo '{"flip": 0, "always": [{"name": "rotate", "m_neg": 13, "m_pos": 13}]}' > $policy
steps=${STEPS:-15000}
for row in ${ROWS:-cosine cnn plain sgd constant}; do
  case $row in
    cosine) flags="--schedule cosine" ;;
    cnn) flags="--schedule step" ;;
    plain) flags="--schedule step --model cnn_plain" ;;
    sgd) flags="--schedule step --optimizer sgd --lr 0.02" ;;
    constant) flags="--schedule constant" ;;
  esac
  for seed in ${SEEDS:-0 1 2}; do
    out=runs/classify_mnist/$steps/$row/$seed
    # shellcheck disable=SC2086
    python train_classify.py --data "$data" --augment $policy --val-fraction 0 --batch-size 100 --steps "$steps" \
      --eval-every "$steps" $flags --amp bf16 --seed "$seed" --out "$out"
    python evaluate.py --init "$out"/last.pt --split test --json "$out"/test.json
  done
  echo "$row"; python recipes/summary.py runs/classify_mnist/"$steps"/"$row"/?/test.json
done
