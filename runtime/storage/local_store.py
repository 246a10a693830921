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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from dim.runtime.errors import OutputError
from dim.runtime.storage.atomic import sync_folder

STATE = ".dim"
MAX_READ_BYTES = 2**28
"""Of one file that is read whole, such as `dataset.json`."""


class Store(Protocol):
    """What the writers need of a place; names are paths within it, with slashes."""

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes, or None where there is none."""

    def put(self, name: str, data: bytes, durable: bool = False) -> None:
        """Write an object whole, replacing one of that name; `durable` waits for the disk."""

    def create(self, name: str, data: bytes) -> bool:
        """Write an object whole unless it exists; return whether it was written."""

    def publish(self, made: Path, name: str, sha256: str) -> None:
        """Give a finished local file its final name; one of that name with the same SHA-256 stays untouched.

        Raises:
            OutputError: another file has that name.
        """

    def list(self, folder: str = "") -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""

    def remove(self, name: str, with_contents: bool = False) -> None:
        """Remove an object or an empty folder if it is there, or a folder and all in it `with_contents`."""

    def scratch(self, name: str) -> Path:
        """Return a local path for a file in the making, in a folder that exists and belongs to this process only."""

    def flush(self) -> None:
        """Make everything written so far durable."""

    def lock(self, name: str, refusal: str | None = None) -> contextlib.AbstractContextManager[None]:
        """Hold a lock that ends with the process; if another process has it, raise OutputError(refusal) or wait."""


class LocalStore:
    """A folder on a file system of this machine, perhaps shared with others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.fspath(root)
        self.scratch_folder = root / STATE / "work" / f"{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}"

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> str:
        """Return the path of a name within the set; as text, because a Path takes longer to make than to open."""
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes | None:
        path = self.path(name)
        # Asked for every image before it is written; an exception takes as long as the file.
        if not os.access(path, os.F_OK):
            return None
        try:
            with open(path, "rb", opener=_open_plain) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None where there is none."""
        try:
            return os.stat(self.path(name)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, data: bytes, durable: bool = False) -> None:
        temporary = self.scratch(name.replace("/", "-") + ".new")
        write_file(temporary, data, durable)
        os.rename(temporary, self.path(name))
        if durable:
            sync_folder(Path(self.path(name)).parent)

    def create(self, name: str, data: bytes) -> bool:
        if os.path.lexists(self.path(name)):
            return False
        temporary = self.scratch(name.replace("/", "-") + ".new")
        write_file(temporary, data, durable=True)
        try:
            # A link, unlike a rename, never replaces what another worker made in the meantime.
            os.link(temporary, self.path(name))
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            os.rename(temporary, self.path(name))
        else:
            os.unlink(temporary)
        return True

    def publish(self, made: Path, name: str, sha256: str) -> None:
        if self.size(name):
            with open(self.path(name), "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise make_altered_error(self, name)
            made.unlink()
            return
        with open(made, "rb") as file:
            os.fsync(file.fileno())
        # Should the new name be lost in a power cut, the next run misses the file and makes it again.
        os.rename(made, self.path(name))

    def list(self, folder: str = "") -> list[str]:
        try:
            return sorted(os.listdir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, name: str, with_contents: bool = False) -> None:
        path = self.path(name)
        if with_contents:
            shutil.rmtree(path, ignore_errors=True)
            return
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                os.rmdir(path)
            else:
                os.unlink(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise

    def scratch(self, name: str) -> Path:
        # Only `.dim` itself proves that the place is still the one where the set was begun, so it is not made here.
        if not self.scratch_folder.is_dir():
            work = self.scratch_folder.parent
            with contextlib.suppress(FileExistsError):
                os.mkdir(work)
            for folder in filter(_is_abandoned, os.listdir(work)):
                shutil.rmtree(work / folder, ignore_errors=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.scratch_folder)
        return self.scratch_folder / name

    def flush(self) -> None:
        sync_file_system(self.root)

    @contextlib.contextmanager
    def lock(self, name: str, refusal: str | None = None) -> Iterator[None]:
        import fcntl

        descriptor = os.open(self.path(f"{STATE}/locks/{name}"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
            except OSError as error:
                if refusal and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise OutputError(refusal) from None
                # A file system without locks: two writers of one shard waste work and write the same bytes.
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                    raise
            yield
        finally:
            os.close(descriptor)

    def make_folder(self, name: str) -> None:
        """Make a folder if it is not there.

        Raises:
            OutputError: it is a link.
        """
        self.refuse_links([name])
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path(name))

    def refuse_links(self, folders: Iterable[str]) -> None:
        """Raise OutputError if one of the folders is a link, which would lead out of the set."""
        for path in map(self.path, folders):
            if os.path.islink(path):
                raise OutputError(
                    f"{path} is a link, which a set does not follow: remove it, or choose another folder."
                )


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


def _open_plain(path: str, flags: int) -> int:
    """Open a file to read it whole; a pipe in its place would hang, a huge file would fill the memory."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_READ_BYTES:
        return descriptor
    os.close(descriptor)
    raise OutputError(f"{path} is no file of a set: move it away and run the same command again.")


def write_file(path: str | Path, data: bytes | memoryview, durable: bool = False) -> None:
    """Write a new file whole, replacing one of that name; `durable` waits for the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte, however many calls it takes."""
    written = os.write(descriptor, data)
    while written < len(data):
        more = os.write(descriptor, memoryview(data)[written:])
        if more == 0:
            raise OSError(errno.EIO, "nothing more could be written")
        written += more


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
