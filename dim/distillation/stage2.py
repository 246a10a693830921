"""Stage 2: match the outputs of a pool of classifiers for real and for generated images (DiM, section 3.3).

The adversarial training of stage 1 goes on; the generator's loss gains a matching term.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.config import DistillConfig
from dim.distillation.adversarial import Draws
from dim.distillation.losses import choose_group_size, energy_distance, paper_loss
from dim.distillation.pool import FreshPool, KeptPool, PoolMember, prepare_pool
from dim.distillation.session import Session
from dim.execution.device_data import seed_of


def wants_pool(config: DistillConfig) -> bool:
    """Whether stage 2 matches anything, or anything is chosen by a pool after it."""
    matched = config.matching.loss != "none" and config.stage2.steps > 0
    return matched or config.wants_choices or config.filter.candidates > 0


def build_pool(session: Session) -> KeptPool | FreshPool | None:
    """Build the pool that the configuration names, after stage 1; None if the time limit stopped its preparation."""
    fresh = session.config.pool.kind == "fresh"
    return FreshPool(session) if fresh else prepare_pool(session)


def matching_group_size(config: DistillConfig) -> int:
    """Number of consecutive images of a batch of stage 2 that share a class.

    Chosen by the batch of all processes: every number of them then makes the same draws.
    """
    matching, group_size = config.matching, config.discriminator.group_size
    if matching.loss != "distribution":
        return group_size
    return choose_group_size(config.stage2.batch_size, matching.classes_per_step, group_size)


def train_with_matching(session: Session, pool: KeptPool | FreshPool | None) -> bool:
    """Train for the stage's steps, with the matching term where there is a pool; returns False if the time limit
    stopped it."""
    gan, config = session.gan, session.config
    stage, matching, group_size = config.stage2, config.matching, matching_group_size(config)
    matched = pool if matching.loss != "none" else None
    steps = gan.graphed_steps()
    gan.start_stage(stage.adversarial, steps)

    def step(index: int) -> Mapping[str, Tensor]:
        member = None if matched is None else matched.member_for(index)
        left = stage.steps - index if matched is None else matched.steps_left(index, stage.steps)
        if isinstance(matched, FreshPool) and matched.is_new:
            steps.forget()

        def train(generator: torch.Generator) -> Mapping[str, Tensor]:
            draws, report = gan.train_discriminator(generator, stage.batch_size, group_size, index)
            loss, fake = gan.generator_loss(draws)
            report["generator_loss"] = loss.detach()
            if member is not None:
                distance, cross_entropy = _distance(session, member, draws, fake, generator, group_size)
                report["matching_loss"] = distance.detach()
                loss = loss + matching.weight * distance
                if matching.cross_entropy:
                    report["cross_entropy_loss"] = cross_entropy.detach()
                    loss = loss + matching.cross_entropy * cross_entropy
            gan.generator_step(loss, stage.batch_size)
            return report

        kind = (gan.penalty_pattern(index), id(member))
        left *= gan.penalty_pattern_frequency(index)
        report = steps.take(kind, train, left=left, seed=seed_of(config.seed, "stage2", index))
        if isinstance(pool, FreshPool):
            session.extra = pool.tensors()
        return report

    finished = session.run_stage("stage2", stage, step)
    if finished and isinstance(pool, FreshPool) and session.world.is_main:
        pool.write()
    return finished


def _distance(
    session: Session,
    member: PoolMember,
    draws: Draws,
    fake_NCHW: Tensor,
    generator: torch.Generator,
    group_size: int,
) -> tuple[Tensor, Tensor]:
    """The configured distance between the outputs of `member` for real and for generated images, and its
    cross-entropy on the generated ones."""
    gan, matching = session.gan, session.config.matching
    frozen = [p for p in member.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    real = gan.augment_share(member.normalise(draws.real_NCHW), matching.augment, generator, fill=0.0)
    fake = gan.augment_share(member.normalise(fake_NCHW), matching.augment, generator, fill=0.0)
    with gan.autocast():
        with torch.no_grad():
            real_features, real_logits = member(real)
        fake_features, fake_logits = member(fake)
    for parameter in frozen:
        parameter.requires_grad_(True)
    cross_entropy = F.cross_entropy(fake_logits.float(), draws.labels_N)
    if matching.loss == "paper":
        return paper_loss(real_logits.float(), fake_logits.float()), cross_entropy
    distance = energy_distance(real_logits, fake_logits, group_size)
    if matching.feature_weight:
        distance = distance + matching.feature_weight * energy_distance(real_features, fake_features, group_size)
    return distance, cross_entropy
