"""A run's folder while it is written: one process at a time, what a killed one left swept, errors in a sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dim.runtime.errors import RunError

FOLDERS = (".", "checkpoints", "grids")
"""Where a run keeps files of its own."""


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Keep other processes from writing the same run, and remove what a killed one left half-written.

    Args:
        run_dir: the run, which exists.

    Raises:
        RunError: another process is writing it.
    """
    import fcntl

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
        for folder in FOLDERS:
            for path in unfinished(run_dir / folder):
                path.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def unfinished(folder: Path) -> list[Path]:
    """Files that a killed process left in a folder under temporary names."""
    return sorted(folder.glob(".*.tmp"))


@contextmanager
def explained(run_dir: Path) -> Iterator[None]:
    """Turn the operating system's errors into a sentence that says how to go on.

    Raises:
        RunError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{run_dir} cannot be written ({error.strerror or error}): mend it and go on with --resume, "
            "what is finished is kept."
        ) from error
