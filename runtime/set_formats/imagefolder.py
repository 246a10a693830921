"""ImageFolder: `<class>/<index>.png`, what torchvision and Hugging Face `imagefolder` read."""

import hashlib
from collections.abc import Iterator

from dim.runtime.set_formats.npz import encode_npy_header
from dim.runtime.set_formats.part import (
    LIST_STEP,
    Batch,
    FileEntry,
    HashedFile,
    PartFormat,
    PartRecord,
    PartWriter,
    make_record,
    name_file,
)
from dim.runtime.set_formats.plan import Plan
from dim.runtime.storage.local_store import LocalStore, Store, make_altered_error

# An image, the bytes written for it, and its temporary name where it still has one.
Made = list[tuple[FileEntry, int, str | None]]


class ImageFolder(PartFormat):
    """The format `imagefolder`."""

    def open(self, plan: Plan, store: Store, part: int) -> "ImageFolderPart":
        return ImageFolderPart(plan, store, part)

    def files(self, plan: Plan, part: int) -> Iterator[str]:
        first, stop = plan.span(part)
        for start in range(first, stop, LIST_STEP):
            labels, indices = plan.samples(start, min(start + LIST_STEP, stop))
            for label, index in zip(labels.tolist(), indices.tolist(), strict=True):
                yield f"{plan.classes[label]}/{index:08d}.png"
        if plan.soft_labels:
            yield name_file("logits", plan, part, ".npy")

    def folders(self, plan: Plan) -> list[str]:
        return [name for name, count in zip(plan.classes, plan.counts, strict=True) if count]


class ImageFolderPart(PartWriter):
    """Writes its images under temporary names and renames them all once they were flushed."""

    def __init__(self, plan: Plan, store: Store, part: int) -> None:
        self._plan, self._store, self._part = plan, store, part
        self.unflushed = isinstance(store, LocalStore)
        self._made: Made = []
        self._logits: HashedFile | None = None
        if plan.soft_labels:
            start, stop = plan.span(part)
            self._logits = HashedFile(store, f"logits-{part}.npy")
            with self._logits.closing_on_error():
                self._logits.write(encode_npy_header("<f2", (stop - start, len(plan.classes))))

    def encode(self, batch: Batch) -> tuple[Made, bytes]:
        made: Made = []
        files = batch.png_files()
        for data, label, index in zip(files, batch.labels.tolist(), batch.indices.tolist(), strict=True):
            path = f"{self._plan.classes[label]}/{index:08d}.png"
            entry = FileEntry(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            made.append((entry, *self._write(path, data, f"{self._part}-{label}-{index}.png")))
        return made, b"" if batch.scores is None else batch.scores.astype("<f2").tobytes()

    def _write(self, path: str, data: bytes, temporary: str) -> tuple[int, str | None]:
        """Write an image unless it is there; return the bytes written and its temporary name, if it has one."""
        if there := self._store.read(path):
            if there != data:
                raise make_altered_error(self._store, path)
            return 0, None
        if not isinstance(self._store, LocalStore):
            self._store.put(path, data)
            return len(data), None
        self._store.write_scratch(temporary, data)
        return len(data), temporary

    def write(self, encoded: tuple[Made, bytes]) -> int:
        made, logits = encoded
        self._made.extend(made)
        if self._logits is not None:
            self._logits.write(logits)
        return sum(written for _, written, _ in made) + len(logits)

    def finish(self) -> PartRecord:
        if isinstance(self._store, LocalStore):
            for entry, _, temporary in self._made:
                if temporary is not None:
                    self._store.rename_scratch(temporary, entry.path)
        entries = [entry for entry, _, _ in self._made]
        if self._logits is not None:
            entries.append(self._logits.publish(name_file("logits", self._plan, self._part, ".npy")))
        return make_record(self._part, len(self._made), entries, listed=False)

    def abort(self) -> None:
        if self._logits is not None:
            self._logits.close()
