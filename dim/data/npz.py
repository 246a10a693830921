"""NPZ files with `images`, `labels` and optional `classes`, read without pickle and without trusting their headers.

`images` is uint8 `[N, H, W]` or `[N, H, W, C]`, `labels` as `dim.data.labels` takes them, `classes` text `[K]`
(default: the labels that occur). `test_images` and `test_labels` make a test split. The header of each array is matched
against the one form that NumPy writes (numpy.lib.format, versions 1 to 3); objects, which would need pickle, are
refused.
"""

import math
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dim.data.decode import Images
from dim.data.entries import named_failure
from dim.data.image_set import RawSet, Source
from dim.data.labels import name_labels
from dim.data.limits import MAX_ARRAY_DIMS, MAX_CLASS_NAME_BYTES, MAX_LABELS, MAX_SET_BYTES
from dim.data.zip import open_zip, open_zip_member
from dim.runtime.bundle_format.schema import MAX_CLASSES
from dim.runtime.errors import DataError

_HEADER = re.compile(
    r"\{'descr': '([<>|=]?[a-zA-Z][0-9]{0,9})', 'fortran_order': (True|False), "
    r"'shape': \(((?:N,|N(?:, N){1,9})?)\),? ?\} *\n?".replace("N", "(?:0|[1-9][0-9]{0,18})")
)
_MAX_BYTES = {
    "images": MAX_SET_BYTES,
    "labels": 8 * MAX_LABELS,
    "classes": 4 * MAX_CLASSES * MAX_CLASS_NAME_BYTES,
    "test_images": MAX_SET_BYTES,
    "test_labels": 8 * MAX_LABELS,
}
_MAX_HEADER_BYTES = 2**12
_CHUNK_BYTES = 2**24


def read_npz(source: Source) -> RawSet:
    """Read a labelled image set from an `.npz` file.

    Args:
        source: the file; size and channels are left to `make_image_set`.

    Raises:
        DataError: damaged, truncated, an array missing, of the wrong type or shape, or beyond the limits.
    """
    path = source.path
    with named_failure(path), open(path, "rb") as file, open_zip(file, str(path)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        arrays = {key: _read_member(path, archive, members, key) for key in ("images", "labels")}
        for key in ("classes", "test_images", "test_labels"):
            if f"{key}.npy" in members:
                arrays[key] = _read_member(path, archive, members, key)
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise DataError(f"{path}: test_images and test_labels belong together; only one of them is there")
    names = _to_classes(arrays["classes"], path) if "classes" in arrays else None
    classes, labels, test_labels, remarks = name_labels(arrays["labels"], arrays.get("test_labels"), names, str(path))
    for remark in remarks:
        source.say(f"{source.name}: {remark}")
    return RawSet(
        name=source.name,
        classes=classes,
        train_images=_to_images(arrays["images"], path, "images"),
        train_labels=labels,
        test_images=_to_images(arrays["test_images"], path, "test_images") if test_labels is not None else None,
        test_labels=test_labels,
        notes=(f"arrays of {path.name}", *remarks),
    )


def _read_member(path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], key: str) -> NDArray[Any]:
    info = members.get(f"{key}.npy")
    if info is None:
        found = ", ".join(sorted(name.removesuffix(".npy") for name in members)[:8]) or "nothing"
        raise DataError(f"{path}: no array '{key}' (found: {found}); an .npz needs images and labels")
    with open_zip_member(archive, info, str(path)) as file:
        return read_npy(file, f"{path}: {key}", max_bytes=_MAX_BYTES[key])


def read_npy(file: BinaryIO, name: str, *, max_bytes: int = MAX_SET_BYTES) -> NDArray[Any]:
    """Read one array in NumPy's format, of numbers or text; memory grows only with the bytes that arrive.

    Args:
        file: at the start of the array.
        name: stands for it in messages.
        max_bytes: of all values together.

    Raises:
        DataError: not such an array, truncated, or larger than `max_bytes`.
    """
    start = file.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3) or start[7] != 0:
        raise DataError(f"{name}: not an array in NumPy's format (versions 1 to 3)")
    width = 2 if start[6] == 1 else 4
    size_field = file.read(width)
    if len(size_field) < width:
        raise DataError(f"{name}: truncated: fetch the file again")
    (header_bytes,) = struct.unpack("<H" if width == 2 else "<I", size_field)
    header = file.read(min(header_bytes, _MAX_HEADER_BYTES))
    match = _HEADER.fullmatch(header.decode("latin-1")) if len(header) == header_bytes else None
    if match is None:
        raise DataError(f"{name}: an array header that NumPy does not write for plain arrays: {header[:60]!r}")
    descr, fortran_order, shape_text = match.groups()
    dtype = _parse_dtype(descr, name)
    shape = tuple(int(number) for number in shape_text.replace(" ", "").split(",") if number)
    wanted = math.prod(shape) * dtype.itemsize
    if len(shape) > MAX_ARRAY_DIMS or wanted > max_bytes:
        raise DataError(
            f"{name}: shape {list(shape)} needs {wanted} bytes in {len(shape)} dimensions; "
            f"the limits are {max_bytes} and {MAX_ARRAY_DIMS}"
        )
    if not wanted:
        raise DataError(f"{name}: shape {list(shape)} holds no values")
    data = bytearray()
    while len(data) < wanted:
        chunk = file.read(min(_CHUNK_BYTES, wanted - len(data)))
        if not chunk:
            raise DataError(f"{name}: truncated: {len(data)} of {wanted} bytes: fetch the file again")
        data += chunk
    if file.read(1):  # at the end of a member this also checks zip's checksum
        raise DataError(f"{name}: more bytes than shape {list(shape)} needs")
    array = np.frombuffer(data, dtype=dtype, count=math.prod(shape))
    return array.reshape(shape[::-1]).T if fortran_order == "True" else array.reshape(shape)


def _parse_dtype(descr: str, name: str) -> np.dtype[Any]:
    kind, digits = descr.lstrip("<>|=")[:1], descr.lstrip("<>|=")[1:]
    if kind == "O":
        raise DataError(f"{name}: holds Python objects, which are never read; save plain arrays")
    number = kind + digits in ("b1", "f2", "f4", "f8") or (kind in "iu" and digits in ("1", "2", "4", "8"))
    if not number and not (kind in "US" and 0 < int(digits or 0) <= 2**16):
        raise DataError(f"{name}: the type '{descr}' is not read; save uint8 images, int64 labels and text classes")
    return np.dtype(descr)


def _to_images(array: NDArray[Any], path: Path, key: str) -> Images:
    if array.dtype != np.uint8:
        raise DataError(
            f"{path}: {key} are {array.dtype}, expected uint8 from 0 to 255; convert them, for example "
            "np.rint(images * 255).astype('uint8') for floats from 0 to 1"
        )
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"{path}: {key} have shape {list(array.shape)}, expected [N, H, W] or [N, H, W, C], C 1 or 3")
    return array


def _to_classes(array: NDArray[Any], path: Path) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise DataError(f"{path}: classes are {array.dtype} {list(array.shape)}, expected text [K]")
    try:
        return tuple(text.decode() if isinstance(text, bytes) else str(text) for text in array.tolist())
    except ValueError as error:
        raise DataError(f"{path}: a class name is not valid text ({error}); save classes as text") from error
