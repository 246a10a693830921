"""This user's private cache: engines built here, and what was already checked.

Whatever lies in it is trusted, so it must belong to this user and be closed to everybody else.
"""

import os
import stat
from pathlib import Path

from dim.runtime.errors import DimError
from dim.runtime.storage.atomic import replace_file
from dim.runtime.storage.below import make_folder, open_file


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
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & 0o077:
            path.chmod(0o700)
            found = path.lstat()
    except OSError as error:
        raise DimError(
            f"The cache {path} cannot be used: {error.strerror}; set DIM_CACHE to a folder of yours."
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise DimError(f"The cache {path} is a link or a file; set DIM_CACHE to a folder of yours.")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
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


def remember(kind: str, key: str, note: str = "") -> None:
    """Note that something passed a check; silently does nothing where there is no usable cache.

    Args:
        kind: the check's name, a plain word.
        key: what passed, as hexadecimal digits.
        note: what the check found.
    """
    try:
        replace_file(cache_folder(kind) / key, note.encode())
    except (OSError, DimError):
        return


def recall(kind: str, key: str) -> str | None:
    """Return the note that this user's `remember` left with these arguments, or None where it was not called."""
    try:
        with open(open_file(cache_dir(), f"{kind}/{key}", os.O_RDONLY | os.O_NONBLOCK)) as file:
            return file.read()
    except (OSError, ValueError, DimError):
        return None
