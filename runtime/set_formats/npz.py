"""NPZ and NPY: raw pixels for NumPy, written front to back, so that a set of any size needs no memory.

NPZ: `images` uint8 [N, H, W, C], `labels` int64 [N] and `classes` str [K], stored without compression. NPY: the same as
`images.npy`, `labels.npy` and `classes.json`, which can be memory-mapped. With soft labels, `logits.npy` float16 [N, K]
stands beside. The bytes of an archive depend on its members only: `zipfile` gets a fixed date, system and mode.
"""

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.set_formats.part import (
    LIST_STEP,
    Batch,
    HashedFile,
    PartFormat,
    PartRecord,
    PartWriter,
    Sink,
    make_record,
    name_file,
)
from dim.runtime.set_formats.plan import Plan
from dim.runtime.storage.local_store import Store

EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The earliest date that a zip archive can name."""
ZIP64_BYTES = 2**31 - 1
"""Members larger than this get sizes of 64 bits."""


class Npz(PartFormat):
    """The format `npz`."""

    def encoder(self) -> str:
        return "raw"

    def open(self, plan: Plan, store: Store, part: int) -> "NpzPart":
        return NpzPart(plan, store, part)

    def files(self, plan: Plan, part: int) -> Iterator[str]:
        yield name_file("train", plan, part, ".npz")
        if plan.soft_labels:
            yield name_file("logits", plan, part, ".npy")


class Npy(PartFormat):
    """The format `npy`."""

    def encoder(self) -> str:
        return "raw"

    def open(self, plan: Plan, store: Store, part: int) -> "NpyPart":
        return NpyPart(plan, store, part)

    def files(self, plan: Plan, part: int) -> Iterator[str]:
        yield name_file("images", plan, part, ".npy")
        yield name_file("labels", plan, part, ".npy")
        if plan.soft_labels:
            yield name_file("logits", plan, part, ".npy")


class RowsPart(PartWriter):
    """What both formats share: arrays in the set's order, and a teacher's logits in a file of their own."""

    def __init__(self, plan: Plan, store: Store, part: int, names: list[str]) -> None:
        self.plan, self.part = plan, part
        self.start, self.stop = plan.span(part)
        self.images = self.stop - self.start
        self.names = names
        self.files: list[HashedFile] = []
        self.pixels_head = encode_npy_header("|u1", (self.images, plan.height, plan.width, plan.channels))
        with self.aborting_on_error():
            for name in names:
                self.files.append(HashedFile(store, name))
            if plan.soft_labels:
                self.files[-1].write(encode_npy_header("<f2", (self.images, len(plan.classes))))

    @contextlib.contextmanager
    def aborting_on_error(self) -> Iterator[None]:
        """Let go of everything if what is done meanwhile fails."""
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def encode(self, batch: Batch) -> tuple[memoryview, memoryview]:
        scores = np.zeros(0, "<f2") if batch.scores is None else batch.scores.astype("<f2")
        return _view_bytes(batch.images), _view_bytes(scores)

    def write(self, encoded: tuple[memoryview, memoryview]) -> int:
        pixels, scores = encoded
        self.write_pixels(pixels)
        return len(pixels) + (self.files[-1].write(scores) if self.plan.soft_labels else 0)

    def write_pixels(self, pixels: memoryview) -> None:
        """Append the pixels of the next images."""
        self.files[0].write(pixels)

    def encode_labels(self) -> Iterator[bytes]:
        """Yield the file `labels.npy` in pieces."""
        yield encode_npy_header("<i8", (self.images,))
        for start in range(self.start, self.stop, LIST_STEP):
            yield self.plan.samples(start, min(start + LIST_STEP, self.stop))[0].astype("<i8").tobytes()

    def finish(self) -> PartRecord:
        entries = [file.publish(name) for file, name in zip(self.files, self.names, strict=True)]
        return make_record(self.part, self.images, entries)

    def abort(self) -> None:
        for file in self.files:
            file.close()


class NpzPart(RowsPart):
    """Writes one NPZ file; `zipfile` streams, because the file cannot seek."""

    def __init__(self, plan: Plan, store: Store, part: int) -> None:
        self._archive: zipfile.ZipFile | None = None
        self._member: IO[bytes] | None = None
        super().__init__(plan, store, part, list(Npz().files(plan, part)))
        with self.aborting_on_error():
            self._archive = zipfile.ZipFile(Sink(self.files[0]), "w")
            self._begin_member("images.npy", len(self.pixels_head) + self.images * plan.image_bytes)
            self.write_pixels(memoryview(self.pixels_head))

    def _begin_member(self, name: str, size: int) -> None:
        assert self._archive is not None
        info = zipfile.ZipInfo(name, EARLIEST)
        info.create_system = 0
        self._member = self._archive.open(info, "w", force_zip64=size > ZIP64_BYTES)
        info.external_attr = 0  # `open` gave it a mode

    def write_pixels(self, pixels: memoryview) -> None:
        assert self._member is not None
        self._member.write(pixels)

    def finish(self) -> PartRecord:
        assert self._member is not None and self._archive is not None
        classes = io.BytesIO()
        np.lib.format.write_array(classes, np.array(self.plan.classes), version=(1, 0), allow_pickle=False)
        for name, size, pieces in (
            ("labels.npy", 8 * self.images, self.encode_labels()),
            ("classes.npy", classes.tell(), iter([classes.getvalue()])),
        ):
            self._member.close()
            self._begin_member(name, size)
            for piece in pieces:
                self._member.write(piece)
        self._member.close()
        self._archive.close()
        return super().finish()

    def abort(self) -> None:
        super().abort()
        # The files are closed, so that what these two still write goes nowhere.
        if self._member is not None:
            self._member.close()
        if self._archive is not None:
            self._archive.close()


class NpyPart(RowsPart):
    """Writes `images.npy` and `labels.npy`."""

    def __init__(self, plan: Plan, store: Store, part: int) -> None:
        super().__init__(plan, store, part, list(Npy().files(plan, part)))
        with self.aborting_on_error():
            self.files[0].write(self.pixels_head)

    def finish(self) -> PartRecord:
        for piece in self.encode_labels():
            self.files[1].write(piece)
        return super().finish()


def _view_bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def encode_npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """Return what stands before an array's data in an NPY file, C order."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def encode_class_names(plan: Plan) -> bytes:
    """Return the file `classes.json`: the names of all classes in the order of their labels."""
    return (json.dumps(list(plan.classes), ensure_ascii=False, indent=2) + "\n").encode()
