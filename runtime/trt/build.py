"""Build the engines of a bundle: what `dim export --format trt|rtx` does, and what an edge device does for itself.

Needs the engine's library and `onnx`, no torch. An engine is checked against the ONNX files before it is published
wherever it can run; an engine for other GPUs is published with `checked: false`, and `dim verify` checks it there.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dim.runtime.bundle_format.files import check_writable, load_manifest, read_checked_file, update_bundle
from dim.runtime.bundle_format.graph_contract import MAX_ONNX_BYTES, check_graph
from dim.runtime.bundle_format.manifest import Manifest, check_precisions, onnx_name
from dim.runtime.errors import BadValueError, BundleError, DeviceError
from dim.runtime.gpu.driver import Driver, find_driver, reason_driver_too_old
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import Progress, ProgressOption, ignore_progress, show_progress
from dim.runtime.storage.private_cache import read_if_cached, write_if_possible
from dim.runtime.trt.check_engine import check_built_engine
from dim.runtime.trt.compile import (
    DEFAULT_BATCH,
    BuildOptions,
    check_target,
    compile_plan,
    hardware_mode,
    parse_compute_capabilities,
)
from dim.runtime.trt.library import TrtLibrary, load_library
from dim.runtime.trt.sidecar import Sidecar, host_machine, reason_engine_does_not_fit, sidecar_name
from dim.runtime.trt.store import name_timings, store_in_cache
from dim.runtime.trt.trust import remember_built
from dim.version import __version__


def build_engines(
    bundle_path: str | Path,
    *,
    format: str,
    precisions: Sequence[str] | None = None,
    batch: tuple[int, int, int] = DEFAULT_BATCH,
    compute_capabilities: Sequence[str] = (),
    hardware_compatible: bool = False,
    version_compatible: bool = False,
    into: str = "bundle",
    say: Callable[[str], None] = say_to_log,
    progress: ProgressOption = None,
) -> list[Path]:
    """Compile a bundle's ONNX files.

    Args:
        bundle_path: the bundle's folder.
        format: `trt` (TensorRT, for this machine's GPU) or `rtx` (TensorRT for RTX, needs no GPU).
        precisions: which ONNX files; None for all that the bundle has.
        batch: least, optimum and most images per call; the optimum becomes the padded batch.
        compute_capabilities: targets of `rtx`, as "8.9" or "sm89"; none for every GPU from 8.0 on.
        hardware_compatible: `trt` only: cover other GPUs from Ampere on.
        version_compatible: `trt` only: cover newer releases of the same major version.
        into: `bundle`, or `cache` for this user's private cache.
        say: told about each engine.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`. The share of each build.

    Returns:
        the paths of the plans; each has its sidecar beside it.

    Raises:
        BadValueError: an option is out of range or not one of this format.
        BundleError, GraphError: the bundle or its ONNX file is not in order.
        MissingExtraError: the library, or `onnx`, is not installed.
        DeviceError: TensorRT without a GPU.
        EngineError: the library refuses the file or the build.
        ParityError: the engine draws other images than the ONNX file; nothing is published.
    """
    if into not in ("bundle", "cache"):
        raise BadValueError(f"Engines go into the bundle or the cache, not {into!r}.")
    options = BuildOptions(
        batch=batch,
        compute_capabilities=parse_compute_capabilities(compute_capabilities),
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
    )
    path = Path(bundle_path)
    manifest = load_manifest(path)
    chosen = tuple(precisions) if precisions is not None else manifest.precisions
    check_precisions(chosen)
    for precision in chosen:
        if onnx_name(precision) not in manifest.files:
            raise BundleError(
                f"The bundle {path} has no {onnx_name(precision)}; it has {', '.join(manifest.precisions)}: export the "
                f"run again with  --precision {precision}"
            )
    if into == "bundle":
        check_writable(path)
    library, driver = load_library(format), find_driver()
    built = []
    with show_progress(progress) as report:
        for precision in chosen:
            built.append(build_engine(path, manifest, library, precision, options, driver, say=say, progress=report))
    if into == "cache":
        return [store_in_cache(plan, sidecar).path for plan, sidecar in built]
    files: dict[str, bytes | Path] = {}
    for plan, sidecar in built:
        files |= {sidecar.file_name: plan, sidecar_name(sidecar.file_name): sidecar.to_json()}
        remember_built(sidecar.engine_sha256)
    update_bundle(path, add_files=files)
    return [path / sidecar.file_name for _, sidecar in built]


def build_engine(
    bundle_path: Path,
    manifest: Manifest,
    library: TrtLibrary,
    precision: str,
    options: BuildOptions,
    driver: Driver,
    *,
    say: Callable[[str], None],
    progress: Progress = ignore_progress,
) -> tuple[bytes, Sidecar]:
    """Build one engine and check it if this machine can run it.

    Args:
        bundle_path: the bundle's folder.
        manifest: its manifest.
        library: what builds.
        precision: of the ONNX file.
        options: what to build for.
        driver: an answer of `find_driver`.
        say: told about the engine.
        progress: told the share done.

    Returns:
        the plan and its sidecar, not yet kept anywhere.

    Raises:
        as `build_engines`.
    """
    gpu = check_target(library, options, driver)
    model = read_checked_file(bundle_path, manifest, onnx_name(precision), max_bytes=MAX_ONNX_BYTES)
    check_graph(model, manifest)
    # Kernel timings of an earlier build; without them it only takes longer.
    timings_file = None if gpu is None else name_timings(library.version, gpu.name)
    timings = b"" if timings_file is None else read_if_cached(timings_file)
    plan, kept = compile_plan(library, model, precision, options, gpu=gpu, timing_cache=timings, progress=progress)
    if timings_file is not None and kept:
        write_if_possible(timings_file, kept)
    sidecar = Sidecar(
        format=library.format,
        library_version=library.version,
        precision=precision,
        onnx_sha256=hashlib.sha256(model).hexdigest(),
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        batch=options.batch,
        hardware=hardware_mode(options, gpu),
        compute_capabilities=(gpu.compute_capability,) if gpu else options.compute_capabilities,
        gpu=gpu.name if gpu else None,
        version_compatible=options.version_compatible,
        machine=host_machine(),
        created_by=f"dim {__version__}",
        checked=False,
    )
    reason = reason_engine_cannot_run(library, sidecar, driver)
    size = f"{len(plan) / 1e6:.1f} MB"
    if reason is None:
        try:
            found = check_built_engine(library, plan, sidecar, bundle_path, manifest, driver, say)
        except DeviceError as error:
            if library.format == "trt":
                raise
            # Built for other GPUs as well; TensorRT for RTX does not take every one of this compute capability.
            reason = str(error).rstrip(".")
        else:
            say(f"Built {sidecar.file_name} ({size}); against fp32 ONNX: {found}.")
            return plan, replace(sidecar, checked=True)
    say(f"Built {sidecar.file_name} ({size}); not checked, because {reason}.")
    return plan, sidecar


def reason_engine_cannot_run(library: TrtLibrary, sidecar: Sidecar, driver: Driver) -> str | None:
    """Say in one clause why an engine cannot run on this machine, or None if nothing speaks against it."""
    if driver.problem is not None:
        return driver.problem
    too_old = reason_driver_too_old(driver, library.cuda_major)
    if too_old is not None:
        return too_old
    return reason_engine_does_not_fit(sidecar, gpu=driver.gpus[0], library_version=library.version, onnx_sha256=None)
