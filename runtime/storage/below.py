"""Opens files and folders below a folder without following links, so that they cannot lead elsewhere.

The folder itself is the caller's choice and may be a link; names below it are walked with `openat` and `O_NOFOLLOW`.
Every call that finds a link raises OutputError, and OSError as the system's own call would.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dim.runtime.errors import OutputError
from dim.runtime.storage.atomic import name_temporary_sibling, sync_descriptor, write_all

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def open_folder(root: str | Path, name: str = "") -> int:
    """Open a folder for reading.

    Args:
        root: a folder, which may be a link.
        name: a path below it, with slashes; empty for the root itself.

    Returns:
        a descriptor, which the caller closes.

    Raises:
        OutputError: the folder, or one on the way to it, is a link.
        OSError: it is not there, or is no folder.
    """
    folder, path = os.open(root, os.O_RDONLY | os.O_DIRECTORY), os.fspath(root)
    for step in name.split("/") if name else ():
        path = f"{path}/{step}"
        try:
            inner = os.open(_check_step(step), _FOLDER, dir_fd=folder)
        except OSError as error:
            _refuse_link(error, step, folder, path)
            raise
        finally:
            os.close(folder)
        folder = inner
    return folder


@contextlib.contextmanager
def open_parent(root: str | Path, name: str) -> Iterator[tuple[int, str]]:
    """Open the folder that holds a name, for calls with `dir_fd`.

    Args:
        root: a folder, which may be a link.
        name: a path below it, with slashes.

    Returns:
        the folder's descriptor, and the name within it.

    Raises:
        as `open_folder`.
    """
    above, _, last = name.rpartition("/")
    folder = open_folder(root, above)
    try:
        yield folder, _check_step(last)
    finally:
        os.close(folder)


def open_file(root: str | Path, name: str, flags: int, mode: int = 0o644) -> int:
    """Open a file as `os.open`, by a path below `root`.

    Raises:
        OutputError: the file, or a folder on the way to it, is a link.
        OSError: as `os.open`.
    """
    with open_parent(root, name) as (folder, last):
        try:
            return os.open(last, flags | os.O_NOFOLLOW, mode, dir_fd=folder)
        except OSError as error:
            _refuse_link(error, last, folder, f"{root}/{name}")
            raise


def make_folder(root: str | Path, name: str, mode: int = 0o777) -> None:
    """Make a folder if it is not there.

    Raises:
        OutputError: it, or one on the way to it, is a link.
        NotADirectoryError: a file has its name.
    """
    with open_parent(root, name) as (folder, last):
        try:
            os.mkdir(last, mode, dir_fd=folder)
        except FileExistsError:
            os.close(open_folder(root, name))


def read_file(root: str | Path, name: str, max_bytes: int = -1) -> bytes:
    """Read a plain file, at most so many bytes of it; -1 reads it whole.

    Raises:
        OutputError: as `open_file`.
        OSError: it cannot be read, or is a folder or a pipe, which would be waited for without end.
    """
    descriptor = open_file(root, name, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", f"{root}/{name}")
        return file.read(max_bytes)


def replace_file(root: str | Path, name: str, data: bytes) -> None:
    """Write a file under its final name in one step: readers see the old bytes or the new ones.

    Args:
        root: a folder, which may be a link.
        name: a path below it, with slashes; a link of that name is replaced, not followed.
        data: the whole content.

    Raises:
        as `open_folder`; what was there before is untouched.
    """
    with open_parent(root, name) as (folder, last):
        made = name_temporary_sibling(Path(last)).name
        try:
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=folder)
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(made, last, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made, dir_fd=folder)
            raise
        sync_descriptor(folder)


def create_file(root: str | Path, name: str) -> BinaryIO:
    """Open a new file for writing, and make the folders on the way; raises as `open_folder`, or if it is there."""
    above = name.split("/")[:-1]
    for depth in range(1, len(above) + 1):
        make_folder(root, "/".join(above[:depth]), 0o700)
    return open(open_file(root, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")


def replace_folder(root: str | Path, made: str, name: str) -> None:
    """Give a finished folder its final name, and remove what had that name; a link there is removed, not followed.

    Args:
        root: a folder, which may be a link.
        made: the finished folder, a path below it.
        name: the final name, a path to the same folder.

    Raises:
        as `open_folder`.
    """
    with open_parent(root, name) as (folder, last):
        new, old = made.rpartition("/")[2], name_temporary_sibling(Path(last)).name
        try:
            os.rename(new, last, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            os.rename(last, old, src_dir_fd=folder, dst_dir_fd=folder)
            os.rename(new, last, src_dir_fd=folder, dst_dir_fd=folder)
            remove_tree(folder, old)
        sync_descriptor(folder)


def remove_tree(folder: int, name: str) -> None:
    """Remove what has a name in an open folder, with all in it; a link is removed, not followed."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def remove_file(root: str | Path, name: str) -> None:
    """Remove a file, or a link of that name, if it is there; raises as `open_folder`."""
    with contextlib.suppress(FileNotFoundError), open_parent(root, name) as (folder, last):
        os.unlink(last, dir_fd=folder)


def list_names(root: str | Path, folder: str = "") -> list[str]:
    """List the names in a folder, sorted; none where it is not there. Raises OutputError as `open_folder`."""
    try:
        descriptor = open_folder(root, folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def _check_step(step: str) -> str:
    if step in ("", ".", ".."):
        raise OutputError(f"The path step {step!r} leads out of a folder and is not followed.")
    return step


def _refuse_link(error: OSError, step: str, folder: int, path: str) -> None:
    """Raise OutputError if a link is what made `os.open` fail."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        with contextlib.suppress(OSError):
            if stat.S_ISLNK(os.stat(step, dir_fd=folder, follow_symlinks=False).st_mode):
                raise OutputError(
                    f"{path} is a link, which dim does not follow there: remove it, or choose another folder."
                ) from None
