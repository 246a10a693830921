"""WebDataset: tar shards `train-<identity>-000000.tar` of `<key>.png` and `<key>.cls`, the key being index and label.

The identity is that of the set's plan: readers such as mlcroissant keep what they unpack by the archive's name alone.

The headers are written here because `tarfile` makes 11,000 files a second, fewer than the PNG encoder, and because the
bytes may depend on nothing but the images: owner, time and mode are constant.
"""

import io
from collections.abc import Iterator

import numpy as np

from dim.runtime.set_formats.part import Batch, HashedFile, PartFormat, PartRecord, PartWriter, make_record
from dim.runtime.set_formats.plan import Plan
from dim.runtime.storage.local_store import Store

BLOCK, RECORD = 512, 10_240
_NAME, _CHECKSUM = 100, 8
# Mode 0644, owner and group 0, time 0, type "file", magic "ustar", version 00.
_BEFORE_SIZE = b"0000644\0" + b"0000000\0" * 2
_AFTER_SIZE = b"00000000000\0"
_AFTER_CHECKSUM = b"0" + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 167)
_CONSTANT_SUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_CHECKSUM) + _CHECKSUM * ord(" ")


class WebDataset(PartFormat):
    """The format `webdataset`."""

    def open(self, plan: Plan, store: Store, part: int) -> "WebDatasetPart":
        return WebDatasetPart(plan, store, part)

    def files(self, plan: Plan, part: int) -> Iterator[str]:
        yield f"train-{plan.identity}-{part:06d}.tar"


class WebDatasetPart(PartWriter):
    """Writes one tar file."""

    def __init__(self, plan: Plan, store: Store, part: int) -> None:
        self._part = part
        self._name = next(WebDataset().files(plan, part))
        self._file = HashedFile(store, self._name)
        self._images = 0

    def encode(self, batch: Batch) -> tuple[int, bytes]:
        entries: list[bytes] = []
        rows = zip(batch.png_files(), batch.labels.tolist(), batch.indices.tolist(), strict=True)
        for row, (png, label, index) in enumerate(rows):
            key = f"{index:08d}-{label:05d}"
            entries += (tar_entry(f"{key}.cls", str(label).encode()), tar_entry(f"{key}.png", png))
            if batch.scores is not None:
                stream = io.BytesIO()
                np.save(stream, batch.scores[row].astype("<f2"), allow_pickle=False)
                entries.append(tar_entry(f"{key}.logits.npy", stream.getvalue()))
        return len(batch.labels), b"".join(entries)

    def write(self, encoded: tuple[int, bytes]) -> int:
        self._images += encoded[0]
        return self._file.write(encoded[1])

    def finish(self) -> PartRecord:
        end = self._file.bytes + 2 * BLOCK
        self._file.write(bytes(2 * BLOCK + -end % RECORD))
        return make_record(self._part, self._images, [self._file.publish(self._name)])

    def abort(self) -> None:
        self._file.close()


def tar_entry(name: str, data: bytes) -> bytes:
    """Return a file's header and contents as a POSIX tar archive holds them.

    Args:
        name: at most 99 ASCII letters.
        data: fewer than 8 GiB.
    """
    encoded, size = name.encode("ascii"), b"%011o\0" % len(data)
    checksum = b"%06o\0 " % (_CONSTANT_SUM + sum(encoded) + sum(size))
    header = encoded.ljust(_NAME, b"\0") + _BEFORE_SIZE + size + _AFTER_SIZE + checksum + _AFTER_CHECKSUM
    return header + data + bytes(-len(data) % BLOCK)
