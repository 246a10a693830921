"""This user's private cache: engines built here, and what was already checked.

Its contents are trusted, so it must belong to this user and be closed to everybody else. If others could write to it,
it is not used, because its files may be theirs.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dim.runtime.errors import DimError
from dim.runtime.storage.atomic import name_temporary_sibling
from dim.runtime.storage.below import (
    create_file,
    make_folder,
    open_file,
    open_parent,
    read_file,
    remove_tree,
    replace_file,
    replace_folder,
)

_OTHERS_WRITE = 0o022
_MAX_NOTE_CHARS = 1024


def cache_dir() -> Path:
    """Find the private cache and make it if it is not there.

    Returns:
        `$DIM_CACHE`, else `$XDG_CACHE_HOME/dim`, else `~/.cache/dim`; mode 0700, owned by this user.

    Raises:
        DimError: it cannot be made, is a link, belongs to somebody else, or others may write in it.
    """
    if chosen := os.environ.get("DIM_CACHE"):
        path = Path(chosen)
    elif base := os.environ.get("XDG_CACHE_HOME"):
        path = Path(base) / "dim"
    else:
        path = Path(os.path.expanduser("~")) / ".cache" / "dim"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if mine and found.st_mode & 0o077 and not found.st_mode & _OTHERS_WRITE:
            path.chmod(0o700)
            found = path.lstat()
    except OSError as error:
        raise DimError(
            f"The cache {path} cannot be used: {error.strerror}; set DIM_CACHE to a folder of yours."
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise DimError(f"The cache {path} is a link or a file; set DIM_CACHE to a folder of yours.")
    if mine and found.st_mode & _OTHERS_WRITE:
        raise DimError(
            f"Others could write in the cache {path} (mode {found.st_mode & 0o777:o}), so nothing in it is trusted: "
            "remove it, or set DIM_CACHE to a folder of yours."
        )
    if not mine or found.st_mode & 0o077:
        raise DimError(
            f"The cache {path} is not private to this user (owner {found.st_uid}, mode {found.st_mode & 0o777:o}); set "
            "DIM_CACHE to a folder of yours."
        )
    return path


def cache_folder(name: str) -> Path:
    """Return a folder of the private cache, made if it is not there.

    Args:
        name: its path in the cache, with slashes.

    Raises:
        DimError: the cache cannot be used, or a link lies there instead.
    """
    cache, path = cache_dir(), ""
    try:
        for step in name.split("/"):
            path = f"{path}/{step}".lstrip("/")
            make_folder(cache, path, 0o700)
    except OSError as error:
        raise DimError(
            f"The cache {cache} cannot be used: {error.strerror}; set DIM_CACHE to a folder of yours."
        ) from None
    return cache / name


def write_cached(name: str, data: bytes) -> None:
    """Write a file of the private cache in one step, and the folders above it that are missing.

    Args:
        name: its path in the cache, with slashes.
        data: the whole content.

    Raises:
        DimError: the cache cannot be used, or a link lies there.
        OSError: the disk refused.
    """
    cache_folder(name.rpartition("/")[0])
    replace_file(cache_dir(), name, data)


@contextlib.contextmanager
def fill_cached_folder(name: str) -> Iterator[Callable[[str], BinaryIO]]:
    """Make a folder of the private cache: it appears whole when the block ends, or not at all.

    Args:
        name: its path in the cache, with slashes; what has that name is replaced.

    Returns:
        a function that opens a new file of it, by its path within the folder; no link is followed at any open.

    Raises:
        DimError: the cache cannot be used, or a link lies on the way.
        OSError: the disk refused.
    """
    above = name.rpartition("/")[0]
    cache_folder(above)
    cache, made = cache_dir(), f"{above}/{name_temporary_sibling(Path(name)).name}"
    make_folder(cache, made, 0o700)
    try:
        yield lambda path: create_file(cache, f"{made}/{path}")
        replace_folder(cache, made, name)
    finally:
        with contextlib.suppress(OSError), open_parent(cache, made) as (folder, last):
            remove_tree(folder, last)


def read_cached(name: str) -> bytes:
    """Read a file of the private cache; `name` and errors as in `write_cached`."""
    return read_file(cache_dir(), name)


def read_if_cached(name: str) -> bytes:
    """Read a file of the private cache; empty where it cannot be read."""
    try:
        return read_cached(name)
    except (OSError, DimError):
        return b""


def write_if_possible(name: str, data: bytes) -> None:
    """Write a file of the private cache as `write_cached`; silently does nothing where there is no usable cache."""
    with contextlib.suppress(OSError, DimError):
        write_cached(name, data)


def remember(kind: str, key: str, note: str = "") -> None:
    """Note that something passed a check; silently does nothing where there is no usable cache.

    Args:
        kind: the check's name, a plain word.
        key: what passed, as hexadecimal digits.
        note: what the check found.
    """
    write_if_possible(f"{kind}/{key}", note.encode())


def recall(kind: str, key: str) -> str | None:
    """Return the note that this user's `remember` left with these arguments, or None where it was not called."""
    try:
        cache = cache_dir()
        with open(open_file(cache, f"{kind}/{key}", os.O_RDONLY | os.O_NONBLOCK)) as file:
            # A file or folder of somebody else's was put there while the cache was open.
            if not all(_is_mine(os.stat(place)) for place in (file.fileno(), cache / kind)):
                return None
            return file.read(_MAX_NOTE_CHARS)
    except (OSError, ValueError, DimError):
        return None


def _is_mine(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_WRITE
