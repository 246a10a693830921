#!/usr/bin/env python3
"""How much faster several processes distil than one, and whether they do the same.

    python -m lab.processes                                    # all GPUs of this machine against one of them
    python -m lab.processes --device cpu --processes 2         # two processes of one thread each, by gloo
    python -m lab.processes --preset best --image-px 32 --channels 3 --out lab/results/processes-gpu.json

`torchrun` runs the same short distillation with one process and with several, the batch of all of them being equal, on
random images, because speed does not depend on them; the pool is one small classifier. Speeds are real images that a
generator step consumes per second, medians over log lines without the first of a stage.
The two take turns. "First loss" is the greatest difference between the losses in the first log line, relative to their
size: what rounding leaves, since all processes share the draws of one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dim.data.image_set import ImageSet
from dim.distillation.distill import distill
from dim.evaluation.context import describe_machine
from dim.execution.device import choose_device
from dim.presets import PRESETS, preset

CLASSES, PER_CLASS = 10, 200
STAGES = ("stage1", "stage2")


def work(options: argparse.Namespace) -> None:
    """Distil as one of several processes; the first one leaves its speeds in `speeds.json`."""
    rng = np.random.default_rng(0)
    shape = (CLASSES * PER_CLASS, options.image_px, options.image_px, options.channels)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    data = ImageSet(
        name="random",
        classes=tuple(map(str, range(CLASSES))),
        train_images=pixels,
        train_labels=labels,
        test_images=pixels[::PER_CLASS],
        test_labels=labels[::PER_CLASS],
        licence="none",
        note="random pixels",
    )
    overrides = {
        **{f"{stage}.steps": options.lines * options.log_steps for stage in STAGES},
        **({f"{stage}.batch_size": options.batch for stage in STAGES} if options.batch else {}),
        "log_steps": options.log_steps,
        "checkpoint_steps": 10**6,
        "grid_steps": 10**6,
        "pool.architectures": ("convnet3",),
        "pool.ages": (4,),
        "deployment.latent_stds": (),
        "deployment.fixed_latents": 0,
        "autocast": options.autocast,
    }
    config = preset(options.preset, data=data, overrides=overrides)
    speeds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    began: dict[str, float] = {}

    def listen(what: str, done: float, total: float | None, note: str) -> None:
        now = time.perf_counter()
        began.setdefault(what, now)
        if what in speeds and done % options.log_steps == 0:  # the losses were read, so the device has done its work
            speeds[what].append(options.log_steps * config.stage2.batch_size / max(now - began[what], 1e-9))
            began[what] = now

    distill(data, config, options.out, device=options.device, threads=options.threads, progress=listen)
    if os.environ.get("RANK", "0") == "0":
        (options.out / "speeds.json").write_text(json.dumps({"speeds": speeds, "batch": config.stage2.batch_size}))


def run(options: argparse.Namespace, processes: int, folder: Path) -> dict[str, Any]:
    """One distillation by so many processes: its `speeds` by stage, its `batch`, and the losses of its first `line`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    given = [
        word
        for name in ("preset", "image_px", "channels", "batch", "lines", "log_steps", "autocast", "device", "threads")
        if (value := getattr(options, name)) is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [*launcher, str(Path(__file__)), "--work", "--out", str(folder), *given]
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"{processes} process(es) ended with exit code {done.returncode}.")
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    losses = {name: value for name, value in first.items() if name not in ("stage", "step")}
    return {**json.loads((folder / "speeds.json").read_text()), "line": losses}


def summarise(one: list[dict[str, Any]], several: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of speeds and ratios, one per stage, and the greatest relative difference of the first losses.

    Args:
        one, several: what `run` returned, in the order of the rounds.
    """
    rows = []
    for stage in STAGES:
        speeds = [[statistics.median(r["speeds"][stage][1:]) for r in runs] for runs in (one, several)]
        found = [b / a for a, b in zip(*speeds, strict=True)]
        rows.append(
            {
                "stage": stage,
                "one_images_per_s": statistics.median(speeds[0]),
                "several_images_per_s": statistics.median(speeds[1]),
                "ratio": statistics.median(found),
                "least": min(found),
                "most": max(found),
            }
        )
    differences = [
        abs(a["line"][name] - b["line"][name]) / max(abs(a["line"][name]), 1e-3)
        for a, b in zip(one, several, strict=True)
        for name in a["line"]
    ]
    return {"rows": rows, "first_loss_difference": max(differences), "batch": one[0]["batch"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=sorted(PRESETS))
    parser.add_argument("--image-px", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch", type=int, help="of all processes together; the preset's unless said")
    parser.add_argument("--processes", type=int, help="several: all GPUs here unless said, two on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lines", type=int, default=5, help="log lines per stage")
    parser.add_argument("--log-steps", type=int, default=20, help="steps per log line")
    parser.add_argument("--autocast", default="auto", choices=("auto", "bf16", "off"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, per process")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.lines < 2:
        raise SystemExit("--lines must be at least 2: the first log line of a stage does not count.")
    if options.work:
        work(options)
        return 0
    device = choose_device(options.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    processes = options.processes or (gpus or 2)
    if processes < 2:
        raise SystemExit("There is one GPU here; several processes need one each.")
    if gpus and processes > gpus:
        raise SystemExit(f"GPUs here: {gpus}, fewer than {processes} processes; each needs its own.")
    one, several = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            one.append(run(options, 1, Path(folder, f"one-{number}")))
            several.append(run(options, processes, Path(folder, f"several-{number}")))
    report = summarise(one, several) | {
        "processes": processes,
        "preset": options.preset,
        "image_px": options.image_px,
        "channels": options.channels,
        "autocast": options.autocast,
        "rounds": options.rounds,
        "device": device.type,
        "machine": describe_machine(device.type),
        "threads": options.threads,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    for row in report["rows"]:
        print(
            f"{row['stage']}: one process {row['one_images_per_s']:.0f} images/s, {processes} processes "
            f"{row['several_images_per_s']:.0f}, ratio {row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
        )
    print(f"first losses differ by {report['first_loss_difference']:.1e}, relative")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
