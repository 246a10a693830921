"""Tar archives, plain, gzipped or xz-compressed, read forwards by `tarfile` under limits.

`tarfile` sees the archive through `_BoundedStream`, which counts every byte and limits the headers of each member. So
neither long nor chained headers cost memory.
"""

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from dim.data.files.entries import Entry, check_path, read_nothing
from dim.data.limits import MAX_DECODER_BYTES, MAX_HEADER_BYTES, MAX_UNPACKED_BYTES
from dim.runtime.errors import DataError

_BLOCK_BYTES = 512
_CHUNK_BYTES = 2**20
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError, OverflowError)
_REFUSED = {
    tarfile.LNKTYPE: "is a hard link",
    tarfile.SYMTYPE: "is a link",
    tarfile.CHRTYPE: "is a device",
    tarfile.BLKTYPE: "is a device",
    tarfile.FIFOTYPE: "is a pipe",
}
_WITHOUT_LINKS = {
    tarfile.LNKTYPE: ": pack them again with  tar --hard-dereference",
    tarfile.SYMTYPE: ": pack them again with  tar -h",
}


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


class _BoundedStream:
    """The unpacked bytes, as the file that `tarfile` reads: forwards only, and no more than is allowed."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._position = 0
        self.allowed_bytes = MAX_HEADER_BYTES
        """What may be read before this is set again."""
        self.last_read = b""

    def tell(self) -> int:
        return self._position

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.allowed_bytes:
            raise DataError(
                f"{self._name}: the headers of one member have more than {MAX_HEADER_BYTES} bytes, which is the limit; "
                "pack it with a plain tar."
            )
        self.allowed_bytes -= count
        self._advance(count)
        self.last_read = self._file.read(count)
        return self.last_read

    def seek(self, position: int) -> None:
        count = position - self._position
        if count < 0:
            raise tarfile.ReadError("a member that begins before the end of another")
        self._advance(count)
        while count > 0:
            skipped = len(self._file.read(min(count, _CHUNK_BYTES)))
            if not skipped:
                raise EOFError("the archive ends early")
            count -= skipped

    def _advance(self, count: int) -> None:
        self._position += count
        if self._position > MAX_UNPACKED_BYTES:
            raise DataError(f"{self._name}: unpacks to more than {MAX_UNPACKED_BYTES} bytes, which is the limit.")


def iterate_tar(file: BinaryIO, name: str) -> Iterator[Entry]:
    """Give every file and folder of a tar archive in its order.

    Args:
        file: the open, seekable file, at its start.
        name: stands for it in messages.

    Raises:
        DataError: not a tar archive, damaged, truncated, a link, a device, a sparse file, beyond a limit.
    """
    with _named_damage(name):
        stream = _BoundedStream(_unpacked(file), name)
        archive = _open(stream, name)
        while (info := archive.next()) is not None:
            yield _entry(info, stream, name)
            archive.members = []  # type: ignore[attr-defined]  # else it keeps every member
            archive.pax_headers = {}  # and what one member's global header says
            stream.allowed_bytes = MAX_HEADER_BYTES
        _check_end(stream, name)


def _unpacked(file: BinaryIO) -> BinaryIO:
    magic = file.read(6)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=file), _CHUNK_BYTES))
    if magic == b"\xfd7zXZ\0":
        return cast(BinaryIO, io.BufferedReader(_XzReader(file), _CHUNK_BYTES))
    return file


def _open(stream: _BoundedStream, name: str) -> tarfile.TarFile:
    try:
        return tarfile.TarFile(fileobj=cast(BinaryIO, stream), encoding="utf-8")
    except tarfile.ReadError as error:
        if stream.tell() > _BLOCK_BYTES:
            raise
        raise DataError(f"{name}: neither a folder nor a zip, tar, tar.gz or tar.xz archive.") from error


def _entry(info: tarfile.TarInfo, stream: _BoundedStream, name: str) -> Entry:
    try:
        info.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name}: the member {info.name[:80]!r} has a path that is not UTF-8; rename it.") from error
    shown = repr(info.name[:80])
    if info.type in _REFUSED:
        advice = _WITHOUT_LINKS.get(info.type, "")
        raise DataError(f"{name}: the member {shown} {_REFUSED[info.type]}; only files and folders are read{advice}.")
    if (
        info.issparse()
        or info.type == tarfile.GNUTYPE_SPARSE
        or any(key.startswith("GNU.") for key in info.pax_headers)
    ):
        raise DataError(f"{name}: the member {shown} is a sparse file; only files and folders are read.")
    if info.size < 0:
        raise DataError(f"{name}: damaged: the member {shown} has a size of {info.size} bytes.")
    if info.isdir():
        return Entry(check_path(info.name, name), True, read_nothing)
    if not info.isreg():
        raise DataError(f"{name}: the member {shown} has the unknown type {info.type!r}; pack it with a plain tar.")
    path = check_path(info.name, name)
    return Entry(path, False, _member_reader(stream, info, f"{name}: {path}", name))


def _member_reader(stream: _BoundedStream, info: tarfile.TarInfo, shown: str, name: str) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        if info.size > limit:
            raise DataError(f"{shown}: more than {limit} bytes, which is the limit for one file.")
        with _named_damage(name):
            stream.seek(info.offset_data)
            stream.allowed_bytes = info.size
            data = stream.read(info.size)
            if len(data) < info.size:
                raise EOFError("the archive ends early")
            return data

    return read


def _check_end(stream: _BoundedStream, name: str) -> None:
    """Refuse what `tarfile` takes for an end: a truncated or damaged header, or one archive after another."""
    if len(stream.last_read) < _BLOCK_BYTES:
        raise EOFError("the end mark is missing")
    if stream.last_read.strip(b"\0"):
        raise DataError(f"{name}: damaged at byte {stream.tell() - _BLOCK_BYTES}: a header is malformed.")
    stream.allowed_bytes = MAX_UNPACKED_BYTES
    while rest := stream.read(_CHUNK_BYTES):
        if rest.strip(b"\0"):
            raise DataError(f"{name}: more data after the archive's end mark; pack it into one archive.")


@contextmanager
def _named_damage(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"{name}: the archive is damaged or truncated ({error}): fetch it again.") from error
