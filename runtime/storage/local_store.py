"""Where a set is written: a local folder, with whole files only under final names.

Everything unfinished lives in `.dim/` inside the folder: the journal of finished parts, locks, files in the making.
Data reaches a temporary name first, is flushed to the disk, and is then renamed. `dim.runtime.storage.remote_store`
has the same interface for object stores.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dim.runtime.errors import OutputError
from dim.runtime.storage.atomic import sync_folder

STATE = ".dim"
MAX_READ_BYTES = 2**28
"""Of one file that is read whole, such as `dataset.json`."""


@dataclass(frozen=True, kw_only=True)
class Free:
    """What a file system has left."""

    bytes: int
    files: int
    """File entries."""
    block: int
    """The unit, in bytes, in which files take space."""


class Store(Protocol):
    """What the writers need of a place."""

    remote: bool

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes, or None where there is none."""

    def size(self, name: str) -> int | None:
        """Return an object's size in bytes, or None where there is none."""

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of an object, read in pieces, or None where there is none."""

    def put(self, name: str, data: bytes, durable: bool = False) -> None:
        """Write an object whole, replacing one of that name; `durable` waits for the disk."""

    def put_all(self, files: Mapping[str, bytes]) -> None:
        """Write objects whole, replacing those of the same names; one flush serves all."""

    def create(self, name: str, data: bytes) -> bool:
        """Write an object whole unless it exists; return whether it was written."""

    def publish(self, made: Path, name: str) -> None:
        """Give a finished local file its final name, replacing one of that name."""

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""

    def remove_folder(self, name: str) -> None:
        """Remove a folder if it is there and empty."""

    def make_folder(self, name: str) -> None:
        """Make a folder if it is not there."""

    def list(self, folder: str = "") -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""

    def scratch(self, name: str) -> Path:
        """Return a local path for a file in the making, in a folder that exists."""

    def partial(self, name: str) -> Path:
        """Return the local path of a file that another run may continue."""

    def flush(self) -> None:
        """Make everything written so far durable."""

    def lock(self, name: str, refusal: str | None = None) -> contextlib.AbstractContextManager[None]:
        """Hold a lock that ends with the process; if another process has it, raise OutputError(refusal) or wait."""

    def check_place(self) -> None:
        """Raise OutputError if no set can be written here, as far as that can be told without writing."""

    def begin_state(self) -> None:
        """Make the place and its `.dim/`."""

    def clear_journal(self) -> None:
        """Forget finished and half-made parts."""

    def clear_state(self) -> None:
        """Remove all that is not the finished set."""

    def refuse_links(self, folders: Sequence[str]) -> None:
        """Raise OutputError if one of the folders is a link, which would lead out of the set."""

    def free(self) -> "Free | None":
        """Say what is free, or None where nobody knows."""

    def workshop(self) -> tuple[Path, int] | None:
        """Return the local folder where files are made before they go to the place, and the bytes free there.

        None where files are made in the place itself.
        """

    def explain(self, error: OSError) -> OutputError:
        """Turn an error of the operating system into a sentence that says how to go on."""

    def close(self) -> None:
        """Remove what belongs to this process only."""


class LocalStore:
    """A folder on a file system of this machine, perhaps shared with others."""

    remote = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.fspath(root)
        self._own = f"{os.getpid()}-{secrets.token_hex(4)}"

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> str:
        """Return the path of a name within the set; as text, because a Path takes longer to make than to open."""
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes | None:
        try:
            with open(self.path(name), "rb", opener=_open_plain) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def size(self, name: str) -> int | None:
        path = self.path(name)
        # Asked for every image before it is written; an exception takes as long as the file.
        if not os.access(path, os.F_OK):
            return None
        try:
            return os.stat(path).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest(self, name: str) -> str | None:
        try:
            with open(self.path(name), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, data: bytes, durable: bool = False) -> None:
        temporary = self.scratch(name.replace("/", "-") + ".new")
        write_file(temporary, data, durable)
        os.rename(temporary, self.path(name))
        if durable:
            sync_folder(Path(self.path(name)).parent)

    def put_all(self, files: Mapping[str, bytes]) -> None:
        made = {name: self.scratch(name.replace("/", "-") + ".new") for name in files}
        for name, data in files.items():
            write_file(made[name], data)
        self.flush()
        for name, temporary in made.items():
            os.rename(temporary, self.path(name))

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

    def publish(self, made: Path, name: str) -> None:
        with open(made, "rb") as file:
            os.fsync(file.fileno())
        # Should the new name be lost in a power cut, the next run misses the file and makes it again.
        os.rename(made, self.path(name))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.path(name))

    def remove_folder(self, name: str) -> None:
        try:
            os.rmdir(self.path(name))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise

    def refuse_links(self, folders: Sequence[str]) -> None:
        for path in map(self.path, folders):
            if os.path.islink(path):
                raise OutputError(
                    f"{path} is a link, which a set does not follow: remove it, or choose another folder."
                )

    def make_folder(self, name: str) -> None:
        self.refuse_links([name])
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path(name))

    def list(self, folder: str = "") -> list[str]:
        try:
            return sorted(os.listdir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def scratch(self, name: str) -> Path:
        # Only `.dim` itself proves that the place is still the one where the set was begun, so it is not made here.
        folder = self.root / STATE / "work" / self._own
        if not folder.is_dir():
            for made in (folder.parent, folder):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(made)
        return folder / name

    def partial(self, name: str) -> Path:
        folder = self.root / STATE / "partial"
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        return folder / name

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

    def check_place(self) -> None:
        place = self._nearest()
        if not place.is_dir():
            what = "a file" if place.is_file() else "no folder"
            raise OutputError(f"{place} is {what}; name a folder for the set.")
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            raise explain(OSError(errno.EROFS, os.strerror(errno.EROFS)), str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise explain(OSError(errno.EACCES, os.strerror(errno.EACCES)), str(place))

    def _nearest(self) -> Path:
        """Return the set's folder, or what there is of the way to it."""
        place = self.root.absolute()
        while not os.path.lexists(place):
            place = place.parent
        return place

    def begin_state(self) -> None:
        self.check_place()
        self.root.mkdir(parents=True, exist_ok=True)
        for name in (STATE, f"{STATE}/locks", f"{STATE}/parts"):
            self.make_folder(name)

    def clear_journal(self) -> None:
        for name in ("parts", "partial"):
            shutil.rmtree(self.root / STATE / name, ignore_errors=True)
        self.make_folder(f"{STATE}/parts")

    def clear_state(self) -> None:
        shutil.rmtree(self.root / STATE, ignore_errors=True)

    def free(self) -> "Free | None":
        found = os.statvfs(self._nearest())
        # Some file systems make file entries as they need them and report none at all.
        files = found.f_favail if found.f_files else 2**62
        return Free(bytes=found.f_bavail * found.f_frsize, files=files, block=found.f_frsize)

    def workshop(self) -> tuple[Path, int] | None:
        return None

    def explain(self, error: OSError) -> OutputError:
        return explain(error, str(self))

    def close(self) -> None:
        shutil.rmtree(self.root / STATE / "work" / self._own, ignore_errors=True)


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


def explain(error: OSError, place: str) -> OutputError:
    """Turn an error of the operating system into a sentence that says how to go on."""
    again = "run the same command again, what is finished is kept"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"The disk under {place} is full: free some space and {again}.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"{place} cannot be written ({error.strerror}): choose another folder or mend its permissions."
        )
    if error.errno in (
        errno.ENOENT,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ENODEV,
        errno.EIO,
        errno.ETIMEDOUT,
        errno.ENOTDIR,
    ):
        return OutputError(
            f"{place} went away or stopped working while the set was written ({error.strerror}): mend it and {again}."
        )
    return OutputError(f"{place} cannot be written: {error.strerror or error}; mend it and {again}.")
