#!/usr/bin/env bash
# CIFAR-100 at a fifth of its size (100 training images a class) from ImageNet weights, at 64 px: crop and flip, then
# one thing more in each row; and five models on images drawn with replacement, which vote. Last weights, 2,000 test
# images.
# ROWS="crop cutmix" SEEDS="0 1 2" bash recipes/classify_cifar.sh FOLDER, of train/ and test/ with classes
set -euo pipefail
data=${1:?usage: bash recipes/classify_cifar.sh FOLDER, of train/ and test/ with classes}
all=runs/classify_cifar
mkdir -p $all
crop='{"name": "crop", "m_pos": 0.125}'
turn='{"name": "rotate", "m_neg": 15, "m_pos": 15}'
cut='{"name": "cutmix", "m_pos": 1.0, "p": 0.5}'
echo "{\"flip\": 0.5, \"always\": [$crop, $turn]}" > $all/rotate.json
echo "{\"flip\": 0.5, \"always\": [$crop, $turn, $cut]}" > $all/cutmix.json
for row in ${ROWS:-crop rotate cutmix depth progressive bag}; do
  case $row in
    crop) flags="--augment crop" ;;
    rotate) flags="--augment $all/rotate.json" ;;
    cutmix) flags="--augment $all/cutmix.json" ;;
    depth) flags="--augment $all/cutmix.json --stochastic-depth 0.2" ;;
    progressive) flags="--augment $all/cutmix.json --progressive 4" ;;
    bag) flags="--augment $all/cutmix.json --bootstrap" ;;
  esac
  seeds=${SEEDS:-0 1 2}
  [ "$row" = bag ] && seeds="0 1 2 3 4"
  for seed in $seeds; do
    out=$all/$row/$seed
    # shellcheck disable=SC2086
    python train_classify.py --data "$data" --model efficientnet_lite0 --weights imagenet --backbone-lr-scale 0.2 \
      --size 64 --val-fraction 0 --batch-size 64 --steps "${STEPS:-1200}" $flags --seed "$seed" --out "$out"
    python evaluate.py --init "$out"/last.pt --split test --json "$out"/test.json
  done
  echo "$row"; python recipes/summary.py $all/"$row"/?/test.json
done
for vote in soft hard; do
  python evaluate.py --init $all/bag/?/last.pt --vote $vote --split test --json $all/bag_$vote.json
  python evaluate.py --init $all/cutmix/?/last.pt --vote $vote --split test --json $all/cutmix_$vote.json
done
