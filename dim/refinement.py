"""The first latent of every class, moved by gradient until its one image stands for the class.

A set of one image per class is the mean of nothing: what it teaches is where its single point lies. So the latent is
moved, through the frozen generator, to where a few ConvNets see the mean features of the class's real images, which is
distribution matching (Zhao and Bilen, arXiv 2110.04181) in latents instead of pixels. The ConvNets are those of the
pool, of every age, and a few that were never trained; training images alone are consulted. Larger sets did not gain by
it, and CIFAR-10's sets of ten lose a little (docs/method.md), so the other latents stay as herding chose them.

Shapes: K classes, k those of one group, Z latent dimension, D features, C channels, H, W.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dim.augment import augment
from dim.classifier_training import train_in_pieces
from dim.device_data import step_generator, to_signed
from dim.matching import MIN_SPREAD
from dim.pool import PoolMember, new_member
from dim.session import Progress, Session

RATE = 0.05
"""Learning rate of Adam, falling to zero over a cosine. Higher ones were tried (docs/method.md): sets of one image per
class gained no more than the noise of one optimisation, CIFAR-10's sets of ten lost more."""
UNTRAINED = 4
"""ConvNets with fresh weights among the judges."""
JUDGES_PER_STEP = 2
REAL_IMAGES = 256
"""Real images per class whose mean features are aimed at."""
GROUP = 100
"""Classes that are refined together."""


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A judge, and where it sees the classes of a group."""

    member: PoolMember
    mean_kD: Tensor
    variance: float
    """Trace of the features' covariance within a class, mean over the classes."""

    def distance(self, images_kCHW: Tensor, policy: str, generator: torch.Generator) -> Tensor:
        """Squared distance of one image per class to the class means, in units of the variance; a scalar."""
        features_kD, _ = self.member(augment(self.member.normalise(images_kCHW), policy, generator))
        distance: Tensor = (features_kD - self.mean_kD).square().sum(dim=1).mean() / self.variance
        return distance


def refine_first(
    session: Session,
    network: nn.Module,
    members: Sequence[PoolMember],
    latents_KZ: Tensor,
    *,
    shape: Mapping[str, Any],
    path: Path,
) -> Tensor | None:
    """Refine one latent per class by `DeploymentConfig.refine_steps` steps.

    Args:
        session: after stage 2.
        network: the deployed generator, latents `[N, Z]` and labels `[N]` to images in -1..1.
        members: trained ConvNets of the pool; there may be none.
        latents_KZ: where to begin, float32 on the device.
        shape: of the untrained ConvNets; see `PoolMember`.
        path: what is done is kept here; the caller removes it when the result is safe.

    Returns:
        float32 `[K, Z]`; None if the time limit stopped it.

    Raises:
        DivergedError: a distance is not finite.
    """
    steps, device = session.config.deployment.refine_steps, session.game.device
    judges = [*members, *(new_member(session, "convnet3", shape, "refinement", i).eval() for i in range(UNTRAINED))]
    for module in (network, *judges):
        module.requires_grad_(False)
    groups = nn.ParameterList(group.clone() for group in torch.split(latents_KZ, GROUP))
    labels = torch.split(torch.arange(len(latents_KZ), device=device), GROUP)
    optimiser = torch.optim.Adam(groups.parameters(), lr=RATE)
    targets: dict[int, list[_Target]] = {}

    def step(index: int) -> Tensor:
        """A step of one group; the others have no gradient, and Adam passes them over."""
        number, of_group = divmod(index, steps)
        if number not in targets:
            targets.clear()
            targets[number] = _targets(session, judges, labels[number].tolist())
        optimiser.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * of_group / steps)) / 2
        generator = step_generator(device, session.config.seed, "refinement", index)
        asked = torch.randperm(len(judges), generator=generator, device=device)[:JUDGES_PER_STEP].tolist()
        images, policy = network(groups[number], labels[number]), session.config.pool.augment
        loss = torch.stack([targets[number][judge].distance(images, policy, generator) for judge in asked]).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.detach()

    def report(done: int) -> None:
        session.progress(Progress(stage="refining", step=done, steps=total, images_per_s=0.0, losses={}))

    total, what = len(groups) * steps, "Refining the first latents"
    if not train_in_pieces(session, groups, optimiser, step, total, what=what, path=path, report=report):
        return None
    return torch.cat(list(groups)).detach()


@torch.no_grad()
def _targets(session: Session, judges: Sequence[PoolMember], labels: Sequence[int]) -> list[_Target]:
    policy = session.config.pool.augment
    means: list[list[Tensor]] = [[] for _ in judges]
    variances = [0.0] * len(judges)
    for label in labels:
        generator = step_generator(session.game.device, session.config.seed, "refinement targets", label)
        images = to_signed(session.game.data.images_of(label, REAL_IMAGES, generator))
        for number, judge in enumerate(judges):
            features_ND, _ = judge(augment(judge.normalise(images), policy, generator))
            means[number].append(features_ND.mean(dim=0))
            variances[number] += float(features_ND.var(dim=0, correction=0).sum()) / len(labels)
    targets = []
    for judge, of_classes, variance in zip(judges, means, variances, strict=True):
        mean_kD = torch.stack(of_classes)
        # Floored, because a class of one image may have no variance at all.
        floor = float((MIN_SPREAD * mean_kD.norm(dim=1).mean()).square().clamp_min(1e-12))
        targets.append(_Target(member=judge, mean_kD=mean_kD, variance=max(variance, floor)))
    return targets
