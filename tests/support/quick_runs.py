"""A distillation of seconds that many tests run, and the comparison of what two runs leave."""

from __future__ import annotations

from pathlib import Path

import torch
from small_images import make_images

from dim.config import (
    DistillConfig,
)
from dim.presets import preset
from dim.runs.tensors import read_tensors

QUICK = {
    "generator.latent_dim": 8,
    "generator.width": 8,
    "generator.max_width": 8,
    "discriminator.width": 8,
    "discriminator.max_width": 8,
    "stage1.steps": 6,
    "stage1.batch_size": 24,
    "stage2.steps": 6,
    "stage2.batch_size": 24,
    "pool.architectures": ("convnet3", "mlp"),
    "pool.width": 8,
    "pool.ages": (2, 4),
    "pool.batch_size": 16,
    "deployment.latent_stds": (1.0, 1.2),
    "deployment.fixed_latents": 3,
    "deployment.candidates": 6,
    "deployment.refine_steps": 3,
    "checkpoint_steps": 2,
    "grid_steps": 100,
    "log_steps": 2,
}
FRESH = {
    "deployment.latent_stds": (),
    "deployment.fixed_latents": 0,
    "pool.kind": "fresh",
    "pool.steps_between": 2,
    "pool.epoch_steps": 4,
}


def quick(**changes: object) -> DistillConfig:
    return preset("tiny", data=make_images(), overrides={**QUICK, **changes})


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run_dir, "generator.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Stop(Exception):
    pass


def stop_at(stage: str, step: int):  # type: ignore[no-untyped-def]
    def interrupt(what: str, done: float, total: float | None, note: str) -> None:
        if (what, done) == (stage, step):
            raise Stop

    return interrupt
