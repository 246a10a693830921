"""Training a classifier in pieces ends where training it at once does, and says when it breaks down."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from dim.distillation.pool_training import train_in_pieces
from dim.runtime.errors import DivergedError


class Case:
    """A convolution in channels_last, whose momentum must come back in the same layout."""

    def __init__(self, folder: Path, *, is_over: bool, checkpoint_steps: int = 3) -> None:
        torch.manual_seed(0)
        self.model = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, fused=True)
        self.snapshots = {age: copy.deepcopy(self.model) for age in (2, 7)}
        config = SimpleNamespace(checkpoint_steps=checkpoint_steps)
        self.session = SimpleNamespace(config=config, is_over=is_over, run_dir=folder)
        folder.mkdir(exist_ok=True)
        self.reported: list[int] = []

    def step(self, index: int) -> Tensor:
        images = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(index))
        loss = self.model(images).square().mean()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.detach()

    def run(self, steps: int = 8) -> bool:
        return train_in_pieces(
            self.session,  # type: ignore[arg-type]
            self.model,
            self.optimiser,
            self.step,
            steps,
            what="The model",
            name="checkpoints/one.safetensors",
            report=self.reported.append,
            snapshots=self.snapshots,
        )

    def weights(self) -> list[Tensor]:
        return [p.detach() for network in (self.model, *self.snapshots.values()) for p in network.parameters()]


def test_pieces_of_one_step_end_where_one_piece_does(tmp_path: Path) -> None:
    whole = Case(tmp_path / "whole", is_over=False)
    assert whole.run() and whole.reported == list(range(9))
    for number in range(8):
        piece = Case(tmp_path / "pieces", is_over=True)
        assert piece.run() == (number == 7) and piece.reported == [number, number + 1]
    assert all(torch.equal(a, b) for a, b in zip(whole.weights(), piece.weights(), strict=True))


def test_an_interruption_goes_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    first = Case(tmp_path, is_over=False)
    assert first.run(steps=5)
    again = Case(tmp_path, is_over=False)
    assert again.run(steps=8) and again.reported == [3, 4, 5, 6, 7, 8]


def test_a_loss_that_is_not_finite_is_told_and_not_kept(tmp_path: Path) -> None:
    case = Case(tmp_path, is_over=False)
    case.step = lambda index: torch.tensor(math.nan if index == 4 else 1.0)  # type: ignore[method-assign]
    case.session.config.checkpoint_steps = 1
    with pytest.raises(DivergedError, match=r"^The model diverged at step 5: its loss is not finite\. Finished stages"):
        case.run()
    again = Case(tmp_path, is_over=False)
    assert again.run() and again.reported == [4, 5, 6, 7, 8]
