"""What every writer of a part has in common: the batch it takes, the record it leaves, its files' names."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dim.runtime.errors import OutputError
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.png import encode_png
from dim.runtime.storage.local_store import Store, write_all

LIST_STEP = 8192
READ_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images in the set's order, on their way from the engine to a writer."""

    images: NDArray[np.uint8]
    """uint8 [N, H, W, C]."""
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    scores: NDArray[np.float16] | None = None
    """The teacher's logits, float16 [N, K]."""
    encode_png: Callable[[NDArray[np.uint8]], list[bytes]] = encode_png
    """As `dim.runtime.set_formats.png.encode_png`, perhaps in another process."""

    def png_files(self) -> list[bytes]:
        """Encode the images, one PNG file each."""
        return self.encode_png(self.images)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A finished file of a set."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """A finished part, as the journal and `dataset.json` have it."""

    part: int
    images: int
    bytes: int
    sha256: str
    """Over the lines `<sha256>  <path>` of the part's files in the set's order, as sha256sum prints them."""
    files: tuple[FileEntry, ...]
    """The files; not listed where every image is a file, because the plan names those."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON has it."""
        block: dict[str, Any] = {name: getattr(self, name) for name in ("part", "images", "bytes", "sha256")}
        return block | {"files": [dict(vars(entry)) for entry in self.files]}

    @staticmethod
    def from_dict(block: Any) -> "PartRecord":
        """Read a record; raises OutputError where it is malformed."""
        try:
            numbers = [block[name] for name in ("part", "images", "bytes")]
            if not all(type(number) is int and number >= 0 for number in numbers) or len(block["sha256"]) != 64:
                raise ValueError
            files = tuple(FileEntry(**entry) for entry in block["files"])
            if not all(type(entry.bytes) is int and _is_inside(entry.path) for entry in files):
                raise ValueError
            return PartRecord(part=numbers[0], images=numbers[1], bytes=numbers[2], sha256=block["sha256"], files=files)
        except (KeyError, TypeError, ValueError):
            raise OutputError(
                f"A record of a finished part is malformed: found {str(block)[:80]!r}; use --overwrite to start anew."
            ) from None


def _is_inside(path: object) -> bool:
    return isinstance(path, str) and path.isprintable() and not {"", ".", ".."}.intersection(path.split("/"))


class PartWriter(Protocol):
    """Writes one part. `encode` runs in several threads at once, the rest in one, in order."""

    images_done: int
    """Images of this part that an interrupted run left behind; the batches start after them."""
    unflushed: bool
    """Whether the disk must hold what was written before `finish`, which flushes nothing itself."""

    def encode(self, batch: Batch) -> Any:
        """Turn a batch into what `write` takes."""

    def write(self, encoded: Any) -> int:
        """Take the next batch and return its bytes."""

    def finish(self) -> PartRecord:
        """Give the part's files their final names."""

    def abort(self) -> None:
        """Let go of everything; what can be continued stays."""


class PartFormat(Protocol):
    """One way of writing sets."""

    def encoder(self) -> str:
        """Name the library, with its version, that decides the bytes."""

    def open(self, plan: Plan, store: Store, part: int) -> PartWriter:
        """Begin or continue a part."""

    def files(self, plan: Plan, part: int) -> Iterator[str]:
        """List the paths of a part's files in the set's order."""

    def folders(self, plan: Plan) -> list[str]:
        """List the folders that the files need."""


def record_of(part: int, images: int, files: Sequence[FileEntry], listed: bool = True) -> PartRecord:
    """Make the record of a part from its files."""
    digest = hashlib.sha256()
    for entry in files:
        digest.update(f"{entry.sha256}  {entry.path}\n".encode())
    return PartRecord(
        part=part,
        images=images,
        bytes=sum(entry.bytes for entry in files),
        sha256=digest.hexdigest(),
        files=tuple(files) if listed else (),
    )


def numbered(stem: str, plan: Plan, part: int, suffix: str) -> str:
    """Name a part's file: `train.npz` for the only one, `train-00003-of-00010.npz` for one of many."""
    return f"{stem}{suffix}" if plan.parts == 1 else f"{stem}-{part:05d}-of-{plan.parts:05d}{suffix}"


class HashedFile:
    """A file that is only appended to, hashed on the way; its name is temporary until it is published."""

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        self.path = path
        self.bytes = keep_bytes
        self._digest = hashlib.sha256()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        with self.closing_on_error():
            os.ftruncate(self._descriptor, keep_bytes)
            for piece in read_pieces(path, 0, keep_bytes):
                self._digest.update(piece)
            os.lseek(self._descriptor, 0, os.SEEK_END)

    @contextlib.contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """Close the file if what is done meanwhile fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def append(self, data: bytes | memoryview) -> int:
        """Write bytes at the end and return how many."""
        write_all(self._descriptor, data)
        self._digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Wait until what was appended is on the disk."""
        os.fdatasync(self._descriptor)

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._descriptor < 0

    def close(self) -> None:
        """Close the file; it may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def publish(self, store: Store, name: str) -> FileEntry:
        """Give the file its final name; a finished file of that name with the same bytes stays untouched."""
        self.close()
        entry = FileEntry(path=name, bytes=self.bytes, sha256=self._digest.hexdigest())
        if store.size(name):
            if store.digest(name) != entry.sha256:
                raise altered(store, name)
            self.path.unlink()
        else:
            store.publish(self.path, name)
        return entry


def altered(store: Store, name: str) -> OutputError:
    """Make the error for a file that stands where another one belongs."""
    return OutputError(
        f"{store}/{name} is not what this set's plan draws: it was altered or is another file; "
        "move it away and run the same command again."
    )


def read_pieces(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """Read the bytes start..stop-1 of a file, a megabyte at a time."""
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop and (piece := file.read(min(READ_BYTES, stop - start))):
            start += len(piece)
            yield piece
