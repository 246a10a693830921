"""Distil a dataset into a generator: both stages, from images in memory to a run directory that can be exported."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dim.config import DistillConfig
from dim.data.holdout import holdout_mask
from dim.data.load import ImageSet
from dim.distillation.choices import choose_deployment
from dim.distillation.game import Game
from dim.distillation.pool import KeptPool
from dim.distillation.session import Progress, Session
from dim.distillation.stage1 import train_gan
from dim.distillation.stage2 import build_pool, match, matched_group_size, wants_pool
from dim.distillation.teacher import train_teacher
from dim.execution.allocator import keep_freed_memory
from dim.execution.compiled import compiler_for, compiling_explained
from dim.execution.cuda_graphs import own_stream
from dim.execution.device_data import DeviceData
from dim.execution.distributed import World, process_group
from dim.execution.threads import cpu_threads
from dim.networks.classifiers import build_classifier
from dim.runs.checkpoint import CheckpointFolder, write_json, write_tensors
from dim.runs.folder import explained, held, unfinished
from dim.runs.record import DataRecord, RunRecord, read_run_record
from dim.runs.take_over import find_stage1, take_over
from dim.runtime.errors import BadValueError, DeviceError, RunError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a call of `distill` achieved."""

    run_dir: Path
    finished: bool
    """False if the time limit stopped it at a checkpoint; call again with `resume`."""


def choose_device(name: str) -> torch.device:
    """The device to distil on.

    Args:
        name: `auto` (a GPU if there is one), `cpu` or `gpu`.

    Raises:
        BadValueError: another name.
        DeviceError: `gpu` where torch sees none.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise BadValueError(f"There is no device named {name!r}: choose auto, cpu or gpu.")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            "torch sees no CUDA GPU here: use --device cpu, or install a CUDA build of torch and a driver."
        )
    return torch.device("cuda", 0)


def distill(
    config: DistillConfig,
    data: ImageSet,
    run_dir: Path,
    *,
    resume: bool = False,
    from_stage1: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    time_limit_s: float | None = None,
    tensorboard: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[Progress], None] = lambda report: None,
) -> Outcome:
    """Distil `data` into a generator (DiM, arXiv 2303.04707).

    Args:
        config: what to do; see `dim.presets.preset`.
        data: the labelled images.
        run_dir: made if missing; must be new or empty unless `resume`.
        resume: go on from the newest checkpoint; on the CPU the result is that of an undisturbed run, bit for bit.
        from_stage1: another run whose finished stage 1 this one begins with, and whose kept pool, where it is
            configured alike; on the CPU the result is that of a run from scratch, bit for bit. A begun run goes on.
        device: `auto`, `cpu` or `gpu`.
        threads: of the CPU; None for as many as torch is set to. Another number may round differently.
        time_limit_s: stop cleanly at the first checkpoint after so many seconds.
        tensorboard: write event files to `run_dir/tensorboard` as well.
        say: receives lines for the user.
        progress: receives a report after every step.

    Returns:
        The run directory, and whether it is finished.

    Raises:
        BadValueError: the configuration does not fit the data.
        RunError: the run directory cannot be used, is used by another process, or the disk refused; `from_stage1` has
            no finished stage 1, or another than this run would train.
        DivergedError: training broke down; the last good checkpoint is kept.
        MissingExtraError: `tensorboard` is asked for and not installed.
        DeviceError: there is no such device, or `config.compile` is `on` and nothing can be compiled.
    """
    started = time.monotonic()
    torch_device = choose_device(device)
    writer = _summary_writer() if tensorboard else None
    with cpu_threads(threads), process_group(torch_device.type) as world, explained(run_dir), ExitStack() as holding:
        if torch_device.type == "cuda":
            torch_device = torch.device("cuda", world.local_rank)
            torch.backends.cudnn.benchmark = True
            holding.enter_context(own_stream(torch_device))
        else:
            keep_freed_memory()
        _check_fit(config, data, world)
        compiler_for(config, torch_device, world)  # so that a missing compiler is told before anything is made
        record = describe_run(config, data)
        folder, final = CheckpointFolder(run_dir / "checkpoints", record.fingerprint()), "generator.safetensors"
        if world.is_main:
            begun = (run_dir / final).exists() or not folder.is_empty
            source = None if from_stage1 is None or begun else find_stage1(from_stage1, record)
            _prepare(run_dir, record, resume)
            holding.enter_context(held(run_dir))
            if source is not None:
                take_over(source, run_dir, folder, pool=wants_pool(config), say=say)
        world.barrier()
        if (run_dir / final).exists():
            say(f"{run_dir} is finished already.")
            return Outcome(run_dir=run_dir, finished=True)
        device_data, holdout = _on_device(config, data, torch_device)
        game = Game(config, record.data.images, device_data, world)
        session = Session(
            run_dir=run_dir,
            record=record,
            game=game,
            world=world,
            checkpoints=folder,
            say=say if world.is_main else lambda line: None,
            progress=progress if world.is_main else lambda report: None,
            holdout=holdout,
            deadline=started + time_limit_s if time_limit_s is not None else float("inf"),
        )
        if writer is not None and world.is_main:
            board = TensorBoardLog(session.metrics_path, run_dir / "tensorboard", writer)
            holding.callback(board.close)
            session.log = board
        session.resumed = folder.newest(session.say)
        if world.is_main:
            folder.prune()
        if session.resumed is not None:
            session.say(f"Resuming at step {session.resumed.step} of {session.resumed.stage}.")
        elif world.is_main:
            session.metrics_path.unlink(missing_ok=True)
        with compiling_explained(torch_device):
            finished = _run_stages(session)
        world.barrier()  # the others wait for what the first process chooses and writes alone
    if not finished:
        say(f"Stopped at a checkpoint after the time limit; go on with --resume --out {run_dir}.")
    return Outcome(run_dir=run_dir, finished=finished)


def _run_stages(session: Session) -> bool:
    run_dir, game = session.run_dir, session.game
    if session.resumed is None or session.resumed.stage == "stage1":
        if not train_gan(session):
            return False
        if session.world.is_main:
            _write_generator(run_dir / "generator-stage1.safetensors", game.deployed_generator())
    pool = build_pool(session) if wants_pool(session.config) else None
    if (pool is None and wants_pool(session.config)) or not match(session, pool):
        return False
    finished = True
    if session.world.is_main:
        if isinstance(pool, KeptPool) and session.config.wants_choices:
            finished = choose_deployment(session, pool)
        if finished and session.config.deployment.teacher:
            finished = train_teacher(session)
    if session.world.agree(not finished, game.device):
        return False
    if session.world.is_main:
        _write_generator(run_dir / "generator.safetensors", game.deployed_generator())
        session.say(f"Finished: {run_dir}. Next:  dim export {run_dir}")
    return True


def _on_device(config: DistillConfig, data: ImageSet, device: torch.device) -> tuple[DeviceData, DeviceData | None]:
    """The images to train on, and those held out where something is chosen by them."""
    images, labels, num_classes = data.train_images, data.train_labels, len(data.classes)
    if len(config.deployment.latent_stds) < 2:
        return DeviceData(images, labels, num_classes, device), None
    held = holdout_mask(labels, num_classes, config.deployment.holdout, config.seed)
    return (
        DeviceData(images[~held], labels[~held], num_classes, device),
        DeviceData(images[held], labels[held], num_classes, device),
    )


def describe_run(config: DistillConfig, data: ImageSet) -> RunRecord:
    """The record of a run: its configuration, and its data without the images."""
    return RunRecord(
        config=config,
        data=DataRecord(
            name=data.name,
            classes=data.classes,
            class_counts=data.class_counts,
            mean=data.mean,
            std=data.std,
            image_px=data.height,
            channels=data.channels,
            licence=data.licence,
            note=data.note,
            fingerprint=data.fingerprint(),
            split_seed=data.split_seed,
        ),
    )


def _check_fit(config: DistillConfig, data: ImageSet, world: World) -> None:
    wanted = {config.deployment.teacher} - {""}
    if wants_pool(config):
        wanted |= set(config.pool.architectures)
    with torch.device("meta"):
        for arch in sorted(wanted):  # so that an unknown name is told now, not after stage 1
            build_classifier(arch, len(data.classes), data.channels, data.height)
    group = config.discriminator.group_size
    for name, stage in (("stage1", config.stage1), ("stage2", config.stage2)):
        if stage.batch_size % (group * world.size):
            raise BadValueError(
                f"{name}.batch_size is {stage.batch_size}; it must be a multiple of {group * world.size} "
                f"({world.size} processes, groups of {group})."
            )
    group = matched_group_size(config)
    if config.stage2.steps and config.stage2.batch_size % (group * world.size):
        raise BadValueError(
            f"stage2.batch_size is {config.stage2.batch_size}; it must be a multiple of {group * world.size} "
            f"({world.size} processes, matched in groups of {group}): change it, or set matching.classes_per_step, the "
            f"least number of groups, to {world.size} or a multiple of it."
        )
    if config.generator.kind == "paper":
        if data.height % 8 and data.height != 28:
            raise BadValueError(
                f"The published generator draws multiples of 8 and 28 pixels, not {data.height}: "
                "choose such a --size, or another preset."
            )
        if config.generator.latent_dim <= len(data.classes):
            raise BadValueError(
                f"generator.latent_dim is {config.generator.latent_dim}; the published generator overwrites one latent "
                f"per class, so it must exceed {len(data.classes)}."
            )


def _prepare(run_dir: Path, record: RunRecord, resume: bool) -> None:
    """Make the run directory, or check that it holds the same run."""
    config_path = run_dir / "config.json"
    if run_dir.exists() and not run_dir.is_dir():
        raise RunError(f"{run_dir} is a file: choose another --out.")
    if config_path.exists():
        if not resume:
            raise RunError(f"{run_dir} already holds a run: add --resume to go on with it, or choose another --out.")
        try:
            old = read_run_record(run_dir)
        except RunError:
            raise RunError(f"{config_path} is damaged or of another version of dim: choose another --out.") from None
        before, now = old.fields_that_affect_weights(), record.fields_that_affect_weights()
        if before != now:
            differing = sorted(k for k in before | now if before.get(k) != now.get(k))
            raise RunError(
                f"{run_dir} holds a run of another configuration ({', '.join(differing)} differ): "
                "resume with the options of the first call, or choose another --out."
            )
        return
    if run_dir.exists() and set(run_dir.iterdir()) - set(unfinished(run_dir)):
        raise RunError(f"{run_dir} is not empty and holds no run: choose another --out.")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Cannot make {run_dir}: {error.strerror}.") from error
    write_json(config_path, record.to_dict())


def _write_generator(path: Path, network: nn.Module) -> None:
    write_tensors(path, network.state_dict())


def _summary_writer() -> Callable[[str], Any]:
    from dim.runtime.errors import MissingExtraError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("tensorboard", "tensorboard", "write TensorBoard event files") from None
    return SummaryWriter


class TensorBoardLog:
    """Event files that hold what `metrics.jsonl` holds, also where a run was resumed from before its last lines."""

    def __init__(self, metrics_path: Path, folder: Path, open_writer: Callable[[str], Any]) -> None:
        self._metrics_path = metrics_path
        self._folder = folder
        self._open_writer = open_writer
        self._writer: Any = None

    def __call__(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Add a line that the metrics hold already; the first time, every line before it."""
        if self._writer is None:
            for events in self._folder.glob("events.out.tfevents.*"):
                events.unlink()
            self._writer = self._open_writer(str(self._folder))
            for line in self._metrics_path.read_text().splitlines():
                self._add(**json.loads(line))
        else:
            self._add(stage=stage, step=step, **values)
        self._writer.flush()

    def _add(self, *, stage: str, step: int, **values: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """End the event file."""
        if self._writer is not None:
            self._writer.close()


__all__ = ["Outcome", "choose_device", "describe_run", "distill"]
