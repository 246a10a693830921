"""CIFAR-10 and CIFAR-100 from the official archives, or folders unpacked from them, in the binary or Python version.

Layout: www.cs.toronto.edu/~kriz/cifar.html. A row of 3,072 bytes is one 32x32 image, channel by channel. The binary
version of CIFAR-100 puts the coarse label before the fine one; the fine one is used.

The files of the Python version are pickles. One is loaded only if its MD5 sum is that of the official file, and by an
unpickler that knows only NumPy's array constructors. Any other pickle is refused unread.
"""

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.files.archive import iterate_entries
from dim.data.files.entries import Entry
from dim.data.image_set import Images, Labels, RawSet
from dim.data.limits import MAX_CIFAR_BATCH_BYTES
from dim.runtime.errors import DataError

_ROW_BYTES = 3 * 32 * 32
_MAX_NAMES_BYTES = 2**16
_ARRAY_CONSTRUCTORS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}

PICKLE_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
"""MD5 sums of the files in the official Python archives (torchvision/datasets/cifar.py)."""

BINARY_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
"""MD5 sums of the batches in CIFAR-10's official binary archive."""


@dataclass(frozen=True, kw_only=True)
class CifarLayout:
    """Which files hold what in one version of one set, by their names inside the archive."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    """The file with the class names."""
    label_bytes: int = 0
    """Label bytes before each image (binary version only); the last of them is used."""
    labels_key: str = ""
    """The key of the labels in a batch (Python version only)."""
    names_key: str = ""
    """The key of the class names in their file (Python version only)."""
    instead: str = ""
    """The binary archive of the same set (Python version only)."""


BINARY_10 = CifarLayout(
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    names="batches.meta.txt",
    label_bytes=1,
)
BINARY_100 = CifarLayout(train=("train.bin",), test=("test.bin",), names="fine_label_names.txt", label_bytes=2)
PYTHON_10 = CifarLayout(
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test=("test_batch",),
    names="batches.meta",
    labels_key="labels",
    names_key="label_names",
    instead="cifar-10-binary.tar.gz",
)
PYTHON_100 = CifarLayout(
    train=("train",),
    test=("test",),
    names="meta",
    labels_key="fine_labels",
    names_key="fine_label_names",
    instead="cifar-100-binary.tar.gz",
)


def read_cifar(path: Path, name: str, layout: CifarLayout, *, licence: str, notes: tuple[str, ...]) -> RawSet:
    """Read one of the official archives, or the folder unpacked from it.

    Args:
        path: archive or folder.
        name: of the set.
        layout: which version of which set it is.
        licence, notes: passed on.

    Raises:
        DataError: a batch is missing, damaged, of another shape than documented, or a pickle that is not the official
            one.
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
            raise DataError(f"{source}: there are two files of this name; keep only the official ones.")
        if file == layout.names:
            classes = _read_names(entry, source, layout)
        else:
            batches[file] = _read_batch(entry, file, source, layout)
    missing = sorted(wanted - batches.keys() - ({layout.names} if classes else set()))
    if missing:
        raise DataError(f"{path}: the file '{missing[0]}' is missing from it; fetch the official archive again.")
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


def _read_names(entry: Entry, source: str, layout: CifarLayout) -> tuple[str, ...]:
    data = entry.read(_MAX_NAMES_BYTES)
    if layout.names_key:
        return tuple(
            text.decode("latin-1")
            for text in load_official_pickle(data, layout.names, source, layout.instead)[layout.names_key]
        )
    return tuple(line.strip().decode("latin-1") for line in data.splitlines() if line.strip())


def _read_batch(entry: Entry, file: str, source: str, layout: CifarLayout) -> tuple[Images, Labels]:
    data = entry.read(MAX_CIFAR_BATCH_BYTES)
    if layout.labels_key:
        batch = load_official_pickle(data, file, source, layout.instead)
        return _to_images(batch["data"]), np.array(batch[layout.labels_key], dtype=np.int64)
    row_bytes = layout.label_bytes + _ROW_BYTES
    if not data or len(data) % row_bytes:
        raise DataError(f"{source}: {len(data)} bytes, expected a multiple of {row_bytes}: fetch it again.")
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, row_bytes)
    return _to_images(rows[:, layout.label_bytes :]), rows[:, layout.label_bytes - 1].astype(np.int64)


def load_official_pickle(data: bytes, file: str, source: str, instead: str) -> dict[str, Any]:
    """Load one file of the Python version, which is not looked into unless its MD5 sum is the official one.

    Args:
        data: the pickle.
        file: its name in the official archive.
        source: stands for it in messages.
        instead: the archive to recommend where it is another pickle.

    Returns:
        The dictionary in it, its keys as text; Python 2's strings as bytes.

    Raises:
        DataError: any other pickle.
    """
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != PICKLE_MD5[file]:
        raise DataError(
            f"{source}: a Python pickle whose MD5 sum is not that of the official file, so it is not read; "
            f"use {instead}, which holds no pickles."
        )
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{source}: {error}.") from error
    return {key.decode("latin-1"): value for key, value in batch.items()}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds Python's own plain values and NumPy arrays."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ARRAY_CONSTRUCTORS[module_name, global_name]
        except KeyError:
            message = f"the pickle refers to '{module_name}.{global_name}', which is not loaded"
            raise pickle.UnpicklingError(message) from None


def _to_images(rows: NDArray[Any]) -> Images:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
