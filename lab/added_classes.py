#!/usr/bin/env python3
"""What it costs to add classes later by replay, on MNIST: five digits, then five more, against all ten at once.

    python -m lab.added_classes --out runs/added-classes        # two seeds at 16 pixels: about 25 minutes of one core

The first five digits are distilled. Their bundle then stands for their images, beside real ones of the other five, in a
second distillation. The same ten are distilled at once from real images. Fresh classifiers, trained on what each bundle
draws and on real images, are tested on the real test split of all ten. The same command goes on where an earlier one
ended. `results.json` holds what was measured, as `lab/results/added-classes.json` does.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dim.data.image_set import ImageSet
from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.distillation.distill import GENERATOR_FILE, distill
from dim.evaluation.cells import CellResult
from dim.evaluation.evaluate import evaluate
from dim.evaluation.protocol import MODES, EvalProtocol, Execution
from dim.export.export_run import export_run
from dim.runtime.storage.below import replace_file
from lab.ablation import BASE, where

DATA, HALF = "mnist", 5
WAYS = {
    "at-once": "all ten digits from real images, at once",
    "added": "digits 0 to 4 replayed from their bundle, 5 to 9 from real images",
}
"""What is compared, by the name of its run."""


def main(arguments: list[str] | None = None) -> int:
    """Distil and evaluate what has no result yet, for every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/added-classes"))
    parser.add_argument("--data-dir", type=Path, help="where MNIST's files are")
    parser.add_argument("--size", type=int, default=16, help="side of the images in pixels")
    parser.add_argument("--replay-ipc", type=int, default=5000, help="images per class drawn from the first bundle")
    parser.add_argument("--seeds", type=int, default=2, help="generators per way")
    parser.add_argument("--students", type=int, default=3, help="per generator")
    parser.add_argument("--epochs", type=int, default=300, help="of a student: ten images per class each")
    parser.add_argument("--width", type=int, default=32, help="of a student")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="change every run alike")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    real = load_data(DATA, DataOptions(size=options.size), data_dir=options.data_dir)
    halves = write_halves(real, options.out)
    changed = BASE | {"deployment.refine_steps": 0} | dict(read_change(text) for text in options.set)
    protocol = EvalProtocol(
        ipcs=(10,), width=options.width, seeds=tuple(range(options.students)), epochs=options.epochs
    )
    rows: list[dict[str, Any]] = []
    controls = by_mode(evaluate({}, real, protocol, execution(options), out=options.out / "eval").results)
    for seed in range(options.seeds):
        first = make(options, f"first-{seed}", [str(halves[0])], seed, changed)
        sources = {"at-once": [str(half) for half in halves], "added": [str(first), str(halves[1])]}
        for way, places in sources.items():
            bundle = make(options, f"{way}-{seed}", places, seed, changed)
            alone = EvalProtocol(**vars(protocol) | {"controls": False})
            results = evaluate(bundle, real, alone, execution(options), out=options.out / "eval").results
            rows.append({"way": way, "seed": seed, "cpu_seconds": seconds(bundle), **by_mode(results)})
            report = {
                "data": DATA,
                "data_note": real.note,
                "fingerprint": real.fingerprint(),
                "preset": "small",
                "changed": changed,
                "replay_ipc": options.replay_ipc,
                "student": {"arch": "convnet3", "width": options.width, "ipc": 10, "epochs": options.epochs},
                "added_classes": rows,
                "real": controls,
                **where(options),
            }
            replace_file(options.out, "results.json", json.dumps(report, indent=1).encode())
    print("\n".join(render(rows, controls)))
    return 0


def read_change(text: str) -> tuple[str, Any]:
    """Read `FIELD=JSON`."""
    field, value = text.split("=", 1)
    found = json.loads(value)
    return field, tuple(found) if isinstance(found, list) else found


def execution(options: argparse.Namespace) -> Execution:
    """Say by what means students are trained."""
    return Execution(device=options.device, threads=options.threads, jobs=1)


def write_halves(real: ImageSet, out: Path) -> list[Path]:
    """Write the first and the second half of the classes as two `.npz` files with a test split each."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for half in range(2):
        labels = range(half * HALF, (half + 1) * HALF)
        train, test = np.isin(real.train_labels, labels), np.isin(real.test_labels, labels)
        paths.append(out / f"digits-{labels[0]}-{labels[-1]}.npz")
        np.savez(
            paths[-1],
            train_images=real.train_images[train],
            train_labels=real.train_labels[train] - labels[0],
            test_images=real.test_images[test],
            test_labels=real.test_labels[test] - labels[0],
            classes=np.array([real.classes[label] for label in labels]),
        )
    return paths


def make(options: argparse.Namespace, name: str, places: list[str], seed: int, changed: dict[str, Any]) -> Path:
    """Distil and export what is not there yet, and return the bundle."""
    run = options.out / "runs" / name
    bundle = run / f"{name}.dim"
    if not bundle.exists():
        print(name, file=sys.stderr, flush=True)
        data = load_data(places, DataOptions(replay_ipc=options.replay_ipc), name=name)
        started = time.process_time()
        if not (run / GENERATOR_FILE).exists():
            distill(
                data,
                "small",
                run,
                overrides=changed | {"seed": seed},
                resume=run.exists(),
                device=options.device,
                threads=options.threads,
            )
            (run / "cpu-seconds").write_text(str(round(time.process_time() - started, 1)))
        export_run(run, name=name)
    return Path(bundle)


def seconds(bundle: Path) -> float:
    """Return the processor's seconds that the distillation of a bundle took."""
    return float((bundle.parent / "cpu-seconds").read_text())


def by_mode(results: Sequence[CellResult]) -> dict[str, list[float]]:
    """Return the accuracies of students, in percent, for each mode."""
    return {mode: [r.accuracy for r in results if r.cell.mode == mode] for mode in MODES}


def render(rows: list[dict[str, Any]], real: dict[str, list[float]]) -> list[str]:
    """Write what was measured as a table in Markdown."""
    lines = ["| trained on what is drawn from | fixed | stream |", "|---|---:|---:|"]
    named = {text: [row for row in rows if row["way"] == way] for way, text in WAYS.items()}
    for text, measured in (named | {"real images": [real]}).items():
        found = [[accuracy for row in measured for accuracy in row[mode]] for mode in MODES]
        lines.append(f"| {text} | " + " | ".join(f"{np.mean(a):.2f} ± {np.std(a):.2f}" for a in found) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
