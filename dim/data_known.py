"""The datasets that have a name: where their official files are, what they hold, under which licence."""

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dim.data_idx import read_idx
from dim.data_set import RawSet, Say
from dim.runtime.errors import DataError, MissingExtraError

DIGITS = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """One official file: its name, and the MD5 sums its publishers or the usual mirrors state."""

    name: str
    md5: str
    unpacked_md5: str = ""


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """One named dataset."""

    title: str
    classes: tuple[str, ...]
    files: tuple[OfficialFile, ...]
    mirrors: tuple[str, ...]
    folders: tuple[str, ...]
    licence: str
    load: Callable[["KnownSet", str, Path | None, Say], RawSet]


def load_known(name: str, folder: Path | None, say: Say) -> RawSet:
    """Load a named dataset from `folder`."""
    known = KNOWN[name]
    return known.load(known, name, folder, say)


def _load_digits(known: KnownSet, name: str, folder: Path | None, say: Say) -> RawSet:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("sklearn", "train", "load the digits dataset") from error
    bunch = load_digits()
    # Values are 0..16 (counts of set bits in 4x4 blocks).
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return RawSet(
        name=name,
        classes=known.classes,
        train_images=images,
        train_labels=bunch.target.astype(np.int64),
        licence=known.licence,
        notes=(f"{known.title}, from scikit-learn",),
    )


def _load_idx_set(known: KnownSet, name: str, folder: Path | None, say: Say) -> RawSet:
    paths = [_find(known, name, file, folder) for file in known.files]
    arrays = [read_idx(path, num_dims=3 if "images" in path.name else 1) for path in paths]
    return RawSet(
        name=name,
        classes=known.classes,
        train_images=arrays[0][..., None],
        train_labels=arrays[1].astype(np.int64),
        test_images=arrays[2][..., None],
        test_labels=arrays[3].astype(np.int64),
        licence=known.licence,
        notes=(_origin(known, paths),),
    )


def _find(known: KnownSet, name: str, file: OfficialFile, folder: Path | None) -> Path:
    if folder is not None:
        for place in (folder, *(folder / sub for sub in (name, *known.folders))):
            for candidate in (place / file.name, place / file.name.removesuffix(".gz")):
                if candidate.is_file():
                    return candidate
    where = "no data folder is given" if folder is None else f"not in {folder} nor in {folder / name}"
    raise DataError(f"{name}: {file.name}: {where}; put the official files there and pass it as --data-dir")


def _origin(known: KnownSet, paths: list[Path]) -> str:
    """Say whether the files are the published ones, by their MD5 sums packed or unpacked."""
    for file, path in zip(known.files, paths, strict=True):
        data = path.read_bytes()
        if hashlib.md5(data, usedforsecurity=False).hexdigest() in (file.md5, file.unpacked_md5):
            continue
        unpacked = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        if hashlib.md5(unpacked, usedforsecurity=False).hexdigest() != file.unpacked_md5:
            return f"{known.title}; {path.name} differs from the published checksum"
    return f"{known.title}, official files (MD5 sums match)"


KNOWN: dict[str, KnownSet] = {
    "digits": KnownSet(
        title="Optical recognition of handwritten digits (UCI), 8x8",
        classes=DIGITS,
        files=(),
        mirrors=(),
        folders=(),
        licence="CC BY 4.0 (UCI Machine Learning Repository, dataset 80)",
        load=_load_digits,
    ),
    "mnist": KnownSet(
        title="MNIST",
        classes=DIGITS,
        files=(
            OfficialFile(
                name="train-images-idx3-ubyte.gz",
                md5="f68b3c2dcbeaaa9fbdd348bbdeb94873",
                unpacked_md5="6bbc9ace898e44ae57da46a324031adb",
            ),
            OfficialFile(
                name="train-labels-idx1-ubyte.gz",
                md5="d53e105ee54ea40749a09fcbcd1e9432",
                unpacked_md5="a25bea736e30d166cdddb491f175f624",
            ),
            OfficialFile(
                name="t10k-images-idx3-ubyte.gz",
                md5="9fb629c4189551a2d022fa330f9573f3",
                unpacked_md5="2646ac647ad5339dbf082846283269ea",
            ),
            OfficialFile(
                name="t10k-labels-idx1-ubyte.gz",
                md5="ec29112dd5afa0611ce80d1b7f02629c",
                unpacked_md5="27ae3e4e09519cfbb04c329615203637",
            ),
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        folders=("MNIST/raw",),
        licence="CC BY-SA 3.0 (Yann LeCun, Corinna Cortes, Christopher Burges)",
        load=_load_idx_set,
    ),
}
