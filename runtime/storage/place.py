"""Opens the place of a set, a local folder or a URL, and finds its free space, rights and errors."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dim.runtime.errors import BadValueError, OutputError
from dim.runtime.storage.explain_errors import explain_error, explain_local_error
from dim.runtime.storage.hub_store import HubStore
from dim.runtime.storage.local_store import STATE, LocalStore, Store
from dim.runtime.storage.object_store import is_remote
from dim.runtime.storage.remote_store import RemoteStore


@dataclass(frozen=True, kw_only=True)
class Free:
    """What a file system has left."""

    bytes: int
    files: int
    """File entries."""
    block: int
    """The unit, in bytes, in which files take space."""


@contextlib.contextmanager
def open_store(out: str | Path) -> Iterator[Store]:
    """Open the place of a set and turn the operating system's errors there into sentences.

    Raises:
        BadValueError: the place is a URL that lacks a slash, or one that nothing can write to.
    """
    check_url(out)
    store = _open(out)
    try:
        yield store
        if isinstance(store, HubStore):
            store.commit()
    except KeyboardInterrupt:
        if isinstance(store, HubStore):  # what is finished is kept
            store.commit()
        raise
    except OSError as error:
        raise explain_error(store, error) from error
    finally:
        store.close()


def _open(out: str | Path) -> LocalStore | RemoteStore:
    if not is_remote(out):
        return LocalStore(find_folder(out))
    return HubStore(str(out)) if str(out).lower().startswith("hf://") else RemoteStore(str(out))


def find_folder(out: str | Path) -> Path:
    """Return the folder of this machine that a place names: `file://` taken off, `~` turned into the user's home."""
    return Path(str(out).removeprefix("file://")).expanduser()


def check_url(out: str | Path) -> None:
    """Refuse `s3:/bucket/set`, which would become a local folder, and `file://`, which names none.

    Raises:
        BadValueError: the place is a URL that lacks a slash or a folder.
    """
    if str(out) == "file://":
        raise BadValueError("file:// names no folder: write for example  file:///data/set.")
    if slip := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", str(out)):
        rest = str(out)[slip.end() :]
        raise BadValueError(
            f"{out} lacks a slash: write {slip[1]}://{rest} for the URL, or ./{out} for a folder of that name."
        )


def check_place(store: Store) -> None:
    """Raise OutputError if no set can be written here, as far as that can be told without writing."""
    if isinstance(store, RemoteStore):
        store.check_bucket()
    elif isinstance(store, LocalStore):
        place = _nearest(store.root)
        if not place.is_dir():
            what = "a file" if place.is_file() else "no folder"
            raise OutputError(f"{place} is {what}; name a folder for the set.")
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            raise explain_local_error(OSError(errno.EROFS, os.strerror(errno.EROFS)), str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise explain_local_error(OSError(errno.EACCES, os.strerror(errno.EACCES)), str(place))


def make_place(store: Store) -> None:
    """Make a local place and its `.dim/`; an object store needs neither."""
    if isinstance(store, LocalStore):
        check_place(store)
        store.root.mkdir(parents=True, exist_ok=True)
        for name in (STATE, f"{STATE}/locks", f"{STATE}/parts"):
            store.make_folder(name)


def measure_free(store: Store) -> Free | None:
    """Say what is free in a place, or None where nobody knows."""
    if not isinstance(store, LocalStore):
        return None
    found = os.statvfs(_nearest(store.root))
    # Some file systems make file entries as they need them and report none at all.
    files = found.f_favail if found.f_files else 2**62
    return Free(bytes=found.f_bavail * found.f_frsize, files=files, block=found.f_frsize)


def find_workshop(store: Store) -> tuple[Path, int] | None:
    """Return the local folder where files are made before they go to the place, and the bytes free there.

    None where files are made in the place itself.
    """
    if not isinstance(store, RemoteStore):
        return None
    return store.scratch_folder.parent, shutil.disk_usage(store.scratch_folder).free


def _nearest(folder: Path) -> Path:
    """Return a folder, or what there is of the way to it."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    return place
