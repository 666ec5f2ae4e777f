#!/usr/bin/env bash
# PACS (up to 150 images of each class and domain), class and domain from ImageNet weights at 64 px: plain, with
# MixStyle, and with the first stages frozen. Split at random; or LEAVE_OUT="photo sketch": that domain is the test.
# Last weights.
# ROWS="plain follow" SEEDS="0 1 2" bash recipes/classify_pacs.sh FOLDER, of domains with classes
set -euo pipefail
data=${1:?usage: bash recipes/classify_pacs.sh FOLDER, of domains with classes}
lite="--model efficientnet_lite0 --weights imagenet --backbone-lr-scale 0.2 --head mlp --dropout 0.5"
mix="--mixstyle 2 3"
rows="plain hard follow freeze1 freeze2"
[ -z "${LEAVE_OUT:-}" ] || rows="plain mix"  # without a domain to tell
for row in ${ROWS:-$rows}; do
  case $row in
    plain) flags="" ;;
    mix) flags="$mix" ;;
    hard) flags="$mix --domain-labels hard" ;;
    follow) flags="$mix --domain-labels follow" ;;
    freeze1) flags="$mix --freeze 1" ;;
    freeze2) flags="$mix --freeze 2" ;;
  esac
  for domain in ${LEAVE_OUT:-none}; do
    left_out="" steps=300
    [ "$domain" = none ] || left_out="--leave-out $domain" steps=200
    for seed in ${SEEDS:-0 1 2}; do
      out=runs/classify_pacs/$domain/$row/$seed
      # shellcheck disable=SC2086
      python train_classify.py --data "$data" $lite $flags $left_out --size 64 --batch-size 32 --steps "$steps" \
        --seed "$seed" --out "$out"
      python evaluate.py --init "$out"/last.pt --split test --json "$out"/test.json
    done
    echo "$domain $row"; python recipes/summary.py runs/classify_pacs/"$domain"/"$row"/?/test.json
  done
done
