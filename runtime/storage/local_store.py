"""Where a set is written: the `Store` that writers need, and a local folder with whole files only under final names.

Everything unfinished lives in `.dim/` inside the folder: the journal of finished parts, locks, files in the making.
Data reaches a temporary name first, is flushed to the disk, and is then renamed. `dim.runtime.storage.remote_store`
has the same interface for object stores; `dim.runtime.storage.place` opens either and asks what else there is to know.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import secrets
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from dim.runtime.errors import OutputError
from dim.runtime.storage.atomic import sync_descriptor, write_all
from dim.runtime.storage.below import list_names, make_folder, open_file, open_folder, open_parent

STATE = ".dim"
MAX_READ_BYTES = 2**28
"""Of one file that is read whole, such as `dataset.json`."""
WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
"""How a file in the making is opened."""


class Store(Protocol):
    """What the writers need of a place; names are paths within it, with slashes."""

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes, or None where there is none."""

    def put(self, name: str, data: bytes, durable: bool = False) -> None:
        """Write an object whole, replacing one of that name; `durable` waits for the disk."""

    def create(self, name: str, data: bytes) -> bool:
        """Write an object whole unless it exists; return whether it was written."""

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of an object, in hexadecimal digits, or None where there is none."""

    def digest_small(self, names: Sequence[str]) -> list[str | None]:
        """Do the same for many small objects."""

    def publish(self, made: str, name: str, sha256: str) -> None:
        """Give a finished file in the making its final name; one of that name with the same SHA-256 stays untouched.

        Raises:
            OutputError: another file has that name.
        """

    def list(self, folder: str = "") -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""

    def remove(self, name: str, with_contents: bool = False) -> None:
        """Remove an object or an empty folder if it is there, or a folder and all in it `with_contents`."""

    def open_scratch(self, name: str) -> int:
        """Open a file in the making for writing, in a folder of this process only; the caller closes it."""

    def flush(self) -> None:
        """Make everything written so far durable."""

    def lock(self, name: str, refusal: str | None = None) -> contextlib.AbstractContextManager[None]:
        """Hold a lock that ends with the process; if another process has it, raise OutputError(refusal) or wait.

        Raises:
            FileNotFoundError: who held it has removed it.
        """

    def close(self) -> None:
        """Remove what is still in the making."""


class LocalStore:
    """A folder on a file system of this machine, perhaps shared with others; no link below it is followed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.fspath(root)
        self._work = f"{STATE}/work"
        self._scratch_name = f"{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}"
        self._scratch_folder: int | None = None
        self._making = threading.Lock()

    def __str__(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes | None:
        try:
            with self._parent(name) as (folder, last):
                # Asked for every image before it is written; an exception takes as long as the file.
                if not os.access(last, os.F_OK, dir_fd=folder, follow_symlinks=False):
                    return None
            with open(name, "rb", opener=self._open_plain) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None where there is none."""
        found = self._look_at(name)
        return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None

    def digest(self, name: str) -> str | None:
        try:
            with open(name, "rb", opener=self._open_regular) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest_small(self, names: Sequence[str]) -> list[str | None]:
        return [self.digest(name) for name in names]

    def put(self, name: str, data: bytes, durable: bool = False) -> None:
        made = name.replace("/", "-") + ".new"
        self.write_scratch(made, data, durable)
        self.rename_scratch(made, name)
        if durable:
            with self._parent(name) as (folder, _):
                sync_descriptor(folder)

    def create(self, name: str, data: bytes) -> bool:
        made, scratch = name.replace("/", "-") + ".new", self._open_scratch_folder()
        with self._parent(name) as (folder, last):
            if os.access(last, os.F_OK, dir_fd=folder, follow_symlinks=False):
                return False
            self.write_scratch(made, data, durable=True)
            try:
                # A link, unlike a rename, never replaces what another worker made in the meantime.
                os.link(made, last, src_dir_fd=scratch, dst_dir_fd=folder)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                os.rename(made, last, src_dir_fd=scratch, dst_dir_fd=folder)
            else:
                os.unlink(made, dir_fd=scratch)
        return True

    def publish(self, made: str, name: str, sha256: str) -> None:
        found = self._look_at(name)
        if found is not None and (found.st_size or not stat.S_ISREG(found.st_mode)):
            if self.digest(name) != sha256:
                raise make_altered_error(self, name)
            os.unlink(made, dir_fd=self._open_scratch_folder())
            return
        with open(made, "rb", opener=self._open_made) as file:
            os.fsync(file.fileno())
        # Should the new name be lost in a power cut, the next run misses the file and makes it again.
        self.rename_scratch(made, name)

    def list(self, folder: str = "") -> list[str]:
        return list_names(self._root, folder)

    def remove(self, name: str, with_contents: bool = False) -> None:
        try:
            with self._parent(name) as (folder, last):
                if with_contents:
                    shutil.rmtree(last, ignore_errors=True, dir_fd=folder)
                elif stat.S_ISDIR(os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode):
                    os.rmdir(last, dir_fd=folder)
                else:
                    os.unlink(last, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise

    def open_scratch(self, name: str) -> int:
        return os.open(name, WRITE, 0o644, dir_fd=self._open_scratch_folder())

    def write_scratch(self, name: str, data: bytes, durable: bool = False) -> None:
        """Write a file in the making whole; `durable` waits for the disk."""
        write_file(name, data, durable, folder=self._open_scratch_folder())

    def rename_scratch(self, made: str, name: str) -> None:
        """Give a file in the making its final name, replacing one of that name."""
        with self._parent(name) as (folder, last):
            os.rename(made, last, src_dir_fd=self._open_scratch_folder(), dst_dir_fd=folder)

    def flush(self) -> None:
        sync_file_system(self.root)

    @contextlib.contextmanager
    def lock(self, name: str, refusal: str | None = None) -> Iterator[None]:
        import fcntl

        path = f"{STATE}/locks/{name}"
        descriptor = open_file(self._root, path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
            except OSError as error:
                if refusal and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise OutputError(refusal) from None
                # A file system without locks: two writers of one shard waste work and write the same bytes.
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                    raise
            if (found := self._look_at(path)) is None or not os.path.samestat(found, os.fstat(descriptor)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self}/{path}")
            yield
        finally:
            os.close(descriptor)

    def make_folder(self, name: str) -> None:
        """Make a folder if it is not there.

        Raises:
            OutputError: it is a link.
        """
        make_folder(self._root, name)

    def refuse_links(self, folders: Iterable[str]) -> None:
        """Raise OutputError if one of the folders is a link, before anything is done in the others."""
        for name in folders:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.close(open_folder(self._root, name))

    def close(self) -> None:
        if self._scratch_folder is not None:
            os.close(self._scratch_folder)
            self._scratch_folder = None
            with contextlib.suppress(OSError, OutputError):
                self.remove(f"{self._work}/{self._scratch_name}", with_contents=True)

    def _parent(self, name: str) -> contextlib.AbstractContextManager[tuple[int, str]]:
        return open_parent(self._root, name)

    def _look_at(self, name: str) -> os.stat_result | None:
        try:
            with self._parent(name) as (folder, last):
                return os.stat(last, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _open_scratch_folder(self) -> int:
        """Return the folder for files in the making; made at first use, and with it what dead processes left goes."""
        with self._making:
            if self._scratch_folder is None:
                # Only `.dim` itself proves that the place is still the one where the set was begun, so it is not made.
                make_folder(self._root, self._work)
                for folder in filter(_is_abandoned, self.list(self._work)):
                    self.remove(f"{self._work}/{folder}", with_contents=True)
                make_folder(self._root, f"{self._work}/{self._scratch_name}")
                self._scratch_folder = open_folder(self._root, f"{self._work}/{self._scratch_name}")
            return self._scratch_folder

    def _open_made(self, name: str, flags: int) -> int:
        return os.open(name, flags, dir_fd=self._open_scratch_folder())

    def _open_regular(self, name: str, flags: int) -> int:
        """Open a file for reading; a pipe in its place would hang."""
        descriptor = open_file(self._root, name, flags | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise self._no_file(name)

    def _open_plain(self, name: str, flags: int) -> int:
        """Open a file to read it whole; a huge one would fill the memory."""
        descriptor = self._open_regular(name, flags)
        if os.fstat(descriptor).st_size <= MAX_READ_BYTES:
            return descriptor
        os.close(descriptor)
        raise self._no_file(name)

    def _no_file(self, name: str) -> OutputError:
        return OutputError(f"{self}/{name} is no file of a set: move it away and run the same command again.")


def make_altered_error(store: Store, name: str) -> OutputError:
    """Make the error for a file that stands where another one belongs."""
    return OutputError(
        f"{store}/{name} is not what this set's plan draws: it was altered or is another file; "
        "move it away and run the same command again."
    )


def _is_abandoned(scratch_folder: str) -> bool:
    """Say whether a folder for files in the making belonged to a process of this machine that is dead."""
    host, _, process = scratch_folder.rpartition(".")[0].rpartition(".")
    if host != platform.node() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def write_file(path: str | Path, data: bytes | memoryview, durable: bool = False, *, folder: int | None = None) -> None:
    """Write a new file whole, replacing one of that name; `durable` waits for the disk, `folder` is where it goes."""
    descriptor = os.open(path, WRITE, 0o644, dir_fd=folder)
    try:
        write_all(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: Path) -> None:
    """Flush the file system that holds a path: one call for a part's thousands of small files."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        os.sync()
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)
