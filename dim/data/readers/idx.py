"""IDX, the format of MNIST and FashionMNIST (yann.lecun.com/exdb/mnist, "FILE FORMATS"), plain or gzipped.

Layout: two zero bytes, a type byte (0x08 = unsigned byte, the only one these sets use), the number of dimensions, each
dimension as a big-endian uint32, then the values.
"""

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from dim.data.files.entries import named_failure
from dim.data.limits import MAX_ARRAY_DIMS, MAX_LABELS, MAX_SET_BYTES
from dim.runtime.errors import DataError

_CHUNK_BYTES = 2**24


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
