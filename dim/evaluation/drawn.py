"""Images of a bundle's stream, drawn once for all students of one seed.

A stream of ten images per class is the beginning of one of fifty, and every network sees the same images. So the images
drawn for one student are kept in a file until the evaluation ends, and the next student continues from there. Jobs
share the file under its lock.

Shape legend: K classes, H = W image_px, C channels.
"""

import fcntl
import os
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dim.data.image_set import ImageSet
from dim.runtime.bundle import Bundle
from dim.runtime.errors import OutputError

MAX_DISK_PART = 0.25
"""Most of the free disk that kept images may take; more are drawn again."""
_ROWS = 1024


@contextmanager
def keep_drawn(seen: Iterable[tuple[Hashable, int]], data: ImageSet, out: Path) -> Iterator[Path | None]:
    """Give streams a folder that is gone afterwards.

    Args:
        seen: for every student of a stream, which stream that is, and how many images per class are seen of it.
        data: the dataset.
        out: where it is made.

    Yields:
        The folder; None where no two students see the same stream, or where they would fill the disk.

    Raises:
        OutputError: the disk refused.
    """
    streams: dict[Hashable, list[int]] = {}
    for stream, size in seen:
        streams.setdefault(stream, []).append(size)
    shared = [max(sizes) for sizes in streams.values() if len(sizes) > 1]
    needed = sum(shared) * len(data.classes) * int(np.prod(data.train_images.shape[1:]))
    try:
        out.mkdir(parents=True, exist_ok=True)
        pays = shared and needed <= MAX_DISK_PART * disk_usage(out).free
        folder = TemporaryDirectory(prefix=".drawn-", dir=out) if pays else None
    except OSError as error:
        raise OutputError(f"Drawn images cannot be kept in {out}: {error.strerror}.") from error
    with folder or nullcontext() as path:
        yield None if path is None else Path(path)


@dataclass(frozen=True, kw_only=True)
class DrawnStream:
    """The beginning of the stream of one bundle, precision and seed, in a file: image after image, index-major."""

    bundle: Bundle
    seed: int
    path: Path

    def draw(self, labels_N: NDArray[np.int64], indices_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return images uint8 `[N, H, W, C]`, and draw first what the file lacks.

        Args:
            labels_N: 0 to K - 1.
            indices_N: of the stream; everything up to the largest one is kept.

        Raises:
            OutputError: the disk refused.
        """
        try:
            with open(self.path, "a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._extend(file, int(indices_N.max()) + 1)
            shape = (-1, *self._image_shape)
            kept = np.memmap(self.path, np.uint8, mode="r").reshape(shape)
            images: NDArray[np.uint8] = kept[indices_N * len(self.bundle.classes) + labels_N]
            return images
        except OSError as error:
            raise OutputError(f"Drawn images cannot be kept in {self.path.parent}: {error.strerror}.") from error

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        manifest = self.bundle.manifest
        return manifest.height, manifest.width, manifest.channels

    def _extend(self, file: BinaryIO, indices: int) -> None:
        """Draw all classes' images up to that number of indices."""
        num_classes, image_bytes = len(self.bundle.classes), int(np.prod(self._image_shape))
        wanted, done = indices * num_classes, file.seek(0, os.SEEK_END) // image_bytes
        file.truncate(done * image_bytes)  # a job that was ended may have left a part of an image
        while done < wanted:
            rows = np.arange(done, min(wanted, done + _ROWS), dtype=np.int64)
            images = self.bundle.sample(rows % num_classes, rows // num_classes, self.seed, use="stream")
            file.write(images.tobytes())
            done += len(rows)
