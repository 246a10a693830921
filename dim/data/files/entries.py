"""Entries with checked paths, which the readers of folders and archives yield."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from dim.data.limits import MAX_PATH_BYTES, MAX_PATH_DEPTH
from dim.runtime.errors import DataError


@dataclass(frozen=True)
class Entry:
    """One file or folder of a folder or an archive."""

    path: str
    """Relative, with `/` between parts."""
    is_folder: bool
    read: Callable[[int], bytes]
    """`read(limit)` gives the bytes, or `DataError` where there are more than `limit`; only before the next entry."""
    is_guessed: bool = False
    """Whether nothing says in which encoding the path was written."""


def check_path(raw_path: str, archive: str) -> str:
    """Return a member's path without `./` and a trailing slash.

    Raises:
        DataError: the path could leave the archive's own folder, is too long or too deep, or cannot be printed.
    """
    shown = repr(raw_path[:80])
    if len(raw_path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise DataError(f"{archive}: a member's path of more than {MAX_PATH_BYTES} bytes: {shown}.")
    if raw_path.startswith("/") or "\\" in raw_path:
        raise DataError(
            f"{archive}: the member {shown} has an absolute path or a backslash; pack it with relative paths."
        )
    parts = [part for part in raw_path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError(f"{archive}: the member {shown} climbs out of the archive with '..'; it is not safe to read.")
    if len(parts) > MAX_PATH_DEPTH:
        raise DataError(f"{archive}: the member {shown} lies {len(parts)} folders deep, more than {MAX_PATH_DEPTH}.")
    if not all(part.isprintable() for part in parts):
        raise DataError(f"{archive}: the member {shown} has unprintable characters in its path; rename it.")
    return "/".join(parts)


def read_nothing(limit: int) -> bytes:
    """Stand for the contents of a folder."""
    return b""


def read_limited(file: BinaryIO, limit: int, name: str) -> bytes:
    """Read a file to its end.

    Raises:
        DataError: it has more than `limit` bytes; `name` stands for it in the message.
    """
    data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{name}: more than {limit} bytes, which is the limit for one file.")
    return data


@contextmanager
def named_failure(name: object) -> Iterator[None]:
    """Turn an `OSError` into a `DataError` that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}.") from error
