"""Adversarial training: how often the discriminator takes a step, and when it is penalised."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from quick_runs import quick
from small_images import make_images

from dim.distillation.adversarial import AdversarialTraining, Draws
from dim.distillation.distill import describe_run
from dim.distillation.session import Session
from dim.execution.device_data import DeviceData
from dim.execution.distributed import World

CPU = torch.device("cpu")


def make_training(**changes: object) -> AdversarialTraining:
    config, data = quick(**{f"stage1.adversarial.{k}": v for k, v in changes.items()}), make_images()
    on_device = DeviceData(data.train_images, data.train_labels, len(data.classes), CPU)
    return AdversarialTraining(config, describe_run(config, data).data.images, on_device, World())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"r1_every": 2}, [(True,), (False,), (True,), (False,)]),
        ({"r1_every": 4, "discriminator_steps": 2}, [(True, False), (False, False), (True, False), (False, False)]),
        ({"r1_every": 3, "discriminator_steps": 2}, [(True, False), (False, True), (False, False), (True, False)]),
        ({"r1_every": 1, "discriminator_steps": 2}, [(True, True)] * 4),
        ({"r1_gamma": 0.0, "discriminator_steps": 3}, [(False,) * 3] * 4),
    ],
)
def test_r1_is_due_at_every_so_many_steps_of_the_discriminator(
    changes: dict[str, object], expected: list[tuple[bool, ...]]
) -> None:
    gan = make_training(**changes)
    assert [gan.penalty_pattern(step) for step in range(4)] == expected
    many = [gan.penalty_pattern(step) for step in range(120)]
    assert {kind: gan.penalty_pattern_frequency(many.index(kind)) for kind in set(many)} == pytest.approx(
        {kind: many.count(kind) / 120 for kind in set(many)}
    )


def test_every_step_of_the_discriminator_has_images_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gan, seen, step = make_training(discriminator_steps=3, r1_every=2), [], AdversarialTraining.discriminator_step

    def noted(gan: AdversarialTraining, draws: Draws, penalise: bool) -> dict[str, torch.Tensor]:
        seen.append((draws, penalise, step(gan, draws, penalise)))
        return seen[-1][2]

    monkeypatch.setattr(AdversarialTraining, "discriminator_step", noted)
    draws, report = gan.train_discriminator(torch.Generator().manual_seed(1), 24, 4, 1)
    assert [penalise for _, penalise, _ in seen] == [False, True, False]  # the fourth to sixth of all
    assert draws is seen[-1][0]
    assert not any(torch.equal(a[0].real_NCHW, b[0].real_NCHW) for a, b in zip(seen, seen[1:], strict=False))
    losses = [report["discriminator_loss"] for *_, report in seen]
    assert report["discriminator_loss"] == torch.stack(losses).mean()
    assert report["r1"] == seen[1][2]["r1"]
    assert gan.discriminator_optimiser.state_dict()["state"][0]["step"] == 3


def test_losses_of_a_checkpoint_go_back_to_the_device_that_the_next_ones_are_on() -> None:
    gan: Any = make_training()
    create: Any = Session
    session = create(run_dir=None, record=None, gan=gan, world=World(), checkpoints=None, say=print, progress=print)
    session.unlogged = {"discriminator_loss": [torch.tensor(1.0), torch.tensor(2.0)]}
    tensors = session.tensors()
    session.unlogged = {}
    session.world = SimpleNamespace(is_main=False)
    gan.device = torch.device("meta")  # stands for a GPU; checkpoints are read to the CPU
    session.restore(SimpleNamespace(tensors=tensors, quiet_lines=0))
    (losses,) = session.unlogged.values()
    assert [loss.device.type for loss in losses] == ["meta", "meta"]
