"""Shared by the writers of parts: the batch they take, the record they leave, the names of files."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.png import encode_png, encoder_version
from dim.runtime.storage.atomic import write_all
from dim.runtime.storage.local_store import Store
from dim.runtime.storage.records import FieldError

LIST_STEP = 8192


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

    def __post_init__(self) -> None:
        for name in ("part", "images", "bytes"):
            if getattr(self, name) < 0:
                raise FieldError(name, getattr(self, name), "0 or more")
        if len(self.sha256) != 64:
            raise FieldError("sha256", self.sha256, "64 hexadecimal digits")
        for entry in self.files:
            if not _is_inside(entry.path):
                raise FieldError("files", entry.path, "paths inside the set")


def _is_inside(path: str) -> bool:
    return path.isprintable() and not {"", ".", ".."}.intersection(path.split("/"))


class PartWriter(Protocol):
    """Writes one part. `encode` runs in several threads at once, the rest in one, in order."""

    unflushed: bool = False
    """Whether the disk must hold what was written before `finish`, which flushes nothing itself."""

    def encode(self, batch: Batch) -> Any:
        """Turn a batch into what `write` takes."""

    def write(self, encoded: Any) -> int:
        """Take the next batch and return its bytes."""

    def finish(self) -> PartRecord:
        """Give the part's files their final names."""

    def abort(self) -> None:
        """Let go of everything that is open; a part that was cut off is made anew."""


class PartFormat(Protocol):
    """One way of writing sets."""

    def encoder(self) -> str:
        """Name the library, with its version, that decides the bytes."""
        return encoder_version()

    def open(self, plan: Plan, store: Store, part: int) -> PartWriter:
        """Begin a part."""

    def files(self, plan: Plan, part: int) -> Iterator[str]:
        """List the paths of a part's files in the set's order."""

    def folders(self, plan: Plan) -> list[str]:
        """List the folders that the files need."""
        return []


def make_record(part: int, images: int, files: Sequence[FileEntry], listed: bool = True) -> PartRecord:
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


def name_file(stem: str, plan: Plan, part: int, suffix: str) -> str:
    """Name a part's file: `train.npz` for the only one, `train-00003-of-00010.npz` for one of many."""
    return f"{stem}{suffix}" if plan.parts == 1 else f"{stem}-{part:05d}-of-{plan.parts:05d}{suffix}"


class HashedFile:
    """A file that is only appended to, hashed on the way; its name is temporary until it is published."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self.bytes = 0
        self._store = store
        self._digest = hashlib.sha256()
        self._descriptor = store.open_scratch(name)

    @contextlib.contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """Close the file if what is done meanwhile fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def write(self, data: bytes | memoryview) -> int:
        """Write bytes at the end and return how many."""
        write_all(self._descriptor, data)
        self._digest.update(data)
        self.bytes += len(data)
        return len(data)

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._descriptor < 0

    def close(self) -> None:
        """Close the file; it may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def publish(self, name: str) -> FileEntry:
        """Give the file its final name; a finished file of that name with the same bytes stays untouched."""
        self.close()
        entry = FileEntry(path=name, bytes=self.bytes, sha256=self._digest.hexdigest())
        self._store.publish(self.name, name, entry.sha256)
        return entry


class Sink:
    """A `HashedFile` for libraries that close what they write to, which goes nowhere once the file is closed."""

    closed = False

    def __init__(self, file: HashedFile) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        """Append bytes and return how many."""
        return self._file.write(memoryview(data)) if not self._file.closed else len(data)

    def tell(self) -> int:
        """Return the bytes so far."""
        return self._file.bytes

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The part closes its file itself."""
