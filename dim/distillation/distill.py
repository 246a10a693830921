"""Distil a dataset into a generator: both stages, from images in memory to a run directory that can be exported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dim.config import DistillConfig
from dim.data.holdout import holdout_mask
from dim.data.load import ImageSet
from dim.distillation.adversarial import AdversarialTraining
from dim.distillation.certainty_filter import accept_candidates
from dim.distillation.check_config import check_config
from dim.distillation.choices import choose_latents
from dim.distillation.pool import KeptPool, wants_compiling
from dim.distillation.session import OnStep, Session
from dim.distillation.stage1 import train_gan
from dim.distillation.stage2 import build_pool, train_with_matching, wants_pool
from dim.distillation.teacher import train_teacher
from dim.execution.compiled import can_compile
from dim.execution.device import choose_device, use_device
from dim.execution.device_data import DeviceData
from dim.execution.distributed import join_process_group
from dim.execution.large_images import select_images
from dim.execution.threads import CpuMeter, use_cpu_threads
from dim.presets import preset
from dim.runs.checkpoint import CheckpointFolder
from dim.runs.files import write_resume_command
from dim.runs.folder import (
    describe_nothing_to_resume,
    explain_os_errors,
    lock_run,
    prepare_run_folder,
)
from dim.runs.record import DataPlaces, DataRecord, RunRecord, keep_data_places
from dim.runs.report import write_run_report
from dim.runs.take_over import find_stage1, take_over
from dim.runs.tensorboard import TensorBoardLog, check_log
from dim.runs.tensors import write_tensors
from dim.runtime.errors import BadValueError
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import ProgressOption, show_progress

GENERATOR_FILE = "generator.safetensors"
"""The file that says a run is finished."""


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """What a call of `distill` achieved."""

    run_dir: Path
    """The run directory, which `dim.export_run` takes."""
    finished: bool
    """False if it was stopped at a checkpoint; call again with `resume`."""


def distill(
    data: ImageSet,
    config: DistillConfig | str = "small",
    out: Path | str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    from_stage1: Path | str | None = None,
    device: str = "auto",
    threads: int | None = None,
    time_limit_s: float | None = None,
    stop: threading.Event | None = None,
    log: str = "jsonl",
    on_step: OnStep | None = None,
    say: Callable[[str], None] = say_to_log,
    progress: ProgressOption = None,
) -> DistillResult:
    """Distil a labelled image dataset into a generator (DiM, arXiv 2303.04707).

    Args:
        data: the images, as `load_data` returns them.
        config: all settings, or the name of a preset: `tiny`, `small`, `best` or `paper`.
        out: the run directory, made if missing; new or empty unless `resume`. None takes `runs/` and the data's name.
        overrides: fields of a preset to replace, nested ones with dots: `{"seed": 1, "stage1.steps": 2000}`.
        resume: go on from the newest checkpoint; on the CPU the result is that of an undisturbed run, bit for bit.
        from_stage1: another run whose finished stage 1 this one begins with, and whose kept pool where it is configured
            alike; on the CPU the result is that of a run from scratch, bit for bit. A run that has begun goes on.
        device: `auto` (a GPU if there is one), `cpu` or `gpu`.
        threads: of the CPU; None for as many as torch is set to. Another number may round differently.
        time_limit_s: stop after so many seconds, at a checkpoint after the step under way.
        stop: once this event is set, stop in the same way; for runs of one process.
        log: "jsonl" for `metrics.jsonl` in the run directory alone; "tensorboard" for event files in its folder
            `tensorboard/` too.
        on_step: called as `on_step(stage, step, values)` with the values of every line of `metrics.jsonl`, in the first
            process alone. After a resume the steps since the checkpoint come again.
        say: receives lines for the user.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`. A report after every step.

    Returns:
        The run directory, and whether it is finished.

    Raises:
        BadValueError: an unknown preset, field or log, or a configuration that does not fit the data.
        RunError: the run directory cannot be used, is used by another process, or the disk refused; `from_stage1` has
            no finished stage 1, or another than this run would train.
        DivergedError: training broke down; the last good checkpoint is kept.
        MissingExtraError: TensorBoard is asked for and not installed.
        DeviceError: there is no such device, or `config.compile` is `on` and nothing can be compiled.

    Examples:
        >>> distill(load_data("digits"), "tiny", "runs/digits")
        DistillResult(run_dir=PosixPath('runs/digits'), finished=True)
    """
    started = time.monotonic()
    if isinstance(config, str):
        config = preset(config, data=data, overrides=overrides)
    elif overrides:
        raise BadValueError("overrides belong to the name of a preset; a whole configuration needs none.")
    run_dir = Path("runs", data.name) if out is None else Path(out)
    chosen_device = choose_device(device)
    check_log(log)
    events = TensorBoardLog(run_dir) if log == "tensorboard" else None
    with ExitStack() as stack:
        stack.enter_context(use_cpu_threads(threads))
        world = stack.enter_context(join_process_group(chosen_device.type))
        stack.enter_context(explain_os_errors(run_dir))
        torch_device = stack.enter_context(use_device(chosen_device, world))
        record = describe_run(config, data)
        check_config(config, record.data.images, world)
        compiled = wants_compiling(config) and can_compile(config.compile, torch_device, say)
        checkpoints = CheckpointFolder(run_dir, record.fingerprint())
        if world.is_main:
            begun = (run_dir / GENERATOR_FILE).exists() or not checkpoints.is_empty
            source = None if from_stage1 is None or begun else find_stage1(Path(from_stage1), record)
            # One that came first has its files here; another would take the folder for its own.
            stack.enter_context(lock_run(run_dir))
            note = describe_nothing_to_resume(run_dir) if resume and not begun else None
            prepare_run_folder(run_dir, record, resume)
            keep_data_places(run_dir, DataPlaces(places=data.places, data_dir=data.data_dir))
            if note is not None:
                say(note)
            if source is not None:
                take_over(source, run_dir, checkpoints, pool=wants_pool(config), say=say)
        world.barrier()
        if (run_dir / GENERATOR_FILE).exists():
            say(f"{run_dir} is finished already.")
            return DistillResult(run_dir=run_dir, finished=True)
        device_data, holdout = _move_to_device(config, data, torch_device)
        session = Session(
            run_dir=run_dir,
            record=record,
            gan=AdversarialTraining(config, record.data.images, device_data, world),
            world=world,
            checkpoints=checkpoints,
            say=say if world.is_main else lambda line: None,
            progress=stack.enter_context(show_progress(progress if world.is_main else False)),
            compiled=compiled,
            holdout=holdout,
            cpu=CpuMeter(torch.get_num_threads()) if torch_device.type == "cpu" else None,
            stop=stop,
            deadline=started + time_limit_s if time_limit_s is not None else float("inf"),
        )
        if events is not None and world.is_main:
            session.on_step.append(events)
            stack.callback(events.close)
        if on_step is not None:
            session.on_step.append(on_step)
        session.load_newest_checkpoint()
        finished = _run_stages(session)
        if world.is_main:
            session.report("report", 0, 1)
            write_run_report(run_dir, record, finished)
            session.report("report", 1, 1)
        world.barrier()  # the others wait for what the first process chooses and writes alone
    if not finished:
        say(f"Stopped at a checkpoint; go on with  {write_resume_command(run_dir)}")
    return DistillResult(run_dir=run_dir, finished=finished)


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
            reading=data.options.changes(),
        ),
    )


def _move_to_device(
    config: DistillConfig, data: ImageSet, device: torch.device
) -> tuple[DeviceData, DeviceData | None]:
    """The images to train on, and those held out where a latent std is chosen by them."""
    images, labels, num_classes = data.train_images, data.train_labels, len(data.classes)
    if len(config.deployment.latent_stds) < 2:
        return DeviceData(images, labels, num_classes, device), None
    held = holdout_mask(labels, num_classes, config.deployment.holdout, config.seed)
    return (
        DeviceData(select_images(images, ~held), labels[~held], num_classes, device),
        DeviceData(select_images(images, held), labels[held], num_classes, device),
    )


def _run_stages(session: Session) -> bool:
    """Run what is left of a run; returns False if it was stopped at a checkpoint."""
    run_dir, gan, config = session.run_dir, session.gan, session.config
    if session.resumed is None or session.resumed.stage == "stage1":
        if not train_gan(session):
            return False
        if session.world.is_main:
            write_tensors(run_dir, "generator-stage1.safetensors", gan.copy_ema_generator().state_dict())
    pool = build_pool(session) if wants_pool(config) else None
    if (pool is None and wants_pool(config)) or not train_with_matching(session, pool):
        return False
    finished = True
    if session.world.is_main:
        if isinstance(pool, KeptPool) and config.wants_choices:
            finished = choose_latents(session, pool)
        if finished and config.deployment.teacher:
            finished = train_teacher(session)
        if finished and isinstance(pool, KeptPool) and config.filter.candidates:
            finished = accept_candidates(session, pool)
    if session.world.any_true(not finished, gan.device):
        return False
    if session.world.is_main:
        write_tensors(run_dir, GENERATOR_FILE, gan.copy_ema_generator().state_dict())
        session.say(f"Finished: {run_dir}. Next:  dim export {run_dir}")
    return True
