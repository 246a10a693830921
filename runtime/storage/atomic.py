"""Writes files and folders atomically: they appear whole or not at all."""

import ctypes
import errno
import os
import secrets
import shutil
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def name_temporary_sibling(path: Path) -> Path:
    """Name a file or folder that does not exist yet, beside `path` and so on its file system."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sync_folder(path: Path) -> None:
    """Make the names inside a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(folder: int) -> None:
    """Make the names inside an open folder survive a power cut."""
    try:
        os.fsync(folder)
    except OSError as error:
        # Some network file systems cannot sync a folder; the files themselves are synced.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk.

    Args:
        path: a name that does not exist yet.
        data: the whole content.

    Raises:
        OSError: the disk refused.
    """
    with open(path, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte, however many calls it takes."""
    written = os.write(descriptor, data)
    while written < len(data):
        more = os.write(descriptor, memoryview(data)[written:])
        if more == 0:
            raise OSError(errno.EIO, "nothing more could be written")
        written += more


def replace_folder(new: Path, destination: Path) -> None:
    """Give a finished folder its final name, in one step, and remove what had that name.

    Args:
        new: the finished folder, beside `destination`.
        destination: the final name; may exist.

    Raises:
        OSError: the file system refused; what was there before is untouched.
    """
    if not destination.exists():
        os.rename(new, destination)
    elif _exchange(new, destination):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = name_temporary_sibling(destination)
        os.rename(destination, old)
        try:
            os.rename(new, destination)
        except BaseException:
            os.rename(old, destination)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(destination.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names with Linux's renameat2; False where the kernel or the file system has no such call."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = (ctypes.c_char_p(os.fsencode(first)), ctypes.c_char_p(os.fsencode(second)))
    at = ctypes.c_int(_AT_FDCWD)
    return bool(renameat2(at, names[0], at, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0)
