"""Folders, zip and tar archives as one sequence of checked entries.

An archive is never unpacked to disk. Entries come in the order of the archive; their paths are relative, with `/`, and
cannot climb; links and devices are refused, as are encrypted members. Reading is bounded by `dim.data.limits`.
"""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from dim.data.files.entries import Entry, named_failure, read_limited, read_nothing
from dim.data.files.tar import iterate_tar
from dim.data.files.zip import ZIP_MAGICS, iterate_zip
from dim.data.limits import MAX_MEMBERS, MAX_PATH_DEPTH
from dim.runtime.errors import DataError


def iterate_entries(path: Path, *, follow_links: bool = False) -> Iterator[Entry]:
    """Give every file and folder below a folder or in a zip, tar, tar.gz or tar.xz file (told apart by content).

    Args:
        path: folder or archive.
        follow_links: whether links out of a folder are followed; those within it always are.

    Raises:
        DataError: unreadable, damaged, truncated, beyond a limit, a climbing path, a link, a device, a doubled path.
    """
    seen: set[str] = set()
    with named_failure(path):
        for count, entry in enumerate(_iterate_kind(path, follow_links), start=1):
            if count > MAX_MEMBERS:
                raise DataError(f"{path}: more than {MAX_MEMBERS} members, which is the limit.")
            if not entry.path and entry.is_folder:
                continue
            if not entry.path:
                raise DataError(f"{path}: a file without a name; pack the archive again.")
            if entry.path in seen and not entry.is_folder:
                raise DataError(f"{path}: '{entry.path}' is in the archive twice; pack it again.")
            seen.add(entry.path)
            yield entry


def _iterate_kind(path: Path, follow_links: bool) -> Iterator[Entry]:
    if path.is_dir():
        yield from _iterate_folder(path, None if follow_links else path.resolve(), "", 0)
        return
    with open(path, "rb") as file:
        is_zip = file.read(4) in ZIP_MAGICS
        file.seek(0)
        yield from (iterate_zip if is_zip else iterate_tar)(file, str(path))


def _iterate_folder(folder: Path, root: Path | None, prefix: str, depth: int) -> Iterator[Entry]:
    """Give what lies in a folder; links may not leave `root`, unless it is None."""
    if depth > MAX_PATH_DEPTH:
        raise DataError(f"{folder}: more than {MAX_PATH_DEPTH} folders deep, which is the limit.")
    with os.scandir(folder) as found:
        children = sorted(found, key=lambda child: child.name)
    for child in children:
        path = Path(child.path)
        relative = prefix + child.name
        if child.is_symlink():
            _check_link(path)
        if root is not None and child.is_symlink() and not path.resolve().is_relative_to(root):
            raise DataError(f"{path}: a link that leaves {root}; copy what it leads to, or say --follow-links.")
        with named_failure(path):
            mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            yield Entry(relative, True, read_nothing)
            yield from _iterate_folder(path, root, relative + "/", depth + 1)
        elif stat.S_ISREG(mode):
            yield Entry(relative, False, _file_reader(path))
        else:
            raise DataError(f"{path}: neither a file nor a folder; remove it.")


def _check_link(path: Path) -> None:
    """Refuse a link that leads nowhere, or back to a folder it lies in."""
    target = os.readlink(path)
    if not path.exists():
        raise DataError(f"{path}: a link to {target}, where nothing can be read; remove the link or fix it.")
    if path.is_dir() and path.parent.resolve().is_relative_to(path.resolve()):
        raise DataError(f"{path}: a link to {target}, a folder that it lies in itself; remove the link.")


def _file_reader(path: Path) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        with named_failure(path), open(path, "rb") as file:
            return read_limited(file, limit, str(path))

    return read
