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
# IPCS, SEEDS  of the evaluation
set -euo pipefail

out=${1:-reproduce}
preset=${PRESET:-best}
datasets=${DATASETS:-cifar10 mnist svhn fashion-mnist cifar100}
ipcs=${IPCS:-10 50 1}
seeds=${SEEDS:-3}
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

for data in $datasets; do
    ours=$out/$data paper_loss=$out/$data-paper-loss unmatched=$out/$data-unmatched
    distil "$data" "$ours" --preset "$preset" || continue
    ours=$(bundle "$ours")
    for ipc in $ipcs; do
        for arch in convnet3 resnet18; do
            dim eval --bundle "$ours" --data "$data" --out "$out/eval-$data" --preset full --ipc "$ipc" --arch "$arch" \
                --seeds "$seeds" --record
            cp "$out/eval-$data/results.json" "$out/results/$data.json"
        done
    done
    # The controls of stage 2: the published loss, and none, from the same preset.
    distil "$data" "$paper_loss" --preset "$preset" --matching-loss paper || continue
    distil "$data" "$unmatched" --preset "$preset" --matching-loss none || continue
    dim eval --bundle "$ours" --data "$data" --out "$out/eval-$data" --preset full --ipc "${ipcs// /,}" \
        --seeds "$seeds" --compare "paper loss=$(bundle "$paper_loss")" --compare "no matching=$(bundle "$unmatched")"
    cp "$out/eval-$data/results.json" "$out/results/$data.json"
done
echo "Results: $out/results/*.json; copy them to docs/results/ and run scripts/results.py."
