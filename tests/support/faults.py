"""A file layer that fails: the calls that change files below a folder are counted, and the n-th one goes wrong.

Counted are opening for writing, write, flush to the disk, rename, link, truncate, make a folder and remove, whether
they come through `os`, through `open` or through the C library's syncfs and renameat2. What the n-th call may meet:

- `ENOSPC`, `EIO`: the call fails; a write leaves half of its bytes behind.
- `short`: a write takes half of its bytes and says so.
- `kill`: the process is dead. A write leaves half of its bytes behind, and nothing below the folder changes any more.
- `power`: as `kill`, and of every file only the bytes that were flushed are left.
- `SIGKILL`: the process is killed in earnest; for a forked child.
"""

import builtins
import errno
import io
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dim.runtime.storage import atomic
from dim.runtime.storage import local_store as set_store

KINDS = ("ENOSPC", "EIO", "short", "kill", "power")
_BY_PATH = ("mkdir", "unlink", "remove", "rmdir", "truncate", "symlink")
_BY_TWO_PATHS = ("rename", "replace", "link")
_BY_DESCRIPTOR = ("fsync", "fdatasync", "ftruncate")


class Killed(BaseException):
    """The process is dead; no handler of errors may think otherwise."""


class Faults:
    """Counts the calls below `root` while it is entered, and lets number `at` (from 1; 0 for none) meet `how`."""

    def __init__(self, root: Path, at: int = 0, how: str = "EIO") -> None:
        self.at, self.how = at, how
        self.calls: list[str] = []
        """What was called, `<call> <path below root>`."""
        self.dead = False
        self._root = os.path.realpath(root)
        self._unflushed: dict[tuple[int, int], int] = {}
        """Bytes that a power cut leaves, by device and inode, of files that have more."""
        self._lock = threading.RLock()
        self._patch = pytest.MonkeyPatch()
        self._open, self._truncate = io.open, os.truncate

    def __enter__(self) -> "Faults":
        for name in (*_BY_PATH, *_BY_TWO_PATHS, *_BY_DESCRIPTOR, "write", "sendfile", "open"):
            self._patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        for module in (io, builtins):
            self._patch.setattr(module, "open", self._opened)
        self._patch.setattr(set_store, "sync_file_system", self._wrapped("syncfs", set_store.sync_file_system))
        self._patch.setattr(atomic, "_exchange", self._wrapped("exchange", atomic._exchange))
        return self

    def __exit__(self, *raised: object) -> None:
        self._patch.undo()

    @property
    def kinds(self) -> Counter[str]:
        """How often each call was made."""
        return Counter(call.partition(" ")[0] for call in self.calls)

    def _path(self, place: Any, folder: int | None = None) -> str | None:
        """The path behind a name or descriptor, or None where it is not below the root."""
        if isinstance(place, int):
            try:
                path = os.readlink(f"/proc/self/fd/{place}")
            except OSError:
                return None
        else:
            path = os.fsdecode(place)
            if folder is not None and not os.path.isabs(path):
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
            path = os.path.abspath(path)
        return path if path == self._root or path.startswith(self._root + os.sep) else None

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **named: Any) -> Any:
            path = self._path(first, named.get("dir_fd", named.get("src_dir_fd")))
            reading = name == "open" and not rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if path is None or reading:
                return real(first, *rest, **named)
            with self._lock:
                if name == "write":
                    return self._write(first, path, len(rest[0]), lambda size: real(first, memoryview(rest[0])[:size]))
                if name == "sendfile":
                    left = os.fstat(rest[0]).st_size - rest[1]
                    return self._write(first, path, left, lambda size: real(first, *rest[:2], size)) if left else 0
                self._enter(name, path)
                if name == "unlink":
                    self._forget(path)
                result = real(first, *rest, **named)
                self._note(name, first, result)
                return result

        return call

    def _opened(self, place: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        path = self._path(place) if isinstance(place, int | str | bytes | os.PathLike) else None
        if path is None or not set(mode) & set("wax+"):
            return self._open(place, mode, buffering, *rest, **named)
        with self._lock:
            self._enter("open", path)
            raw = _Raw(place, mode.replace("b", "").replace("t", ""))
            raw.faults = self
            self._note("open", raw.fileno(), raw.fileno())
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **named)

    def _enter(self, name: str, path: str) -> None:
        """Count a call that is not a write, and let it meet its fault."""
        if self._is_hit(name, path):
            if self.how in ("kill", "power"):
                self._die()
            if self.how != "short":
                raise self._error(path)

    def _write(self, descriptor: int, path: str, size: int, real: Callable[[int], int]) -> int:
        hit = self._is_hit("write", path)
        written = real(max(1, size // 2) if hit and size else size)
        self._note("write", descriptor, written)
        if hit and self.how in ("kill", "power"):
            self._die()
        if hit and self.how != "short":
            raise self._error(path)
        return written

    def _is_hit(self, name: str, path: str) -> bool:
        if self.dead:
            raise Killed
        self.calls.append(f"{name} {os.path.relpath(path, self._root)}")
        hit = len(self.calls) == self.at
        if hit and self.how == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        return hit

    def _error(self, path: str) -> OSError:
        code = getattr(errno, self.how)
        return OSError(code, os.strerror(code), path)

    def _note(self, name: str, place: Any, result: Any) -> None:
        """Keep account of what is flushed."""
        if name == "syncfs":
            self._unflushed.clear()
        elif name in ("open", "write", "ftruncate", "fsync", "fdatasync"):
            stat = os.fstat(result if name == "open" else place)
            key = stat.st_dev, stat.st_ino
            if name in ("fsync", "fdatasync"):
                self._unflushed.pop(key, None)
            elif name == "write":
                self._unflushed.setdefault(key, stat.st_size - result)
            elif key in self._unflushed or stat.st_size == 0:
                self._unflushed[key] = min(stat.st_size, self._unflushed.get(key, stat.st_size))

    def _forget(self, path: str) -> None:
        try:
            stat = os.stat(path)
        except OSError:
            return
        if stat.st_nlink == 1:
            self._unflushed.pop((stat.st_dev, stat.st_ino), None)

    def _die(self) -> None:
        self.dead = True
        if self.how == "power":
            for folder, _, names in os.walk(self._root):
                for path in (os.path.join(folder, name) for name in names):
                    stat = os.stat(path, follow_symlinks=False)
                    if (left := self._unflushed.get((stat.st_dev, stat.st_ino))) is not None:
                        self._truncate(path, left)
        raise Killed


class _Raw(io.FileIO):
    """The unbuffered file under what `open` returned."""

    faults: Faults

    def write(self, data: Any) -> int:
        faults = self.faults
        with faults._lock:
            # A buffer that is flushed when the dead process's file is closed.
            if faults.dead:
                return len(data)
            path = faults._path(self.fileno()) or os.fsdecode(str(self.name))
            return faults._write(
                self.fileno(), path, len(data), lambda size: io.FileIO.write(self, memoryview(data)[:size])
            )


def count_points(root: Path, work: Callable[[], object]) -> Faults:
    """Run `work` undisturbed and return what it called below `root`."""
    with Faults(root) as faults:
        work()
    return faults


def chosen_points(calls: Sequence[str], how: str, sample: int) -> list[int]:
    """List the calls that a kind of fault is to hit: all of them if $DIM_ALL_FAULTS is set, else `sample`.

    A sample lies evenly over the calls, and those of different kinds lie beside each other.
    """
    places = [at for at, call in enumerate(calls, 1) if how != "short" or call.startswith("write ")]
    if os.environ.get("DIM_ALL_FAULTS") or len(places) <= sample:
        return places
    step, shift = len(places) / sample, KINDS.index(how) / len(KINDS)
    return [places[int(step * (number + shift))] for number in range(sample)]
