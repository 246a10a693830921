"""Files of a run, by their paths below its folder: written atomically, and never through a link.

The folder itself may be a link. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

from dim.runtime.errors import BundleError, OutputError, RunError
from dim.runtime.storage import below, strict_json

MAX_JSON_BYTES = 8 * 2**20
"""Of a JSON file that is read whole."""


def write_resume_command(run_dir: Path) -> str:
    """Write the command that goes on with a run, for a shell; the run itself has its settings and its data's place."""
    return f"dim distill --resume --out {quote(str(run_dir))}"


@contextmanager
def follow_no_link() -> Iterator[None]:
    """Name a link that was found in a run.

    Raises:
        RunError: instead of OutputError.
    """
    try:
        yield
    except OutputError as error:
        raise RunError(str(error)) from None


# As those of `below`, but for the error at a link.
read_file = follow_no_link()(below.read_file)
list_names = follow_no_link()(below.list_names)
make_folder = follow_no_link()(below.make_folder)
remove_file = follow_no_link()(below.remove_file)


def write_file(run_dir: Path, name: str, content: bytes) -> None:
    """Write `content` under a temporary name, flush it to the disk, and rename it to `name`.

    Raises:
        RunError: the disk is full, the folder cannot be written, or is a link.
    """
    try:
        with follow_no_link():
            below.replace_file(run_dir, name, content)
    except OSError as error:
        raise RunError(
            f"Cannot write {run_dir / name}: {error.strerror}. Nothing already written was changed."
        ) from error


def create_file(run_dir: Path, name: str) -> BinaryIO:
    """Open a new file for writing; raises RunError if a link lies on the way, and OSError if the name is taken."""
    with follow_no_link():
        return open(below.open_file(run_dir, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")


def append_to_file(run_dir: Path, name: str, text: str) -> None:
    """Add text to a file, which is made if missing; raises RunError if a link lies there, and OSError."""
    with follow_no_link(), open(below.open_file(run_dir, name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "a") as file:
        file.write(text)


def cut_file(run_dir: Path, name: str, size: int) -> None:
    """Shorten a file, if it is there, to so many bytes; raises RunError if a link lies there, and OSError."""
    with follow_no_link(), suppress(FileNotFoundError), open(below.open_file(run_dir, name, os.O_RDWR), "r+b") as file:
        os.ftruncate(file.fileno(), min(size, os.fstat(file.fileno()).st_size))


def flush_file(run_dir: Path, name: str) -> int:
    """Wait until a file is on the disk; returns its bytes, 0 where it is missing. Raises RunError and OSError."""
    with follow_no_link(), suppress(FileNotFoundError), open(below.open_file(run_dir, name, os.O_RDONLY), "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
    return 0


def read_json(run_dir: Path, name: str) -> Any:
    """Read a JSON file of a run.

    Raises:
        RunError: it cannot be read, is a link, or not strict JSON.
    """
    path = run_dir / name
    try:
        return strict_json.parse(read_file(run_dir, name, MAX_JSON_BYTES + 1), str(path), MAX_JSON_BYTES)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    except BundleError as error:
        raise RunError(str(error)) from None


def write_json(run_dir: Path, name: str, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_file(run_dir, name, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())
