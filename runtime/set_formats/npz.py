"""NPZ and NPY: raw pixels for NumPy, written front to back, so that a set of any size needs no memory.

NPZ: `images` uint8 [N, H, W, C], `labels` int64 [N] and `classes` str [K], stored without compression. NPY: the same as
`images.npy`, `labels.npy` and `classes.json`, which can be memory-mapped. With soft labels, `logits.npy` float16 [N, K]
stands beside. An interrupted file is cut back to its last flushed image and continued.
"""

import contextlib
import io
import json
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dim.runtime.set_formats.part import (
    LIST_STEP,
    Batch,
    FileEntry,
    HashedFile,
    PartRecord,
    numbered,
    read_pieces,
    record_of,
)
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.zip_stream import ZipIndex
from dim.runtime.storage.atomic import replace_file
from dim.runtime.storage.local_store import Store

FLUSH_BYTES, FLUSH_SECONDS = 2**26, 5.0
_LABELS, _CLASSES, _IMAGES = "labels.npy", "classes.npy", "images.npy"


class Npz:
    """The format `npz`."""

    def encoder(self) -> str:
        return "raw"

    def open(self, plan: Plan, store: Store, part: int) -> "NpzPart":
        return NpzPart(plan, store, part)

    def files(self, plan: Plan, part: int) -> Iterator[str]:
        yield numbered("train", plan, part, ".npz")
        if plan.soft_labels:
            yield numbered("logits", plan, part, ".npy")

    def folders(self, plan: Plan) -> list[str]:
        return []


class Npy:
    """The format `npy`."""

    def encoder(self) -> str:
        return "raw"

    def open(self, plan: Plan, store: Store, part: int) -> "NpyPart":
        return NpyPart(plan, store, part)

    def files(self, plan: Plan, part: int) -> Iterator[str]:
        yield numbered("images", plan, part, ".npy")
        yield numbered("labels", plan, part, ".npy")
        if plan.soft_labels:
            yield numbered("logits", plan, part, ".npy")

    def folders(self, plan: Plan) -> list[str]:
        return []


class RowFile(HashedFile):
    """A file of equal rows behind a fixed head, which a later run can continue at a row that was flushed."""

    def __init__(self, store: Store, name: str, head: bytes, row_bytes: int) -> None:
        self.name = name
        self._head, self._row_bytes = head, row_bytes
        self._progress = store.partial(name + ".rows")
        path = store.partial(name)
        noted = self._progress.read_text() if self._progress.exists() and path.exists() else ""
        rows = int(noted) if noted.isdecimal() else 0
        complete = rows > 0 and path.stat().st_size >= len(head) + rows * row_bytes
        same_head = complete and b"".join(read_pieces(path, 0, len(head))) == head
        self.rows = self.appended = rows if same_head else 0
        super().__init__(path, len(head) + rows * row_bytes if same_head else 0)
        if not same_head:
            with self.closing_on_error():
                self.append(head)

    def cut(self, rows: int) -> None:
        """Forget the rows from `rows` on."""
        if rows < self.rows:
            self.close()
            super().__init__(self.path, len(self._head) + rows * self._row_bytes)
            self.rows = self.appended = rows

    def append_rows(self, data: memoryview) -> int:
        """Write whole rows at the end and return their bytes."""
        written = self.append(data)
        self.appended += written // self._row_bytes
        return written

    def mark(self) -> None:
        """Flush the rows that were appended and note how many there are, unless the file was closed."""
        if self.closed:
            return
        self.flush()
        self.rows = self.appended
        replace_file(self._progress, str(self.rows).encode())

    def publish(self, store: Store, name: str) -> FileEntry:
        entry = super().publish(store, name)
        self._progress.unlink(missing_ok=True)
        return entry


class RowsPart:
    """The common half of both formats: pixels, and a teacher's logits beside them."""

    unflushed = False

    def __init__(self, plan: Plan, store: Store, part: int, name: str, zip_header: bytes) -> None:
        self.plan, self.store, self.part = plan, store, part
        self.span = plan.span(part)
        self.images = self.span[1] - self.span[0]
        self._unmarked, self._marked_at = 0, time.monotonic()
        refusal = f"Another process is writing {store}/{name}; wait for it, or stop it."
        with contextlib.ExitStack() as held:
            held.enter_context(store.lock(f"part-{part}", refusal))
            head = npy_header("|u1", (self.images, plan.height, plan.width, plan.channels))
            self.pixels = RowFile(store, name, zip_header + head, plan.image_bytes)
            held.callback(self.pixels.close)
            self.rows = [self.pixels]
            if plan.soft_labels:
                classes = len(plan.classes)
                logits = numbered("logits", plan, part, ".npy")
                self.rows.append(RowFile(store, logits, npy_header("<f2", (self.images, classes)), 2 * classes))
                held.callback(self.rows[1].close)
            self.images_done = min(file.rows for file in self.rows)
            for file in self.rows:
                file.cut(self.images_done)
            self.resume(len(zip_header))
            self._held = held.pop_all()

    def resume(self, head_bytes: int) -> None:
        """Read what is needed of the rows that are there; the member's data start at `head_bytes`."""

    def encode(self, batch: Batch) -> list[memoryview]:
        arrays: list[Any] = [batch.images] if batch.scores is None else [batch.images, batch.scores.astype("<f2")]
        return [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays]

    def write(self, encoded: list[memoryview]) -> int:
        written = sum(file.append_rows(data) for file, data in zip(self.rows, encoded, strict=True))
        self._unmarked += written
        if self._unmarked >= FLUSH_BYTES or time.monotonic() - self._marked_at >= FLUSH_SECONDS:
            self._mark()
        return written

    def _mark(self) -> None:
        for file in self.rows:
            file.mark()
        self._unmarked, self._marked_at = 0, time.monotonic()

    def labels(self) -> Iterator[bytes]:
        """Yield the file `labels.npy` in pieces."""
        yield npy_header("<i8", (self.images,))
        for start in range(self.span[0], self.span[1], LIST_STEP):
            yield self.plan.samples(start, min(start + LIST_STEP, self.span[1]))[0].astype("<i8").tobytes()

    def publish(self, names: list[str]) -> list[FileEntry]:
        """Give the row files their final names and let go of the lock."""
        entries = [file.publish(self.store, name) for file, name in zip(self.rows, names, strict=True)]
        self._held.close()
        return entries

    def abort(self) -> None:
        try:
            with contextlib.suppress(OSError):
                self._mark()
        finally:
            self._held.close()


class NpzPart(RowsPart):
    """Writes one NPZ file."""

    def __init__(self, plan: Plan, store: Store, part: int) -> None:
        first, stop = plan.span(part)
        head = npy_header("|u1", (stop - first, plan.height, plan.width, plan.channels))
        self._member_bytes = len(head) + (stop - first) * plan.image_bytes
        header = ZipIndex.header(_IMAGES, self._member_bytes)
        name = numbered("train", plan, part, ".npz")
        self._crc = 0
        super().__init__(plan, store, part, name, header)

    def resume(self, head_bytes: int) -> None:
        for piece in read_pieces(self.pixels.path, head_bytes, self.pixels.bytes):
            self._crc = zlib.crc32(piece, self._crc)

    def write(self, encoded: list[memoryview]) -> int:
        self._crc = zlib.crc32(encoded[0], self._crc)
        return super().write(encoded)

    def finish(self) -> PartRecord:
        index, file = ZipIndex(), self.pixels
        file.append(index.descriptor(_IMAGES, self._member_bytes, self._crc, 0))
        classes = io.BytesIO()
        np.lib.format.write_array(classes, np.array(self.plan.classes), version=(1, 0), allow_pickle=False)
        labels_bytes = len(npy_header("<i8", (self.images,))) + 8 * self.images
        for name, size, pieces in (
            (_LABELS, labels_bytes, self.labels()),
            (_CLASSES, classes.tell(), iter([classes.getvalue()])),
        ):
            start, crc = file.bytes, 0
            file.append(index.header(name, size))
            for piece in pieces:
                crc = zlib.crc32(piece, crc)
                file.append(piece)
            file.append(index.descriptor(name, size, crc, start))
        file.append(index.directory(file.bytes))
        names = [file.name for file in self.rows]
        return record_of(self.part, self.images, self.publish(names))


class NpyPart(RowsPart):
    """Writes `images.npy` and `labels.npy`."""

    def __init__(self, plan: Plan, store: Store, part: int) -> None:
        super().__init__(plan, store, part, numbered("images", plan, part, ".npy"), b"")

    def finish(self) -> PartRecord:
        name = numbered("labels", self.plan, self.part, ".npy")
        labels = HashedFile(self.store.scratch(name))
        try:
            for piece in self.labels():
                labels.append(piece)
            second = labels.publish(self.store, name)
        finally:
            labels.close()
        first, *logits = self.publish([file.name for file in self.rows])
        return record_of(self.part, self.images, [first, second, *logits])


def npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """Return what stands before an array's data in an NPY file, C order."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def classes_json(plan: Plan) -> bytes:
    """Return the file `classes.json`: the names of all classes in the order of their labels."""
    return (json.dumps(list(plan.classes), ensure_ascii=False, indent=2) + "\n").encode()
