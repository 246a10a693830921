"""Numeric arrays of MATLAB 5 files (MathWorks, "MAT-File Format", level 5), which SVHN is published in.

Only what SVHN needs: full real numeric arrays, plain or zlib-compressed. Structures, cells, objects and functions are
passed over unread, so nothing nests; memory grows only with the bytes that arrive.
"""

import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from dim.data.limits import MAX_ARRAY_DIMS, MAX_MEMBERS
from dim.runtime.errors import DataError

_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double to uint64
_COMPLEX_FLAG = 0x0800
_MAX_NAME_BYTES = 64
_CHUNK_BYTES = 2**20


class _Reader(Protocol):
    def read(self, count: int, /) -> bytes: ...


class _Inflater:
    """The bytes of one compressed element."""

    def __init__(self, file: BinaryIO, count: int) -> None:
        self._file, self._left = file, count
        self._decoder = zlib.decompressobj()
        self._input = b""

    def read(self, count: int, /) -> bytes:
        parts = []
        while count > 0 and not self._decoder.eof:
            if not self._input:
                self._input = self._file.read(min(_CHUNK_BYTES, self._left))
                self._left -= len(self._input)
            at_end = not self._input
            data = self._decoder.decompress(self._input, count)
            self._input = self._decoder.unconsumed_tail
            if at_end and not data:
                break
            count -= len(data)
            parts.append(data)
        return b"".join(parts)

    def check_end(self, name: str) -> None:
        """Read to the end, where zlib checks its sum."""
        if self.read(1) or not self._decoder.eof:
            raise DataError(f"{name}: damaged: a compressed variable has no proper end; fetch the file again")


def read_matlab(path: Path, wanted: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Read named numeric arrays from a MATLAB 5 file.

    Args:
        path: the file.
        wanted: names of variables and how many bytes each may hold; other variables are passed over.

    Returns:
        The arrays in MATLAB's shape (Fortran order), with the type they are stored in.

    Raises:
        DataError: not a MATLAB 5 file, damaged, truncated, a variable missing or not numeric, or beyond the limits.
    """
    try:
        with open(path, "rb") as file:
            return parse_matlab(file, str(path), wanted)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_matlab(file: BinaryIO, name: str, wanted: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """`read_matlab` on an open seekable file; `name` stands for it in messages."""
    header = file.read(128)
    if header.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise DataError(f"{name}: a MATLAB 7.3 file (HDF5); save it with  save -v7  instead")
    if len(header) < 128 or header[126:128] not in (b"IM", b"MI") or header[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise DataError(f"{name}: not a MATLAB 5 file")
    order = "<" if header[126:128] == b"IM" else ">"
    arrays: dict[str, NDArray[Any]] = {}
    for _ in range(MAX_MEMBERS):
        position = file.tell()
        tag = file.read(8)
        if not tag:
            break
        if len(tag) < 8:
            raise DataError(f"{name}: truncated: fetch the file again")
        kind, count = struct.unpack(order + "II", tag)
        try:
            if kind == _COMPRESSED:
                inner = _Inflater(file, count)
                inner_kind, _ = struct.unpack(order + "II", _exactly(inner, 8, name))
                if inner_kind == _MATRIX and _add_matrix(inner, order, name, wanted, arrays):
                    inner.check_end(name)
            elif kind == _MATRIX:
                _add_matrix(file, order, name, wanted, arrays)
        except zlib.error as error:
            raise DataError(f"{name}: damaged: a compressed variable cannot be read ({error})") from error
        file.seek(position + 8 + count)
    missing = sorted(set(wanted) - arrays.keys())
    if missing:
        raise DataError(f"{name}: no numeric variable '{missing[0]}'; fetch the official file again")
    return arrays


def _add_matrix(
    file: _Reader, order: str, name: str, wanted: Mapping[str, int], arrays: dict[str, NDArray[Any]]
) -> bool:
    """Read one variable into `arrays` if it is wanted, and say whether it was."""
    flags = _element(file, order, name, 8)[1]
    if len(flags) != 8:
        raise DataError(f"{name}: damaged: array flags of {len(flags)} bytes, expected 8")
    (bits,) = struct.unpack(order + "I", flags[:4])
    if bits & 0xFF not in _NUMERIC_CLASSES:
        return False
    dims = _element(file, order, name, 4 * MAX_ARRAY_DIMS)[1]
    variable = _element(file, order, name, _MAX_NAME_BYTES)[1].decode("latin-1")
    if variable not in wanted:
        return False
    if bits & _COMPLEX_FLAG or variable in arrays or len(dims) % 4 or not dims:
        raise DataError(f"{name}: the variable '{variable}' is complex, doubled or has no shape; expected real numbers")
    shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
    if min(shape) < 0 or math.prod(shape) > wanted[variable]:
        raise DataError(
            f"{name}: the variable '{variable}' has shape {list(shape)}; at most {wanted[variable]} bytes are read"
        )
    kind, data = _element(file, order, name, min(wanted[variable], 8 * math.prod(shape)))
    if kind not in _NUMBERS:
        raise DataError(f"{name}: the variable '{variable}' has the unknown number type {kind}")
    dtype = np.dtype(order + _NUMBERS[kind])
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise DataError(f"{name}: the variable '{variable}' has {len(data)} bytes, which does not fit {list(shape)}")
    arrays[variable] = np.frombuffer(data, dtype=dtype).reshape(shape[::-1]).T
    return True


def _element(file: _Reader, order: str, name: str, limit: int) -> tuple[int, bytes | bytearray]:
    """One data element: its type and its bytes, of which there may be at most `limit`."""
    tag = _exactly(file, 8, name)
    kind, count = struct.unpack(order + "II", tag)
    if kind >> 16:  # up to four bytes are packed into the tag itself
        kind, count = kind & 0xFFFF, kind >> 16
        if count > 4:
            raise DataError(f"{name}: damaged: a short element of {count} bytes")
        return kind, tag[4 : 4 + count]
    if count > limit:
        raise DataError(f"{name}: an element of {count} bytes where at most {limit} are expected")
    data = _exactly(file, count, name)
    _exactly(file, -count % 8, name)
    return kind, data


def _exactly(file: _Reader, count: int, name: str) -> bytes | bytearray:
    if count <= _CHUNK_BYTES:
        data = file.read(count)
        if len(data) < count:
            raise DataError(f"{name}: truncated: fetch the file again")
        return data
    grown = bytearray()
    while len(grown) < count:
        chunk = file.read(min(_CHUNK_BYTES, count - len(grown)))
        if not chunk:
            raise DataError(f"{name}: truncated: fetch the file again")
        grown += chunk
    return grown
