#!/usr/bin/env bash
# Distil and measure every dataset of docs/results.md, the most valuable cells first. Every step resumes: run the same
# line again after an interruption, or in pieces.
#
#   scripts/reproduce.sh [OUT]                 everything that has not been done yet
#   PRESET=small DATASETS=mnist scripts/reproduce.sh
#   TIME_LIMIT=9m scripts/reproduce.sh         stop every distillation at the first checkpoint after nine minutes
#
# PRESET       best (a GPU preset) or small
# DATASETS     names that --data knows
# DIM_DATA     where the official files are, or go
# IPCS, SEEDS  of the evaluation; RATIOS are further sizes from the same bundles
set -euo pipefail

out=${1:-reproduce}
preset=${PRESET:-best}
datasets=${DATASETS:-cifar10 mnist svhn fashion-mnist cifar100}
ipcs=${IPCS:-10 50 1}
seeds=${SEEDS:-3}
ratios=${RATIOS:-100 500}
archs=resnet18-half,resnet10-half,resnetap10-half,vgg11,densenet,mlp
mkdir -p "$out/results"

distilled() { [ -e "$1/generator.safetensors" ]; }

# distil NAME RUN [OPTION ...]: make or continue a run; says whether it is finished.
distil() {
    local data=$1 run=$2
    shift 2
    distilled "$run" || dim distill --data "$data" --out "$run" --resume ${TIME_LIMIT:+--time-limit "$TIME_LIMIT"} "$@"
    distilled "$run" || { echo "$run is not finished; run this script again." >&2; return 1; }
}

# bundle RUN: the run's bundle, exported once.
bundle() {
    local made
    made=$(find "$1" -maxdepth 1 -name '*.dim' | head -n 1)
    [ -n "$made" ] || dim export "$1" --precision fp32,fp16,int8 >&2
    find "$1" -maxdepth 1 -name '*.dim' | head -n 1
}

# evaluate DATA PART BUNDLE [OPTION ...]: measure what is missing, and keep the part's results.
evaluate() {
    local data=$1 part=$2 bundle=$3
    shift 3
    dim eval --bundle "$bundle" --data "$data" --out "$out/eval-$data" --preset full --seeds "$seeds" "$@"
    cp "$out/eval-$data/results.json" "$out/results/$data-$part.json"
}

# What the mission promises: every dataset's bundle, three sizes, two networks.
for data in $datasets; do
    distil "$data" "$out/$data" --preset "$preset" || continue
    ours=$(bundle "$out/$data")
    for ipc in $ipcs; do
        for arch in convnet3 resnet18; do
            evaluate "$data" "$arch-$ipc" "$ours" --ipc "$ipc" --arch "$arch" --record
        done
    done
    evaluate "$data" published "$ours" --ipc 10 --arch convnet3 --recipe published
    evaluate "$data" int8 "$ours" --ipc 10 --arch convnet3 --precision int8 --no-controls --record
done

# The controls of stage 2, from the same preset: the published loss, and none. Then more sizes and more networks.
for data in $datasets; do
    distilled "$out/$data" || continue
    ours=$(bundle "$out/$data") paper_loss=$out/$data-paper-loss unmatched=$out/$data-unmatched
    distil "$data" "$paper_loss" --preset "$preset" --matching-loss paper || continue
    distil "$data" "$unmatched" --preset "$preset" --matching-loss none || continue
    evaluate "$data" controls "$ours" --ipc "${ipcs// /,}" --arch convnet3 \
        --compare "paper loss=$(bundle "$paper_loss")" --compare "no matching=$(bundle "$unmatched")"
    evaluate "$data" networks "$ours" --ipc 10 --arch "$archs"
    evaluate "$data" ratios "$ours" --ipc "${ratios// /,}" --arch convnet3
done

# What every ingredient is worth, the published recipe at equal time among them.
for data in $datasets; do
    python "$(dirname "$0")/../bench/ablation.py" --data "$data" --out "$out/ablation-$data" --device auto \
        ${SIZE:+--size "$SIZE"}
    cp "$out/ablation-$data/results.json" "$out/results/ablation-$data.json"
done
echo "Results: $out/results/*.json; copy them to docs/results/ and run scripts/results.py."
