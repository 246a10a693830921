"""Classifiers trained on a set while it is refined, as in gradient matching (arXiv 2006.05929)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.augment import augment
from dim.distillation.pool import PoolMember

LEARNER_STEPS = 5
"""SGD steps on the set whenever a learner is asked."""
LEARNER_RESET_STEPS = 150
"""A learner restarts once its age exceeds this times U(0.5, 1.5), drawn whenever it is asked (108 steps on average)."""
LEARNER_LR = 0.1
"""Learning rate of SGD without momentum, which would have to be kept beside the weights."""
LEARNER_WEIGHT_DECAY, LEARNER_BATCH_SIZE, LEARNER_LABEL_SMOOTHING = 5e-4, 64, 0.1


class SetLearners(nn.Module):
    """Classifiers that learn from the set as it moves; one that has learned for long, or diverged, begins anew.

    Their whole state is in `state_dict`: the optimiser keeps nothing.

    Args:
        build: makes a classifier with fresh weights, by a number that never repeats.
        count: of the learners, L.
    """

    ages: Tensor
    """Steps that each has learned, int64 [L]; on the CPU, because they are read."""
    made: Tensor
    """How many there have been, int64 scalar."""

    def __init__(self, build: Callable[[int], PoolMember], count: int) -> None:
        super().__init__()
        self.build = build
        self.members = nn.ModuleList(build(number) for number in range(count))
        self.register_buffer("ages", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("made", torch.tensor(count))

    def __len__(self) -> int:
        return len(self.members)

    def reset(self, number: int) -> None:
        """Begin one of them again, with other weights than any before."""
        self.members[number].load_state_dict(self.build(int(self.made)).state_dict())
        self.ages[number] = 0
        self.made += 1

    def reset_all(self) -> None:
        """Begin all of them again."""
        for number in range(len(self)):
            self.reset(number)

    def teach(
        self, number: int, draw: Callable[[], tuple[Tensor, Tensor]], policy: str, generator: torch.Generator
    ) -> PoolMember:
        """Train one of them for `LEARNER_STEPS` more steps and return it, in evaluation mode.

        Args:
            draw: gives the images, -1 to 1, and labels of a batch.
        """
        member: PoolMember = self.members[number]  # type: ignore[assignment]
        oldest = LEARNER_RESET_STEPS * (0.5 + float(torch.rand((), generator=generator, device=generator.device)))
        if int(self.ages[number]) > oldest:
            self.reset(number)
        member.train().requires_grad_(True)
        optimiser = torch.optim.SGD(member.parameters(), lr=LEARNER_LR, weight_decay=LEARNER_WEIGHT_DECAY)
        for _ in range(LEARNER_STEPS):
            images, labels = draw()
            _, logits = member(augment(member.normalise(images), policy, generator))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=LEARNER_LABEL_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        optimiser.zero_grad()
        self.ages[number] += LEARNER_STEPS
        return member.eval().requires_grad_(False)
