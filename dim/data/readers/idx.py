"""IDX, the format of MNIST and FashionMNIST (yann.lecun.com/exdb/mnist, "FILE FORMATS"), plain or gzipped.

Layout: two zero bytes, a type byte (0x08 = unsigned byte, the only one these sets use), the number of dimensions, each
dimension as a big-endian uint32, then the values.
"""

import gzip
import io
import math
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from dim.data.classes.class_names import read_class_names
from dim.data.classes.layout import list_first
from dim.data.files.entries import named_failure
from dim.data.image_set import RawSet, Source
from dim.data.limits import MAX_ARRAY_DIMS, MAX_LABELS, MAX_SET_BYTES
from dim.data.readers.npz import make_raw_set
from dim.runtime.errors import DataError

_CHUNK_BYTES = 2**24
_NAME = re.compile(
    r"(?P<set>.*?)(?P<split>train|t10k|test)[-_.](?P<what>images|labels)[-_.]idx[13][-_.]ubyte([.]gz)?", re.IGNORECASE
)


def is_idx_folder(path: Path) -> bool:
    """Whether a path is a folder with IDX files by the names of MNIST, such as `train-images-idx3-ubyte`."""
    return path.is_dir() and any(_NAME.fullmatch(file.name) for file in path.iterdir())


def read_idx_folder(source: Source) -> RawSet:
    """Read the IDX files of one set in a folder: images and labels for training, and for test where they are there.

    Raises:
        DataError: files of several sets, a file missing, or as `read_idx` and `make_raw_set`.
    """
    where, found, sets = str(source.path), dict[str, Path](), set[str]()
    for path in sorted(source.path.iterdir(), reverse=True):  # a plain file wins over a gzipped one
        if match := _NAME.fullmatch(path.name):
            is_train = match["split"].lower() == "train"
            found[("" if is_train else "test_") + match["what"].lower()] = path
            sets.add(match["set"])
    if len(sets) > 1:
        begins = list_first(f"'{name}'" for name in sorted(sets))
        raise DataError(f"{where}: IDX files of several sets, which begin with {begins}; keep one set in the folder.")
    wanted = ("images", "labels", *(("test_images", "test_labels") if any("test" in key for key in found) else ()))
    if missing := next((key for key in wanted if key not in found), None):
        what = f"{'test' if 'test' in missing else 'training'} {missing.removeprefix('test_')}"
        raise DataError(f"{where}: IDX files without the {what}; put train-images-idx3-ubyte and its like beside them.")
    arrays: dict[str, NDArray[Any]] = {
        key: read_idx(found[key], num_dims=3 if key.endswith("images") else 1) for key in wanted
    }
    if any(name.casefold().startswith("emnist") for name in sets):
        source.say(f"{source.name}: EMNIST's files hold every image transposed; the images are taken as they are")
    return make_raw_set(arrays, source, f"IDX files of {source.path.name}", read_class_names(source.path))


def read_idx(path: Path, *, num_dims: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    Args:
        path: the file; gzip is recognised by its first bytes, not by its name.
        num_dims: dimensions expected, 3 for images and 1 for labels.

    Raises:
        DataError: the file is missing, truncated, too long, or not what was expected.
    """
    with named_failure(path), open(path, "rb") as file:
        return parse_idx(file, str(path), num_dims=num_dims)


def parse_idx(file: BinaryIO, name: str, *, num_dims: int) -> NDArray[np.uint8]:
    """`read_idx` on an open seekable file; `name` stands for it in messages."""
    if file.read(2) == b"\x1f\x8b":
        file.seek(0)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _parse(cast(BinaryIO, unpacked), name, num_dims)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{name}: the gzip stream is damaged or truncated ({error}): fetch the file again."
            ) from error
    file.seek(0)
    return _parse(file, name, num_dims)


def _parse(file: BinaryIO, name: str, num_dims: int) -> NDArray[np.uint8]:
    magic = _read(file, 4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(f"{name}: not an IDX file: it starts with {magic.hex() or 'nothing'}, expected two zero bytes.")
    if magic[2] != 8:
        raise DataError(f"{name}: IDX type 0x{magic[2]:02x} found, expected 0x08 (unsigned byte).")
    if magic[3] != num_dims or num_dims > MAX_ARRAY_DIMS:
        raise DataError(f"{name}: an IDX array of {magic[3]} dimensions found, expected {num_dims}.")
    sizes = _read(file, 4 * num_dims)
    if len(sizes) < 4 * num_dims:
        raise DataError(f"{name}: the IDX header is truncated: fetch the file again.")
    shape = tuple(int(n) for n in np.frombuffer(sizes, dtype=">u4"))
    wanted = math.prod(shape)
    limit = MAX_SET_BYTES if num_dims > 1 else MAX_LABELS
    if wanted > limit:
        raise DataError(f"{name}: the header asks for {wanted} bytes, more than the limit of {limit}.")
    if not wanted:
        raise DataError(f"{name}: shape {list(shape)} holds no values.")
    data = bytearray()
    while len(data) < wanted:
        # In chunks, so that a header that promises gigabytes costs no more than the file really holds.
        chunk = _read(file, min(_CHUNK_BYTES, wanted - len(data)))
        if not chunk:
            raise DataError(
                f"{name}: truncated: {len(data)} of {wanted} bytes of values for shape {list(shape)}: "
                "fetch the file again."
            )
        data += chunk
    if _read(file, 1):
        raise DataError(f"{name}: more bytes than shape {list(shape)} needs; labels and images may be mixed up.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _read(file: BinaryIO, count: int) -> bytes:
    buffer = io.BytesIO()
    while count > 0:
        chunk = file.read(count)
        if not chunk:
            break
        buffer.write(chunk)
        count -= len(chunk)
    return buffer.getvalue()
