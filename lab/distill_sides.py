"""Both sides of `lab/distill_speed.py`, step by step: dim's own stages, and the published recipe at the same sizes."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dim.config import DistillConfig
from dim.distillation.adversarial import AdversarialTraining
from dim.distillation.pool import KeptPool, PoolMember, prepare_pool
from dim.distillation.session import Session
from dim.distillation.stage1 import train_gan
from dim.distillation.stage2 import train_with_matching
from dim.execution.cuda_graphs import MIN_REPLAYS, WARMUP_STEPS
from dim.execution.device_data import DeviceData
from dim.execution.distributed import World
from dim.networks.classifiers import build_classifier
from dim.networks.discriminator import ProjectionDiscriminator, build_discriminator
from dim.networks.generator import generator_from_dict
from dim.runs.checkpoint import CheckpointFolder
from dim.runs.record import DataRecord, RunRecord
from dim.runtime.progress.show import ignore_progress
from lab.published_recipe import PublishedRecipe, TwoHeads

NUM_CLASSES, PER_CLASS = 10, 2000
"""Of the random images."""

Seconds = tuple[float, float]
"""Processor time and wall time."""
RIVALS = {"plain": "recipe", "tuned": "recipe, tuned"}
"""What the published recipe is called, by whether its networks and optimisers lie and are fused as dim's are."""


class Clock:
    """Both clocks, read when the device has nothing left to do."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> Seconds:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time(), time.perf_counter()

    def time(self, step: Callable[[], object]) -> Seconds:
        """Seconds of one call."""
        before = self.now()
        step()
        return plus(self.now(), before, -1)


def plus(a: Seconds, b: Seconds, times: float = 1.0) -> Seconds:
    """a + times * b on each clock."""
    return a[0] + times * b[0], a[1] + times * b[1]


def mean(times: Sequence[Seconds]) -> Seconds:
    """The mean of each clock."""
    return statistics.fmean(t[0] for t in times), statistics.fmean(t[1] for t in times)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side took in one round."""

    stage1_step: Seconds
    stage2_step: Seconds
    """Mean over the architectures; the recipe's includes its sixteen classifier steps."""
    pool: Seconds = (0.0, 0.0)
    """The whole preparation of the kept pool; on a GPU also what recording all steps of stage 2 adds to them."""


class CapturingSession(Session):
    """A session whose stages hand out their step instead of running it."""

    step: Callable[[int], object]

    def run_stage(self, stage: str, config: object, step: Callable[[int], object]) -> bool:
        self.step = step
        return False


class ChosenPool(KeptPool):
    """A pool whose next member is set from outside."""

    chosen: PoolMember

    def member_for(self, step: int) -> PoolMember:
        return self.chosen


class Ours:
    """Both stages of dim, step by step, by the code that distils.

    Args:
        config: its `autocast` is the precision.
        shape: `num_classes`, `image_px` and `channels`.
        data: on the device.
        folder: for the files of the pool's preparation.
    """

    def __init__(self, config: DistillConfig, shape: dict[str, int], data: DeviceData, folder: Path) -> None:
        self.clock, self.folder, self.ages = Clock(data.device), folder, config.pool.ages
        # On a GPU, the first steps of a kind: those before the recording, and that one.
        self.warm_up = WARMUP_STEPS + 1 if data.device.type == "cuda" and config.graphs == "auto" else 0
        # A classifier's steps cost the same at every age, so a few of them tell what all of them cost.
        config = replace(config, pool=replace(config.pool, ages=(4 + (self.warm_up and self.warm_up + MIN_REPLAYS),)))
        channels = shape["channels"]
        about = DataRecord(
            name="noise",
            classes=tuple(map(str, range(NUM_CLASSES))),
            class_counts=(PER_CLASS,) * NUM_CLASSES,
            mean=(0.5,) * channels,
            std=(0.3,) * channels,
            image_px=shape["image_px"],
            channels=channels,
            licence="",
            note="",
            fingerprint="",
        )
        record = RunRecord(config=config, data=about)
        self.session = CapturingSession(
            run_dir=folder,
            record=record,
            gan=AdversarialTraining(config, record.data.images, data, World()),
            world=World(),
            checkpoints=CheckpointFolder(folder, ""),
            say=lambda line: None,
            progress=ignore_progress,
        )

    def turn(self, number: int) -> Turn:
        """Time the pool's classifiers, then a few steps of both stages."""
        members, pool = self._prepare_pool(number)
        adversarial = self.session.config.stage1.adversarial
        penalised = adversarial.r1_every * number
        plain = penalised + 1  # if the penalty is lazy, this step has none
        train_gan(self.session)
        self._warm(plain)
        stage1 = mean([self.clock.time(lambda: self.session.step(plain)) for _ in range(2)])
        penalty = (0.0, 0.0)
        if adversarial.r1_gamma and adversarial.r1_every > 1:
            self._warm(penalised)
            full = self.clock.time(lambda: self.session.step(penalised))
            penalty = plus(full, stage1, -1)
        kept = ChosenPool(members, 0)
        train_with_matching(self.session, kept)
        stage2, recording = [], (0.0, 0.0)
        for kept.chosen in members:
            first = self._warm(plain)
            stage2.append(self.clock.time(lambda: self.session.step(plain)))
            recording = plus(recording, plus(first, stage2[-1], -self.warm_up))
        # Penalised steps are recorded as well, for every age of every architecture.
        kinds = len(self.ages) * (2 if adversarial.r1_gamma and adversarial.r1_every > 1 else 1)
        pool = plus(pool, recording, kinds)
        share = 1 - self.session.gan.penalty_pattern_frequency(plain)
        return Turn(
            stage1_step=plus(stage1, penalty, share),
            stage2_step=plus(mean(stage2), penalty, share),
            pool=pool,
        )

    def _warm(self, step: int) -> Seconds:
        """Take the steps until one is recorded, and that one; returns their time."""
        whole = (0.0, 0.0)
        for _ in range(self.warm_up):
            whole = plus(whole, self.clock.time(lambda: self.session.step(step)))
        return whole

    def _prepare_pool(self, number: int) -> tuple[list[PoolMember], Seconds]:
        """A few steps of every classifier, and from them the seconds of all steps to the last age."""
        times: dict[int, list[Seconds]] = {}
        last, taken = self.clock.now(), 0

        def lap(what: str, done: float, total: float | None, note: str) -> None:
            nonlocal last, taken
            if int(done) > taken:  # else a classifier begins
                now, number = self.clock.now(), taken // self.session.config.pool.ages[-1]
                times.setdefault(number, []).append(plus(now, last, -1))
            last, taken = self.clock.now(), int(done)

        self.session.progress, self.session.run_dir = lap, self.folder / str(number)
        self.session.run_dir.mkdir(parents=True)
        pool = prepare_pool(self.session)
        assert pool is not None  # there is no time limit
        # The first step of each does what is done once.
        whole = (0.0, 0.0)
        for laps in times.values():
            whole = plus(whole, mean(laps[1 + self.warm_up :]), self.ages[-1])
        return pool.members, whole


class Theirs:
    """The published recipe at the same sizes.

    Args:
        config: whose networks, classifiers and augmentation to take.
        shape: `num_classes`, `image_px` and `channels`.
        data: on the device.
        precision: `fp32` or `bf16`.
        tuned: see `PublishedRecipe`.
    """

    def __init__(
        self, config: DistillConfig, shape: dict[str, int], data: DeviceData, precision: str, tuned: bool = False
    ) -> None:
        self.clock = Clock(data.device)
        size = replace(config.discriminator, group_size=1)
        critic = build_discriminator(size, **shape)
        self.recipe = PublishedRecipe(
            generator_from_dict({**asdict(config.generator), **shape}),
            TwoHeads(critic, NUM_CLASSES) if isinstance(critic, ProjectionDiscriminator) else critic,
            [
                build_classifier(name, NUM_CLASSES, shape["channels"], shape["image_px"], config.pool.width or None)
                for name in config.pool.architectures
            ],
            data.images.gather(torch.arange(len(data.labels_N), device=data.device)),
            data.labels_N,
            batch=config.stage2.batch_size,
            augment_policy=config.pool.augment,
            bf16=precision == "bf16",
            tuned=tuned,
        )

    def turn(self, number: int) -> Turn:
        """Time two steps of stage 1 and one of stage 2 with every classifier."""
        stage1 = [self.clock.time(self.recipe.stage1_step) for _ in range(2)]
        stage2 = [self.clock.time(lambda n=n: self.recipe.stage2_step(n)) for n in range(len(self.recipe.classifiers))]
        return Turn(stage1_step=mean(stage1), stage2_step=mean(stage2))


def measure(
    config: DistillConfig,
    shape: dict[str, int],
    device: torch.device,
    *,
    precisions: Sequence[str],
    rounds: int,
    rivals: Sequence[str] = tuple(RIVALS),
) -> dict[tuple[str, str], list[Turn]]:
    """Take turns.

    Args:
        config: of the preset, with the batch to measure.
        shape: `num_classes`, `image_px` and `channels`.
        device: where both sides run.
        precisions: `fp32`, `bf16`.
        rounds: after one that is not counted.
        rivals: of `RIVALS`.

    Returns:
        The turns of every (side, precision), one per round.
    """
    rng = np.random.default_rng(0)
    pixels = (NUM_CLASSES * PER_CLASS, shape["image_px"], shape["image_px"], shape["channels"])
    labels = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
    data = DeviceData(rng.integers(0, 256, pixels, dtype=np.uint8), labels, NUM_CLASSES, device)
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[tuple[str, str], Ours | Theirs] = {}
        for precision in precisions:
            ours = replace(config, autocast="bf16" if precision == "bf16" else "off")
            sides["ours", precision] = Ours(ours, shape, data, Path(folder, precision))
            for rival in rivals:
                sides[RIVALS[rival], precision] = Theirs(config, shape, data, precision, tuned=rival == "tuned")
        turns: dict[tuple[str, str], list[Turn]] = {key: [] for key in sides}
        for number in range(rounds + 1):
            for key, side in sides.items():
                print(f"round {number} of {rounds}: {' '.join(key)}", file=sys.stderr, flush=True)
                turn = side.turn(number)
                if number:  # the first one warms up
                    turns[key].append(turn)
    return turns
