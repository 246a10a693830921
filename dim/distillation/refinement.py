"""Optimises the first latents of every class by gradient, so that few images represent the class.

Herding chooses latents whose images each look real, but the value of a small set lies in all its images together. So
the latents of every prefix are moved, through the frozen generator, until the set has the features of the class's real
images (`feature_targets`). The extractors are the pool's ConvNet-3 and ResNet-10 of every age, and a few untrained
ConvNets. The trained ones may add their cross-entropy, as in improved distribution matching (Zhao et al., arXiv
2307.09742). Some extractors are trained on the set itself (`set_learners`), to correct it where they tell it from real
images. Sets of one image do not use these, because they lost accuracy by it. Only training images are used.

Shapes: K classes, k those of a step, M latents per class, m those of a prefix, n images of a step, Z latent dimension,
C channels, H, W, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dim.augment import augment
from dim.config import DeploymentConfig
from dim.distillation.feature_targets import ClassMoments, FeatureTarget, make_target, measure_moments
from dim.distillation.pool import PoolMember
from dim.distillation.set_learners import LEARNER_BATCH_SIZE, LEARNER_STEPS, SetLearners
from dim.execution.device_data import DeviceData, step_generator, to_signed
from dim.runtime.errors import DivergedError

REFINED_IPCS = (1, 10)
"""Sizes of the sets that are fitted, each with the smaller one inside it; later latents stay as herding chose them."""
LEARNING_RATE = 0.05
"""Of Adam, falling to zero over a cosine."""
REFINEMENT_ARCHITECTURES = ("convnet3", "resnet10")
"""Classifiers of the pool, of every age, that are asked."""
UNTRAINED_EXTRACTORS = 8
"""ConvNets with fresh weights that are asked."""
EXTRACTORS_PER_STEP = 3
"""Classifiers that a step asks, drawn at random."""
REAL_IMAGES = 256
"""Real images per class whose features are the target."""
LEARNER_REAL_IMAGES, MIN_LEARNER_CLASS_IMAGES = 512, 16
"""Real images of all classes of a step that give a learner its target: at least the second number of each class, at
most `REAL_IMAGES`."""
IMAGES_PER_STEP = 128
"""Most images in a step: the sets of ten of twelve classes. More classes take turns, each as often as the steps say."""
CLASSES_PER_GROUP = 100
"""Classes that are refined together: the targets of one group are in memory at a time."""


class _Turn(NamedTuple):
    """What one step moves: the latents that a prefix adds to the smaller ones, of some classes of a group."""

    group: range
    """The classes that are refined together."""
    prefix: int
    labels: range
    """The classes of the step."""
    number: int
    """Of the step within its group."""
    progress: float
    """0 to 1 within the group and the prefix."""


class Refinement:
    """The first latents of every class, moved step by step.

    Args:
        network: latents `[N, Z]` and labels `[N]` to images in -1..1, without gradients of its own.
        latents_KMZ: where to begin, float32 on the device of `data`.
        trained, untrained: classifiers trained on real images and others with fresh weights, in evaluation mode,
            without gradients of their own.
        data: the training images.
        config: its `refine_steps` say how often the latents of every class and prefix are moved, its `refine_learners`
            how many classifiers learn from the set itself where it has more than one image per class.
        policy: augmentation of what the classifiers see.
        seed: of every draw.
        build_learner: makes a classifier with fresh weights, by a number that never repeats.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        latents_KMZ: Tensor,
        trained: Sequence[PoolMember],
        untrained: Sequence[PoolMember],
        data: DeviceData,
        config: DeploymentConfig,
        *,
        policy: str,
        seed: int,
        build_learner: Callable[[int], PoolMember],
    ) -> None:
        self.network, self.start_KMZ, self.data, self.config = network, latents_KMZ, data, config
        self.extractors = [*trained, *untrained]
        self.cross_entropies = [config.refine_cross_entropy] * len(trained) + [0.0] * len(untrained)
        self.policy, self.seed = policy, seed
        num_classes, count = latents_KMZ.shape[:2]
        self.ends = sorted({min(prefix, count) for prefix in REFINED_IPCS})
        starts = [0, *self.ends[:-1]]
        # A tensor for every class and prefix, because Adam passes over those that have no gradient.
        self.latents = nn.ParameterList(
            latents_KMZ[label, start:end].clone()
            for label in range(num_classes)
            for start, end in zip(starts, self.ends, strict=True)
        )
        self.optimiser = torch.optim.Adam(self.latents.parameters(), lr=LEARNING_RATE)
        learners = config.refine_learners if self.ends[-1] > 1 else 0
        self.learners = SetLearners(build_learner, learners) if learners else None
        self.state = nn.ModuleDict({"latents": self.latents})
        """All that steps change beside the optimiser."""
        if self.learners:
            self.state["learners"] = self.learners
        self._targets: tuple[range, list[FeatureTarget]] | None = None
        self._turns = list(self._plan_turns(num_classes))
        self.total = len(self._turns)
        """Steps in all."""

    def _plan_turns(self, num_classes: int) -> Iterator[_Turn]:
        for start in range(0, num_classes, CLASSES_PER_GROUP):
            group, number = range(start, min(start + CLASSES_PER_GROUP, num_classes)), 0
            for prefix, end in enumerate(self.ends):
                rounds = -(-len(group) // max(1, IMAGES_PER_STEP // end))
                steps = self.config.refine_steps * rounds
                for step in range(steps):
                    yield _Turn(group, prefix, group[step % rounds :: rounds], number, step / steps)
                    number += 1

    def step(self, index: int) -> Tensor:
        """Move some latents; returns the loss, a scalar."""
        turn, device = self._turns[index], self.data.device
        labels = turn.group
        if self._targets is None or self._targets[0] != turn.group:
            self._targets = None  # of the last group, whose memory is wanted
            self._targets = turn.group, self._measure_targets(labels)
        if self.learners and labels.start and turn.number == 0:  # they know the classes of the last group
            self.learners.reset_all()
        self.optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * turn.progress)) / 2
        generator = step_generator(device, self.seed, "refinement", turn.number)
        labels_k = torch.tensor(list(turn.labels), device=device)
        latents_kmZ = torch.stack([self._prefix(label, turn.prefix) for label in turn.labels])
        count = latents_kmZ.shape[1]
        learners = len(self.learners) if self.learners and count > 1 else 0
        asked = torch.randperm(len(self.extractors) + learners, generator=generator, device=device)
        images_nCHW = self.network(latents_kmZ.flatten(0, 1), labels_k.repeat_interleave(count))
        images = images_nCHW.reshape(-1, count, *images_nCHW.shape[1:])
        losses = []
        for number in asked[:EXTRACTORS_PER_STEP].tolist():
            if number < len(self.extractors):
                target, rows_k = self._targets[1][number], labels_k - labels[0]
            else:
                target = self._learn(number - len(self.extractors), labels, turn.prefix, labels_k, generator)
                rows_k = torch.arange(len(labels_k), device=device)
            losses.append(target.loss(images, labels_k, rows_k, self.policy, self.config.refine_draws, generator))
        loss = torch.stack(losses).mean()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.detach()

    def _learn(
        self, number: int, labels: Sequence[int], prefix: int, labels_k: Tensor, generator: torch.Generator
    ) -> FeatureTarget:
        """Teach a learner the sets of a group's classes; its target are the real images of `labels_k`."""
        assert self.learners is not None
        device = self.data.device
        with torch.no_grad():
            latents_kmZ = torch.stack([self._prefix(label, prefix) for label in labels])
            count = latents_kmZ.shape[1]
            drawn = torch.randint(
                len(labels) * count, (LEARNER_STEPS * LEARNER_BATCH_SIZE,), generator=generator, device=device
            )
            once, of_batch = torch.unique(drawn, return_inverse=True)
            images = self.network(latents_kmZ.flatten(0, 1)[once], labels[0] + once // count)
        batches = iter(of_batch.split(LEARNER_BATCH_SIZE))

        def draw() -> tuple[Tensor, Tensor]:
            batch = next(batches)
            return images[batch], labels[0] + once[batch] // count

        learner = self.learners.teach(number, draw, self.policy, generator)
        per_class = min(max(LEARNER_REAL_IMAGES // len(labels_k), MIN_LEARNER_CLASS_IMAGES), REAL_IMAGES)
        real = to_signed(self.data.draw_images(labels_k.repeat_interleave(per_class), generator))
        real = augment(learner.normalise(real), self.policy, generator)
        with torch.no_grad():
            features = learner(real)[0].float()
            if not bool(features.isfinite().all()):  # it diverged: a fresh one serves as the untrained do
                self.learners.reset(number)
                features = learner(real)[0].float()
        moments = [measure_moments(features_ND) for features_ND in features.unflatten(0, (-1, per_class))]
        return make_target(learner, moments, cross_entropy=0.0)

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
    def _measure_targets(self, labels: Sequence[int]) -> list[FeatureTarget]:
        moments: list[list[ClassMoments]] = [[] for _ in self.extractors]
        for label in labels:
            generator = step_generator(self.data.device, self.seed, "refinement targets", label)
            images = to_signed(self.data.draw_class_images(label, REAL_IMAGES, generator))
            for number, member in enumerate(self.extractors):
                features, _ = member(augment(member.normalise(images), self.policy, generator))
                moments[number].append(measure_moments(features))
        return [
            make_target(member, of_classes, cross_entropy)
            for member, of_classes, cross_entropy in zip(self.extractors, moments, self.cross_entropies, strict=True)
        ]
