"""Zip archives under limits: a directory of bounded size, plain members, two compressions, bounded contents."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from dim.data.files.entries import Entry, check_path, named_failure, read_limited, read_nothing
from dim.data.limits import MAX_MEMBERS, MAX_UNPACKED_BYTES
from dim.runtime.errors import DataError

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
"""The first bytes of a zip file, with and without members."""

_DIRECTORY_ENTRY_BYTES = 46  # the smallest record of a zip's central directory
_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # an extra field: version, CRC-32 of the name that it replaces, name in UTF-8
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, OverflowError, NotImplementedError)


class _BoundedFile:
    """A file whose single reads are bounded: zipfile reads the whole central directory at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        if size > _DIRECTORY_ENTRY_BYTES * MAX_MEMBERS:
            raise zipfile.BadZipFile(f"its directory has {size} bytes")
        return self._file.read(size)


@contextmanager
def open_zip(file: BinaryIO, name: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip file.

    Args:
        file: the open, seekable file.
        name: stands for it in messages.

    Raises:
        DataError: damaged, or its members unpack to more than `MAX_UNPACKED_BYTES` together.
    """
    with _named_damage(name), zipfile.ZipFile(cast(BinaryIO, _BoundedFile(file))) as archive:
        # zipfile never unpacks more of a member than its directory states.
        if sum(info.file_size for info in archive.infolist()) > MAX_UNPACKED_BYTES:
            raise DataError(f"{name}: unpacks to more than {MAX_UNPACKED_BYTES} bytes, which is the limit.")
        yield archive


@contextmanager
def open_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Iterator[BinaryIO]:
    """Open one member of a zip file for reading.

    Args:
        archive: from `open_zip`.
        info: the member.
        name: stands for the archive in messages.

    Raises:
        DataError: the member is damaged, encrypted, a link, or compressed otherwise than by deflate.
    """
    _check_member(info, name)
    with named_failure(name), _named_damage(name), archive.open(info) as file:
        yield cast(BinaryIO, file)


def iterate_zip(file: BinaryIO, name: str) -> Iterator[Entry]:
    """Give every file and folder of a zip archive; arguments and errors as `open_zip` and `open_zip_member`."""
    with open_zip(file, name) as archive:
        for info in archive.infolist():
            _check_member(info, name)
            raw_path, is_guessed = _decode_name(info)
            path = check_path(raw_path, name)
            is_folder = raw_path.endswith("/")
            read = read_nothing if is_folder else _member_reader(archive, info, name)
            yield Entry(path, is_folder, read, is_guessed)


def _decode_name(info: zipfile.ZipInfo) -> tuple[str, bool]:
    """Return a path with slashes for backslashes (Windows), and whether its encoding is a guess: code page 437.

    UTF-8 is known by its flag, by an extra field, or by being valid, as from macOS, which sets no flag.
    """
    name, is_guessed = info.filename, False
    if not info.flag_bits & _UTF8_FLAG and not name.isascii():
        raw = _find_unicode_path(info.extra, name.encode("cp437")) or name.encode("cp437")
        try:
            name = raw.decode("utf-8")
        except UnicodeError:
            is_guessed = True
    return name.replace("\\", "/"), is_guessed


def _find_unicode_path(extra: bytes, raw_name: bytes) -> bytes | None:
    while len(extra) >= 9:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == _UNICODE_PATH and struct.unpack("<I", extra[5:9])[0] == zlib.crc32(raw_name):
            return extra[9 : length + 4]
        extra = extra[length + 4 :]
    return None


def _member_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        with open_zip_member(archive, info, name) as file:
            return read_limited(file, limit, f"{name}: {info.filename}")

    return read


@contextmanager
def _named_damage(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"{name}: the zip archive is damaged or truncated ({error}): fetch it again.") from error


def _check_member(info: zipfile.ZipInfo, name: str) -> None:
    """Refuse encrypted members, links, and compressions other than deflate (zip's LZMA may ask for any memory)."""
    if info.flag_bits & 1:
        raise DataError(f"{name}: the member {info.filename!r} is encrypted; unpack it and pack it without a password.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{name}: the member {info.filename!r} uses compression method {info.compress_type}, "
            "expected stored or deflate; pack it again."
        )
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"{name}: the member {info.filename!r} is a link or a device; only files and folders are read.")
