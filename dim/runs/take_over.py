"""Starts a run from the finished stage 1 of another, and from its pool if the pool's settings are the same.

Stage 1 does not depend on the settings of stage 2 and of the choices after it. So runs that differ only there can share
it: on the CPU the result equals a run from scratch, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dim.runs.checkpoint import DAMAGED_ERRORS, Checkpoint, CheckpointFolder, name_checkpoint, read_checkpoint
from dim.runs.curves import draw_curves
from dim.runs.files import list_names, make_folder, read_file, write_file, write_resume_command
from dim.runs.metrics import METRICS_FILE
from dim.runs.record import RunRecord, read_run_record
from dim.runs.tensors import read_tensors, write_tensors
from dim.runtime.errors import BadValueError, RunError

STAGE1_FIELDS = ("seed", "latent_std", "autocast", "generator", "discriminator", "stage1")
"""Fields of the configuration that decide stage 1, beside the data and what is held out of them."""
POOL_FILES = ("pool.safetensors", "pool.json")
"""The files of a finished pool, the last one written last."""


@dataclass(frozen=True, kw_only=True)
class Stage1Source:
    """A finished stage 1 that another run may begin with."""

    run_dir: Path
    checkpoint: Checkpoint
    """Of its last step."""
    has_pool: bool
    """Whether its pool is the one that the other run would train."""


def find_stage1(source: Path, record: RunRecord) -> Stage1Source:
    """Find the stage 1 that the run of `record` would train in another run, finished or not.

    Raises:
        BadValueError: the run has no stage 1.
        RunError: the other is missing or damaged, of other data or another configuration, or has not finished stage 1.
    """
    steps = record.config.stage1.steps
    if not steps:
        raise BadValueError(f"stage1.steps is 0, so there is no stage 1 to take from {source}.")
    config_path = source / "config.json"
    if not config_path.exists():
        raise RunError(f"There is no run at {source} to take stage 1 from: it has no config.json.")
    try:
        other = read_run_record(source)
    except RunError:
        raise RunError(
            f"{config_path} is damaged or of another version of dim: take stage 1 from another run."
        ) from None
    _check_same(source, other, record)
    name = name_checkpoint("stage1", steps)
    path = source / name
    if not path.exists() and (source / "generator-stage1.safetensors").exists():
        raise RunError(f"{source} has lost the end of its stage 1, {path.name}: take it from another run, or train it.")
    if not path.exists():
        raise RunError(
            f"{source} has not finished stage 1: finish it with  {write_resume_command(source)}  or take another run."
        )
    try:
        checkpoint = read_checkpoint(source, name)
    except DAMAGED_ERRORS as error:
        raise RunError(
            f"{path} is damaged ({str(error).rstrip('.')}): take stage 1 from another run, or train it."
        ) from None
    same_pool = record.config.pool.kind == "kept" and other.config.pool == record.config.pool
    has_pool = same_pool and all((source / name).exists() for name in POOL_FILES)
    return Stage1Source(run_dir=source, checkpoint=checkpoint, has_pool=has_pool)


def _check_same(source: Path, other: RunRecord, record: RunRecord) -> None:
    theirs, ours = other.data.fingerprint, record.data.fingerprint
    if theirs != ours:
        raise RunError(
            f"{source} was distilled from other data (SHA-256 {theirs[:12]}, here {ours[:12]}): "
            "take stage 1 from a run of the same images."
        )
    differing = [name for name in STAGE1_FIELDS if getattr(other.config, name) != getattr(record.config, name)]
    if _holdout_fraction(other) != _holdout_fraction(record):
        differing.append("deployment.holdout")
    if differing:
        raise RunError(
            f"{source} has another stage 1 ({', '.join(differing)} differ): "
            "take it from a run with the same settings, or train it."
        )


def _holdout_fraction(record: RunRecord) -> float:
    """The part of the training images that nothing is trained on: none where no latent std is chosen."""
    deployment = record.config.deployment
    return deployment.holdout if len(deployment.latent_stds) > 1 else 0.0


def take_over(
    source: Stage1Source, run_dir: Path, folder: CheckpointFolder, *, pool: bool, say: Callable[[str], None]
) -> None:
    """Copy the files of a finished stage 1 into a run that has not begun.

    Args:
        source: of `find_stage1`.
        run_dir: the run, which this process has locked.
        folder: its checkpoints; the checkpoint is written last, so that a killed call is made again.
        pool: whether the run wants a pool.

    Raises:
        RunError: the pool is damaged, or the disk refused.
    """
    with_pool = pool and source.has_pool
    if with_pool:
        write_tensors(run_dir, POOL_FILES[0], read_tensors(source.run_dir, POOL_FILES[0]))
        write_file(run_dir, POOL_FILES[1], read_file(source.run_dir, POOL_FILES[1]))
    end, lines = source.checkpoint, b""
    with suppress(FileNotFoundError):
        lines = read_file(source.run_dir, METRICS_FILE, end.metrics_bytes)
    write_file(run_dir, METRICS_FILE, lines)
    draw_curves(run_dir)
    make_folder(run_dir, "grids")
    for name in list_names(source.run_dir, "grids"):
        if name.startswith("stage1-") and name.endswith(".png"):
            write_file(run_dir, f"grids/{name}", read_file(source.run_dir, f"grids/{name}"))
    folder.save(end.stage, end.step, end.tensors, len(lines), quiet_lines=end.quiet_lines, suspect=end.suspect)
    say(f"Stage 1{' and the pool are' if with_pool else ' is'} taken from {source.run_dir}.")
