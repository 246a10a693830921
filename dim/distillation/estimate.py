"""Estimates time and memory of a distillation on this machine, from a few steps of each part."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dim.config import DistillConfig
from dim.data.image_set import ImageSet
from dim.distillation.distill import distill
from dim.distillation.stage2 import wants_pool
from dim.execution.device import choose_device
from dim.execution.large_images import MappedRows
from dim.presets import preset

WARM_UP_STEPS, FEWEST_TIMED = 2, 4
"""Steps before any is timed; timed steps of a stage without a penalty that only some steps pay."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the training of a distillation takes.

    Latents are chosen and candidates judged after it, which comes on top.
    """

    steps: dict[str, int]
    """Steps of `stage1`, `pool` and `stage2`."""
    seconds_per_step: dict[str, float]
    """Measured here."""
    image_bytes: int
    """Of the training images."""
    images_on_disk: bool
    """Whether they are larger than memory, so that every batch is read from disk."""
    peak_bytes: int
    """Most memory of this process while the steps were taken; on a GPU, of the GPU."""

    @property
    def seconds(self) -> float:
        """Of all steps together."""
        return sum(count * self.seconds_per_step[part] for part, count in self.steps.items())


def estimate(
    data: ImageSet,
    config: DistillConfig | str = "small",
    *,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Estimate:
    """Time a few steps of every part of a distillation, in a temporary folder.

    Args:
        data, config, overrides, device, threads: as in `distill`. Compiled code is not timed, so where classifiers are
            compiled, the pool and stage 2 will be faster.

    Raises:
        BadValueError, DeviceError: as `distill`.
    """
    whole = preset(config, data=data, overrides=overrides) if isinstance(config, str) else config
    short = _shorten(whole)
    times: dict[str, list[float]] = {}

    def note(what: str, done: float, total: float | None, text: str, /) -> None:
        reached = times.setdefault(what, [])
        if done > len(reached):  # neither the start of a part, nor that of the pool's next classifier
            reached.append(time.perf_counter())

    chosen = choose_device(device)
    with tempfile.TemporaryDirectory(prefix="dim-estimate-") as folder:
        run = Path(folder, "run")
        distill(data, short, run, device=device, threads=threads, progress=note, say=lambda line: None)
    if chosen.type == "cuda":
        peak = torch.cuda.max_memory_allocated(chosen)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps = {"stage1": whole.stage1.steps}
    if wants_pool(whole) and whole.pool.kind == "kept":
        steps["pool"] = len(whole.pool.architectures) * whole.pool.ages[-1]
    steps["stage2"] = whole.stage2.steps
    steps = {part: count for part, count in steps.items() if count}
    mapped: Any = data.train_images
    return Estimate(
        steps=steps,
        seconds_per_step={part: _per_step(times[part]) for part in steps},
        image_bytes=data.train_images.nbytes,
        images_on_disk=type(mapped) is MappedRows,
        peak_bytes=peak,
    )


def _shorten(config: DistillConfig) -> DistillConfig:
    """Keep every network, batch and loss, and take few steps."""
    stages = {}
    for name in ("stage1", "stage2"):
        stage = getattr(config, name)
        timed = max(stage.adversarial.r1_every if stage.adversarial.r1_gamma else 0, FEWEST_TIMED)
        stages[name] = replace(stage, steps=min(stage.steps, WARM_UP_STEPS + timed))
    ages = tuple(range(WARM_UP_STEPS, WARM_UP_STEPS + len(config.pool.ages)))
    return replace(
        config,
        **stages,
        pool=replace(config.pool, ages=ages),
        deployment=replace(config.deployment, latent_stds=(), fixed_latents=0, teacher=""),
        filter=replace(config.filter, candidates=0),
        compile="off",
        checkpoint_steps=10**6,
        grid_steps=10**6,
    )


def _per_step(times: list[float]) -> float:
    """Return the mean seconds between reports, without those of the warm-up."""
    timed = times[min(WARM_UP_STEPS, len(times)) - 1 :]
    return (timed[-1] - timed[0]) / max(1, len(timed) - 1)
