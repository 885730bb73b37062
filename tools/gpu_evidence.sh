#!/usr/bin/env bash
# bash tools/gpu_evidence.sh OUT [part ...]: measures what needs a GPU, a part in at most nine minutes; docs/gpu.md
#
# Parts, in order of worth: cifar10 core text speed lab gpt2 data; without one, a turn of each. The same command goes on.
# Inputs: DATA=FOLDER (cifar10), TEXT=FOLDER (text), IMAGES=FOLDER and IMAGES_256=FOLDER (data), NANOGPT=FOLDER (gpt2)
# Others: WORK=FOLDER of the runs (OUT/work), LIMIT=SECONDS of a part (480), SMALL=1 for toy sizes on a CPU
# Ends with 0 when all is measured, 75 when the command must be run again, 2 where an input is missing.
set -uo pipefail
all=(cifar10 core text speed lab gpt2 data)
usage="usage: bash tools/gpu_evidence.sh OUT [${all[*]}]"
[ $# -gt 0 ] && [ "${1#-}" = "$1" ] || { echo "$usage" >&2; exit 2; }
out=$1; shift
[[ " ${all[*]} " != *" $out "* ]] || { echo "OUT is a folder to make, not a part; $usage" >&2; exit 2; }
for part in "$@"; do
    [[ " ${all[*]} " = *" $part "* ]] || { echo "no part $part; $usage" >&2; exit 2; }
done
if [ -z "${SMALL:-}" ] && [ "$*" != lab ]; then
    python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "PyTorch sees no GPU here; only the part lab works without one (SMALL=1 tries all at toy size)" >&2
        exit 2
    }
fi
work=${WORK:-$out/work}
mkdir -p "$out" "$work" || exit 2
tools=$(dirname "$0")
small=${SMALL:-}
vitwarm=(python -m vitwarm)
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}  # one GPU: processes of a part share it
fast=(train.precision=bf16 train.compile=true)
seeds=(0 1 2)
if [ "$small" ]; then
    export ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES=
    fast=() seeds=(0)
fi

pids=()
start() {  # a command in the background, stopped softly when the time of the part is over
    local left=$((end - SECONDS))
    timeout --foreground --preserve-status --kill-after=50 "$((left > 0 ? left : 1))" "$@" &
    pids+=($!)
}
finish() {  # waits for all of them; the last code that is not 0
    local pid code=0
    for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
    pids=()
    return $code
}
limited() { start "$@"; finish; }
trap 'kill "${pids[@]}" 2>/dev/null; finish; exit 75' INT TERM

needs() {  # the name of a variable that holds a folder, and what is in it
    [ -d "${!1:-}" ] || { echo "$part: set $1=FOLDER, with $2" >&2; return 2; }
}
summary() { python "$tools/gpu_evidence.py" "$@"; }

study() {  # NAME, words of the plan: a process for each seed, then the report of all; what is finished counts
    local name=$1 folder=$work/$1 seed code=0; shift
    for seed in "${seeds[@]}"; do
        start "${vitwarm[@]}" budget "$@" seeds="$seed" out="$folder/seed$seed" runs="$folder/runs"
    done
    finish || code=$?  # of a cell that failed, too
    local listed; listed=$(IFS=,; echo "${seeds[*]}")
    "${vitwarm[@]}" budget "$@" seeds="$listed" out="$folder" runs="$folder/runs" --report || return
    summary study "$folder/study.json" "$out/$name.json" || return
    return $code
}

cifar10() {  # arm by arm, all seeds of it at once; then the table of the arms that are whole
    needs DATA "train*.tar and val*.tar of CIFAR-10, by vitwarm make-shards" || return
    local shuffled='{"name": "shuffled", "rule": {"name": "dyck", "k": 64, "p_open": 0.6}}' arm seed words folder code=0 whole=()
    local data=(images.train="$DATA/train*.tar" images.val="$DATA/val*.tar" images.resident=true images.auto_augment=null
        images.color_jitter=0) short=()
    if [ "$small" ]; then
        data+=(model.args.depth=3 model.args.patch_size=16 images.epochs=1 images.subset="40 samples" train.global_batch=16 train.lr_warmup=0)
        short=(warmup.budget="2 steps" warmup.global_batch=4 warmup.lr_warmup=0 warmup.val_rows=8)
    else
        data+=(images.eval_every=2 warmup.precision=bf16 warmup.compile=true "${fast[@]}")
    fi
    local arms=(default conditioned mimetic dyck shuffled core)
    [ -f "$work/core/result.json" ] && arms+=(core_full)
    for arm in "${arms[@]}"; do
        words=(recipe=cifar10_vit_t_default)
        case $arm in
        conditioned | mimetic) words+=(model.init=$arm) ;;
        dyck) words=(recipe=cifar10_vit_t_proc "${short[@]}") ;;
        shuffled) words=(recipe=cifar10_vit_t_proc warmup.rule="$shuffled" "${short[@]}") ;;
        core) words+=(init_from=vitwarm:core transfer.fit=expand) ;;
        core_full) words+=(init_from="$work/core" transfer.fit=expand transfer.controls.attention=scale:0.5 transfer.controls.mlp=scale:0.5) ;;
        esac
        for seed in "${seeds[@]}"; do
            folder=$work/cifar10/$arm-seed$seed
            [ -f "$folder/result.json" ] || start "${vitwarm[@]}" train "${words[@]}" "${data[@]}" seed="$seed" run.dir="$folder"
        done
        finish || { code=$?; break; }
        whole+=("$arm=$work/cifar10/$arm-seed*")
    done
    [ $code = 0 ] || [ $code = 75 ] || return $code
    if [ ${#whole[@]} -gt 1 ]; then
        "${vitwarm[@]}" compare "${whole[@]}" out="$work/cifar10/compare" || return
        summary compare "$work/cifar10" "$out/cifar10.json" "${arms[@]}" -- ${small:+SMALL=1} DATA="$DATA" bash tools/gpu_evidence.sh OUT cifar10 \
            || return
    fi
    return $code
}

core() {
    local words=(train recipe=core_vit run.dir="$work/core") how=(warmup.precision=bf16 warmup.compile=true)
    [ "$small" ] && how=(warmup.budget="2 steps" warmup.global_batch=4 warmup.lr_warmup=0 warmup.val_rows=8 run.log_every=1)
    limited "${vitwarm[@]}" "${words[@]}" "${how[@]}" || return
    summary run "$work/core" "$out/core.json" -- vitwarm "${words[@]}" "${how[@]}"
}

text() {  # the rate of each arm on a seed of its own, then the arms
    needs TEXT "files train* and val*, documents as docs/text.md says" || return
    local plan=$tools/../recipes/budgets/text_6_6_384.yaml found=$work/text_rates/study.json
    local words=(text.train="$TEXT/train*" text.val="$TEXT/val*" "${fast[@]}")
    [ "$small" ] && words+=(model.decoder.size=2_2_16 text.length=32 text.budget="4 steps" text.eval_every=2 text.val_rows=4
        train.global_batch=4 warmup.global_batch=1024 warmup.val_rows=8)  # a budget would warm up "none" too
    if ! [ -f "$work/text.yaml" ]; then
        summary rates "$plan" "$work/text_rates.yaml" ${small:+--single} || return
        limited "${vitwarm[@]}" budget plan="$work/text_rates.yaml" "${words[@]}" out="$work/text_rates" || return
        summary chosen "$plan" "$found" "$work/text.yaml" || return
        summary study "$found" "$out/text_rates.json" || return
    fi
    study text plan="$work/text.yaml" "${words[@]}"
}

speed() {
    local model toy=()
    [ "$small" ] && toy=(model=test_vit size=32 classes=5 batch=4 steps=1 rounds=1 precision=fp32 compile=false)
    for model in tiny small base; do
        [ -f "$out/speed_$model.json" ] || limited python "$tools/benchmark.py" train model=vit_${model}_patch16_224 \
            "${toy[@]}" --json "$out/speed_$model.json" || return
    done
}

lab() {  # on the cores of the machine, where tiny decoders are fastest
    local words=(plan=lab_tables out="$work/lab" jobs="$(nproc)") code=0
    [ "$small" ] && words=(plan=lab_quick out="$work/lab" jobs=1 seeds=0 algorithmic.budget="4 steps" algorithmic.eval_every=2
        algorithmic.val_rows=16 train.global_batch=8 train.lr_warmup=0 warmup.budget="2 steps" warmup.global_batch=4 warmup.val_rows=8)
    CUDA_VISIBLE_DEVICES='' limited "${vitwarm[@]}" lab "${words[@]}" || code=$?  # of a cell that failed, too
    CUDA_VISIBLE_DEVICES='' "${vitwarm[@]}" lab "${words[@]}" --report || return
    summary lab "$work/lab/lab.json" "$out/lab.json" || return
    return $code
}

gpt2() {
    local toy=(size=12_12_768 length=1024 batch=16)
    [ "$small" ] && toy=(size=2_2_16 length=16 batch=2 vocab=131 steps=1 rounds=1 precision=fp32 compile=false)
    [ -f "$out/gpt2.json" ] || limited python "$tools/benchmark.py" lm "${toy[@]}" ${NANOGPT:+--nanogpt "$NANOGPT"} \
        --json "$out/gpt2.json"
}

data() {  # two minutes of training on each set of tars; how it ends does not matter
    needs IMAGES "train*.tar of photographs; in IMAGES_256 perhaps the same by make-shards max_side=256" || return
    local set words code
    for set in IMAGES IMAGES_256; do
        [ -d "${!set:-}" ] && ! [ -f "$out/data_${set,,}.json" ] || continue
        words=(train recipe=vit_t_default images.train="${!set}/train*.tar" images.val= run.dir="$work/data_${set,,}")
        if [ "$small" ]; then
            words+=(images.epochs=1 model.args.img_size=32 model.args.patch_size=16 train.lr_warmup=0 train.global_batch=8 run.workers=1 run.log_every=1)
        else
            words+=(train.global_batch=1024 "${fast[@]}" run.workers="$(nproc)" run.log_every=10)
        fi
        local end=$((SECONDS + 120)) code=0
        limited "${vitwarm[@]}" "${words[@]}" || code=$?
        [ $code = 0 ] || [ $code = 75 ] || return $code
        summary run "$work/data_${set,,}" "$out/data_${set,,}.json" -- vitwarm "${words[@]}" || return
    done
}

[ $# -gt 0 ] || set -- "${all[@]}"
worst=0
for part in "$@"; do
    end=$((SECONDS + ${LIMIT:-480})) code=0
    "$part" || code=$?
    case $code in
    0) echo "$part: measured" ;;
    75 | 124 | 143) code=75; echo "$part: stopped by its time limit; run it again: bash tools/gpu_evidence.sh $out $part" ;;
    *) echo "$part: failed with code $code" >&2 ;;
    esac
    [ $code = 0 ] || { [ $code = 75 ] && [ $worst != 0 ]; } || worst=$code
done
compgen -G "$out/*.json" >/dev/null || exit $worst  # nothing to make a page of
"${vitwarm[@]}" evidence out="$out" || exit
exit $worst
