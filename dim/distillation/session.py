"""The loop around a training step that both stages share: logs, grids, checkpoints, time limit, divergence checks."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dim.config import DistillConfig, StageConfig
from dim.distillation.adversarial import AdversarialTraining
from dim.execution.device_data import DeviceData, step_generator, to_pixels
from dim.execution.distributed import World
from dim.execution.threads import CpuMeter
from dim.runs.checkpoint import FOLDER, Checkpoint, CheckpointFolder, load_optimiser, name_checkpoint, optimiser_tensors
from dim.runs.curves import draw_curves
from dim.runs.files import append_to_file, cut_file, flush_file, make_folder, remove_file, write_file
from dim.runs.metrics import METRICS_FILE, read_metrics
from dim.runs.record import ImageSpec, RunRecord
from dim.runs.tensors import check_finite, explain_misfit, load_weights, name_weights, select_prefix
from dim.runtime.errors import DivergedError
from dim.runtime.progress.show import Progress

COLLAPSE_LOSS = 0.01
"""A logistic discriminator loss below this means that real and generated images are separated without error.

The loss of `wgan-gp-ac` has no floor, and a critic far ahead still has a useful slope of about 1: there only a loss or
a weight that is not finite stops training."""
COLLAPSE_LINES = 20
"""Consecutive log lines below `COLLAPSE_LOSS` that count as collapse; a checkpoint made meanwhile is suspect."""

CHANCE_LOSS = 2 * math.log(2)
"""The logistic loss of a discriminator at chance, which gives every image the probability one half."""
CHANCE_FRACTION = 0.99
"""Fraction of `CHANCE_LOSS` above which the mean of `COLLAPSE_LINES` log lines counts as chance. Good runs lay at 0.6
to 0.98, some bad ones at 0.97, so it only warns."""

TIME_LIMIT_VOTE_STEPS = 10
"""Steps between the votes of several processes on whether the time limit has passed."""


OnStep = Callable[[str, int, Mapping[str, float]], None]
"""Gets the stage, its step and the means of the values since the last call, by name."""


@dataclass
class Session:
    """One call of `distill`: the run's folder, its networks, and who receives reports."""

    run_dir: Path
    record: RunRecord
    gan: AdversarialTraining
    world: World
    checkpoints: CheckpointFolder
    say: Callable[[str], None]
    """Receives lines for the user."""
    progress: Progress
    """Is told after every step how far its stage is."""
    compiled: bool = False
    """Whether classifiers that gain by it are compiled."""
    deadline: float = float("inf")
    """`time.monotonic()` after which the run stops at the next checkpoint."""
    stop: threading.Event | None = None
    """Once it is set, the run stops at the next checkpoint too; for runs of one process."""
    cpu: CpuMeter | None = None
    """Where the processor does the work."""
    holdout: DeviceData | None = None
    """Training images that nothing is trained on; None where no latent std is chosen by them."""
    resumed: Checkpoint | None = None
    """Where to go on from; None at the start and once its stage goes on."""
    on_step: list[OnStep] = field(default_factory=list)
    """Each gets the values of every line of `metrics.jsonl`."""
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

    def load_newest_checkpoint(self) -> None:
        """Set `resumed` to the newest checkpoint that is whole; without one the metrics begin anew."""
        self.resumed = self.checkpoints.newest(self.say)
        if self.world.is_main:
            self.checkpoints.prune()
        if self.resumed is not None:
            self.say(f"Resuming at step {self.resumed.step:,} of {self.resumed.stage}.")
            if self.compiled != ("compiled" in self.resumed.tensors):
                self.say(
                    f"The run began {'without' if self.compiled else 'with'} compiled ConvNets and goes on "
                    f"{'with' if self.compiled else 'without'} them: results round differently from one in one piece."
                )
        elif self.world.is_main:
            if not self.checkpoints.is_empty:
                self.say(f"No checkpoint in {self.run_dir / FOLDER} is whole: the run begins at the first step.")
            remove_file(self.run_dir, METRICS_FILE)

    def run_stage(self, stage: str, config: StageConfig, step: Callable[[int], Mapping[str, Tensor]]) -> bool:
        """Run `step` for the stage's steps, from the checkpoint if it is of this stage.

        Returns:
            False if it was stopped before its end; a checkpoint was made.

        Raises:
            DivergedError: a loss is not finite, or the discriminator has won; the newest checkpoint then is the last
                from before.
        """
        first, warned, note = 0, False, ""
        self.recent.clear()
        if self.resumed is not None and self.resumed.stage == stage:
            first = self.resumed.step
            with explain_misfit(self.run_dir, name_checkpoint(stage, first)):
                if first > config.steps:
                    raise ValueError(f"{stage} has {config.steps} steps")
                self.restore(self.resumed)
            self._recall_losses(stage)
        else:
            self.unlogged.clear()
        if first < config.steps:
            self.report(stage, first, config.steps)
        last_time, last_step = time.monotonic(), first
        for index in range(first, config.steps):
            self.gan.set_learning_rates(index / config.steps)
            for name, value in step(index).items():
                self.unlogged.setdefault(name, []).append(value)
            done = index + 1
            if self.cpu is not None and (advice := self.cpu.advise()) is not None:
                self.say(advice)
            last = done == config.steps
            if done % self.config.log_steps == 0 or last:
                losses = self._means(self.unlogged)
                self.unlogged.clear()
                self._check(stage, done, losses)
                warned = warned or self._warn_if_at_chance(stage, done, losses)
                now = time.monotonic()
                speed = (done - last_step) * config.batch_size / max(now - last_time, 1e-9)
                last_time, last_step = now, done
                self._write_metrics(stage, done, losses)
                note = describe_losses(speed, losses)
            self.progress(stage, done, config.steps, note)
            if (done % self.config.grid_steps == 0 or last) and self.world.is_main:
                self.write_grid(f"{stage}-{done:06d}")
            late = self._is_late(done)
            if done % self.config.checkpoint_steps == 0 or last or late:
                self.save(stage, done)
                if late and not last:
                    return False
        self.resumed = None
        return True

    def report(self, stage: str, step: int, steps: int) -> None:
        """Report the progress of a part that has no losses to show."""
        self.progress(stage, step, steps, "")

    @property
    def is_over(self) -> bool:
        """Whether this process is to stop at the next checkpoint: the time limit has passed, or somebody asked."""
        return time.monotonic() > self.deadline or (self.stop is not None and self.stop.is_set())

    def _is_late(self, done: int) -> bool:
        """Whether to stop here; several processes agree on the time limit every `TIME_LIMIT_VOTE_STEPS`."""
        if self.world.size == 1:
            return self.is_over
        if self.deadline == float("inf") or done % TIME_LIMIT_VOTE_STEPS:
            return False
        return self.world.any_true(self.is_over, self.gan.device)

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
            raise self._diverged(stage, step, "the discriminator has won and gives no gradient")

    def _recall_losses(self, stage: str) -> None:
        """Read the last losses of a resumed stage from the metrics."""
        lines = [line for line in read_metrics(self.run_dir) if line["stage"] == stage]
        self.recent.extend(line["discriminator_loss"] for line in lines if "discriminator_loss" in line)

    def _warn_if_at_chance(self, stage: str, step: int, losses: Mapping[str, float]) -> bool:
        """Warn if the discriminator has been at chance for `COLLAPSE_LINES` log lines; returns whether it did."""
        if self.gan.adversarial.loss != "logistic" or "discriminator_loss" not in losses:
            return False
        self.recent.append(losses["discriminator_loss"])
        mean = sum(self.recent) / len(self.recent)
        if len(self.recent) < COLLAPSE_LINES or mean < CHANCE_FRACTION * CHANCE_LOSS:
            return False
        self.say(
            f"Step {step} of {stage}: the discriminator's loss was {mean:.2f} over the last {COLLAPSE_LINES} log "
            f"lines; one at chance has {CHANCE_LOSS:.2f}. If the newest picture in {self.run_dir / 'grids'} looks "
            f"poor, stop, and show it less augmentation ({stage}.adversarial.augment), give it more steps "
            f"({stage}.adversarial.discriminator_steps) or a smaller R1 penalty ({stage}.adversarial.r1_gamma)."
        )
        return True

    def _is_won(self, loss: float | None) -> bool:
        return loss is not None and self.gan.adversarial.loss == "logistic" and loss < COLLAPSE_LOSS

    def _is_suspect(self) -> bool:
        """Whether the discriminator seems to have won, by the last line or by the steps since."""
        since = self.unlogged.get("discriminator_loss")
        return self.quiet_lines > 0 or (since is not None and self._is_won(float(torch.stack(since).mean())))

    def _diverged(self, stage: str, step: int, what: str) -> DivergedError:
        """Delete the suspect checkpoints, so that the newest one is good; returns the error that says what is left."""
        if self.world.is_main:
            self.checkpoints.forget_suspects()
        good = self.checkpoints.newest_good()
        kept = (
            f"The last good checkpoint, step {good[1]} of {good[0]}, is kept in {self.run_dir / FOLDER}"
            if good
            else "There had been no good checkpoint yet"
        )
        return DivergedError(
            f"Distillation diverged at step {step} of {stage}: {what}. {kept}; "
            "try a lower learning rate or a larger R1 penalty in a new run."
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds."""
        gan, tensors = self.gan, dict(self.extra)
        if self.compiled:
            tensors["compiled"] = torch.ones(())
        tensors |= {f"unlogged.{name}": torch.stack(values) for name, values in self.unlogged.items()}
        tensors |= name_weights(gan.networks)
        tensors |= optimiser_tensors("generator_optimiser", gan.generator_optimiser)
        tensors |= optimiser_tensors("discriminator_optimiser", gan.discriminator_optimiser)
        return tensors

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put the networks and optimisers back to a checkpoint, and cut the metrics that came after it."""
        gan, tensors = self.gan, checkpoint.tensors
        check_finite(tensors)
        load_weights(gan.networks, tensors)
        load_optimiser("generator_optimiser", gan.generator_optimiser, tensors)
        load_optimiser("discriminator_optimiser", gan.discriminator_optimiser, tensors)
        self.quiet_lines = checkpoint.quiet_lines
        self.extra = {k: v for k, v in tensors.items() if k.startswith("classifier.")}
        self.unlogged = {k: list(v.to(gan.device)) for k, v in select_prefix(tensors, "unlogged.").items()}
        if self.world.is_main:
            cut_file(self.run_dir, METRICS_FILE, checkpoint.metrics_bytes)

    def save(self, stage: str, step: int) -> None:
        """Write a checkpoint and the curves; refuses to keep weights that are not finite."""
        tensors = self.tensors()
        try:
            check_finite(tensors)
        except ValueError as error:
            raise self._diverged(stage, step, str(error)) from None
        if self.world.is_main:
            # First what the checkpoint is ahead of: a run that resumes from it writes neither again.
            size = flush_file(self.run_dir, METRICS_FILE)
            draw_curves(self.run_dir)
            quiet, suspect = self.quiet_lines, self._is_suspect()
            self.checkpoints.save(stage, step, tensors, size, quiet_lines=quiet, suspect=suspect)
        self.world.barrier()

    def _write_metrics(self, stage: str, step: int, losses: Mapping[str, float]) -> None:
        if not self.world.is_main:
            return
        append_to_file(self.run_dir, METRICS_FILE, json.dumps({"stage": stage, "step": step, **losses}) + "\n")
        for receive in self.on_step:
            receive(stage, step, dict(losses))

    @torch.no_grad()
    def write_grid(self, name: str) -> None:
        """A PNG of samples of the moving average, one row per class (the first twenty), the same latents every time."""
        from dim.runtime.inspection.labelled_grid import draw_labelled_grid
        from dim.runtime.inspection.preview import encode_png

        network = self.gan.copy_ema_generator(batches=4)
        rows, columns = min(self.gan.data.num_classes, 20), 16
        labels = torch.arange(rows, device=self.gan.device).repeat_interleave(columns)
        generator = step_generator(self.gan.device, self.config.seed, "grid")
        shape = (columns, self.config.generator.latent_dim)
        latents = torch.randn(shape, device=self.gan.device, generator=generator).repeat(rows, 1)
        images = network(latents * self.config.latent_std, labels)
        pixels = to_pixels(images).permute(0, 2, 3, 1)
        images_RCHWC = pixels.cpu().numpy().reshape(rows, columns, *pixels.shape[1:])
        make_folder(self.run_dir, "grids")
        picture = draw_labelled_grid(images_RCHWC, self.record.data.classes[:rows])
        write_file(self.run_dir, f"grids/{name}.png", encode_png(picture))


def describe_losses(images_per_s: float, losses: Mapping[str, float]) -> str:
    """Write speed and losses beside a bar, `generator_loss` as "generator": nearly all of the values are losses."""
    named = (f"{name.removesuffix('_loss').replace('_', ' ')} {value:.3g}" for name, value in losses.items())
    return ", ".join((f"{images_per_s:,.0f} images/s", *named))
