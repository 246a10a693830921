"""Training that diverges or collapses is told, and the last good checkpoint stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quick_runs import QUICK, Stop, quick, stop_at
from small_images import make_images

from dim.config import (
    DistillConfig,
)
from dim.distillation.adversarial import AdversarialTraining, Draws
from dim.distillation.distill import describe_run, distill
from dim.distillation.session import COLLAPSE_LINES
from dim.presets import preset
from dim.runs.checkpoint import CheckpointFolder
from dim.runtime.errors import DivergedError


def checkpoints_of(config: DistillConfig, run_dir: Path) -> CheckpointFolder:
    return CheckpointFolder(run_dir, describe_run(config, make_images()).fingerprint())


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_what_is_not_finite_is_told_and_not_kept(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teach = AdversarialTraining.train_discriminator

    def poisoned(gan: AdversarialTraining, *args: Any) -> tuple[Draws, dict[str, torch.Tensor]]:
        draws, report = teach(gan, *args)
        if args[-1] < 8:
            return draws, report
        if what == "loss":
            return draws, {**report, "discriminator_loss": torch.tensor(torch.nan)}
        with torch.no_grad():
            gan.ema.last.bias.fill_(torch.nan)  # in no loss: only the checkpoint meets it
        return draws, report

    monkeypatch.setattr(AdversarialTraining, "train_discriminator", poisoned)
    config = quick(**{"stage1.steps": 20, "checkpoint_steps": 4})
    message = "discriminator_loss is not finite" if what == "loss" else "the tensor ema.last.bias is not finite"
    with pytest.raises(DivergedError, match=f"{message}. The last good checkpoint, step 8 of stage1, is kept in "):
        distill(make_images(), config, tmp_path / "run")
    kept = checkpoints_of(config, tmp_path / "run").newest(print)
    assert kept is not None and kept.step == 8
    assert all(bool(torch.isfinite(t).all()) for t in kept.tensors.values())


def test_divergence_before_any_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        AdversarialTraining, "discriminator_step", lambda *args: {"discriminator_loss": torch.tensor(torch.inf)}
    )
    with pytest.raises(
        DivergedError, match="at step 2 of stage1: .* There had been no good checkpoint yet; try a lower"
    ):
        distill(make_images(), quick(), tmp_path / "run")


def win(monkeypatch: pytest.MonkeyPatch, first: int, last: int = 10**6, loss: float = 0.001) -> None:
    """Let the discriminator's loss look as if it had won, or be another, from the step `first` of a stage to `last`."""
    teach = AdversarialTraining.train_discriminator

    def winning(gan: AdversarialTraining, *args: Any) -> tuple[Draws, dict[str, torch.Tensor]]:
        draws, report = teach(gan, *args)
        won = {"discriminator_loss": torch.tensor(loss)} if first <= args[-1] + 1 <= last else {}
        return draws, report | won

    monkeypatch.setattr(AdversarialTraining, "train_discriminator", winning)
    monkeypatch.setattr("dim.distillation.session.draw_curves", lambda *args: None)  # most of a checkpoint's time


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("log_steps", [1, 2])
def test_a_discriminator_that_has_won_is_told_and_the_checkpoint_before_is_kept(
    interrupted: bool, log_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(**{"stage1.steps": 80, "log_steps": log_steps, "checkpoint_steps": 3})
    win(monkeypatch, 11)
    if interrupted:  # while it is suspected: what was counted is not lost
        with pytest.raises(Stop):
            distill(make_images(), config, tmp_path / "run", progress=stop_at("stage1", 25))
        assert checkpoints_of(config, tmp_path / "run").newest_good() == ("stage1", 9)
    said: list[str] = []
    told = 10 + COLLAPSE_LINES * log_steps
    message = (
        f"at step {told} of stage1: the discriminator has won and gives no gradient. "
        "The last good checkpoint, step 9 of stage1, is kept in "
    )
    with pytest.raises(DivergedError, match=message):
        distill(make_images(), config, tmp_path / "run", resume=interrupted, say=said.append)
    assert ("Resuming at step 24 of stage1." in said) == interrupted
    kept = checkpoints_of(config, tmp_path / "run").newest(print)
    assert kept is not None and (kept.step, kept.quiet_lines) == (9, 0)
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"stage1-00000009.json", "stage1-00000009.safetensors"}


def test_a_suspicion_that_passes_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick(**{"stage1.steps": 40, "log_steps": 1, "checkpoint_steps": 3})
    win(monkeypatch, 11, 29)
    with pytest.raises(Stop):
        distill(make_images(), config, tmp_path / "run", progress=stop_at("stage1", 38))
    folder = checkpoints_of(config, tmp_path / "run")
    assert folder.newest_good() == ("stage1", 36)
    assert sorted(p.name for p in (folder.run_dir / "checkpoints").glob("*.json")) == [
        "stage1-00000033.json",
        "stage1-00000036.json",
    ]


def test_a_discriminator_that_guesses_is_told_once_per_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick(**{"stage1.steps": 50, "stage2.steps": 24, "log_steps": 1, "checkpoint_steps": 100})
    win(monkeypatch, 1, loss=1.38)
    said: list[str] = []
    assert distill(make_images(), config, tmp_path / "run", say=said.append).finished
    told = [line for line in said if "one at chance has 1.39" in line]
    assert len(told) == 2
    assert told[0].startswith("Step ") and "of stage1: the discriminator's loss was 1.38 over the last 20" in told[0]
    assert f"newest picture in {tmp_path / 'run' / 'grids'} looks poor" in told[0]
    assert "(stage2.adversarial.augment)" in told[1]


def test_a_run_in_pieces_is_told_of_a_guessing_discriminator_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(**{"stage1.steps": 24, "log_steps": 1, "checkpoint_steps": 1})
    win(monkeypatch, 1, loss=1.38)
    said: list[str] = []
    for step in (12, 18):  # neither piece has twenty log lines
        with pytest.raises(Stop):
            distill(
                make_images(), config, tmp_path / "run", resume=True, say=said.append, progress=stop_at("stage1", step)
            )
    assert not [line for line in said if "at chance" in line]
    distill(make_images(), config, tmp_path / "run", resume=True, say=said.append)
    assert [line.split(":")[0] for line in said if "at chance" in line and "stage1" in line] == ["Step 20 of stage1"]


def test_a_discriminator_that_tells_some_things_apart_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    win(monkeypatch, 1, loss=1.36)  # as that of the digits, which teach well
    said: list[str] = []
    config = quick(**{"stage1.steps": 40, "log_steps": 1, "checkpoint_steps": 100})
    assert distill(make_images(), config, tmp_path / "run", say=said.append).finished
    assert not [line for line in said if "at chance" in line]


def test_the_critic_of_wgan_has_no_loss_by_which_it_has_won(tmp_path: Path) -> None:
    overrides = {
        **QUICK,
        "stage1.adversarial.loss": "wgan-gp-ac",
        "stage2.adversarial.loss": "wgan-gp-ac",
        "discriminator.kind": "paper",
        "stage1.steps": 24,
        "stage2.steps": 0,
        "log_steps": 1,
        "deployment.latent_stds": (),
        "deployment.fixed_latents": 0,
    }
    with pytest.MonkeyPatch.context() as patch:
        win(patch, 1)
        config = preset("tiny", data=make_images(), overrides=overrides)
        assert distill(make_images(), config, tmp_path / "run").finished
