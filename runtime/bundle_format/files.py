"""Read the files of a bundle without trusting them, and write a bundle so that it is never half-made.

Reading: every folder on the way is opened without following links, and the file must be a plain file of the recorded
size. Its bytes are read once, hashed, and passed on. No engine opens a path itself, so nothing can change in between.
Writing: a complete folder is built under a temporary name beside the destination and then takes its place.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dim.runtime.bundle_format.manifest import BundleDescription, Manifest, create_manifest, parse_manifest
from dim.runtime.bundle_format.names import MANIFEST_NAME, MAX_MANIFEST_BYTES
from dim.runtime.bundle_format.schema import MAX_FILE_BYTES, FileRecord, check_path
from dim.runtime.errors import BundleError, OutputError
from dim.runtime.storage.atomic import name_temporary_sibling, replace_folder, sync_folder, write_synced

_READ_STEP = 2**20
_MAX_UNLISTED = 1000


@contextmanager
def _open_inside(bundle_path: Path, name: str) -> Iterator[int]:
    """Open a plain file below the bundle for reading; no part of its path below the bundle may be a link."""
    *folders, last = name.split("/")
    opened: list[int] = []
    try:
        opened.append(os.open(bundle_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for folder in folders:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            opened.append(os.open(folder, flags, dir_fd=opened[-1]))
        # Without O_NONBLOCK a named pipe put in a file's place would hang the reader.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        opened.append(os.open(last, flags, dir_fd=opened[-1]))
        if not stat.S_ISREG(os.fstat(opened[-1]).st_mode):
            raise BundleError(f"{bundle_path / name} is not a plain file.")
        yield opened[-1]
    except FileNotFoundError:
        raise BundleError(f"{bundle_path / name} is missing: fetch the bundle again.") from None
    except OSError as error:
        reason = "is a link or lies behind one" if os.path.islink(bundle_path / name) else error.strerror
        raise BundleError(f"{bundle_path / name} cannot be read: {reason}.") from None
    finally:
        for descriptor in reversed(opened):
            os.close(descriptor)


def load_manifest(path: Path) -> Manifest:
    """Read and check the manifest of a bundle.

    Args:
        path: the bundle's folder.

    Returns:
        the manifest.

    Raises:
        BundleError: no bundle is there, or its manifest is malformed, altered or of a newer format.
    """
    path = Path(path)
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise BundleError(f"There is no bundle at {path}: it {found}; a bundle is a folder with a {MANIFEST_NAME}.")
    if not (path / MANIFEST_NAME).exists():
        raise BundleError(f"There is no bundle at {path}: the folder has no {MANIFEST_NAME}.")
    with _open_inside(path, MANIFEST_NAME) as descriptor:
        # One byte more than allowed is read, so that a longer file is refused and not cut.
        data = _read(descriptor, min(os.fstat(descriptor).st_size, MAX_MANIFEST_BYTES + 1))
    try:
        return parse_manifest(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def check_writable(path: Path) -> None:
    """Check that a bundle may be written or replaced, before long work for it.

    Args:
        path: the bundle's folder, there or not.

    Raises:
        OutputError: it, or the folder that it lies in, is read-only.
    """
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    for folder in (path, parent) if path.is_dir() else (parent,):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(
                f"{path} cannot be written, because {folder} is read-only: make it writable, or work "
                "on a copy elsewhere."
            )


def read_checked_file(bundle_path: Path, manifest: Manifest, name: str, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a file of a bundle once and return its bytes if they have the recorded size and hash.

    Args:
        bundle_path: the bundle's folder.
        manifest: its manifest.
        name: the file's path as the manifest lists it.
        max_bytes: the largest file that is read into memory.

    Returns:
        the file's bytes.

    Raises:
        BundleError: the file is not listed, missing, a link, too large, or altered.
    """
    record = _find_record(bundle_path, manifest, name, max_bytes)
    with _open_inside(Path(bundle_path), name) as descriptor:
        _check_size(bundle_path, name, descriptor, record)
        data = _read(descriptor, record.size_bytes)
    _check_hash(bundle_path, name, hashlib.sha256(data).hexdigest(), record)
    return data


def check_file_hash(bundle_path: Path, manifest: Manifest, name: str) -> None:
    """Check the size and hash of a file of any size, in constant memory.

    Args:
        bundle_path: the bundle's folder.
        manifest: its manifest.
        name: the file's path as the manifest lists it.

    Raises:
        BundleError: as `read_checked_file`.
    """
    record = _find_record(bundle_path, manifest, name, MAX_FILE_BYTES)
    digest, left = hashlib.sha256(), record.size_bytes
    with _open_inside(Path(bundle_path), name) as descriptor:
        _check_size(bundle_path, name, descriptor, record)
        while left > 0 and (part := os.read(descriptor, min(_READ_STEP, left))):
            digest.update(part)
            left -= len(part)
    _check_hash(bundle_path, name, digest.hexdigest(), record)


def list_unlisted_files(bundle_path: Path, manifest: Manifest) -> list[str]:
    """List what lies in a bundle's folder and is not in its manifest, as sorted relative paths, 1,000 at most."""
    found: list[str] = []
    for folder, subfolders, names in os.walk(bundle_path):
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, name), bundle_path) for name in [*names, *links]]
        if len(found) > _MAX_UNLISTED + len(manifest.files):
            break
    return sorted(set(found) - set(manifest.files) - {MANIFEST_NAME})[:_MAX_UNLISTED]


def write_bundle(
    destination: Path, description: BundleDescription, files: Mapping[str, bytes | Path], *, overwrite: bool = False
) -> Manifest:
    """Write a bundle; the destination holds a complete one or stays as it was.

    Args:
        destination: the bundle's folder, usually NAME.dim.
        description: what its manifest says about it.
        files: relative path -> content, or a file to copy; `generator.fp32.onnx` must be there, the manifest must not.
        overwrite: replace a bundle that is already there.

    Returns:
        the manifest that was written.

    Raises:
        BundleError: a field or a path is invalid.
        OutputError: the destination exists, or the disk refused.
    """
    destination = Path(destination)
    if os.path.lexists(destination):
        if not overwrite:
            raise OutputError(f"{destination} exists already: choose another place or pass overwrite.")
        if destination.is_symlink() or not (destination / MANIFEST_NAME).is_file():
            raise OutputError(f"{destination} exists and is not a bundle, so it is not replaced: choose another place.")
    with _new_folder(destination) as folder:
        records = {path: _write_file(folder, path, content) for path, content in files.items()}
        manifest = create_manifest(description, records)
        write_synced(folder / MANIFEST_NAME, manifest.to_json())
    return manifest


def update_bundle(
    path: Path,
    *,
    add_files: Mapping[str, bytes | Path] | None = None,
    accuracy: Sequence[Mapping[str, Any]] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    readme: str | None = None,
) -> Manifest:
    """Add or replace files and measurements of a bundle, in one step: it stays as it was or has all of them.

    Args:
        path: the bundle's folder.
        add_files: relative path -> content, or a file to copy; existing ones are replaced.
        accuracy: the new rows, replacing the old; None keeps them.
        evaluation: what else was found, replacing the old; None keeps it.
        readme: the new README.md; None keeps it.

    Returns:
        the manifest that was written; its `content_id` differs only if the canonical ONNX file or `latents.npz` does.

    Raises:
        BundleError: the bundle is invalid, one of its kept files is missing, or it changed meanwhile.
        OutputError: the disk refused.
    """
    path = Path(path).resolve()
    manifest = load_manifest(path)
    new: dict[str, bytes | Path] = dict(add_files or {})
    if readme is not None:
        new["README.md"] = readme.encode()
    kept = {name: record for name, record in manifest.files.items() if name not in new}
    with _new_folder(path) as folder:
        for name, record in kept.items():
            # Opened only for the check that it is a plain file inside the bundle, of the recorded size.
            with _open_inside(path, name) as descriptor:
                _check_size(path, name, descriptor, record)
            _link_or_copy(path / name, folder / name)
        records = kept | {name: _write_file(folder, name, content) for name, content in new.items()}
        rows = manifest.accuracy if accuracy is None else tuple(accuracy)
        other = manifest.evaluation if evaluation is None else evaluation
        updated = create_manifest(replace(manifest.description, accuracy=rows, evaluation=other), records)
        write_synced(folder / MANIFEST_NAME, updated.to_json())
        if load_manifest(path).manifest_sha256 != manifest.manifest_sha256:
            raise BundleError(f"{path} was changed by another process meanwhile: run the command again.")
    return updated


def copy_bundle(source: Path, destination: Path) -> None:
    """Copy the plain files and folders of a bundle's folder; the copies share their bytes where the file system can.

    Links and pipes, which no bundle has, stay behind: they would lead out of it.

    Args:
        source: the bundle's folder.
        destination: a folder that does not exist yet.

    Raises:
        OSError: the disk refused.
    """
    for folder, _, names in os.walk(source):
        copy = destination / os.path.relpath(folder, source)
        copy.mkdir(parents=True)
        for name in names:
            if stat.S_ISREG(os.lstat(os.path.join(folder, name)).st_mode):
                _link_or_copy(Path(folder, name), copy / name)


@contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """Build a folder beside the destination; on success it takes the destination's name, on failure it goes."""
    folder = name_temporary_sibling(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        yield folder
        for inner, _, _ in os.walk(folder):
            sync_folder(Path(inner))
        replace_folder(folder, destination)
    except OSError as error:
        raise OutputError(f"{destination} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_file(folder: Path, name: str, content: bytes | Path) -> FileRecord:
    check_path(name)
    data = content if isinstance(content, bytes) else Path(content).read_bytes()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write_synced(folder / name, data)
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        with _open_inside(source.parent, source.name) as descriptor:
            write_synced(target, _read(descriptor, os.fstat(descriptor).st_size))


def _find_record(bundle_path: Path, manifest: Manifest, name: str, max_bytes: int) -> FileRecord:
    record = manifest.files.get(name)
    if record is None:
        raise BundleError(f"The bundle {bundle_path} has no file {name}.")
    if record.size_bytes > max_bytes:
        raise BundleError(
            f"{Path(bundle_path) / name} has {record.size_bytes:,} bytes; at most {max_bytes:,} are read."
        )
    return record


def _check_size(bundle_path: Path, name: str, descriptor: int, record: FileRecord) -> None:
    size = os.fstat(descriptor).st_size
    if size != record.size_bytes:
        raise BundleError(
            f"{Path(bundle_path) / name} was altered: it has {size:,} bytes, the manifest says "
            f"{record.size_bytes:,}; fetch the bundle again."
        )


def _check_hash(bundle_path: Path, name: str, found: str, record: FileRecord) -> None:
    if found != record.sha256:
        raise BundleError(
            f"{Path(bundle_path) / name} was altered: its SHA-256 is {found[:16]}..., the manifest says "
            f"{record.sha256[:16]}...; fetch the bundle again."
        )


def _read(descriptor: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := os.read(descriptor, min(size, 64 * _READ_STEP))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
