"""Stage 1: the conditional GAN (DiM, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dim.distillation.session import Session
from dim.execution.device_data import seed_of


def train_gan(session: Session) -> bool:
    """Train the GAN for the stage's steps; returns False if the time limit stopped it."""
    gan, config = session.gan, session.config
    stage, group_size = config.stage1, config.discriminator.group_size
    steps = gan.graphed_steps()
    gan.start_stage(stage.adversarial, steps)

    def step(index: int) -> Mapping[str, Tensor]:
        def train(generator: torch.Generator) -> Mapping[str, Tensor]:
            draws, report = gan.train_discriminator(generator, stage.batch_size, group_size, index)
            loss, _ = gan.generator_loss(draws)
            gan.generator_step(loss, stage.batch_size)
            return {**report, "generator_loss": loss.detach()}

        left = (stage.steps - index) * gan.penalty_pattern_frequency(index)
        return steps.take(gan.penalty_pattern(index), train, left=left, seed=seed_of(config.seed, "stage1", index))

    return session.run_stage("stage1", stage, step)
