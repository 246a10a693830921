"""A forward-only reader of tar archives (POSIX ustar and pax, GNU long names), plain, gzipped or xz-compressed.

Why not `tarfile`: on a hostile archive it recurses without bound over chained headers, reads a pax header of any
length into memory, and matches header text with regular expressions that backtrack (CVE-2024-6232). This reader knows
files and folders only, holds one header at a time, and refuses the rest by name. Format: POSIX.1-2017, pax utility,
"ustar Interchange Format" and "pax Header Block".
"""

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from dim.data.limits import MAX_DECODER_BYTES, MAX_UNPACKED_BYTES
from dim.runtime.errors import DataError

_BLOCK = 512
_CHUNK_BYTES = 2**20
_MAX_HEADER_BYTES = 2**16
_MAX_CHAINED_HEADERS = 8
_REFUSED = {
    b"1": "a hard link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"K": "a link",
    b"S": "a sparse file",
}


@dataclass(frozen=True)
class TarMember:
    """One file or folder of a tar archive."""

    path: str
    size_bytes: int
    is_folder: bool
    read: Callable[[], bytes]
    """All bytes of the file; only before the next member is asked for."""


class _XzReader(io.RawIOBase):
    """Decompresses xz with a memory limit, which `lzma.open` does not offer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = self._new_decoder()
        self._input = b""

    @staticmethod
    def _new_decoder() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DECODER_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        while True:
            if self._decoder.eof:
                # Further streams may follow (xz files can be concatenated), after padding in zero bytes.
                rest = (self._decoder.unused_data or self._input).lstrip(b"\0") or self._file.read(_CHUNK_BYTES)
                if not rest.lstrip(b"\0"):
                    return 0
                self._decoder, self._input = self._new_decoder(), rest.lstrip(b"\0")
            if self._decoder.needs_input and not self._input:
                self._input = self._file.read(_CHUNK_BYTES)
                if not self._input:
                    raise EOFError("the stream ends early")
            data = self._decoder.decompress(self._input, max_length=len(buffer))
            self._input = b""
            if data:
                buffer[: len(data)] = data
                return len(data)


class _Stream:
    """Counts what is read, so that a stream that never ends is stopped."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self.position = 0

    def read(self, count: int) -> bytes:
        """At most `count` bytes, fewer only at the end."""
        self._advance(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        """Leave out `count` bytes."""
        self._advance(count)
        while count > 0:
            chunk = self._file.read(min(count, _CHUNK_BYTES))
            if not chunk:
                raise EOFError("the archive ends early")
            count -= len(chunk)

    def _advance(self, count: int) -> None:
        self.position += count
        if self.position > MAX_UNPACKED_BYTES:
            raise DataError(f"{self._name}: unpacks to more than {MAX_UNPACKED_BYTES} bytes, which is the limit")


def read_tar(path: Path) -> Iterator[TarMember]:
    """Every file and folder of a tar archive in its order.

    Raises:
        DataError: not a tar archive, damaged, truncated, a link, a device, a sparse file, beyond a limit.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file, _named_damage(str(path)):
        yield from parse_tar(file, str(path))


def parse_tar(file: BinaryIO, name: str) -> Iterator[TarMember]:
    """`read_tar` on an open seekable file; damage may also show as the decompressor's own error."""
    with _named_damage(name):
        magic = file.read(6)
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            unpacked = cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=file), _CHUNK_BYTES))
        elif magic == b"\xfd7zXZ\0":
            unpacked = cast(BinaryIO, io.BufferedReader(_XzReader(file), _CHUNK_BYTES))
        else:
            unpacked = file
        yield from _members(_Stream(unpacked, name), name)


@contextmanager
def _named_damage(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{name}: the archive is damaged or truncated ({error}): fetch it again") from error


def _members(stream: _Stream, name: str) -> Iterator[TarMember]:
    long_path, long_size, chained, first = "", -1, 0, True
    while True:
        block = stream.read(_BLOCK)
        if first and not _is_header(block):
            raise DataError(f"{name}: neither a folder nor a zip, tar, tar.gz or tar.xz archive")
        first = False
        if len(block) < _BLOCK:
            raise EOFError("the end mark is missing")
        if block == b"\0" * _BLOCK:
            _check_rest(stream, name)
            return
        if not _is_header(block):
            raise DataError(f"{name}: damaged at byte {stream.position - _BLOCK}: a header's checksum is wrong")
        kind, size = block[156:157], _number(block[124:136], name)
        if kind in (b"x", b"g", b"L"):
            chained += 1
            if size > _MAX_HEADER_BYTES or chained > _MAX_CHAINED_HEADERS:
                raise DataError(f"{name}: a member has {chained} extended headers, the last of {size} bytes: refused")
            data = stream.read(size)
            if len(data) < size:
                raise EOFError("the archive ends early")
            stream.skip(-size % _BLOCK)
            if kind == b"L":
                long_path = _text(data.split(b"\0", 1)[0], name)
            elif kind == b"x":
                long_path, long_size = _pax(data, name, long_path, long_size)
            continue
        path = long_path or _path(block, name)
        size = long_size if long_size >= 0 else size
        long_path, long_size, chained = "", -1, 0
        if kind in _REFUSED:
            raise DataError(f"{name}: the member {path[:80]!r} is {_REFUSED[kind]}; only files and folders are read")
        if kind == b"5" or (kind == b"\0" and path.endswith("/")):
            yield TarMember(path, 0, True, lambda: b"")
            stream.skip(size + -size % _BLOCK)
        elif kind in (b"0", b"\0", b"7"):
            start = stream.position
            yield TarMember(path, size, False, _reader(stream, size, name))
            stream.skip(size - (stream.position - start) + -size % _BLOCK)
        else:
            raise DataError(f"{name}: the member {path[:80]!r} has the unknown type {kind!r}; pack it with a plain tar")


def _reader(stream: _Stream, size: int, name: str) -> Callable[[], bytes]:
    def read() -> bytes:
        with _named_damage(name):
            data = stream.read(size)
            if len(data) < size:
                raise EOFError("the archive ends early")
            return data

    return read


def _check_rest(stream: _Stream, name: str) -> None:
    while rest := stream.read(_CHUNK_BYTES):
        if rest.strip(b"\0"):
            raise DataError(f"{name}: more data after the archive's end mark; pack it into one archive")


def _is_header(block: bytes) -> bool:
    if len(block) < _BLOCK:
        return False
    if block == b"\0" * _BLOCK:
        return True
    stored = block[148:156].strip(b"\0 ")
    # The checksum is the sum of all bytes with its own eight read as spaces.
    expected = sum(block) - sum(block[148:156]) + 8 * 32
    return 0 < len(stored) <= 8 and not stored.strip(b"01234567") and int(stored, 8) == expected


def _number(field: bytes, name: str) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    if digits.strip(b"01234567"):
        raise DataError(f"{name}: damaged: the size {digits!r} in a header is not an octal number")
    return int(digits or b"0", 8)


def _path(block: bytes, name: str) -> str:
    path = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + path if prefix else path, name)


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: the member {data[:80]!r} has a path that is not UTF-8; rename it") from error


def _pax(data: bytes, name: str, path: str, size: int) -> tuple[str, int]:
    """The `path` and `size` records of a pax header; each record is "<length> <key>=<value>\\n"."""
    while data.strip(b"\0"):
        digits, _, _ = data[:10].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if not length or length > len(data) or not equals or not value.endswith(b"\n"):
            raise DataError(f"{name}: damaged: a pax header with a malformed record {data[:40]!r}")
        if key == b"path":
            path = _text(value[:-1], name)
        elif key == b"size":
            if not value[:-1].isdigit() or len(value) > 20:
                raise DataError(f"{name}: damaged: a pax header with the size {value[:40]!r}")
            size = int(value)
        elif key.startswith(b"GNU.sparse"):
            raise DataError(f"{name}: holds a sparse file; only plain files and folders are read")
        data = data[length:]
    return path, size
