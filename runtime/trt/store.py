"""Find compiled engines in a bundle and in this user's cache, and keep new ones there."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dim.runtime.bundle_format.files import read_checked_file
from dim.runtime.bundle_format.manifest import Manifest, onnx_name
from dim.runtime.errors import BundleError, DimError, EngineError
from dim.runtime.storage.below import list_names, open_file
from dim.runtime.storage.private_cache import cache_dir, cache_folder, read_cached, write_cached
from dim.runtime.trt.sidecar import MAX_SIDECAR_BYTES, Sidecar, parse_engine_name, parse_sidecar, sidecar_name
from dim.runtime.trt.trust import remember_built

MAX_ENGINE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """One compiled engine with its sidecar, read and checked; the plan is read only when it is wanted."""

    path: Path
    sidecar: Sidecar
    in_bundle: bool

    def read(self, bundle_path: Path, manifest: Manifest) -> bytes:
        """Read the plan.

        Args:
            bundle_path: the bundle's folder.
            manifest: its manifest.

        Returns:
            the plan, of the size and hash that its sidecar says.

        Raises:
            BundleError: the bundle's file is missing or altered.
            EngineError: the plan is not the sidecar's.
        """
        if self.in_bundle:
            plan = read_checked_file(bundle_path, manifest, self.path.name, max_bytes=MAX_ENGINE_BYTES)
        else:
            try:
                plan = read_cached(self.path.relative_to(cache_dir()).as_posix())
            except OSError as error:
                raise EngineError(f"The engine {self.path} cannot be read: {error.strerror}.") from error
        if len(plan) != self.sidecar.engine_bytes:
            raise EngineError(
                f"The engine {self.path} is truncated or altered: it has {len(plan):,} bytes, its sidecar says "
                f"{self.sidecar.engine_bytes:,}."
            )
        if hashlib.sha256(plan).hexdigest() != self.sidecar.engine_sha256:
            raise EngineError(f"The engine {self.path} was altered: its hash is not the one in its sidecar.")
        return plan


def list_bundle_engines(bundle_path: Path, manifest: Manifest) -> tuple[list[EngineFile], list[str]]:
    """List the engines of a bundle.

    Args:
        bundle_path: the bundle's folder.
        manifest: its manifest.

    Returns:
        the engines with a readable sidecar, and one sentence for each without.
    """
    found, problems = [], []
    for name in sorted(manifest.files):
        parsed = parse_engine_name(name)
        if parsed is None or "/" in name:
            continue
        try:
            data = read_checked_file(bundle_path, manifest, sidecar_name(name), max_bytes=MAX_SIDECAR_BYTES)
            sidecar = parse_sidecar(data, sidecar_name(name))
            if (sidecar.precision, sidecar.format, sidecar.target) != parsed:
                raise EngineError(f"The sidecar {sidecar_name(name)} is that of {sidecar.file_name}.")
        except (BundleError, EngineError) as error:
            problems.append(str(error))
            continue
        found.append(EngineFile(path=bundle_path / name, sidecar=sidecar, in_bundle=True))
    return found, problems


def list_cached_engines(onnx_sha256: str) -> list[EngineFile]:
    """List the engines that this user's cache holds for one ONNX file; damaged entries are passed over."""
    try:
        names = list_names(cache_folder(folder := _name_folder(onnx_sha256)))
    except (OSError, DimError):
        return []
    found = []
    for name in names:
        if not name.endswith(".engine.json"):
            continue
        try:
            sidecar = parse_sidecar(read_cached(f"{folder}/{name}"), name)
        except (OSError, DimError):
            continue
        found.append(EngineFile(path=cache_dir() / folder / Path(name).stem, sidecar=sidecar, in_bundle=False))
    return found


def find_onnx_sha256(manifest: Manifest, precision: str) -> str | None:
    """Return the hash of a bundle's ONNX file of one precision, None where it has none."""
    record = manifest.files.get(onnx_name(precision))
    return None if record is None else record.sha256


def store_in_cache(plan: bytes, sidecar: Sidecar) -> EngineFile:
    """Keep an engine that was just built in this user's cache, and note that this user built it.

    Raises:
        DimError: the cache cannot be used.
        EngineError: the disk refused.
    """
    folder = _name_folder(sidecar.onnx_sha256)
    name = f"{sidecar.file_name.removesuffix('.engine')}.{_hash_target(sidecar)}.engine"
    path = cache_folder(folder) / name
    try:
        remember_built(sidecar.engine_sha256)
        write_cached(f"{folder}/{name}", plan)
        write_cached(f"{folder}/{sidecar_name(name)}", sidecar.to_json())
    except OSError as error:
        raise EngineError(f"The engine cannot be kept in {path.parent}: {error.strerror}.") from error
    return EngineFile(path=path, sidecar=sidecar, in_bundle=False)


@contextmanager
def lock_builds(onnx_sha256: str) -> Iterator[None]:
    """Let one process at a time build engines from an ONNX file, so that many workers of one node build one engine."""
    folder = cache_folder(_name_folder(onnx_sha256))
    with open(open_file(folder, ".lock", os.O_WRONLY | os.O_CREAT, 0o600), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: two processes may both build, and the last one's engine stays
        yield


def name_timings(library_version: str, gpu: str) -> str:
    """Name the file of the private cache with the kernel timings of one TensorRT version on one GPU."""
    key = hashlib.sha256(f"{library_version} {gpu}".encode()).hexdigest()[:16]
    return f"timing/{key}.cache"


def _name_folder(onnx_sha256: str) -> str:
    return f"engines/{onnx_sha256}"


def _hash_target(sidecar: Sidecar) -> str:
    """Hash what distinguishes engines of one file name: library, GPU, batches, modes."""
    parts = (
        sidecar.library_version,
        sidecar.gpu,
        sidecar.batch,
        sidecar.hardware,
        sidecar.version_compatible,
        sidecar.machine,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
