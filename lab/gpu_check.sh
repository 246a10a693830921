#!/usr/bin/env bash
# Everything that only a GPU can show, in one go, on any machine with a CUDA GPU:  lab/gpu_check.sh [BUNDLE]
# First: does TensorRT for RTX accept this GPU. Then every engine that is installed: built, verified against ONNX,
# repeated, used by dim generate, measured against PyTorch. Takes less than ten minutes, writes
# lab/results/gpu-<GPU>.json, and lists there what could not be run. PYTHON names another interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" lab/gpu_check.py "$@"
