"""Folders, zip and tar archives as one sequence of checked entries.

An archive is never unpacked to disk. Entries come in the order of the archive; their paths are relative, with `/`, and
cannot climb; links and devices are refused, as are encrypted members. Reading is bounded by `dim.data.limits`.
"""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from dim.data.limits import MAX_MEMBERS, MAX_PATH_BYTES, MAX_PATH_DEPTH
from dim.data.tar import TarMember, read_tar
from dim.runtime.errors import DataError

_ZIP_ENTRY_BYTES = 46  # the smallest record of a zip's central directory
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, OverflowError, NotImplementedError)


@dataclass(frozen=True)
class Entry:
    """One file or folder of a tree."""

    path: str
    """Relative to the tree's root, with `/` between parts."""
    is_folder: bool
    read: Callable[[int], bytes]
    """`read(limit)` gives the bytes, or `DataError` when there are more than `limit`; only before the next entry."""


def iterate_entries(path: Path) -> Iterator[Entry]:
    """Every file and folder below a folder or in a zip, tar, tar.gz or tar.xz file (told apart by content).

    Args:
        path: folder or archive.

    Raises:
        DataError: unreadable, damaged, truncated, beyond a limit, a climbing path, a link, a device, a doubled path.
    """
    seen: set[str] = set()
    for count, entry in enumerate(_iterate_kind(path), start=1):
        if count > MAX_MEMBERS:
            raise DataError(f"{path}: more than {MAX_MEMBERS} members, which is the limit")
        if not entry.path and entry.is_folder:
            continue
        if not entry.path:
            raise DataError(f"{path}: a file without a name; pack the archive again")
        if entry.path in seen and not entry.is_folder:
            raise DataError(f"{path}: '{entry.path}' is in the archive twice; pack it again")
        seen.add(entry.path)
        yield entry


def _iterate_kind(path: Path) -> Iterator[Entry]:
    with _named_failure(path):
        if path.is_dir():
            yield from _folder_entries(path, path.resolve(), "", 0)
        elif _starts_with(path, (b"PK\x03\x04", b"PK\x05\x06")):
            yield from _zip_entries(path)
        else:
            for member in read_tar(path):
                yield _tar_entry(path, member)


@contextmanager
def _named_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _starts_with(path: Path, magics: tuple[bytes, ...]) -> bool:
    with open(path, "rb") as file:
        return file.read(8).startswith(magics)


def check_path(raw_path: str, archive: Path) -> str:
    """A member's path with `./` and a trailing slash removed; refuses whatever could leave the archive's own folder."""
    shown = repr(raw_path[:80])
    if len(raw_path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise DataError(f"{archive}: a member's path of more than {MAX_PATH_BYTES} bytes: {shown}")
    if raw_path.startswith("/") or "\\" in raw_path:
        raise DataError(
            f"{archive}: the member {shown} has an absolute path or a backslash; pack it with relative paths"
        )
    parts = [part for part in raw_path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError(f"{archive}: the member {shown} climbs out of the archive with '..'; it is not safe to read")
    if len(parts) > MAX_PATH_DEPTH:
        raise DataError(f"{archive}: the member {shown} lies {len(parts)} folders deep, more than {MAX_PATH_DEPTH}")
    if not all(part.isprintable() for part in parts):
        raise DataError(f"{archive}: the member {shown} has unprintable characters in its path; rename it")
    return "/".join(parts)


def read_limited(file: BinaryIO, limit: int, name: str) -> bytes:
    """All bytes of a file, at most `limit`."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{name}: more than {limit} bytes, which is the limit for one file")
    return data


def _folder_entries(folder: Path, root: Path, prefix: str, depth: int) -> Iterator[Entry]:
    if depth > MAX_PATH_DEPTH:
        raise DataError(f"{folder}: more than {MAX_PATH_DEPTH} folders deep, which is the limit")
    with os.scandir(folder) as found:
        children = sorted(found, key=lambda child: child.name)
    for child in children:
        path = Path(child.path)
        relative = prefix + child.name
        if child.is_symlink() and not path.resolve().is_relative_to(root):
            raise DataError(f"{path}: a link that leaves {root}; copy the file there instead")
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            yield Entry(relative, True, _no_data)
            yield from _folder_entries(path, root, relative + "/", depth + 1)
        elif stat.S_ISREG(mode):
            yield Entry(relative, False, _file_reader(path))
        else:
            raise DataError(f"{path}: neither a file nor a folder; remove it")


def _file_reader(path: Path) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        with _named_failure(path), open(path, "rb") as file:
            return read_limited(file, limit, str(path))

    return read


def _no_data(limit: int) -> bytes:
    return b""


class _BoundedFile:
    """A file whose single reads are bounded: zipfile reads the whole central directory at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        if size > _ZIP_ENTRY_BYTES * MAX_MEMBERS:
            raise zipfile.BadZipFile(f"its directory has {size} bytes")
        return self._file.read(size)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file whose directory is read within bounds and whose damage becomes `DataError`."""
    with open(path, "rb") as file, _named_damage(path):
        with zipfile.ZipFile(cast(BinaryIO, _BoundedFile(file))) as archive:
            yield archive


@contextmanager
def open_zip_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[BinaryIO]:
    """One member of a zip file, for reading; damage becomes `DataError`."""
    check_zip_member(path, info)
    with _named_failure(path), _named_damage(path), archive.open(info) as file:
        yield cast(BinaryIO, file)


@contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN_ZIP as error:
        raise DataError(f"{path}: the zip archive is damaged or truncated ({error}): fetch it again") from error


def check_zip_member(path: Path, info: zipfile.ZipInfo) -> None:
    """Refuse encrypted members, links, and compressions other than deflate (zip's LZMA may ask for any memory)."""
    if info.flag_bits & 1:
        raise DataError(f"{path}: the member {info.filename!r} is encrypted; unpack it and pack it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{path}: the member {info.filename!r} uses compression method {info.compress_type}, "
            "expected stored or deflate; pack it again"
        )
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"{path}: the member {info.filename!r} is a link or a device; only files and folders are read")


def _zip_entries(path: Path) -> Iterator[Entry]:
    with open_zip(path) as archive:
        for info in archive.infolist():
            check_zip_member(path, info)
            relative = check_path(info.filename, path)
            if info.filename.endswith("/"):
                yield Entry(relative, True, _no_data)
            else:
                yield Entry(relative, False, _zip_reader(path, archive, info))


def _zip_reader(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        with open_zip_member(path, archive, info) as file:
            return read_limited(file, limit, f"{path}: {info.filename}")

    return read


def _tar_entry(path: Path, member: TarMember) -> Entry:
    relative = check_path(member.path, path)

    def read(limit: int) -> bytes:
        if member.size_bytes > limit:
            raise DataError(f"{path}: {relative}: more than {limit} bytes, which is the limit for one file")
        with _named_failure(path):
            return member.read()

    return Entry(relative, member.is_folder, read)
