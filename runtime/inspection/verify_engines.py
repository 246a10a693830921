"""The part of `dim verify` that looks at compiled engines: sidecars, hashes, and the images where an engine runs."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.engines.base import parse_pins
from dim.runtime.errors import BundleError, DeviceError, EngineError, MissingExtraError
from dim.runtime.gpu.driver import Driver, find_driver
from dim.runtime.trt.build import reason_engine_cannot_run
from dim.runtime.trt.check_engine import Samples, check_engine, draw_samples
from dim.runtime.trt.library import load_library
from dim.runtime.trt.store import EngineFile, find_onnx_sha256, list_bundle_engines
from dim.runtime.trt.trust import reason_not_trusted

AddRow = Callable[[str, str, bool, str, str], None]
"""Takes subject, check, whether it passed, what was found, what is allowed."""


def verify_engines(
    bundle_path: Path, manifest: Manifest, add: AddRow, *, trust: Sequence[str] = (), driver: Driver | None = None
) -> None:
    """Check every engine of a bundle, and run those that this machine can run and may load.

    Args:
        bundle_path: the bundle's folder.
        manifest: its manifest.
        add: gets one row per check; an engine for other machines is no failure, it is told as not run.
        trust: "sha256:..." of engines that may be loaded although somebody else built them.
        driver: an answer of `find_driver`; None asks anew if there are engines at all.

    Raises:
        BadValueError: a pin of another form.
    """
    pins = parse_pins(trust)
    files, problems = list_bundle_engines(bundle_path, manifest)
    for problem in problems:
        add("engines", "sidecar", False, problem, "")
    samples: Samples | None = None
    for file in files:
        name, sidecar = file.path.name, file.sidecar
        sha256 = find_onnx_sha256(manifest, sidecar.precision)
        if sha256 != sidecar.onnx_sha256:
            add(name, "built from", False, f"hash {sidecar.onnx_sha256[:12]}", f"hash {str(sha256)[:12]}")
            continue
        try:
            plan = file.read(bundle_path, manifest)
        except (BundleError, EngineError) as error:
            add(name, "plan", False, str(error), "")
            continue
        driver = driver or find_driver()
        reason = _why_not_run(file, driver) or reason_not_trusted(sidecar.engine_sha256, pins)
        if reason is not None:
            add(name, "runs", True, f"not run here: {reason}", "")
            continue
        try:
            samples = samples or draw_samples(bundle_path, manifest)
            for check in check_engine(load_library(sidecar.format), plan, sidecar, manifest, samples, driver):
                add(name, f"batch {check.batch}, {check.check}", check.ok, check.found, check.allowed)
        except (DeviceError, MissingExtraError) as error:
            add(name, "runs", True, f"not run here: {error}", "")
        except EngineError as error:
            add(name, "runs", False, str(error), "")


def _why_not_run(file: EngineFile, driver: Driver) -> str | None:
    try:
        library = load_library(file.sidecar.format)
    except (EngineError, MissingExtraError) as error:
        return str(error)
    return reason_engine_cannot_run(library, file.sidecar, driver)
