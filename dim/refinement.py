"""The first latent of every class, moved by gradient until its one image stands for the class.

A set of one image per class is the mean of nothing: what it teaches is where its single point lies. So the latent is
moved, through the frozen generator, to where a few ConvNets see the mean features of the class's real images, which is
distribution matching (Zhao and Bilen, arXiv 2110.04181) in latents instead of pixels. The ConvNets are those of the
pool, of every age, and a few that were never trained; training images alone are consulted. Larger sets did not gain by
it (docs/method.md), so the other latents stay as herding chose them.

Shapes: K classes, k those of one group, Z latent dimension, D features, C channels, H, W.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dim.augment import augment
from dim.checkpoint import load_optimiser, optimiser_tensors, read_tensors, write_tensors
from dim.device_data import step_generator, to_signed
from dim.matching import MIN_SPREAD
from dim.pool import PoolMember, new_member
from dim.session import Progress, Session

RATE = 0.05
"""Learning rate of Adam, falling to zero over a cosine. Four times as much gained a point more in sets of one image per
class of CIFAR-10 and MNIST, and cost CIFAR-10's sets of ten a point, because one odd image lay among them."""
UNTRAINED = 4
"""ConvNets with fresh weights among the judges: with the trained ones they did better than either kind alone."""
JUDGES_PER_STEP = 2
REAL_IMAGES = 256
"""Real images per class whose mean features are aimed at."""
GROUP = 100
"""Classes that are refined together."""
UNFINISHED = "refined-unfinished.safetensors"


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
    session: Session, network: nn.Module, members: Sequence[PoolMember], latents_KZ: Tensor, shape: Mapping[str, Any]
) -> Tensor | None:
    """Refine one latent per class by `DeploymentConfig.refine_steps` steps.

    Args:
        session: after stage 2.
        network: the deployed generator, latents `[N, Z]` and labels `[N]` to images in -1..1.
        members: trained ConvNets of the pool; there may be none.
        latents_KZ: where to begin, float32 on the device.
        shape: of the untrained ConvNets; see `PoolMember`.

    Returns:
        float32 `[K, Z]`; None if the time limit stopped it: the next call goes on at the same step.
    """
    path, groups = session.run_dir / "checkpoints" / UNFINISHED, torch.split(latents_KZ, GROUP)
    kept = (
        {name: tensor.to(session.game.device) for name, tensor in read_tensors(path).items()} if path.exists() else {}
    )
    refined = list(torch.split(kept.pop("refined"), GROUP)) if "refined" in kept else []
    judges = [*members, *(new_member(session, "convnet3", shape, "refinement", i).eval() for i in range(UNTRAINED))]
    for module in (network, *judges):
        module.requires_grad_(False)
    for number in range(len(refined), len(groups)):
        group = _Group(session, network, judges, groups[number], number * GROUP)
        finished = group.go_on(kept)
        kept = {} if finished else group.tensors()
        if finished:
            refined.append(group.latents_kZ.detach())
        if not finished or (time.monotonic() > session.deadline and number + 1 < len(groups)):
            write_tensors(path, kept | ({"refined": torch.cat(refined)} if refined else {}))
            return None
    path.unlink(missing_ok=True)
    return torch.cat(refined)


class _Group:
    """The classes that are refined together."""

    def __init__(
        self, session: Session, network: nn.Module, judges: Sequence[PoolMember], start_kZ: Tensor, first: int
    ) -> None:
        self.session, self.network, self.first, self.step = session, network, first, 0
        self.labels_k = torch.arange(first, first + len(start_kZ), device=session.game.device)
        self.targets = _targets(session, judges, self.labels_k.tolist())
        self.latents_kZ = start_kZ.clone().requires_grad_()
        self.optimiser = torch.optim.Adam([self.latents_kZ], lr=RATE)

    def tensors(self) -> dict[str, Tensor]:
        """Where it stands."""
        standing = {"latents": self.latents_kZ.detach(), "step": torch.tensor(self.step)}
        return standing | optimiser_tensors("adam", self.optimiser)

    def go_on(self, kept: Mapping[str, Tensor]) -> bool:
        """Take the steps that are left, from `tensors` of an earlier call if there are any; False at the time limit."""
        session, steps = self.session, self.session.config.deployment.refine_steps
        if kept:
            self.step = int(kept["step"])
            self.latents_kZ.data.copy_(kept["latents"])
            load_optimiser("adam", self.optimiser, kept)
        while self.step < steps:
            self.optimiser.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * self.step / steps)) / 2
            self._take_step()
            self.step += 1
            late = time.monotonic() > session.deadline and self.step < steps
            if late or self.step % session.config.log_steps == 0 or self.step == steps:
                session.progress(Progress(stage="refining", step=self.step, steps=steps, images_per_s=0.0, losses={}))
            if late:
                return False
        return True

    def _take_step(self) -> None:
        session, device = self.session, self.session.game.device
        generator = step_generator(device, session.config.seed, "refinement", self.first, self.step)
        asked = torch.randperm(len(self.targets), generator=generator, device=device)[:JUDGES_PER_STEP]
        images = self.network(self.latents_kZ, self.labels_k)
        policy = session.config.pool.augment
        distances = [self.targets[judge].distance(images, policy, generator) for judge in asked.tolist()]
        self.optimiser.zero_grad()
        torch.stack(distances).mean().backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()


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
