"""How many core-hours commands of `lab/reproduce.py` take, from a few timed steps of every kind.

They are estimates: of the students' images, of distillation steps, and of drawing. What chooses latents is timed with
nothing and counts as a twentieth of the stages.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dim.data.load import load_data
from dim.evaluation.choose_recipe import list_candidates
from dim.networks.generator import build_generator
from dim.presets import preset
from dim.runtime.storage.below import replace_file
from dim.students.train import StudentSpec, train_student
from lab.image_measures import CPU, describe_student, draw_stream
from lab.step_times import WINDOW, time_steps

ARCHITECTURES = ("convnet3", "resnet18", "resnet10", "vgg11", "densenet")
EPOCHS, CHOICES = 1000, 1.05
"""Of students; what choosing and refining latents adds to the stages."""
_BATCH, _STEPS = 64, 3

Speeds = dict[str, Any]
"""`classes`; seconds per image that a student of each architecture sees, `students`; per drawn image, `draw`; and of
the whole `stage1`, `pool` and `stage2`."""


def read_speeds(names: Sequence[str], preset_name: str, out: Path, threads: int) -> dict[str, Speeds]:
    """Read what was timed before, by dataset; time what is missing and keep it in `OUT/speeds.json`.

    Args:
        names: of the datasets, as for `load_data`.
        preset_name: of the distillations.
        out: folder of all files.
        threads: of the timing; times are the processor's, of all threads.
    """
    path = out / "speeds.json"
    found: dict[str, Speeds] = json.loads(path.read_text()) if path.exists() else {}
    torch.set_num_threads(threads)
    for name in names:
        if (key := f"{name} {preset_name}") not in found:
            found[key] = _time_all(name, preset_name, out / "timing")
            out.mkdir(parents=True, exist_ok=True)
            replace_file(out, path.name, (json.dumps(found, indent=1) + "\n").encode())
    return {name: found[f"{name} {preset_name}"] for name in names}


def _time_all(name: str, preset_name: str, folder: Path) -> Speeds:
    data = load_data(name)
    config = preset(preset_name, data=data)
    costs = time_steps(data, config, folder, 2 * WINDOW)
    spec = describe_student(data, "default", 0)
    pixels = torch.from_numpy(data.train_images[:_BATCH]).permute(0, 3, 1, 2)
    batch = (pixels, torch.from_numpy(data.train_labels[:_BATCH].astype(np.int64)), None)
    generator = build_generator(
        config.generator, num_classes=len(data.classes), image_px=data.height, channels=data.channels
    ).eval()
    shape = {"num_classes": len(data.classes), "per_class": 25, "latent_dim": config.generator.latent_dim}
    draw_stream(generator, 1.0, shape, seed=0)
    began = time.process_time()
    images, _ = draw_stream(generator, 1.0, shape, seed=1)
    draw = (time.process_time() - began) / len(images)
    return {
        "classes": len(data.classes),
        "students": {arch: _time_student(spec, arch, batch) for arch in ARCHITECTURES},
        "draw": draw,
        "stage1": costs["stage1"] * config.stage1.steps,
        "stage2": costs["stage2"] * config.stage2.steps,
        "pool": costs["pool"],
    }


def _time_student(spec: StudentSpec, arch: str, batch: tuple[Tensor, Tensor, None]) -> float:
    """Seconds of the processor for every image that a student of the usual width sees."""

    def run(steps: int) -> float:
        began = time.process_time()
        train_student(replace(spec, arch=arch, width=None), iter([batch] * steps), steps, seed=0, device=CPU)
        return time.process_time() - began

    run(1)  # pays for what a process does once
    once = run(1)
    return max(0.0, run(1 + _STEPS) - once) / _STEPS / _BATCH


def estimate_hours(line: str, speeds: dict[str, Speeds]) -> float:
    """Core-hours of a command of `lab/reproduce.py`; 0 for those that take minutes."""
    words = shlex.split(line)
    options = {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}
    measured = speeds.get(options.get("--data", ""), {})
    if words[:2] == ["dim", "distill"] and measured:
        stages = ["stage1", "pool", "stage2"]
        if "--from-stage1" in options:
            stages = [] if options.get("--matching-steps") == "0" else ["stage2"]
        # The published recipe gets as much time as ours took, whatever its steps are.
        return sum(measured[stage] for stage in stages) * CHOICES / 3600
    if words[:2] == ["dim", "eval"] and measured:
        return _estimate_students(options, measured) / 3600
    return 0.0


def _estimate_students(options: dict[str, str], measured: Speeds) -> float:
    """Seconds of all students of a line, and of the images that are drawn for them."""
    modes = options.get("--mode", "fixed,stream").split(",")
    controls = options.get("--controls", "real,archive").split(",")
    generated = 1 + ("--compare" in options)
    per_mode = {
        "fixed": generated + ("real" in controls),
        "stream": generated + len(set(controls) & {"real", "archive"}),
    }
    epochs, seeds = int(options.get("--epochs", EPOCHS)), int(options.get("--seeds", 3))
    sizes, archs = (options.get(name, "").split(",") for name in ("--ipc", "--arch"))
    percents = len(options["--with-real"].split(",")) if "--with-real" in options else 0
    per_mode["stream"] += percents * (1 + generated)
    total = 0.0
    for arch in archs if seeds else ():
        seconds = measured["students"].get(arch, measured["students"]["resnet18"])
        for number, size in enumerate(sizes):
            shown = epochs * int(size) * measured["classes"]
            students = sum(per_mode[mode] for mode in modes) * seeds
            if options.get("--recipe") == "holdout" and not number:
                students += len(list_candidates("")) * len(modes) * seeds
            total += students * shown * seconds
            total += ("stream" in modes) * generated * seeds * shown * measured["draw"]
    return total
