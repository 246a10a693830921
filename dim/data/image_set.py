"""A labelled image set in memory, and what its readers return."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.options import DataOptions
from dim.execution.large_images import MappedRows, identify_images
from dim.runtime.progress.show import Progress
from dim.runtime.storage.below import replace_file

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
_CHUNK_BYTES = 2**24
"""Of images that are looked at together."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A classification set with a training and a test split."""

    name: str
    """Short name: that of the known dataset, or of the file or folder."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    train_images: Images
    """uint8 `[N, H, W, C]`, H = W, C = 1 or 3."""
    train_labels: Labels
    """int64 `[N]`, 0..K-1."""
    test_images: Images
    """uint8 `[M, H, W, C]`."""
    test_labels: Labels
    """int64 `[M]`, 0..K-1."""
    licence: str
    """Licence of the source as its authors state it, or "unknown"."""
    note: str
    """Where the data came from and what was done to it: files, resizing, how the test split was made."""
    split_seed: int | None = None
    """What the test split was cut with; None where the source has one."""
    options: DataOptions = DataOptions()
    """How the source was read."""
    places: tuple[str, ...] = ()
    """Names, absolute paths and addresses that it was read from; empty for what was in memory."""
    data_dir: str = ""
    """Absolute path of the folder of the official files, where one was named."""

    @property
    def height(self) -> int:
        """Of every image, in pixels."""
        return int(self.train_images.shape[1])

    @property
    def width(self) -> int:
        """Of every image, in pixels."""
        return int(self.train_images.shape[2])

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return int(self.train_images.shape[3])

    @cached_property
    def class_counts(self) -> tuple[int, ...]:
        """Training images per class."""
        return count_labels(self.train_labels, len(self.classes))

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the training split per channel, on pixels in [0, 1]."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the training split per channel, on pixels in [0, 1]."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        mean, std = self._remember("moments", self._compute_moments)
        return tuple(mean), tuple(std)

    def _compute_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        # Exact integer histograms: the result does not depend on the order of summation.
        histogram = np.zeros((self.channels, 256), dtype=np.int64)
        for chunk in _in_chunks(self.train_images):
            for channel in range(self.channels):
                histogram[channel] += np.bincount(chunk[..., channel].reshape(-1), minlength=256)
        levels = np.arange(256) / 255.0
        weights = histogram / histogram.sum(axis=1, keepdims=True)
        mean = weights @ levels
        std = np.sqrt((weights * (levels[None, :] - mean[:, None]) ** 2).sum(axis=1))
        return tuple(float(x) for x in mean), tuple(float(x) for x in std)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over classes, shapes and both splits: equal for equal data on every machine."""
        return str(self._remember("fingerprint", self._compute_fingerprint))

    def _compute_fingerprint(self) -> str:
        digest = hashlib.sha256(b"dim image set 1\n")
        for text in self.classes:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(4, "little") + encoded)
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            digest.update(repr(images.shape).encode())
            for chunk in _in_chunks(images):
                digest.update(np.ascontiguousarray(chunk).data)
            digest.update(np.ascontiguousarray(labels.astype("<i8")).data)
        return digest.hexdigest()

    def _remember(self, what: str, compute: Callable[[], Any]) -> Any:
        """Compute a value; that of a set larger than memory is kept beside its images, and read from there."""
        mapped: Any = self.train_images
        if type(mapped) is not MappedRows:
            return compute()
        digest = hashlib.sha256(repr(self.classes).encode())
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            digest.update(identify_images(images) + labels.tobytes())
        path = mapped.path.with_name(f"{what}-{digest.hexdigest()[:32]}.json")
        with suppress(OSError, ValueError):
            return json.loads(path.read_text())
        value = compute()
        with suppress(OSError):
            replace_file(path.parent, path.name, json.dumps(value).encode())
        return value


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file or folder to read, and what the user wishes."""

    path: Path
    name: str
    """Of the set."""
    table: str = ""
    """The file in the folder that alone says the labels, where one was named; else empty."""
    identity: str = ""
    """What the source holds, such as a commit of the Hub; empty where its files tell."""
    options: DataOptions = DataOptions()
    """How it is to be read."""
    say: Say
    """Receives sentences about what was passed over or changed."""
    progress: Progress
    """Is told how many files were read."""
    heed: Callable[[frozenset[str]], None] = lambda options: None
    """Receives the fields of `options` that have a say in this source, before its images are read; refuses others."""


@dataclass(frozen=True, kw_only=True)
class RawSet:
    """What a reader found: arrays of any size and channel count, the test split possibly missing."""

    name: str
    classes: tuple[str, ...]
    train_images: Images
    train_labels: Labels
    test_images: Images | None = None
    test_labels: Labels | None = None
    licence: str = "unknown"
    notes: tuple[str, ...] = ()


def count_labels(labels: Labels, num_classes: int) -> tuple[int, ...]:
    """Count the images of every class."""
    return tuple(int(n) for n in np.bincount(labels, minlength=num_classes))


def _in_chunks(images: Images) -> Iterator[Images]:
    """Give images some at a time."""
    rows = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]
