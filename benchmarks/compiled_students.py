#!/usr/bin/env python3
"""Students with compiled and with plain steps: the same accuracy, and how much processor time a step takes.

    python benchmarks/compiled_students.py [--data mnist] [--steps 150] [--seeds 5] [--out FILE.json] [--check]

Every seed trains both kinds on the same real images in the same order, from the same weights. The kinds take turns, one
thread each; times are CPU seconds of the training alone, and what compiling takes is not among them. `--check` exits
with 1 where the means lie more than two standard errors apart, or the losses of the first step by more than 1e-3.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dim.data.image_set import ImageSet
from dim.data.load import load_data
from dim.evaluation.context import describe_machine
from dim.evaluation.images import fixed_images, real_set
from dim.execution.allocator import keep_freed_memory
from dim.execution.compiled import can_compile
from dim.students.recipes import resolve_recipe
from dim.students.train import Batch, Normalizer, StudentSpec, choose_precision, measure_accuracy, train_student

CPU = torch.device("cpu")
KINDS = ("plain", "compiled")


def show_batches(data: ImageSet, seed: int) -> Iterator[Batch]:
    """Fifty real images per class, again and again; short batches are left out."""
    batches = fixed_images(*real_set(data, 50, seed), 64, seed, CPU, None).batches
    return (batch for batch in batches if len(batch[0]) == 64)


def train(data: ImageSet, spec: StudentSpec, seed: int, steps: int, tests: int) -> dict[str, float]:
    """Train one student; returns its accuracy in percent, the loss of its first step, and CPU seconds per step."""
    first = train_student(spec, islice(show_batches(data, seed), 1), 1, seed=seed, device=CPU)[1]
    began = time.process_time()
    student, _ = train_student(spec, show_batches(data, seed), steps, seed=seed, device=CPU)
    seconds = time.process_time() - began
    normalize = Normalizer(data.mean, data.std, CPU)
    images, labels = data.test_images[:tests], data.test_labels[:tests]
    accuracy = measure_accuracy(student, images, labels, normalize, CPU)
    return {"accuracy": accuracy, "first_loss": first, "step_ms": 1e3 * seconds / steps}


def summarise(taken: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Compare the kinds."""
    means, errors = {}, {}
    for kind in KINDS:
        accuracies = [student["accuracy"] for student in taken[kind]]
        means[kind] = statistics.fmean(accuracies)
        errors[kind] = statistics.stdev(accuracies) / len(accuracies) ** 0.5
    pairs = list(zip(taken["plain"], taken["compiled"], strict=True))
    apart = abs(means["plain"] - means["compiled"])
    return {
        "accuracy_mean": {kind: round(mean, 3) for kind, mean in means.items()},
        "standard_error": {kind: round(error, 3) for kind, error in errors.items()},
        "standard_errors_apart": round(apart / max(1e-9, (errors["plain"] ** 2 + errors["compiled"] ** 2) ** 0.5), 2),
        "largest_difference_of_first_losses": max(abs(a["first_loss"] - b["first_loss"]) for a, b in pairs),
        "step_ms_cpu": {kind: round(statistics.median(s["step_ms"] for s in taken[kind]), 2) for kind in KINDS},
        "plain_over_compiled": round(statistics.median(a["step_ms"] / b["step_ms"] for a, b in pairs), 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--tests", type=int, default=4000, help="test images")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    can_compile("on", CPU)
    data = load_data(options.data, data_dir=options.data_dir)
    common = {
        "arch": "convnet3",
        "width": options.width,
        "num_classes": len(data.classes),
        "channels": data.channels,
        "image_px": data.height,
        "mean": data.mean,
        "std": data.std,
        "recipe": resolve_recipe("default", data.name),
        "precision": choose_precision("auto", CPU),
    }
    specs = {kind: StudentSpec(**common, compiled=kind == "compiled") for kind in KINDS}
    for spec in specs.values():
        train(data, spec, 0, 2, 64)  # the code is made here
    taken: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for seed in range(options.seeds):
        for kind in KINDS:
            taken[kind].append(train(data, specs[kind], seed, options.steps, options.tests))
            print(f"seed {seed}, {kind}: {taken[kind][-1]}", file=sys.stderr, flush=True)
    found = summarise(taken)
    result = {
        "data": data.name,
        "width": options.width,
        "steps": options.steps,
        "test_images": options.tests,
        "precision": common["precision"],
        "machine": describe_machine("cpu"),
        "threads": 1,
        "torch_version": torch.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **found,
        "students": taken,
    }
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    apart, losses = found["standard_errors_apart"], found["largest_difference_of_first_losses"]
    if options.check and (apart > 2 or losses > 1e-3):
        sys.exit(f"The kinds differ: means {apart} standard errors apart, first losses {losses:.1e}.")


if __name__ == "__main__":
    main()
