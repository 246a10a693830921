"""Writing the files of an evaluation: each in one step, into a folder that is made if missing."""

import json
from pathlib import Path
from typing import Any

from dim.runtime.errors import OutputError
from dim.runtime.storage.below import replace_file


def write_file(path: Path, content: bytes, what: str) -> None:
    """Write a file under its final name in one step.

    Args:
        path: of the file.
        content: its bytes.
        what: the file at the start of a sentence ("The chart eval/accuracy.png").

    Raises:
        OutputError: the disk refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path.parent, path.name, content)
    except OSError as error:
        raise OutputError(f"{what} cannot be written: {error.strerror}.") from error


def write_json(path: Path, value: Any, what: str) -> None:
    """Write plain data as indented JSON; as `write_file`."""
    write_file(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), what)
