#!/usr/bin/env bash
# New domains from words, where CLIP is a tiny one of our own (tiny_clip.py) and faces are rendered: labels in
# daylight alone, tests in six domains. `source` is a decoder on the frozen image tower; every other row goes on
# from there for as many steps, the decoder alone, with a flip. Last weights.
#   more                 without styles
#   night fog snow ...   PODA: styles mined for the phrase of this domain, and scored in all
#   words                the same with all five phrases in one bank
#   famix                FAMix: all five phrases for each class, 3 x 3 patches, mixed with the image's own style; the
#                        last stage of the tower trains, too
#   random, own          styles drawn at random, as far from the images' own as those of `night`; other images' own
#   mixstyle             styles of the other images of the batch
#   augment, augmented   no styles, but RandAugment; the same from the beginning of the source on
#   labels               no styles, but labels in every domain: the upper bound
# Not done unless they are asked for, each with PODA's row of the domain for comparison:
#   NOISE: night-text-0.05, noise on the phrase's embedding; night-feature-0.2, on the features that are mined with
#   PATCHES: night-3-beta-4: patches (3: styles for each class), mixing, what is frozen: `backbone`, or 4 stages of 5
# What is there already is not done again. Of one core, a seed: two minutes for the source, three for a row with
# styles (a bank takes one, 300 steps one, and six tests one); CLIP before that (tiny_clip.py).
# SEEDS="0 1 2" DOMAINS="night fog" ROWS="more night fog NOISE" CLIP=runs/tiny STEPS=300 bash recipes/styles_words.sh OUT
set -euo pipefail
out=${1:?usage: bash recipes/styles_words.sh OUT, a folder for faces and runs}
faces=$out/faces steps=${STEPS:-300} domains=${DOMAINS:-night fog snow sketch red_light}
known="daylight night fog snow sketch red_light"
unchanged=(--steps 1 --lr 1e-12) # mines the images' own styles

phrase() { # DOMAIN [WHAT]
  local what=${2:-a face}
  case $1 in
    night) echo "$what at night" ;;
    fog) echo "$what in fog" ;;
    snow) echo "$what in snow" ;;
    sketch) echo "$what as a sketch" ;;
    red_light) echo "$what under red light" ;;
  esac
}

mine() { # ROW "DOMAIN..." WHAT FLAGS...: a bank for what is seen of a face in these domains
  local domain phrases=() classes=() to=$runs/banks/$1
  [ ! -f "$to/bank.pt" ] || return 0
  for domain in $2; do phrases+=("$(phrase "$domain" "$3")"); done
  mkdir -p "$runs/banks"
  [[ $3 != *"{class}"* ]] || classes=(--classes-of "$source")
  python recipes/tiny_clip.py embed --clip "$clip" "${phrases[@]}" "${classes[@]}" --out "$to.targets.pt"
  python mine_styles.py --init "$source" --targets "$to.targets.pt" --images "${IMAGES:-100}" --seed "$seed" \
    --resume --out "$to" "${@:4}"
}

train() { # ROW DATA FLAGS...: once, and score it
  local domain to=$runs/$1
  [ ! -f "$to/${scored##* }.json" ] || return 0
  python train_finetune.py --data "$faces/$2" --val-fraction 0 --loss ce=1 dice=1 --amp bf16 --seed "$seed" \
    --resume --out "$to" "${@:3}"
  for domain in $scored; do
    python evaluate.py --init "$to/last.pt" --data "$faces/$domain" --split test --json "$to/$domain.json"
  done
}

begin() { # ROW POLICY
  train "$1" daylight --size 96 --model clip_unet --weights "$clip/tower.pt" --freeze backbone --augment "$2" \
    --steps "${SOURCE_STEPS:-800}"
}

adapt() { # ROW DATA FLAGS...
  train "$1" "$2" --lr 1e-3 --steps "$steps" "${@:3}"
}

styled() { # ROW [FROZEN] [ROW OF THE BANK]
  adapt "$1" daylight --init "$source" --freeze "${2:-backbone}" --augment flip \
    --styles "$runs/banks/${3:-$1}/bank.pt"
}

plain() { # ROW DATA POLICY [SOURCE]
  adapt "$1" "$2" --init "${4:-$source}" --freeze backbone --augment "$3"
}

noise=() patches=()
for domain in $domains; do
  noise+=("$domain-"{text-0.01,text-0.05,text-0.2,feature-0.05,feature-0.2})
  patches+=("$domain-"{1,3}-{none,uniform,beta}-{backbone,4})
done
rows=${ROWS:-source more $domains words famix own random mixstyle augment augmented labels}
rows=${rows/NOISE/${noise[*]}}
rows=${rows/PATCHES/${patches[*]}}

[ -d "$faces/all" ] || python recipes/domain_faces.py --out "$faces"
for seed in ${SEEDS:-0 1 2}; do
  runs=$out/$seed source=$out/$seed/source/last.pt clip=${CLIP:-$out/$seed/clip}
  scored=$known
  [ -f "$clip/tower.pt" ] || python recipes/tiny_clip.py train --seed "$seed" --out "$clip"
  begin source flip
  for row in $rows; do
    IFS=- read -r domain what value frozen <<< "$row"
    scored=$known
    if [ -n "$what" ]; then scored=$domain; fi # a variant: in its own domain alone
    case $row in
      source) ;;
      more) plain more daylight flip ;;
      augment) plain augment daylight randaugment ;;
      augmented)
        begin augmented_source randaugment
        plain augmented daylight randaugment "$runs/augmented_source/last.pt" ;;
      labels) plain labels all flip ;;
      words | famix)
        flags=() of="a face" trained=backbone
        if [ "$row" = famix ]; then
          flags=(--per-class --patches 3 --mix beta) of="the {class} of a face" trained=4
        fi
        mine "$row" "${known#daylight }" "$of" "${flags[@]}"
        styled "$row" "$trained" ;;
      own)
        mine own night "a face" "${unchanged[@]}"
        styled own ;;
      random)
        mine night night "a face"
        mine own night "a face" "${unchanged[@]}"
        [ -f "$runs/banks/random/bank.pt" ] ||
          python recipes/style_controls.py random "$runs/banks/own/bank.pt" --like "$runs/banks/night/bank.pt" \
            --seed "$seed" --out "$runs/banks/random/bank.pt"
        styled random ;;
      mixstyle)
        python mine_styles.py --init "$source" --mix batch --seed "$seed" --resume --out "$runs/banks/mixstyle"
        styled mixstyle ;;
      *-text-* | *-feature-*)
        mine "$row" "$domain" "a face" "--$what-noise" "$value"
        styled "$row" ;;
      *-1-*)
        mine "$domain-1-$value" "$domain" "a face" --mix "$value"
        styled "$row" "$frozen" "$domain-1-$value" ;;
      *-3-*)
        mine "$domain-3-$value" "$domain" "the {class} of a face" --per-class --patches 3 --mix "$value"
        styled "$row" "$frozen" "$domain-3-$value" ;;
      *)
        mine "$row" "$row" "a face"
        styled "$row" ;;
    esac
  done
done
python recipes/style_table.py "$out"
