"""Bundles from a URL: fetched once, checked against their hashes, kept in the private cache under their own hash.

`https://host/NAME.dim` and `s3://bucket/NAME.dim` are folders with a `manifest.json`. The manifest names the size and
the SHA-256 of every file, and `--sha256` pins the manifest (its `manifest_sha256`), so the server need not be trusted.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dim.runtime.bundle_format.download import check_url, download, join_url
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.hub import is_on_hub, pin_revision
from dim.runtime.bundle_format.manifest import Manifest, parse_manifest
from dim.runtime.bundle_format.names import MANIFEST_NAME, MAX_MANIFEST_BYTES
from dim.runtime.bundle_format.schema import FileRecord
from dim.runtime.errors import BundleError, hide_secrets
from dim.runtime.messages import say_to_log
from dim.runtime.storage.private_cache import cache_folder, fill_cached_folder
from dim.runtime.units import format_count


def fetch_bundle(url: str, *, sha256: str | None = None, say: Callable[[str], None] = say_to_log) -> Path:
    """Fetch a bundle, or find it in the cache.

    Args:
        url: the bundle's folder, `https://`, an object store or the Hugging Face Hub, as `download.SCHEMES` lists them.
        sha256: the `manifest_sha256` that is expected, 64 hexadecimal digits, perhaps after `sha256:`; with it a bundle
            in the cache is used without asking the network.
        say: gets one sentence about what is fetched.

    Returns:
        the bundle's folder in the private cache; every file in it has been checked.

    Raises:
        BundleError: it cannot be fetched, is malformed, or is not the bundle that was pinned.
    """
    pinned = parse_sha256(sha256) if sha256 is not None else None
    check_url(url)
    shown = hide_secrets(url).rstrip("/")
    if pinned is not None and (path := _find_cached(pinned)) is not None:
        say(f"Bundle {shown} is in the cache: {path}.")
        return path
    if is_on_hub(url):
        url, commit = pin_revision(url)
        say(f"{shown} is at revision {commit[:12]}.")
    data = b"".join(download(join_url(url, MANIFEST_NAME), MAX_MANIFEST_BYTES, pinned is not None))
    if data.lstrip()[:1] == b"<":
        raise BundleError(
            f"There is no bundle at {shown}: the server sends a web page instead of {MANIFEST_NAME}; give the address "
            "below which the bundle's files lie."
        )
    try:
        manifest = parse_manifest(data)
    except BundleError as error:
        raise BundleError(f"There is no bundle at {shown}: {error}") from None
    check_pin(manifest, pinned, shown)
    if (path := _find_cached(manifest.manifest_sha256)) is not None:
        say(f"Bundle {shown} is in the cache: {path}.")
        return path
    total = sum(record.size_bytes for record in manifest.files.values())
    say(f"Fetching {manifest.name} from {shown}: {format_count(len(manifest.files), 'file')}, {total / 1e6:.1f} MB.")
    return _fetch_files(url, manifest, data, pinned is not None)


def check_pin(manifest: Manifest, sha256: str | None, where: str) -> None:
    """Check that a bundle is the one that was pinned.

    Args:
        manifest: the bundle's manifest.
        sha256: the `manifest_sha256` that is expected; None for any.
        where: how to name the bundle in the message.

    Raises:
        BundleError: it is another bundle.
    """
    if sha256 is not None and manifest.manifest_sha256 != parse_sha256(sha256):
        raise BundleError(
            f"The bundle at {where} has the hash {manifest.manifest_sha256}; {parse_sha256(sha256)} was pinned: "
            "it is another bundle, or it was altered."
        )


def parse_sha256(sha256: str) -> str:
    """Return the 64 digits of a hash without a leading `sha256:`; raises BundleError where it is none."""
    digits = sha256.strip().lower().removeprefix("sha256:")
    if len(digits) != 64 or not all(letter in "0123456789abcdef" for letter in digits):
        raise BundleError(f"'{sha256}' is not a SHA-256; it has 64 hexadecimal digits, as  dim inspect  prints them.")
    return digits


def _find_cached(manifest_sha256: str) -> Path | None:
    path = cache_folder("bundles") / f"{manifest_sha256}.dim"
    if not path.is_dir() or path.is_symlink():
        return None
    try:
        found = load_manifest(path).manifest_sha256
    except BundleError:
        return None
    return path if found == manifest_sha256 else None


def _fetch_files(url: str, manifest: Manifest, manifest_data: bytes, pinned: bool) -> Path:
    """Fetch every file of a bundle into a new folder, which then takes its place in the cache."""
    path = cache_folder("bundles") / f"{manifest.manifest_sha256}.dim"
    try:
        with fill_cached_folder(f"bundles/{path.name}") as create:
            for name, record in manifest.files.items():
                with create(name) as file:
                    _fetch_file(join_url(url, name), record, file, pinned)
                    _sync(file)
            with create(MANIFEST_NAME) as file:
                file.write(manifest_data)
                _sync(file)
    except OSError as error:
        raise BundleError(
            f"The bundle cannot be kept in the cache {path.parent}: {error.strerror or error}."
        ) from error
    return path


def _fetch_file(url: str, record: FileRecord, file: BinaryIO, pinned: bool) -> None:
    digest, size = hashlib.sha256(), 0
    for piece in download(url, record.size_bytes, pinned):
        file.write(piece)
        digest.update(piece)
        size += len(piece)
    if size != record.size_bytes or digest.hexdigest() != record.sha256:
        raise BundleError(
            f"{hide_secrets(url)} has {size:,} bytes and the hash {digest.hexdigest()[:12]}...; the manifest says "
            f"{record.size_bytes:,} and {record.sha256[:12]}...: it was altered or cut short, try again later."
        )


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
