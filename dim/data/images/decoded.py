"""Decodes large sets once: their images stay in the cache as a memory-mapped file, which the next command opens.

The key of an entry has three parts. They are the source's contents (paths, inodes, sizes and times of change of all its
files, label files too, or the commit of a dataset of the Hub), the options that it was read with, and the version of
Pillow. So a changed source is decoded again, also if files were moved or their times were set back. So is one whose
entry was written to after it was finished. Writing to an entry while a process reads it is not detected. Entries lie in
`decoded` beside the downloads and may be deleted at any time. One that was interrupted keeps what is decoded, and the
next command goes on. While one process decodes a set, others wait for it.

Entries that were not used for longest go first when all together would pass `limit_bytes`, or when the disk has no room
for a new one. A set larger than the limit is not kept.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.files.official_files import default_data_folder
from dim.data.image_set import Images, Labels, RawSet, Source
from dim.execution.large_images import open_images
from dim.runtime.errors import BadValueError
from dim.runtime.storage.below import replace_file

KEPT_FROM_BYTES = 64 * 2**20
"""Smaller sets are decoded faster than they are worth keeping."""
DEFAULT_LIMIT_GB = 100
"""Gigabytes that all entries may take together, unless `$DIM_DECODED_GB` says another number; 0 keeps none."""
SAVE_EVERY_S = 5.0
"""How often an unfinished entry notes on disk what is decoded."""

NO_ROOM = ", or let the cache of decoded sets have more room ($DIM_DECODED_GB, and space on its disk)"
"""What to do about a set that is too large for memory and was not kept."""

_VERSION = 3
_IMAGES, _LABELS, _FACTS, _DONE = "images.npy", "labels.npy", "set.json", "done.npy"
_UNFINISHED = ".part"
_HOLE = -1
"""Label of a row without an image, because its file could not be decoded."""


def decoded_folder() -> Path:
    """Return where decoded sets are kept."""
    return default_data_folder().parent / "decoded"


def limit_bytes() -> int:
    """Return how many bytes all entries may take together.

    Raises:
        BadValueError: `$DIM_DECODED_GB` is no number.
    """
    text = os.environ.get("DIM_DECODED_GB") or str(DEFAULT_LIMIT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 10**9:
        raise BadValueError(f"DIM_DECODED_GB is {text!r}; it must be a number of gigabytes, 0 or more.")
    return int(limit * 10**9)


def find_key(source: Source) -> str | None:
    """Return what an entry of this source is called; None for a source that nothing identifies."""
    from PIL import __version__ as pillow

    options = vars(replace(source.options, sha256=None, seed=0))  # the split is cut later
    where = source.identity or str(source.path.resolve() / source.table)
    digest = hashlib.sha256(json.dumps([_VERSION, pillow, where, options]).encode())
    if source.identity:
        return digest.hexdigest()[:32]
    if not source.path.exists():
        return None
    with suppress(OSError):
        for line in _list_files(source.path):
            digest.update(line)
        return digest.hexdigest()[:32]
    return None


def _list_files(path: Path) -> Iterator[bytes]:
    if not path.is_dir():
        for file in (path, *(path.parent / name for name in ("classes.json", "dataset.json"))):  # names of classes
            if file.is_file():
                yield _describe(file.name, file.stat())
        return
    for folder, folders, files in os.walk(path, followlinks=True):
        folders.sort()
        if len(Path(folder).relative_to(path).parts) > 20:
            raise OSError("too deep")
        for name in sorted(files):
            yield _describe(os.path.join(folder, name), os.stat(os.path.join(folder, name)))


def _describe(name: str, status: os.stat_result) -> bytes:
    """Describe a file so that no other, and no later state of it, is described alike."""
    times = f"{status.st_mtime_ns}\0{status.st_ctime_ns}"
    return f"{name}\0{status.st_ino}\0{status.st_size}\0{times}\n".encode("utf-8", "surrogateescape")


def _describe_arrays(folder: Path) -> list[str]:
    return [_describe(name, (folder / name).stat()).decode() for name in (_IMAGES, _LABELS)]


def open_decoded(key: str, source: Source, *, again: bool = True) -> RawSet | None:
    """Open an entry; None where there is none.

    Args:
        key: of the entry.
        source: gets the set's name, and is told again what was said when it was decoded.
        again: whether that was in an earlier command.
    """
    folder = decoded_folder() / key
    try:
        facts = json.loads((folder / _FACTS).read_text())
        if facts["arrays"] != _describe_arrays(folder):
            if again:
                source.say(f"{source.name}: {folder} was written to after it was finished, so its set is decoded again")
            return None
        images = np.load(folder / _IMAGES, mmap_mode="c", allow_pickle=False)
        labels = np.load(folder / _LABELS, allow_pickle=False)
        num_train, classes, notes = int(facts["num_train"]), tuple(facts["classes"]), tuple(facts["notes"])
        said, heeds = [str(sentence) for sentence in facts["said"]], frozenset(map(str, facts["heeds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        return None
    with suppress(OSError):
        os.utime(folder)  # used now
    if again:
        source.heed(heeds)
        for sentence in said:
            source.say(f"{source.name}: {sentence}")
        source.say(f"{source.name}: its {len(images)} images were decoded before; they lie in {folder}")
    train, test = np.arange(len(labels)) < num_train, np.arange(len(labels)) >= num_train
    splits = [_open_split(folder / _IMAGES, labels, part) for part in (train, test)]
    has_test = num_train < len(labels)
    return RawSet(
        name=source.name,
        classes=classes,
        train_images=splits[0][0],
        train_labels=splits[0][1],
        test_images=splits[1][0] if has_test else None,
        test_labels=splits[1][1] if has_test else None,
        notes=notes,
    )


def _open_split(path: Path, labels: Labels, part: NDArray[np.bool_]) -> tuple[Images, Labels]:
    """Open the images of a split, without those that could not be decoded."""
    rows = np.flatnonzero(part & (labels != _HOLE))
    return open_images(path, rows), labels[rows]


@dataclass
class NewEntry:
    """An entry in the making, which this process alone writes."""

    folder: Path
    images: Images
    """uint8 `[N, H, W, C]`, on disk."""
    done: NDArray[np.bool_]
    """`[N]`, which rows an interrupted command had decoded."""
    _saved_s: float = field(default_factory=time.monotonic)

    def save(self, decoded: NDArray[np.bool_], *, now: bool = False) -> None:
        """Note which rows are decoded, every few seconds; a note never runs ahead of the images on disk."""
        if not now and time.monotonic() < self._saved_s + SAVE_EVERY_S:
            return
        rows = decoded.copy()
        with suppress(OSError):  # then a later command decodes more
            _sync(self.folder / _IMAGES)
            replace_file(self.folder, _DONE, np.packbits(rows).tobytes())
        self._saved_s = time.monotonic()

    def publish(
        self, raw: RawSet, num_train: int, decoded: NDArray[np.bool_], said: list[str], heeds: frozenset[str]
    ) -> bool:
        """Put the finished entry into its place; False where the disk refuses.

        Args:
            raw: the set.
            num_train: rows of the training split, those without an image among them.
            decoded: `[N]`, which rows have an image.
            said: what the user was told, and is told again.
            heeds: options that have a say in the set.
        """
        labels = np.full(len(decoded), _HOLE, dtype=np.int64)
        labels[decoded] = np.concatenate([part for part in (raw.train_labels, raw.test_labels) if part is not None])
        facts: dict[str, Any] = {"num_train": num_train, "classes": raw.classes, "notes": raw.notes, "said": said}
        facts["heeds"] = sorted(heeds)
        final = self.folder.with_name(self.folder.name.removeprefix(".").removesuffix(_UNFINISHED))
        try:
            np.save(self.folder / _LABELS, labels)
            _sync(self.folder / _IMAGES)
            (self.folder / _DONE).unlink(missing_ok=True)
            facts["arrays"] = _describe_arrays(self.folder)
            replace_file(self.folder, _FACTS, json.dumps(facts).encode())
            shutil.rmtree(final, ignore_errors=True)  # damaged
            self.folder.rename(final)
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Remove the entry, because its source cannot be read."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_entry(key: str, shape: tuple[int, int, int, int], source: Source) -> Iterator[NewEntry | None]:
    """Begin an entry, or go on with one that was interrupted; waits while another process makes it.

    Args:
        key: of the entry.
        shape: `[N, H, W, C]` of its images.
        source: is told what happens.

    Yields:
        the entry; None where another process finished it meanwhile, or the disk has no room or refuses.
    """
    folder = decoded_folder() / f".{key}{_UNFINISHED}"
    try:
        descriptor = _lock_folder(folder, source)
    except OSError:
        yield None
        return
    try:
        if (decoded_folder() / key / _FACTS).exists() and open_decoded(key, source, again=False) is not None:
            folder.rmdir()
            yield None
        else:
            yield _prepare(folder, shape, source)
    finally:
        os.close(descriptor)


def _lock_folder(folder: Path, source: Source) -> int:
    """Make a folder that no other process writes, and return its descriptor, which holds the lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            source.say(f"{source.name}: another process decodes this set; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        os.close(descriptor)  # the other process has put it into its place, or removed it


def _prepare(folder: Path, shape: tuple[int, int, int, int], source: Source) -> NewEntry | None:
    path, num_bytes = folder / _IMAGES, int(np.prod(shape))
    done = np.zeros(shape[0], dtype=bool)
    try:
        try:
            images: Any = np.load(path, mmap_mode="r+", allow_pickle=False)
            noted = np.frombuffer((folder / _DONE).read_bytes(), dtype=np.uint8)
            if images.shape == shape and len(noted) == -(-shape[0] // 8):
                done = np.unpackbits(noted, count=shape[0]).astype(bool)
                source.say(f"{source.name}: {int(done.sum())} of {shape[0]} images were decoded by an earlier command")
                return NewEntry(folder, np.asarray(images), done)
        except (OSError, ValueError):
            pass
        if num_bytes > limit_bytes():
            raise OSError("larger than the limit")
        make_room(num_bytes, folder)
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        with open(path, "r+b") as file:  # a mapped file that meets a full disk later would end the process
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return NewEntry(folder, np.asarray(images), done)


@dataclass(frozen=True)
class Entry:
    """A set in the cache."""

    path: Path
    num_bytes: int
    used_s: float
    """When it was last used, in seconds since 1970."""
    finished: bool


def list_entries() -> list[Entry]:
    """List the sets in the cache, those not used for longest first."""
    entries = []
    with suppress(OSError):
        for path in decoded_folder().iterdir():
            with suppress(OSError):
                size = sum(file.stat().st_blocks * 512 for file in path.iterdir())
                entries.append(Entry(path, size, path.stat().st_mtime, not path.name.endswith(_UNFINISHED)))
    return sorted(entries, key=lambda entry: entry.used_s)


def make_room(num_bytes: int, keep: Path) -> list[Path]:
    """Remove the sets not used for longest until a new one fits below the limit and onto the disk.

    Args:
        num_bytes: of the new set.
        keep: its folder, which stays.

    Returns:
        what was removed; nothing that another process makes now.
    """
    entries = [entry for entry in list_entries() if entry.path != keep]
    total, removed = sum(entry.num_bytes for entry in entries), []
    for entry in entries:
        if total + num_bytes <= limit_bytes() and shutil.disk_usage(keep).free > num_bytes:
            break
        if entry.finished or _is_left_alone(entry.path):
            shutil.rmtree(entry.path, ignore_errors=True)
            total -= entry.num_bytes
            removed.append(entry.path)
    return removed


def _is_left_alone(folder: Path) -> bool:
    """Whether no process makes an unfinished entry now."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
