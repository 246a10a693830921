#!/usr/bin/env bash
# Distil and measure every dataset of docs/results.md, the most valuable cells first. What is done is not done again, so
# run the same line after an interruption, or in pieces until it ends with 0.
#
#   scripts/reproduce.sh [OUT [DATA ...]]      everything that has not been done yet; DATA as for `dim distill --data`
#   PRESET=small scripts/reproduce.sh out mnist "my photos/"
#   TIME_LIMIT=9m scripts/reproduce.sh         stop at the first checkpoint or student's table after nine minutes
#   ABLATION=1 scripts/reproduce.sh            at the end, what every ingredient is worth; ABLATION=full: not shortened
#
# PRESET       best (a GPU preset) or small
# DATASETS     instead of DATA, separated by blanks
# DIM_DATA     where the official files are, or go
# IPCS, SEEDS  of the evaluation; RATIOS are further sizes from the same bundles; WHOLE_EPOCHS is for the whole split
# SIZE         side of the ablation's images in pixels; the dataset's own if left out
#
# OUT/results/*.json are for docs/results/. Removing OUT/done/NAME has that line run again.
# Exit codes: 0 all is done; 75 the time is over and there is more to do; else the code of the command that failed.
set -euo pipefail
shopt -s inherit_errexit # or a failure inside $(...) goes unseen

out=${1:-reproduce}
preset=${PRESET:-best}
ipcs=${IPCS:-10 50 1}
seeds=${SEEDS:-3}
ratios=${RATIOS:-100 500}
whole_epochs=${WHOLE_EPOCHS:-50}
archs=resnet10,resnet18-half,resnet10-half,resnetap10-half,vgg11,densenet,mlp
bench=$(dirname "$0")/../bench
if [ $# -gt 1 ]; then
    datasets=("${@:2}")
else
    read -ra datasets <<< "${DATASETS:-cifar10 mnist svhn fashion-mnist cifar100}"
fi
mkdir -p "$out/results" "$out/done"

# seconds TIME: 9m, 1h30m, 90s or 90 as a number of seconds.
seconds() {
    if ! [[ $1 =~ ^(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s?)?$ ]]; then
        echo "TIME_LIMIT is $1; it takes a time such as 90s, 9m or 1h30m." >&2
        exit 2
    fi
    local parts=("${BASH_REMATCH[@]}")
    echo $((3600 * 10#${parts[2]:-0} + 60 * 10#${parts[4]:-0} + 10#${parts[6]:-0}))
}
limit=${TIME_LIMIT:+$(seconds "$TIME_LIMIT")}

# stop SENTENCE: end this piece.
stop() {
    echo "$1 Run the same line again to go on." >&2
    exit 75
}

# check_time: end this piece if its time is over.
check_time() {
    if [ -n "$limit" ] && [ "$SECONDS" -ge "$limit" ]; then
        stop "The time limit is over and there is more to do."
    fi
}

# once NAME COMMAND ...: run a command, unless this very one has finished before.
once() {
    local mark=$out/done/$1
    shift
    if [ -e "$mark" ] && [ "$(< "$mark")" = "$*" ]; then return; fi
    check_time
    "$@"
    echo "$*" > "$mark"
}

# The seconds that a run took lie beside it, one line per piece, interrupted pieces too: the published recipe gets as
# many.
timing=
began=0
note_time() {
    if [ -n "$timing" ]; then echo $((SECONDS - began)) >> "$timing"; fi
    timing=
}
trap note_time EXIT

distilled() { [ -e "$1/generator.safetensors" ]; }

# distil DATA RUN [OPTION ...]: make or continue a run; what is not finished ends this piece.
distil() {
    local data=$1 run=$2
    shift 2
    if distilled "$run"; then return; fi
    check_time
    timing=$run.seconds
    began=$SECONDS
    dim distill --data "$data" --out "$run" --resume ${limit:+--time-limit "$((limit - SECONDS))s"} "$@"
    note_time
    distilled "$run" || stop "The distillation $run is not finished."
}

# bundle RUN PRECISIONS: the run's bundle, exported once.
bundle() {
    local made
    for made in "$1"/*.dim; do
        if [ -d "$made" ]; then
            echo "$made"
            return
        fi
    done
    dim export "$1" --precision "$2" >&2
    echo "$1"/*.dim
}

# measure DATA PART BUNDLE [OPTION ...]: one line of the evaluation. The recipe that the first line of a dataset chose
# on the hold-out serves all of them.
measure() {
    local data=$1 part=$2 bundle=$3 slug recipe
    shift 3
    slug=$(slug "$data")
    recipe=$out/eval-$slug/recipe/recipe.json
    [ -e "$recipe" ] || recipe=holdout
    dim eval --bundle "$bundle" --data "$data" --out "$out/eval-$slug" --preset full --recipe "$recipe" "$@"
    cp "$out/eval-$slug/results.json" "$out/results/$slug-$part.json"
}
# evaluate DATA PART BUNDLE [OPTION ...]: the same, if it has not been done.
evaluate() { once "$(slug "$1")-$2" measure "$@" --seeds "$seeds"; }

# slug DATA: a dataset's name, or what a path ends with, as a part of file names.
slug() {
    local name=${1%/}
    name=${name##*/}
    echo "${name//[^[:alnum:]._-]/-}"
}

declare -A named
for data in "${datasets[@]}"; do
    name=$(slug "$data")
    if [ -n "${named[$name]:-}" ]; then
        echo "${named[$name]} and $data would share the name $name in $out: give them folders of their own." >&2
        exit 2
    fi
    named[$name]=$data
done

# What the mission promises: every dataset's bundle, three sizes, two networks. Then the published student recipe, the
# whole training split, and int8.
for data in "${datasets[@]}"; do
    run=$out/$(slug "$data")
    distil "$data" "$run" --preset "$preset" --set deployment.teacher=convnet3
    ours=$(bundle "$run" fp32,fp16,int8)
    for ipc in $ipcs; do
        for arch in convnet3 resnet18; do
            evaluate "$data" "$arch-$ipc" "$ours" --ipc "$ipc" --arch "$arch" --record
        done
    done
    evaluate "$data" published "$ours" --ipc 10,50 --arch convnet3,resnet18,resnet18-half --recipe published
    evaluate "$data" whole "$ours" --ipc 10 --mode fixed --arch convnet3,resnet18 --whole-epochs "$whole_epochs"
    evaluate "$data" int8 "$ours" --ipc 10 --arch convnet3 --precision int8 --record
done

# The speed of distilling against the published recipe means something here on a GPU; it is measured alone.
if command -v nvidia-smi > /dev/null; then
    once speed python "$bench/distill.py" --preset paper --device gpu --out "$out/results/distill-gpu.json"
    once speed-best python "$bench/distill.py" --preset best --image-px 32 --channels 3 --device gpu \
        --out "$out/results/distill-gpu-best.json"
fi

# The rivals: the published recipe in as many seconds, its matching loss, no matching, no second stage. Then soft
# labels, more sizes and more networks.
for data in "${datasets[@]}"; do
    run=$out/$(slug "$data")
    ours=$(bundle "$run" fp32,fp16,int8)
    if [ ! -s "$run-paper.options" ]; then
        check_time
        spent=$(awk '{ sum += $1 } END { print sum + 0 }' "$run.seconds")
        python "$bench/ablation.py" --data "$data" --out "$run-paper-timing" --device auto --threads "$(nproc)" \
            --equal-seconds "$spent" > "$run-paper.part"
        mv "$run-paper.part" "$run-paper.options"
    fi
    read -ra options < "$run-paper.options"
    distil "$data" "$run-paper" --preset paper "${options[@]}"
    paper=$(bundle "$run-paper" fp32)
    evaluate "$data" paper "$ours" --ipc "${ipcs// /,}" --arch convnet3,resnet18 --compare "paper=$paper"
    distil "$data" "$run-stage1" --preset "$preset" --matching-steps 0
    distil "$data" "$run-paper-loss" --preset "$preset" --matching-loss paper
    distil "$data" "$run-unmatched" --preset "$preset" --matching-loss none
    stage1=$(bundle "$run-stage1" fp32)
    paper_loss=$(bundle "$run-paper-loss" fp32)
    unmatched=$(bundle "$run-unmatched" fp32)
    evaluate "$data" controls "$ours" --ipc "${ipcs// /,}" --arch convnet3 \
        --compare "stage 1 alone=$stage1" --compare "paper loss=$paper_loss" --compare "no matching=$unmatched"
    evaluate "$data" soft "$ours" --ipc "${ipcs// /,}" --arch convnet3 --soft
    evaluate "$data" ratios "$ours" --ipc "${ratios// /,}" --arch convnet3
    evaluate "$data" networks "$ours" --ipc 10 --arch "$archs"
done

# What every ingredient is worth, judged on a hold-out, because the table decides what stays: hours, so only when asked.
# It goes on where it ended, but a row is not cut into pieces.
if [ "${ABLATION:-0}" != 0 ]; then
    full=()
    if [ "$ABLATION" = full ]; then full=(--full); fi
    for data in "${datasets[@]}"; do
        name=$(slug "$data")
        once "ablation-$name" python "$bench/ablation.py" --data "$data" --out "$out/ablation-$name" \
            --preset "$preset" --holdout "${full[@]}" --device auto --threads "$(nproc)" ${SIZE:+--size "$SIZE"}
        cp "$out/ablation-$name/results.json" "$out/results/ablation-$name.json"
    done
fi
echo "All is done. Results: $out/results/*.json; copy them to docs/results/ and run scripts/results.py."
