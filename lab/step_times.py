"""What the steps of a distillation cost here, in the processor's time."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from dim.config import DistillConfig
from dim.data.image_set import ImageSet
from dim.distillation.distill import distill
from dim.distillation.pool import wants_compiling

Costs = dict[str, float]
"""Seconds of the processor: of a step of `stage1`, of `stage2`, and of the whole `pool`."""
WINDOW = 8
"""Steps whose mean is one time: the R1 penalty comes once in so many generator steps of `best`."""


def time_steps(data: ImageSet, config: DistillConfig, folder: Path, steps: int) -> Costs:
    """Run a few steps of everything, chosen latents and filter left out.

    Args:
        data: what is distilled.
        config: whose steps are timed; it has a kept pool.
        folder: of a run, removed before and after.
        steps: of both stages, twice `WINDOW` at least.
    """
    ages = tuple(WINDOW * (age + 1) for age in range(len(config.pool.ages)))
    # Compiled or not as the whole run's pool is, whose ages decide.
    compiled = "on" if config.compile != "off" and wants_compiling(config) else "off"
    short = replace(
        config,
        stage1=replace(config.stage1, steps=steps),
        stage2=replace(config.stage2, steps=steps),
        pool=replace(config.pool, ages=ages),
        deployment=replace(config.deployment, latent_stds=(), fixed_latents=0, refine_steps=0, teacher=""),
        filter=replace(config.filter, candidates=0),
        compile=compiled,
        checkpoint_steps=100_000,
        grid_steps=100_000,
    )
    marks: dict[str, list[float]] = {}

    def mark(what: str, done: float, total: float | None, words: str) -> None:
        marks.setdefault(what, []).append(time.process_time())

    shutil.rmtree(folder, ignore_errors=True)
    try:
        distill(data, short, folder, device="cpu", say=lambda line: None, progress=mark)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    pool_steps = [after - before for before, after in pairwise(marks["pool"])]
    each = [pool_steps[k * ages[-1] : (k + 1) * ages[-1] - 1] for k in range(len(config.pool.architectures))]
    return {
        "stage1": _median_step(marks["stage1"]),
        "stage2": _median_step(marks["stage2"]),
        "pool": sum(statistics.median(times) for times in each) * config.pool.ages[-1],
    }


def _median_step(marks: Sequence[float]) -> float:
    """The median over windows of the mean time of a step; the first window pays for what a process does once."""
    windows = [(marks[i + WINDOW] - marks[i]) / WINDOW for i in range(0, len(marks) - WINDOW, WINDOW)]
    return statistics.median(windows[1:] or windows)
