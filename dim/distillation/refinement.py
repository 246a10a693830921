"""The first latents of every class, moved by gradient until few images stand for the class.

The latents that herding chose are each an image like a real one. What a set of one or ten images per class teaches lies
in what they show together. So the latents of every prefix are moved, through the frozen generator, to where a few
classifiers see the mean features of the class's real images, which is distribution matching (Zhao and Bilen, arXiv
2110.04181) in latents instead of pixels, and of more than one image the mean squares of those features too: without
them a set of ten did not gain (docs/method.md). The classifiers are the pool's ConvNet-3 and ResNet-10, of every age,
and a few ConvNets that were never trained. Those that were trained may also have to recognise every image: where one is
asked, its cross-entropy is added with a small weight, as in improved distribution matching (Zhao et al., arXiv
2307.09742). And some judges may learn from the very set that is being moved, as the networks of gradient matching do
(Zhao, Mopuri and Bilen, arXiv 2006.05929): a few steps whenever one is asked, so that the set is corrected where
networks that saw nothing else see it apart from real images. Sets of one image lost by that (docs/method.md). Training
images alone are consulted.

Shapes: K classes, k those of one group, M latents per class, m those of a prefix, Z latent dimension, C channels, H, W,
D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.augment import augment
from dim.distillation.losses import MIN_SPREAD
from dim.distillation.pool import PoolMember
from dim.execution.device_data import DeviceData, step_generator, to_signed
from dim.runtime.errors import DivergedError

PREFIXES = (1, 10)
"""Sizes of the sets that are fitted, each with the smaller one inside it; later latents stay as herding chose them."""
RATE = 0.05
"""Learning rate of Adam, falling to zero over a cosine."""
SQUARES = 1.0
"""Weight of the mean squares beside the means."""
JUDGES = ("convnet3", "resnet10")
"""Classifiers of the pool among the judges, of every age."""
UNTRAINED = 8
"""ConvNets with fresh weights among them."""
JUDGES_PER_STEP = 3
REAL_IMAGES = 256
"""Real images per class whose features are aimed at."""
LEARNER_STEPS = 5
"""SGD steps that one takes on the set before it judges."""
LEARNER_AGE = 150
"""Steps, times a random 0.5 to 1.5 drawn whenever one is asked, above which it is renewed: after 108 on average."""
LEARNER_LR, LEARNER_DECAY, LEARNER_BATCH, LEARNER_SMOOTHING = 0.1, 5e-4, 64, 0.1
"""SGD without momentum, which would have to be kept beside the weights; weight decay, batch and label smoothing."""
LEARNER_IMAGES = 512
"""Real images, of all classes of a step together, that tell a learner where they are: at least
`LEARNER_CLASS_IMAGES` and at most `REAL_IMAGES` of each."""
LEARNER_CLASS_IMAGES = 16
IMAGES_PER_STEP = 128
"""Most images in a step: the sets of ten of twelve classes. More classes take turns, each as often as `steps` says."""
GROUP = 100
"""Classes that are refined together: the targets of a group are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A judge, and where it sees the classes of a group."""

    member: PoolMember
    mean_kD: Tensor
    square_kD: Tensor
    variance: float
    """Of the features within a class: the trace of their covariance, mean over the classes."""
    square_variance: float
    """Of their squares."""
    cross_entropy: float
    """Weight of its answers, 0 unless it learned from real images."""

    def loss(
        self,
        images_kmCHW: Tensor,
        labels_k: Tensor,
        rows_k: Tensor,
        policy: str,
        draws: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Squared distance of the means to those of the classes, in units of the variance, and the cross-entropy of a
        trained judge; a scalar. `rows_k` says where the classes are among those that it sees."""
        count = images_kmCHW.shape[1]
        normalised = self.member.normalise(images_kmCHW.flatten(0, 1))
        seen = [self.member(augment(normalised, policy, generator)) for _ in range(draws)]
        features = [features.float().unflatten(0, (-1, count)) for features, _ in seen]
        means = [features_kmD.mean(dim=1) - self.mean_kD[rows_k] for features_kmD in features]
        loss: Tensor = _squared(means) / self.variance
        if count > 1:  # one image has no spread to be kept
            squares = [features_kmD.square().mean(dim=1) - self.square_kD[rows_k] for features_kmD in features]
            loss = loss + SQUARES * _squared(squares) / self.square_variance
        if self.cross_entropy:
            logits = seen[0][1].float()
            loss = loss + self.cross_entropy * F.cross_entropy(logits, labels_k.repeat_interleave(count))
        return loss


def _squared(draws: Sequence[Tensor]) -> Tensor:
    """Squared length of a difference, [k, D] by draw, mean over the classes; by two draws without their variance."""
    return (draws[0] * draws[-1]).sum(dim=1).mean()


@dataclass(frozen=True)
class _Turn:
    """What one step moves: the latents that a prefix adds to the smaller ones, of some classes of a group."""

    group: int
    prefix: int
    labels: tuple[int, ...]
    number: int
    """Of the step within its group."""
    progress: float
    """0 to 1 within the group and the prefix."""


class _Learners(nn.Module):
    """Classifiers that learn from the set as it is moved, each renewed when it has learned for long, or diverged.

    What they are is all in `state_dict`: their optimiser keeps nothing.
    """

    ages: Tensor
    """Steps that each has learned, [L]; on the CPU, because they are read."""
    made: Tensor
    """How many there have been."""

    def __init__(self, fresh: Callable[[int], PoolMember], count: int) -> None:
        super().__init__()
        self.fresh = fresh
        self.members = nn.ModuleList(fresh(number) for number in range(count))
        self.register_buffer("ages", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("made", torch.tensor(count))

    def renew(self, number: int) -> None:
        """Begin one of them again, with other weights than any before."""
        self.members[number].load_state_dict(self.fresh(int(self.made)).state_dict())
        self.ages[number] = 0
        self.made += 1

    def taught(
        self,
        number: int,
        draw: Callable[[], tuple[Tensor, Tensor]],
        policy: str,
        generator: torch.Generator,
    ) -> PoolMember:
        """One of them after `LEARNER_STEPS` more steps on images in -1..1 and labels that `draw` gives."""
        member: PoolMember = self.members[number]  # type: ignore[assignment]
        patience = LEARNER_AGE * (0.5 + float(torch.rand((), generator=generator, device=generator.device)))
        if int(self.ages[number]) > patience:
            self.renew(number)
        member.train().requires_grad_(True)
        optimiser = torch.optim.SGD(member.parameters(), lr=LEARNER_LR, weight_decay=LEARNER_DECAY)
        for _ in range(LEARNER_STEPS):
            images, labels = draw()
            _, logits = member(augment(member.normalise(images), policy, generator))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=LEARNER_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        optimiser.zero_grad()
        self.ages[number] += LEARNER_STEPS
        return member.eval().requires_grad_(False)


class Refinement:
    """The first latents of every class, moved step by step.

    Args:
        network: latents `[N, Z]` and labels `[N]` to images in -1..1, without gradients of its own.
        latents_KMZ: where to begin, float32 on the device of `data`.
        trained, untrained: the judges, classifiers of real images and others with fresh weights, in evaluation mode,
            without gradients of their own.
        data: the training images.
        steps: how often the latents of every class and prefix are moved.
        policy: augmentation of what the judges see.
        seed: of every draw.
        judges_per_step: how many of the judges a step asks.
        cross_entropy: weight of what a trained one answers, beside what it sees.
        draws: 1 or 2 of the augmentation. With two, their differences are multiplied, so that the variance between them
            does not count.
        learners: how many judges learn from the set itself, where it has more than one image per class.
        fresh: makes a classifier with fresh weights for each of them, by a number that never repeats.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        latents_KMZ: Tensor,
        trained: Sequence[PoolMember],
        untrained: Sequence[PoolMember],
        data: DeviceData,
        *,
        steps: int,
        policy: str,
        seed: int,
        judges_per_step: int = JUDGES_PER_STEP,
        cross_entropy: float,
        draws: int = 1,
        learners: int = 0,
        fresh: Callable[[int], PoolMember] | None = None,
    ) -> None:
        self.network, self.start_KMZ, self.data = network, latents_KMZ, data
        self.judges = [*trained, *untrained]
        self.cross_entropies = [cross_entropy] * len(trained) + [0.0] * len(untrained)
        self.steps, self.policy, self.seed, self.judges_per_step = steps, policy, seed, judges_per_step
        num_classes, count = latents_KMZ.shape[:2]
        self.ends = sorted({min(prefix, count) for prefix in PREFIXES})
        starts = [0, *self.ends[:-1]]
        # A tensor for every class and prefix, because Adam passes over those that have no gradient.
        self.latents = nn.ParameterList(
            latents_KMZ[label, start:end].clone()
            for label in range(num_classes)
            for start, end in zip(starts, self.ends, strict=True)
        )
        self.optimiser = torch.optim.Adam(self.latents.parameters(), lr=RATE)
        self.draws = draws
        self.learners = _Learners(fresh, learners) if learners and fresh and self.ends[-1] > 1 else None
        self.state = nn.ModuleDict({"latents": self.latents})
        """All that steps change beside the optimiser."""
        if self.learners:
            self.state["learners"] = self.learners
        self._targets: tuple[int, list[_Target]] | None = None
        self._groups = [range(start, min(start + GROUP, num_classes)) for start in range(0, num_classes, GROUP)]
        self._blocks = [
            (group, prefix, -(-len(labels) // max(1, IMAGES_PER_STEP // end)))
            for group, labels in enumerate(self._groups)
            for prefix, end in enumerate(self.ends)
        ]

    @property
    def total(self) -> int:
        """Steps in all."""
        return sum(self.steps * rounds for _, _, rounds in self._blocks)

    def _turn(self, index: int) -> _Turn:
        number = of_group = index
        before = 0
        for group, prefix, rounds in self._blocks:
            if group != before:
                of_group, before = number, group
            if number < self.steps * rounds:
                labels = tuple(self._groups[group][number % rounds :: rounds])
                return _Turn(group, prefix, labels, of_group, number / (self.steps * rounds))
            number -= self.steps * rounds
        raise IndexError(index)

    def step(self, index: int) -> Tensor:
        """Move some latents; returns the loss, a scalar."""
        turn, device = self._turn(index), self.data.device
        labels = self._groups[turn.group]
        if self._targets is None or self._targets[0] != turn.group:
            self._targets = None  # of the last group, whose memory is wanted
            self._targets = turn.group, self._aim(labels)
        if self.learners and turn.group and turn.number == 0:  # they know the classes of the last group
            for number in range(len(self.learners.members)):
                self.learners.renew(number)
        self.optimiser.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * turn.progress)) / 2
        generator = step_generator(device, self.seed, "refinement", turn.number)
        labels_k = torch.tensor(turn.labels, device=device)
        latents_kmZ = torch.stack([self._prefix(label, turn.prefix) for label in turn.labels])
        count = latents_kmZ.shape[1]
        learners = len(self.learners.members) if self.learners and count > 1 else 0
        asked = torch.randperm(len(self.judges) + learners, generator=generator, device=device)
        images_nCHW = self.network(latents_kmZ.flatten(0, 1), labels_k.repeat_interleave(count))
        images = images_nCHW.reshape(-1, count, *images_nCHW.shape[1:])
        losses = []
        for judge in asked[: self.judges_per_step].tolist():
            if judge < len(self.judges):
                target, rows_k = self._targets[1][judge], labels_k - labels[0]
            else:
                target = self._learn(judge - len(self.judges), labels, turn.prefix, labels_k, generator)
                rows_k = torch.arange(len(labels_k), device=device)
            losses.append(target.loss(images, labels_k, rows_k, self.policy, self.draws, generator))
        loss = torch.stack(losses).mean()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.detach()

    def _learn(
        self, number: int, labels: Sequence[int], prefix: int, labels_k: Tensor, generator: torch.Generator
    ) -> _Target:
        """Teach a learner the sets of a group's classes, and see where it has the real images of `labels_k`."""
        assert self.learners is not None
        device = self.data.device
        with torch.no_grad():
            latents_kmZ = torch.stack([self._prefix(label, prefix) for label in labels])
            count = latents_kmZ.shape[1]
            drawn = torch.randint(
                len(labels) * count, (LEARNER_STEPS * LEARNER_BATCH,), generator=generator, device=device
            )
            once, of_batch = torch.unique(drawn, return_inverse=True)
            images = self.network(latents_kmZ.flatten(0, 1)[once], labels[0] + once // count)
        batches = iter(of_batch.split(LEARNER_BATCH))

        def draw() -> tuple[Tensor, Tensor]:
            batch = next(batches)
            return images[batch], labels[0] + once[batch] // count

        learner = self.learners.taught(number, draw, self.policy, generator)
        per_class = min(max(LEARNER_IMAGES // len(labels_k), LEARNER_CLASS_IMAGES), REAL_IMAGES)
        real = to_signed(self.data.draw_images(labels_k.repeat_interleave(per_class), generator))
        real = augment(learner.normalise(real), self.policy, generator)
        with torch.no_grad():
            features = learner(real)[0].float()
            if not bool(features.isfinite().all()):  # it diverged: a fresh one judges as those that were never trained
                self.learners.renew(number)
                features = learner(real)[0].float()
        moments = [_moments(features_ND) for features_ND in features.unflatten(0, (-1, per_class))]
        return _target(learner, moments, cross_entropy=0.0)

    def _part(self, label: int, prefix: int) -> Tensor:
        part: Tensor = self.latents[label * len(self.ends) + prefix]
        return part

    def _prefix(self, label: int, prefix: int) -> Tensor:
        """Latents `[m, Z]`; only what the prefix adds to the smaller ones has a gradient."""
        smaller = [self._part(label, number).detach() for number in range(prefix)]
        return torch.cat([*smaller, self._part(label, prefix)])

    def result(self) -> Tensor:
        """Every latent, float32 `[K, M, Z]`.

        Raises:
            DivergedError: some are not finite.
        """
        refined_KMZ = self.start_KMZ.clone()
        for label in range(len(refined_KMZ)):
            parts = [self._part(label, prefix).detach() for prefix in range(len(self.ends))]
            refined_KMZ[label, : self.ends[-1]] = torch.cat(parts)
        if not bool(torch.isfinite(refined_KMZ).all()):
            raise DivergedError(
                "Refining the latents of small fixed sets diverged: some are not finite. Leave it out with "
                "--set deployment.refine_steps=0 in a new run."
            )
        return refined_KMZ

    @torch.no_grad()
    def _aim(self, labels: Sequence[int]) -> list[_Target]:
        moments: list[list[_Moments]] = [[] for _ in self.judges]
        for label in labels:
            generator = step_generator(self.data.device, self.seed, "refinement targets", label)
            images = to_signed(self.data.images_of(label, REAL_IMAGES, generator))
            for number, judge in enumerate(self.judges):
                moments[number].append(_moments(judge(augment(judge.normalise(images), self.policy, generator))[0]))
        return [
            _target(judge, of_classes, cross_entropy)
            for judge, of_classes, cross_entropy in zip(self.judges, moments, self.cross_entropies, strict=True)
        ]


_Moments = tuple[Tensor, Tensor, Tensor, Tensor]
"""Mean features and mean squares of a class, both [D], and the traces of the covariances of both."""


def _moments(features_ND: Tensor) -> _Moments:
    features_ND = features_ND.float()
    squares_ND = features_ND.square()
    variance, square_variance = (values.var(dim=0, correction=0).sum() for values in (features_ND, squares_ND))
    return features_ND.mean(dim=0), squares_ND.mean(dim=0), variance, square_variance


def _target(member: PoolMember, of_classes: Sequence[_Moments], cross_entropy: float) -> _Target:
    mean_kD, square_kD, variance_k, square_variance_k = (torch.stack(part) for part in zip(*of_classes, strict=True))
    return _Target(
        member=member,
        mean_kD=mean_kD,
        square_kD=square_kD,
        variance=_at_least(variance_k.mean(), mean_kD),
        square_variance=_at_least(square_variance_k.mean(), square_kD),
        cross_entropy=cross_entropy,
    )


def _at_least(variance: Tensor, mean_kD: Tensor) -> float:
    """A variance with a floor, because a class of one image may have none at all."""
    return max(float(variance), float((MIN_SPREAD * mean_kD.norm(dim=1).mean()).square().clamp_min(1e-12)))
