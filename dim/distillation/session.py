"""What both stages share: the loop around a step, with logs, grids, checkpoints, a time limit, divergence checks."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dim.config import DistillConfig, StageConfig
from dim.distillation.game import Game
from dim.execution.device_data import DeviceData, step_generator
from dim.execution.distributed import World
from dim.runs.checkpoint import Checkpoint, CheckpointFolder, load_optimiser, optimiser_tensors
from dim.runs.curves import draw_curves
from dim.runs.record import ImageSpec, RunRecord
from dim.runtime.errors import DivergedError

COLLAPSE_LOSS = 0.01
"""A logistic discriminator loss below this says that it separates real from generated without error.

`wgan-gp-ac` has no such number. Its loss has no floor: it holds a distance that grows with the scale of the images and
of the critic, and its penalty lets a critic be steeper than 1 where that distance is large, so no bound can be drawn. A
critic far ahead still has a slope of about 1 everywhere and teaches, which is what it is for. Only a loss or a weight
that is not finite stops it."""
COLLAPSE_LINES = 20
"""Consecutive log lines below `COLLAPSE_LOSS` that count as collapse; a checkpoint made meanwhile is suspect."""

GUESS_LOSS = 2 * math.log(2)
"""The logistic discriminator loss of one that says "half" to every image."""
GUESS_SHARE = 0.99
"""Part of `GUESS_LOSS` above which the mean of `COLLAPSE_LINES` log lines says that it does nothing but guess. Runs
that taught students well lay at 0.6 to 0.98 of it, and some that taught them badly at 0.97, so by this number only a
complete guess can be told; and it stops nothing."""

VOTE_STEPS = 10
"""Steps between the votes of several processes on whether the time limit has passed."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report of a running distillation."""

    stage: str
    """`stage1`, `pool`, `stage2`, `spread`, `herding`, `refining` or `teacher`."""
    step: int
    """Steps done."""
    steps: int
    """Steps of the stage."""
    images_per_s: float
    """Real images consumed per second since the last report."""
    losses: Mapping[str, float]
    """Means since the last log line; empty between log lines."""


@dataclass
class Session:
    """One call of `distill`: the run's folder, its game, and what the caller wants to hear."""

    run_dir: Path
    record: RunRecord
    game: Game
    world: World
    checkpoints: CheckpointFolder
    say: Callable[[str], None]
    progress: Callable[[Progress], None]
    deadline: float = float("inf")
    """`time.monotonic()` after which the run stops at the next checkpoint."""
    holdout: DeviceData | None = None
    """Training images that nothing is trained on; None where nothing is chosen by them."""
    resumed: Checkpoint | None = None
    log: Callable[[str, int, Mapping[str, float]], None] = lambda stage, step, values: None
    """A further sink for scalars (TensorBoard)."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Further tensors of a checkpoint (the paper's fresh classifier)."""
    unlogged: dict[str, list[Tensor]] = field(default_factory=dict)
    """Values of the steps since the last line of `metrics.jsonl`."""
    quiet_lines: int = 0
    """Consecutive log lines, up to the last one, whose discriminator loss is below `COLLAPSE_LOSS`."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=COLLAPSE_LINES))
    """The discriminator's loss in the last log lines of this stage."""

    @property
    def config(self) -> DistillConfig:
        """All settings."""
        return self.record.config

    @property
    def images(self) -> ImageSpec:
        """Number of classes, size and statistics of the images."""
        return self.record.data.images

    def run_stage(self, stage: str, config: StageConfig, step: Callable[[int], Mapping[str, Tensor]]) -> bool:
        """Run `step` for the stage's steps, from the checkpoint if it is of this stage.

        Returns:
            False if the time limit stopped it; a checkpoint was made.

        Raises:
            DivergedError: a loss is not finite, or the discriminator has won; the newest checkpoint then is the last
                from before.
        """
        first, told = 0, False
        self.recent.clear()
        if self.resumed is not None and self.resumed.stage == stage:
            first = self.resumed.step
            self.restore(self.resumed)
            self._remember(stage)
        else:
            self.unlogged.clear()
        last_time, last_step = time.monotonic(), first
        for index in range(first, config.steps):
            self.game.set_learning_rates(index / config.steps)
            for name, value in step(index).items():
                self.unlogged.setdefault(name, []).append(value)
            done = index + 1
            last = done == config.steps
            if done % self.config.log_steps == 0 or last:
                losses = self._means(self.unlogged)
                self.unlogged.clear()
                self._check(stage, done, losses)
                told = told or self._tell_guesses(stage, done, losses)
                now = time.monotonic()
                speed = (done - last_step) * config.batch_size / max(now - last_time, 1e-9)
                last_time, last_step = now, done
                self._write_metrics(stage, done, losses)
                self.progress(Progress(stage=stage, step=done, steps=config.steps, images_per_s=speed, losses=losses))
            else:
                self.progress(Progress(stage=stage, step=done, steps=config.steps, images_per_s=0.0, losses={}))
            if (done % self.config.grid_steps == 0 or last) and self.world.is_main:
                self.write_make_grid(f"{stage}-{done:06d}")
            late = self._is_late(done)
            if done % self.config.checkpoint_steps == 0 or last or late:
                self.save(stage, done)
                if late and not last:
                    return False
        self.resumed = None
        return True

    def _is_late(self, done: int) -> bool:
        """Whether the time limit has passed; several processes ask each other now and then."""
        if self.deadline == float("inf") or (self.world.size > 1 and done % VOTE_STEPS):
            return False
        return self.world.agree(time.monotonic() > self.deadline, self.game.device)

    def _means(self, sums: Mapping[str, list[Tensor]]) -> dict[str, float]:
        means = {name: torch.stack([v.float() for v in values]).mean() for name, values in sorted(sums.items())}
        if not means:
            return {}
        values = self.world.mean(torch.stack(list(means.values()))).tolist()
        return dict(zip(means, values, strict=True))

    def _check(self, stage: str, step: int, losses: Mapping[str, float]) -> None:
        bad = [name for name, value in losses.items() if not np.isfinite(value)]
        if bad:
            raise self._diverged(stage, step, f"{bad[0]} is not finite")
        self.quiet_lines = self.quiet_lines + 1 if self._is_won(losses.get("discriminator_loss")) else 0
        if self.quiet_lines >= COLLAPSE_LINES:
            raise self._diverged(stage, step, "the discriminator has won and teaches nothing")

    def _remember(self, stage: str) -> None:
        """Take up the last losses of a resumed stage from the metrics."""
        if self.metrics_path.exists():
            lines = [json.loads(line) for line in self.metrics_path.read_text().splitlines()]
            losses = [line.get("discriminator_loss") for line in lines if line["stage"] == stage]
            self.recent.extend(loss for loss in losses if loss is not None)

    def _tell_guesses(self, stage: str, step: int, losses: Mapping[str, float]) -> bool:
        """Say it if the discriminator has told nothing apart for a while; returns whether it was said."""
        if self.game.adversarial.loss != "logistic" or "discriminator_loss" not in losses:
            return False
        self.recent.append(losses["discriminator_loss"])
        mean = sum(self.recent) / len(self.recent)
        if len(self.recent) < COLLAPSE_LINES or mean < GUESS_SHARE * GUESS_LOSS:
            return False
        self.say(
            f"Step {step} of {stage}: the discriminator's loss was {mean:.2f} over the last {COLLAPSE_LINES} log "
            f"lines; one that guesses has {GUESS_LOSS:.2f}. If the newest picture in {self.run_dir / 'grids'} looks "
            f"poor, stop, and show it less augmentation ({stage}.adversarial.augment), give it more steps "
            f"({stage}.adversarial.discriminator_steps) or a smaller R1 penalty ({stage}.adversarial.r1_gamma)."
        )
        return True

    def _is_won(self, loss: float | None) -> bool:
        return loss is not None and self.game.adversarial.loss == "logistic" and loss < COLLAPSE_LOSS

    def _is_suspect(self) -> bool:
        """Whether the discriminator seems to have won, by the last line or by the steps since."""
        since = self.unlogged.get("discriminator_loss")
        return self.quiet_lines > 0 or (since is not None and self._is_won(float(torch.stack(since).mean())))

    def _diverged(self, stage: str, step: int, what: str) -> DivergedError:
        """Forget the suspect checkpoints, so that the newest one is good, and say what is left."""
        if self.world.is_main:
            self.checkpoints.forget_suspects()
        good = self.checkpoints.newest_good()
        kept = (
            f"The last good checkpoint, step {good[1]} of {good[0]}, is kept in {self.checkpoints.folder}"
            if good
            else "There had been no good checkpoint yet"
        )
        return DivergedError(
            f"Distillation diverged at step {step} of {stage}: {what}. {kept}; "
            "try a lower learning rate or a larger R1 penalty in a new run."
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds."""
        game, tensors = self.game, dict(self.extra)
        tensors |= {f"unlogged.{name}": torch.stack(values) for name, values in self.unlogged.items()}
        for prefix, network in (
            ("generator", game.generator),
            ("discriminator", game.discriminator),
            ("ema", game.ema),
        ):
            tensors |= {f"{prefix}.{k}": v for k, v in network.state_dict().items()}
        tensors |= optimiser_tensors("generator_optimiser", game.generator_optimiser)
        tensors |= optimiser_tensors("discriminator_optimiser", game.discriminator_optimiser)
        return tensors

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put the networks and optimisers back to a checkpoint, and cut the metrics that came after it."""
        game, tensors = self.game, checkpoint.tensors
        for prefix, network in (
            ("generator", game.generator),
            ("discriminator", game.discriminator),
            ("ema", game.ema),
        ):
            network.load_state_dict({k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")})
        load_optimiser("generator_optimiser", game.generator_optimiser, tensors)
        load_optimiser("discriminator_optimiser", game.discriminator_optimiser, tensors)
        self.quiet_lines = checkpoint.quiet_lines
        self.extra = {k: v for k, v in tensors.items() if k.startswith("classifier.")}
        prefix = "unlogged."
        self.unlogged = {k[len(prefix) :]: list(v.to(game.device)) for k, v in tensors.items() if k.startswith(prefix)}
        if self.world.is_main and self.metrics_path.exists():
            os.truncate(self.metrics_path, min(checkpoint.metrics_bytes, self.metrics_path.stat().st_size))

    def save(self, stage: str, step: int) -> None:
        """Write a checkpoint and the curves; refuses to keep weights that are not finite."""
        tensors = self.tensors()
        bad = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
        if bad:
            raise self._diverged(stage, step, f"the tensor {bad[0]} is not finite")
        if self.world.is_main:
            # First what the checkpoint is ahead of: a run that resumes from it writes neither again.
            size = self._flush_metrics()
            draw_curves(self.metrics_path, self.run_dir / "curves.png")
            quiet, suspect = self.quiet_lines, self._is_suspect()
            self.checkpoints.save(stage, step, tensors, size, quiet_lines=quiet, suspect=suspect)
        self.world.barrier()

    def _flush_metrics(self) -> int:
        """Wait until the metrics are on the disk; returns their bytes."""
        if not self.metrics_path.exists():
            return 0
        with open(self.metrics_path, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    @property
    def metrics_path(self) -> Path:
        """The run's `metrics.jsonl`."""
        return self.run_dir / "metrics.jsonl"

    def _write_metrics(self, stage: str, step: int, losses: Mapping[str, float]) -> None:
        if not self.world.is_main:
            return
        with open(self.metrics_path, "a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **losses}) + "\n")
        self.log(stage, step, losses)

    @torch.no_grad()
    def write_make_grid(self, name: str, columns: int = 16, max_rows: int = 20) -> None:
        """A PNG of samples of the moving average, one row per class (the first twenty), the same latents every time."""
        from dim.runtime.inspection.preview import make_grid, write_png

        network = self.game.deployed_generator(batches=4)
        rows = min(self.game.data.num_classes, max_rows)
        labels = torch.arange(rows, device=self.game.device).repeat_interleave(columns)
        generator = step_generator(self.game.device, self.config.seed, "grid")
        shape = (columns, self.config.generator.latent_dim)
        latents = torch.randn(shape, device=self.game.device, generator=generator).repeat(rows, 1)
        images = network(latents * self.config.latent_std, labels)
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        images_RCHWC = pixels.cpu().numpy().reshape(rows, columns, *pixels.shape[1:])
        folder = self.run_dir / "grids"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{name}.png", make_grid(images_RCHWC))
