"""Stage 1: the conditional GAN (DiM, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dim.session import Session


def train_gan(session: Session) -> bool:
    """Play the game for the stage's steps; returns False if the time limit stopped it."""
    game, config = session.game, session.config
    stage, group_size = config.stage1, config.discriminator.group_size
    game.start_stage(stage.adversarial)

    def step(index: int) -> Mapping[str, Tensor]:
        draws = game.draw("stage1", index, stage.batch_size, group_size)
        report = game.discriminator_step(draws, index)
        loss, _ = game.generator_loss(draws)
        game.generator_step(loss, stage.batch_size)
        return {**report, "generator_loss": loss.detach()}

    return session.run_stage("stage1", stage, step)
