#!/usr/bin/env bash
# bash tools/quickstart.sh            warm up a small ViT, train it on handwritten digits, validate, export
# bash tools/quickstart.sh --compare  default and warmed arms over 3 seeds: a table and a figure of the curves
set -euo pipefail
. "$(dirname "$0")/env.sh" digits

train() { python tools/train.py "$@"; }  # without a launcher: a configuration of accelerate may ask for other things

case "${1:-}" in
"")
    train recipe=digits_proc
    ;;
--compare)
    for seed in 0 1 2; do
        for recipe in digits_default digits_proc; do
            train recipe="$recipe" seed="$seed"
        done
    done
    python tools/compare.py default="runs/digits_default-seed[012]" warmed="runs/digits_proc-seed[012]" out=runs/compare
    ;;
*)
    echo "usage: bash tools/quickstart.sh [--compare]" >&2
    exit 2
    ;;
esac
