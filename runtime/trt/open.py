"""Find a compiled engine that fits and may be loaded, or build one from the ONNX file into this user's cache."""

import time
from collections.abc import Callable

from dim.runtime.bundle_format.names import PRECISIONS
from dim.runtime.engines.base import EngineRequest, parse_pins
from dim.runtime.errors import EngineError
from dim.runtime.gpu.driver import Driver, check_driver, find_driver, require_gpu
from dim.runtime.progress.show import Progress
from dim.runtime.trt.build import build_engine
from dim.runtime.trt.compile import DEFAULT_BATCH, BuildOptions
from dim.runtime.trt.engine import TrtEngine
from dim.runtime.trt.library import TrtLibrary, load_library
from dim.runtime.trt.sidecar import describe_gpu, library_title, reason_engine_does_not_fit
from dim.runtime.trt.store import (
    EngineFile,
    find_onnx_sha256,
    list_bundle_engines,
    list_cached_engines,
    lock_builds,
    store_in_cache,
)
from dim.runtime.trt.trust import reason_not_trusted

_SAY_EVERY_S = 10.0


def open_trt_engine(request: EngineRequest, format: str) -> TrtEngine:
    """Open a TensorRT or TensorRT for RTX engine of a bundle.

    Args:
        request: the bundle and what is wanted of the engine.
        format: `trt` or `rtx`.

    Returns:
        the engine; `reason` says whether it was found or built.

    Raises:
        MissingExtraError: the library or `cuda-core` is not installed.
        DeviceError: no GPU, or a driver that is too old.
        BundleError: the bundle's engine was altered.
        EngineError: the engine can neither be loaded nor built.
        ParityError: the engine that was built draws other images than the ONNX file.
    """
    library, title = load_library(format), library_title(format)
    driver = request.driver or find_driver()
    gpu = require_gpu(f"run {title} engines", driver, library.cuda_major)
    check_driver(driver, library.cuda_major, f"{title} {library.version} cannot run here")
    found = _find_engine(request, library, driver)
    if found is None:
        sha256 = find_onnx_sha256(request.manifest, request.precision)
        assert sha256 is not None, "open_engine looked"
        with lock_builds(sha256):
            found = _find_engine(request, library, driver, quiet=True)  # another process may have built it meanwhile
            if found is None:
                request.say(f"Building a {title} {request.precision} engine for {describe_gpu(gpu)}, for the cache.")
                built = _build(request, library, driver)
                return _open(request, library, driver, built, "built into the cache just now")
    where = "from the bundle" if found.in_bundle else "from the cache"
    return _open(request, library, driver, found, f"{found.path.name} {where}")


def _find_engine(request: EngineRequest, library: TrtLibrary, driver: Driver, quiet: bool = False) -> EngineFile | None:
    """Look for an engine that fits: the bundle's before the cache's, fp32 before the others."""
    in_bundle, problems = list_bundle_engines(request.path, request.manifest)
    if problems and not quiet:
        request.say(" ".join(problems))
    for precision in PRECISIONS if request.options.precision is None else (request.precision,):
        sha256 = find_onnx_sha256(request.manifest, precision)
        if sha256 is None:
            continue
        for file in [*in_bundle, *list_cached_engines(sha256)]:
            if (file.sidecar.format, file.sidecar.precision) != (library.format, precision):
                continue
            reason = _reason_not_used(request, library, driver, file, sha256)
            if reason is None:
                return file
            if file.in_bundle and not quiet:
                request.say(f"The bundle's engine {file.path.name} is not used: {reason}.")
    return None


def _reason_not_used(
    request: EngineRequest, library: TrtLibrary, driver: Driver, file: EngineFile, onnx_sha256: str
) -> str | None:
    """Say in one clause why an engine of the right library and precision is not used, or None if it is."""
    sidecar, version = file.sidecar, library.version
    least, _, most = sidecar.batch
    reason = reason_engine_does_not_fit(sidecar, gpu=driver.gpus[0], library_version=version, onnx_sha256=onnx_sha256)
    if reason is None and request.batch is not None and not least <= request.batch <= most:
        reason = f"it takes {least} to {most} images per call and {request.batch} are wanted"
    if reason is None:
        reason = reason_not_trusted(sidecar.engine_sha256, parse_pins(request.options.trust))
    if reason is None and not file.in_bundle:
        # A damaged engine of the cache is built again; a bundle's damage is an error when it is read.
        try:
            file.read(request.path, request.manifest)
        except EngineError as error:
            request.say(f"{error} It is built again.")
            reason = "it is damaged"
    return reason


def _build(request: EngineRequest, library: TrtLibrary, driver: Driver) -> EngineFile:
    batch = DEFAULT_BATCH
    if request.batch is not None and request.batch > batch[2]:
        batch = (1, request.batch, request.batch)
    plan, sidecar = build_engine(
        request.path,
        request.manifest,
        library,
        request.precision,
        BuildOptions(batch=batch),
        driver,
        say=request.say,
        progress=_say_progress(request.say),
    )
    return store_in_cache(plan, sidecar)


def _say_progress(say: Callable[[str], None]) -> Progress:
    """Turn a build's progress into a sentence every few seconds; a quick build says nothing."""
    last = time.monotonic()

    def progress(what: str, part: float, whole: float | None, note: str, /) -> None:
        nonlocal last
        if time.monotonic() - last >= _SAY_EVERY_S:
            last = time.monotonic()
            say(f"{what[0].upper()}{what[1:]}: {part:.0%}.")

    return progress


def _open(request: EngineRequest, library: TrtLibrary, driver: Driver, file: EngineFile, reason: str) -> TrtEngine:
    manifest = request.manifest
    engine = TrtEngine(
        library,
        file.read(request.path, manifest),
        file.sidecar,
        manifest,
        batch=request.batch,
        driver=driver,
        say=request.say,
    )
    engine.reason = reason
    return engine
