"""Stage 1: the conditional GAN (DiM, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dim.distillation.session import Session


def train_gan(session: Session) -> bool:
    """Play the game for the stage's steps; returns False if the time limit stopped it."""
    game, config = session.game, session.config
    stage, group_size = config.stage1, config.discriminator.group_size
    steps = game.graphed_steps()
    game.start_stage(stage.adversarial, steps)

    def step(index: int) -> Mapping[str, Tensor]:

        def play(generator: torch.Generator) -> Mapping[str, Tensor]:
            draws, report = game.teach_discriminator(generator, stage.batch_size, group_size, index)
            loss, _ = game.generator_loss(draws)
            game.generator_step(loss, stage.batch_size)
            return {**report, "generator_loss": loss.detach()}

        left = (stage.steps - index) * game.share_of(index)
        return steps.take(game.penalties(index), play, left=left, seed=game.step_seed("stage1", index))

    return session.run_stage("stage1", stage, step)
