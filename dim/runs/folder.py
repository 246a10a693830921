"""A run's folder: made or checked, locked while it is written, with errors of the disk as messages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dim.runs.checkpoint import list_checkpoints
from dim.runs.files import list_names, remove_file, write_json, write_resume_command
from dim.runs.record import CONFIG_FILE, RunRecord, read_run_record, refuse_second_run
from dim.runtime.errors import RunError

FOLDERS = (".", "checkpoints", "grids")
"""Where a run keeps files of its own."""


def prepare_run_folder(run_dir: Path, record: RunRecord, resume: bool) -> None:
    """Write the `config.json` of a new run, or check that the folder holds the same run; sweep what a killed one left.

    Args:
        run_dir: locked by this process; empty, or with a run in it where `resume`.
        record: of the run.
        resume: whether a run may be there already.

    Raises:
        RunError: the folder holds something else, another run, or a run that is not to be resumed; or a link lies in
            it, which could lead what is written elsewhere.
    """
    config_path = run_dir / CONFIG_FILE
    if not resume:
        refuse_second_run(run_dir)
    if config_path.exists():
        before, now = read_begun_run(run_dir).fields_that_affect_weights(), record.fields_that_affect_weights()
        if before != now:
            differing = sorted(k for k in before | now if before.get(k) != now.get(k))
            raise RunError(
                f"{run_dir} holds a run of another configuration ({', '.join(differing)} differ): "
                "leave these options out, because --resume takes those of the first call; or choose another --out."
            )
        _sweep(run_dir)
        return
    if set(list_names(run_dir)) - set(list_leftovers(run_dir, ".")):
        raise RunError(f"{run_dir} is not empty and holds no run: choose another --out.")
    _sweep(run_dir)
    write_json(run_dir, CONFIG_FILE, record.to_dict())


def read_begun_run(run_dir: Path) -> RunRecord:
    """Read the record of a run that is to go on.

    Raises:
        RunError: it is damaged, or of another version of dim.
    """
    try:
        return read_run_record(run_dir)
    except RunError:
        path = run_dir / CONFIG_FILE
        raise RunError(f"{path} is damaged or of another version of dim: choose another --out.") from None


def describe_kept(run_dir: Path) -> str:
    """Say what an interrupted run has to go on from, in one sentence."""
    if not (run_dir / CONFIG_FILE).exists():
        return f"Nothing was begun in {run_dir} yet: the same command begins anew."
    found = list_checkpoints(run_dir)
    go_on = write_resume_command(run_dir)
    if not found:
        return f"{run_dir} has no checkpoint yet, so nothing but the settings is kept: begin again with  {go_on}"
    newest = Path(found[-1]).stem
    stage, _, step = newest.removeprefix("stage").partition("-")
    where = f"stage {stage}, step {int(step):,}" if step.isdecimal() else newest
    return f"What was done up to the last checkpoint ({where}) is kept in {run_dir}: go on with  {go_on}"


def describe_nothing_to_resume(run_dir: Path) -> str:
    """Say that a run which is to be resumed begins at its first step, in one sentence."""
    if (run_dir / CONFIG_FILE).exists():
        return f"The run in {run_dir} has no checkpoint yet: it begins at the first step."
    return f"There is no run in {run_dir} to resume: a new one begins; if there should be one, stop and check --out."


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Make a run's folder, and lock it against other processes while the block runs.

    Raises:
        RunError: another process is writing it, it is a file, or it cannot be made.
    """
    import fcntl

    if run_dir.exists() and not run_dir.is_dir():
        raise RunError(f"{run_dir} is a file: choose another --out.")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Cannot make {run_dir}: {error.strerror}.") from error
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"Another process is writing {run_dir}: wait for it, stop it, or choose another --out."
            ) from None
        except OSError:
            pass  # A file system without locks.
        yield
    finally:
        os.close(descriptor)


def _sweep(run_dir: Path) -> None:
    """Remove the half-written files of a killed process; refuse links."""
    for folder in FOLDERS:
        _refuse_links(run_dir, folder)
        for name in list_leftovers(run_dir, folder):
            remove_file(run_dir, name)


def list_leftovers(run_dir: Path, folder: str) -> list[str]:
    """Files that a killed process left in a folder of a run under temporary names, by their paths in the run."""
    names = list_names(run_dir, folder.removeprefix("."))
    return [f"{folder}/{name}".removeprefix("./") for name in names if name.startswith(".") and name.endswith(".tmp")]


@contextmanager
def explain_os_errors(run_dir: Path) -> Iterator[None]:
    """Turn the operating system's errors into a sentence that says how to go on.

    Raises:
        RunError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{run_dir} cannot be written ({error.strerror or error}). What is finished is kept: fix that, then go on "
            f"with  {write_resume_command(run_dir)}"
        ) from error


def _refuse_links(run_dir: Path, folder: str) -> None:
    place = run_dir / folder
    for path in (place, *(place.iterdir() if place.is_dir() else ())):
        if path != run_dir and path.is_symlink():
            raise RunError(f"{path} is a link, which a run does not follow: remove it, or choose another --out.")
