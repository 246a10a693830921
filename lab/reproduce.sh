#!/usr/bin/env bash
# Distil and measure every dataset of lab/all-results.md, the most valuable cells first. What is done is not done again, so
# run the same line after an interruption, or in pieces until it ends with 0.
#
#   lab/reproduce.sh [OUT [DATA ...]]      everything that has not been done yet; DATA as for `dim distill --data`
#   PRESET=small lab/reproduce.sh out mnist "my photos/"
#   TIME_LIMIT=9m lab/reproduce.sh         stop at the first checkpoint or student after nine minutes
#   ABLATION=1 lab/reproduce.sh            at the end, what every ingredient is worth; ABLATION=full: not shortened
#   DISTILL="--steps 8000 --matching-steps 1500" EPOCHS=100 RECIPE=default lab/reproduce.sh   for short sessions
#
# PRESET       best (a GPU preset) or small
# DATASETS     instead of DATA, separated by blanks
# DISTILL      further options of `dim distill` for every generator of ours, separated by blanks
# DIM_DATA     where the official files are, or go
# IPCS, SEEDS  of the evaluation; RATIOS are further sizes from the same bundles; WHOLE_EPOCHS is for the whole split,
#              0 for none
# EPOCHS       of `dim eval`; the published protocol's if left out
# JOBS         of `dim eval`: students side by side; seven shared an H100 under NVIDIA MPS
# RECIPE       of the students: holdout (54 students per dataset choose it), another name, or a recipe.json
# SIZE         side of the ablation's images in pixels; the dataset's own if left out
# STATE        a folder for machines that keep nothing: at the end of a piece it receives what is needed to go on, the
#              most valuable first, as at most 7 parts of 15 MiB; where OUT is empty, the parts in it are unpacked first
#
# OUT/results/*.json are for lab/results/. Removing OUT/done/NAME has that line run again. What fails is left out, and
# what needs it; everything else goes on. OUT/failed/NAME says why, and removing it has that tried again.
# Exit codes: 0 all is done; 1 all else is done and something failed; 2 options that do not parse or do not fit OUT;
# 75 the time is over and there is more to do; 130 and 143 after Ctrl-C and SIGTERM.
set -euo pipefail
shopt -s inherit_errexit # or a failure inside $(...) goes unseen

out=${1:-reproduce}
preset=${PRESET:-best}
ipcs=${IPCS:-10 50 1}
seeds=${SEEDS:-3}
ratios=${RATIOS:-100 500}
whole_epochs=${WHOLE_EPOCHS:-50}
wanted_recipe=${RECIPE:-holdout}
archs=resnet10,resnet18-half,resnet10-half,resnetap10-half,vgg11,densenet,mlp
lab=$(dirname "$0")/../lab
export PYTHONPATH="$lab/..${PYTHONPATH:+:$PYTHONPATH}"
read -ra more <<< "${DISTILL:-}"
if [ $# -gt 1 ]; then
    datasets=("${@:2}")
else
    read -ra datasets <<< "${DATASETS:-cifar10 mnist svhn fashion-mnist cifar100}"
fi
if [ -t 1 ] && [ -t 2 ]; then export FORCE_COLOR=1; fi # the bars stay, although `try` reads stderr too

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

. "$(dirname "$0")/reproduce_state.sh"
unpack
mkdir -p "$out/results" "$out/done" "$out/failed"

# stop SENTENCE: end this piece.
stop() {
    echo "$1 Run the same line again to go on." >&2
    pack
    exit 75
}

# begin: before a command, end this piece if its time is over; before the first one, say what this machine draws with.
# Where no engine draws on its GPU, PyTorch draws the images of the evaluation.
examined=
drawing=()
begin() {
    local code=0
    if [ -n "$limit" ] && [ "$SECONDS" -ge "$limit" ]; then
        stop "The time limit is over and there is more to do."
    fi
    if [ -n "$examined" ]; then return; fi
    examined=$(dim doctor) || code=$?
    case $code in 130 | 143) exit "$code" ;; esac
    examined=${examined:-"dim doctor ended with exit code $code."}
    echo "$examined" >&2
    if command -v nvidia-smi > /dev/null && ! [[ $examined =~ "Recommended engine: "(tensorrt|onnxruntime-cuda) ]]; then
        echo "There is an NVIDIA GPU here, and no engine draws on it: PyTorch draws the images of the evaluation." \
            "For the engine  pip uninstall -y onnxruntime && pip install 'dim-distill[gpu]'" >&2
        drawing=(--engine torch)
    fi
}

# left: what is left of the time limit, as a time for dim.
left() { echo "$((limit > SECONDS ? limit - SECONDS : 1))s"; }

# leave_out NAME: say why something is left out, once, and remember it for the end.
lost=()
leave_out() {
    case " ${lost[*]} " in *" $1 "*) return ;; esac
    lost+=("$1")
    echo "$1 failed and is left out, with what needs it: $(< "$out/failed/$1")" \
        "Remove $out/failed/$1 to try it again." >&2
}

# failed NAME: whether it failed before, which is then said.
failed() {
    if [ ! -e "$out/failed/$1" ]; then return 1; fi
    leave_out "$1"
}

# try NAME PROGRAM ...: run a program; `worked` is empty if it failed. Signals, and options that do not parse, end the
# script: they would meet every other line as well.
worked=
try() {
    local name=$1 code=0
    shift
    { "$@" 2>&1 >&3 3>&- | (trap '' INT TERM && exec tee "$out/.said" >&2); } 3>&1 || code=$?
    worked=1
    case $code in
        0) return ;;
        2 | 126 | 127 | 130 | 143) exit "$code" ;;
    esac
    worked=
    sed -n 's/.*\r//; /[^[:space:]]/h; ${g;p}' "$out/.said" > "$out/failed/$name"
    if [ ! -s "$out/failed/$name" ]; then echo "It ended with exit code $code." > "$out/failed/$name"; fi
    leave_out "$name"
}

# without_folders WORD ...: a line of a mark, which stays true where OUT has another path.
without_folders() {
    local line=$*
    line=${line//"$out/"/}
    echo "${line//"$lab/"/}"
}

# once NAME FACTS COMMAND ...: run a command, unless it has finished before with these facts, or has failed.
once() {
    local name=$1 line mark=$out/done/$1
    line=$(without_folders "${@:3}" "$2")
    if [ -e "$mark" ] && [ "$(< "$mark")" = "$line" ]; then return; fi
    if failed "$name"; then return; fi
    begin
    "${@:3}"
    if [ -n "$worked" ]; then echo "$line" > "$mark"; fi
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

# find_bundle RUN: `made` becomes the run's bundle, or nothing.
find_bundle() {
    for made in "$1"/*.dim; do
        if [ -d "$made" ]; then return; fi
    done
    made=
}

# options_of SUFFIX: `options` become those of a generator of ours, whose rivals have the same stage 1.
options_of() {
    options=(--preset "$preset" "${more[@]}")
    case $1 in
        "") options+=(--set deployment.teacher=convnet3) ;;
        -stage1) options+=(--matching-steps 0) ;;
        -paper-loss) options+=(--matching-loss paper) ;;
        -unmatched) options+=(--matching-loss none) ;;
    esac
}

# line_of DATA [OPTION ...]: the mark of a distillation.
line_of() { without_folders "--data $*"; }

# refuse_another RUN DATA [OPTION ...]: end the script if the run was begun with other options.
refuse_another() {
    local mark=$out/done/${1##*/}.run line
    line=$(line_of "${@:2}")
    if [ -e "$mark" ] && [ "$(< "$mark")" != "$line" ]; then
        echo "$1 was begun with  $(< "$mark")  and not with  $line: choose another OUT, or remove $1 and $mark." >&2
        exit 2
    fi
}
for data in "${datasets[@]}"; do
    for suffix in "" -stage1 -paper-loss -unmatched; do
        options_of "$suffix"
        refuse_another "$out/$(slug "$data")$suffix" "$data" "${options[@]}"
    done
done

# make DATA RUN PRECISIONS SOURCE [OPTION ...]: `made` becomes the run's bundle, distilled and exported where that has
# not been done, or nothing where it failed. What is not finished ends this piece. SOURCE is a run with the same
# stage 1, or nothing; where its stage 1 is gone, that is trained anew.
make() {
    local data=$1 run=$2 precisions=$3 source=$4 name=${2##*/} mark=$out/done/${2##*/}.run begin_with=()
    shift 4
    refuse_another "$run" "$data" "$@"
    made=
    if failed "$name"; then return; fi
    find_bundle "$run"
    if [ -z "$made" ] && [ ! -e "$run/generator.safetensors" ] || [ ! -e "$mark" ]; then
        begin
        if [ -n "$source" ] && compgen -G "$source/checkpoints/stage1-*.json" > /dev/null; then
            begin_with=(--from-stage1 "$source")
        fi
        if [ ! -e "$run/config.json" ]; then rm -f "$run.seconds" "$run-paper.options"; fi # of a run that is gone
        timing=$run.seconds
        began=$SECONDS
        try "$name" dim distill --data "$data" --out "$run" --resume ${limit:+--time-limit "$(left)"} \
            "${begin_with[@]}" "$@"
        note_time
        if [ -e "$run/config.json" ]; then line_of "$data" "$@" > "$mark"; fi
        if [ -z "$worked" ]; then
            made=
            return
        fi
        if [ ! -e "$run/generator.safetensors" ]; then stop "The distillation $run is not finished."; fi
    fi
    if [ -n "$made" ]; then return; fi
    begin
    try "$name" dim export "$run" --precision "$precisions"
    find_bundle "$run"
}

# make_ours DATA: the bundle that everything is about.
make_ours() {
    options_of ""
    make "$1" "$out/$(slug "$1")" fp32,fp16 "" "${options[@]}"
}

# make_rival DATA SUFFIX: a generator with the same stage 1.
make_rival() {
    local run
    run=$out/$(slug "$1")
    options_of "$2"
    make "$1" "$run$2" fp32 "$run" "${options[@]}"
}

# measure DATA PART BUNDLE [OPTION ...]: one line of the evaluation. The recipe that the first line of a dataset chose
# on the hold-out serves all of them.
measure() {
    local data=$1 part=$2 bundle=$3 recipe=$wanted_recipe slug drawn=("${drawing[@]}")
    shift 3
    case " $* " in *" int8 "*) drawn=() ;; esac # PyTorch draws no int8 file
    slug=$(slug "$data")
    if [ "$recipe" = holdout ] && [ -e "$out/eval-$slug/recipe/recipe.json" ]; then
        recipe=$out/eval-$slug/recipe/recipe.json
    fi
    rm -f "$out/eval-$slug/results.json" # of another line
    try "$slug-$part" dim eval --bundle "$bundle" --data "$data" --out "$out/eval-$slug" --preset full \
        --recipe "$recipe" "${drawn[@]}" ${JOBS:+--jobs "$JOBS"} ${EPOCHS:+--epochs "$EPOCHS"} \
        ${limit:+--time-limit "$(left)"} "$@"
    if [ -z "$worked" ]; then return; fi
    if [ ! -e "$out/eval-$slug/results.json" ] || grep -q '"finished": *false' "$out/eval-$slug/results.json"; then
        stop "The evaluation $slug-$part is not finished."
    fi
    cp "$out/eval-$slug/results.json" "$out/results/$slug-$part.json"
}

# content_id BUNDLE: what identifies the images that it draws.
content_id() { sed -n 's/^  "content_id": *"\(.*\)".*/\1/p' "$1/manifest.json"; }

# evaluate DATA PART BUNDLE [OPTION ...]: the same, unless it has been done for these bundles.
evaluate() {
    local word facts
    facts="RECIPE=$wanted_recipe EPOCHS=${EPOCHS:-} $(content_id "$3")"
    for word in "${@:4}"; do
        if [[ $word = *=*.dim ]]; then facts+=" $(content_id "${word#*=}")"; fi
    done
    once "$(slug "$1")-$2" "$facts" measure "$@" --seeds "$seeds"
}

# What the mission promises: every dataset's bundle, three sizes, two networks. Then the published student recipe, that
# of the Dataset Condensation code and the same with every augmentation at once, the whole training split, and int8,
# whose file may be refused.
for data in "${datasets[@]}"; do
    name=$(slug "$data")
    make_ours "$data"
    ours=$made
    if [ -z "$ours" ]; then continue; fi
    if [ ! -e "$ours/generator.int8.onnx" ] && ! failed "$name-int8"; then
        begin
        try "$name-int8" dim export "$ours" --precision int8
    fi
    for ipc in $ipcs; do
        for arch in convnet3 resnet18; do
            evaluate "$data" "$arch-$ipc" "$ours" --ipc "$ipc" --arch "$arch" --record
        done
    done
    evaluate "$data" published "$ours" --ipc 10,50 --arch convnet3,resnet18,resnet18-half --recipe published
    evaluate "$data" condensation "$ours" --ipc 10,50,1 --arch convnet3 --mode fixed --recipe condensation
    evaluate "$data" condensation-all "$ours" --ipc 10,50,1 --arch convnet3 --mode fixed --recipe condensation-all
    if [ "$whole_epochs" != 0 ]; then
        evaluate "$data" whole "$ours" --ipc 10 --mode fixed --arch convnet3,resnet18 --whole-epochs "$whole_epochs"
    fi
    if [ -e "$ours/generator.int8.onnx" ]; then
        evaluate "$data" int8 "$ours" --ipc 10 --arch convnet3 --precision int8 --record
    fi
done

# The speed of distilling against the published recipe means something here on a GPU; it is measured alone, with and
# without torch.compile. So does that of several GPUs against one, where there are several.
if command -v nvidia-smi > /dev/null; then
    once speed "" try speed python "$lab/distill_speed.py" --preset paper --device gpu --out "$out/results/distill-gpu.json"
    once speed-best "" try speed-best python "$lab/distill_speed.py" --preset best --image-px 32 --channels 3 --device gpu \
        --out "$out/results/distill-gpu-best.json"
    once speed-compiled "" try speed-compiled python "$lab/distill_speed.py" --preset best --image-px 32 --channels 3 \
        --device gpu --compile on --out "$out/results/distill-gpu-compiled.json"
    gpus=$(nvidia-smi -L | grep -c '^GPU' || true)
    if [ "$gpus" -ge 2 ]; then
        once processes "$gpus GPUs" try processes python "$lab/processes.py" --preset best --image-px 32 --channels 3 \
            --device gpu --out "$out/results/processes-gpu.json"
    fi
fi

# The rivals: the published recipe in as many seconds, its matching loss, no matching, no second stage. Then soft
# labels, more sizes and more networks.
for data in "${datasets[@]}"; do
    name=$(slug "$data")
    run=$out/$name
    make_ours "$data"
    ours=$made
    if [ -z "$ours" ]; then continue; fi
    if [ ! -s "$run-paper.options" ] && ! failed "$name-paper"; then
        begin
        spent=$(awk '{ sum += $1 } END { print sum + 0 }' "$run.seconds")
        try "$name-paper" python "$lab/ablation.py" --data "$data" --out "$run-paper-timing" --device auto \
            --threads "$(nproc)" --equal-seconds "$spent" > "$run-paper.part"
        if [ -n "$worked" ]; then mv "$run-paper.part" "$run-paper.options"; fi
    fi
    if [ -s "$run-paper.options" ]; then
        read -ra options < "$run-paper.options"
        make "$data" "$run-paper" fp32 "" --preset paper "${options[@]}"
        paper=$made
        if [ -n "$paper" ]; then
            evaluate "$data" paper "$ours" --ipc "${ipcs// /,}" --arch convnet3,resnet18 --compare "paper=$paper"
        fi
    fi
    controls=()
    make_rival "$data" -stage1
    stage1=$made
    if [ -n "$stage1" ]; then controls+=(--compare "stage 1 alone=$stage1"); fi
    make_rival "$data" -paper-loss
    paper_loss=$made
    if [ -n "$paper_loss" ]; then controls+=(--compare "paper loss=$paper_loss"); fi
    make_rival "$data" -unmatched
    unmatched=$made
    if [ -n "$unmatched" ]; then controls+=(--compare "no matching=$unmatched"); fi
    if [ ${#controls[@]} -gt 0 ]; then
        evaluate "$data" controls "$ours" --ipc "${ipcs// /,}" --arch convnet3 "${controls[@]}"
    fi
    evaluate "$data" soft "$ours" --ipc "${ipcs// /,}" --arch convnet3 --soft
    evaluate "$data" ratios "$ours" --ipc "${ratios// /,}" --arch convnet3
    evaluate "$data" networks "$ours" --ipc 10 --arch "$archs"
done

# ablate NAME WORD ...: run one dataset's ablation and keep its table.
ablate() {
    try "ablation-$1" python "$lab/ablation.py" --out "$out/ablation-$1" "${@:2}"
    if [ -n "$worked" ]; then cp "$out/ablation-$1/results.json" "$out/results/ablation-$1.json"; fi
}

# What every ingredient is worth, judged on a hold-out, because the table decides what stays: hours, so only when asked.
# It goes on where it ended, but a row is not cut into pieces.
if [ "${ABLATION:-0}" != 0 ]; then
    full=()
    if [ "$ABLATION" = full ]; then full=(--full); fi
    for data in "${datasets[@]}"; do
        name=$(slug "$data")
        once "ablation-$name" "" ablate "$name" --data "$data" --preset "$preset" --holdout "${full[@]}" --device auto \
            --threads "$(nproc)" ${SIZE:+--size "$SIZE"}
    done
fi
pack
if [ ${#lost[@]} -gt 0 ]; then
    echo "All else is done. These failed, and $out/failed/ says why: ${lost[*]}." >&2
    exit 1
fi
echo "All is done. Results: $out/results/*.json; copy them to lab/results/ and run python -m lab.pages.results."
