"""Small files in the formats that datasets are published in, made here byte by byte or by the formats' own writers."""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dim.data.readers.cifar import PICKLE_MD5


def random_images(count: int, size: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 `[count, size, size, channels]`."""
    return np.random.RandomState(seed).randint(0, 256, (count, size, size, channels)).astype(np.uint8)


def without_cautions(said: list[str]) -> list[str]:
    """What was said, but for what small sets are warned of."""
    return [sentence for sentence in said if ": caution: " not in sentence]


def idx(array: NDArray[np.uint8]) -> bytes:
    """An IDX file of unsigned bytes."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, packed: bool = True, size: int = 28, num_train: int = 40, num_test: int = 20) -> None:
    """Four IDX files of random images, labels 0..9 in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", num_train), ("t10k", num_test)):
        images = random_images(count, size, 1, seed=count)[..., 0]
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            data = idx(array)
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data, 1) if packed else data)


def python2_pickle(value: Any) -> bytes:
    """The bytes that Python 2's `cPickle.dumps(value, 2)` writes for what CIFAR holds: str is a byte string."""
    memo = 0

    def put() -> bytes:
        nonlocal memo
        memo += 1
        return b"q" + bytes((memo - 1,)) if memo <= 256 else b"r" + struct.pack("<I", memo - 1)

    def text(data: bytes) -> bytes:
        return (b"U" + bytes((len(data),)) if len(data) < 256 else b"T" + struct.pack("<I", len(data))) + data

    def dump(item: Any) -> bytes:
        if item is None:
            return b"N"
        if isinstance(item, bool):
            return b"\x88" if item else b"\x89"
        if isinstance(item, int):
            if 0 <= item < 256:
                return b"K" + bytes((item,))
            return b"M" + struct.pack("<H", item) if 0 <= item < 65536 else b"J" + struct.pack("<i", item)
        if isinstance(item, (str, bytes)):
            return text(item.encode("latin-1") if isinstance(item, str) else item) + put()
        if isinstance(item, list):
            return b"]" + put() + b"(" + b"".join(map(dump, item)) + b"e"
        if isinstance(item, dict):
            return b"}" + put() + b"(" + b"".join(dump(part) for pair in item.items() for part in pair) + b"u"
        if isinstance(item, np.ndarray):
            return dump_array(item)
        raise TypeError(type(item))

    def dump_array(array: NDArray[np.uint8]) -> bytes:
        code = array.dtype.str.lstrip("|<>").encode()
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
            + b"K\x00\x85" + put() + b"U\x01b\x87" + put() + b"R" + put()
            + b"(K\x01" + b"(" + b"".join(map(dump, array.shape)) + b"t" + put()
            + b"cnumpy\ndtype\n" + put() + text(code) + b"K\x00K\x01\x87" + put() + b"R" + put()
            + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + put() + b"b"
            + dump(fortran) + text(array.tobytes("F" if fortran else "C")) + put() + b"t" + put() + b"b"
        )  # fmt: skip

    return b"\x80\x02" + dump(value) + b"."


def cifar_files(num_classes: int, per_batch: int, *, binary: bool, flat: bool = False) -> dict[str, bytes]:
    """The files of a small CIFAR-10 (10 classes) or CIFAR-100 (100 classes) by official paths; `flat` is black."""
    ten = num_classes == 10
    names = [f"class_{label:03d}" for label in range(num_classes)]
    train = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    test = ["test_batch"] if ten else ["test"]
    folder = f"cifar-{num_classes}-{'batches-bin' if ten else 'binary'}" if binary else (
        "cifar-10-batches-py" if ten else "cifar-100-python"
    )  # fmt: skip
    files: dict[str, bytes] = {f"{folder}/readme.html": b"<html>"}
    for seed, file in enumerate((*train, *test)):
        rows = random_images(per_batch, 32, 3, seed).transpose(0, 3, 1, 2).reshape(per_batch, -1)
        rows = rows * (not flat)
        labels = [label % num_classes for label in range(per_batch)]
        if binary:
            coarse = b"" if ten else b"\x07"
            data = b"".join(coarse + bytes((label,)) + row.tobytes() for label, row in zip(labels, rows, strict=True))
            files[f"{folder}/{file}.bin"] = data
        else:
            key = "labels" if ten else "fine_labels"
            batch = {"batch_label": f"batch {seed}", key: labels, "data": rows, "filenames": ["a.png"] * per_batch}
            files[f"{folder}/{file}"] = python2_pickle(batch if ten else {"coarse_labels": [7] * per_batch, **batch})
    if binary:
        files[f"{folder}/{'batches.meta' if ten else 'fine_label_names'}.txt"] = "\n".join(names).encode() + b"\n\n"
    else:
        meta = {"label_names" if ten else "fine_label_names": names, "num_vis": 3072}
        files[f"{folder}/{'batches.meta' if ten else 'meta'}"] = python2_pickle(meta)
    return files


def trust_cifar_files(files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pickles of `cifar_files` official, so that they are read."""
    for path, data in files.items():
        if (name := path.rpartition("/")[2]) in PICKLE_MD5:
            monkeypatch.setitem(PICKLE_MD5, name, hashlib.md5(data, usedforsecurity=False).hexdigest())


def matlab(arrays: Mapping[str, Any], *, compress: bool = True) -> bytes:
    """A MATLAB 5 file, by SciPy."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, dict(arrays), do_compression=compress)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    """An NPZ file, by NumPy."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def image_file(image: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    """An image file of uint8 `[H, W, C]`, C = 1, 3 or 4, by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, kind, **options)
    return buffer.getvalue()


def class_folders(
    *, classes: Iterable[str] = ("cat", "dog"), train: int = 3, test: int = 2, size: int = 8, channels: int = 3
) -> dict[str, bytes]:
    """PNG files as `train/<class>/<n>.png` and `test/<class>/<n>.png`."""
    files = {}
    for seed, name in enumerate(classes):
        for split, count in (("train", train), ("test", test)):
            for number, image in enumerate(random_images(count, size, channels, seed * 100 + count)):
                files[f"{split}/{name}/{number:04d}.png"] = image_file(image)
    return files


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Files on disk below `folder`."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive, by the standard library."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def without_utf8_flag(data: bytes) -> bytes:
    """A zip archive as macOS packs it: names in UTF-8, and no flag that says so."""
    changed = bytearray(data)
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = changed.find(magic)
        while at >= 0:
            changed[at + offset + 1] &= 0xF7
            at = changed.find(magic, at + 1)
    return bytes(changed)


def tarred(files: Mapping[str, bytes], mode: str = "w", format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive ("w", "w:gz" or "w:xz"), by the standard library; a name that ends in a slash is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
