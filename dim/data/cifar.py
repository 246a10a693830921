"""CIFAR-10 and CIFAR-100 from the official archives (or folders unpacked from them), Python and binary version.

Layout: www.cs.toronto.edu/~kriz/cifar.html. A row of 3,072 bytes is one 32x32 image, channel by channel. The binary
version of CIFAR-100 puts the coarse label before the fine one; the fine one is used.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.archive import Entry, iterate_entries
from dim.data.decode import Images
from dim.data.image_set import Labels, RawSet
from dim.data.limits import MAX_CIFAR_BATCH_BYTES
from dim.data.pickle import read_pickle
from dim.runtime.errors import DataError

_ROW_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class CifarFiles:
    """Which files hold what, by their names inside the archive."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    """The file with the class names."""
    names_key: str
    """The key of the class names in that file (Python version only)."""
    labels_key: str
    label_bytes: int
    """Label bytes before each image (binary version only); the last of them is used."""


PYTHON_10 = CifarFiles(
    tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), "batches.meta", "label_names", "labels", 0
)
BINARY_10 = CifarFiles(
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), "batches.meta.txt", "", "", 1
)
PYTHON_100 = CifarFiles(("train",), ("test",), "meta", "fine_label_names", "fine_labels", 0)
BINARY_100 = CifarFiles(("train.bin",), ("test.bin",), "fine_label_names.txt", "", "", 2)


def load_cifar(path: Path, name: str, layout: CifarFiles, *, licence: str, notes: tuple[str, ...]) -> RawSet:
    """Read one of the official archives, or the folder unpacked from it.

    Args:
        path: archive or folder.
        name: of the set.
        layout: which version of which set it is.
        licence, notes: passed on.

    Raises:
        DataError: a batch is missing, damaged or of another shape than documented.
    """
    wanted = {*layout.train, *layout.test, layout.names}
    classes: tuple[str, ...] = ()
    batches: dict[str, tuple[Images, Labels]] = {}
    for entry in iterate_entries(path):
        file = entry.path.rpartition("/")[2]
        if entry.is_folder or file not in wanted:
            continue
        source = f"{path}: {entry.path}"
        if file in batches or (file == layout.names and classes):
            raise DataError(f"{source}: there are two files of this name; keep only the official ones")
        if file == layout.names:
            classes = _class_names(entry, source, layout)
        else:
            batches[file] = _batch(entry, source, layout)
    missing = sorted(wanted - batches.keys() - ({layout.names} if classes else set()))
    if missing:
        raise DataError(f"{path}: the file '{missing[0]}' is missing from it; fetch the official archive again")
    train, test = ([batches[file] for file in files] for files in (layout.train, layout.test))
    return RawSet(
        name=name,
        classes=classes,
        train_images=np.concatenate([images for images, _ in train]),
        train_labels=np.concatenate([labels for _, labels in train]),
        test_images=np.concatenate([images for images, _ in test]),
        test_labels=np.concatenate([labels for _, labels in test]),
        licence=licence,
        notes=notes,
    )


def _class_names(entry: Entry, source: str, layout: CifarFiles) -> tuple[str, ...]:
    data = entry.read(2**16)
    if not layout.names_key:
        return tuple(line.strip().decode("latin-1") for line in data.splitlines() if line.strip())
    names = read_pickle(data, source).get(layout.names_key)
    if not isinstance(names, list) or not all(isinstance(text, (str, bytes)) for text in names):
        raise DataError(f"{source}: no list of names under '{layout.names_key}'; fetch the official archive again")
    return tuple(text.decode("latin-1") if isinstance(text, bytes) else text for text in names)


def _batch(entry: Entry, source: str, layout: CifarFiles) -> tuple[Images, Labels]:
    data = entry.read(MAX_CIFAR_BATCH_BYTES)
    if layout.label_bytes:
        row_bytes = layout.label_bytes + _ROW_BYTES
        if not data or len(data) % row_bytes:
            raise DataError(f"{source}: {len(data)} bytes, expected a multiple of {row_bytes}: fetch it again")
        rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, row_bytes)
        return _to_images(rows[:, layout.label_bytes :]), rows[:, layout.label_bytes - 1].astype(np.int64)
    values = read_pickle(data, source)
    rows_or_none, labels = values.get("data"), values.get(layout.labels_key)
    if not isinstance(rows_or_none, np.ndarray) or rows_or_none.ndim != 2 or rows_or_none.shape[1] != _ROW_BYTES:
        raise DataError(f"{source}: no array [N, {_ROW_BYTES}] under 'data'; fetch the official archive again")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DataError(f"{source}: no list of labels under '{layout.labels_key}'; fetch the official archive again")
    if len(labels) != len(rows_or_none):
        raise DataError(f"{source}: {len(rows_or_none)} images but {len(labels)} labels; fetch the archive again")
    return _to_images(rows_or_none), np.array(labels, dtype=np.int64)


def _to_images(rows: NDArray[Any]) -> Images:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
