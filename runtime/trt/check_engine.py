"""Checks that a compiled engine draws the images of the fp32 ONNX file, at its least, optimum and most images per call.

A few samples are repeated to fill a batch of any size. The first copies are compared with the ONNX file, and all other
copies must equal the first bit for bit (TensorRT 11.1 drew different images for identical rows of one batch, issue
4813).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.files import read_checked_file
from dim.runtime.bundle_format.graph_contract import MAX_ONNX_BYTES, check_graph
from dim.runtime.bundle_format.manifest import Manifest, onnx_name
from dim.runtime.engines import image_checks
from dim.runtime.engines.onnx_session import open_cpu_session, run_in_pieces
from dim.runtime.errors import MissingExtraError, ParityError
from dim.runtime.gpu.driver import Driver
from dim.runtime.gpu.memory import GpuMemoryError
from dim.runtime.sampling.latents import draw_latents, order_slice
from dim.runtime.trt.engine import TrtEngine
from dim.runtime.trt.library import TrtLibrary
from dim.runtime.trt.sidecar import Sidecar

_SEED = 4813
_ROWS, _ROWS_WITHOUT_ONNXRUNTIME = 64, 8


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Inputs, and the images that the fp32 ONNX file draws from them on the CPU."""

    latents: NDArray[np.float32]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class BatchCheck:
    """What one batch size showed."""

    batch: int
    check: str
    """What was compared: "against fp32" or "identical rows"."""
    found: str
    allowed: str
    ok: bool


def draw_samples(bundle_path: Path, manifest: Manifest) -> Samples:
    """Draw reference images with the canonical ONNX file: by ONNX Runtime, or by `onnx` itself where there is no other.

    Args:
        bundle_path: the bundle's folder.
        manifest: its manifest.

    Raises:
        BundleError, GraphError: the ONNX file is missing, altered or breaks the contract.
    """
    model = read_checked_file(bundle_path, manifest, onnx_name("fp32"), max_bytes=MAX_ONNX_BYTES)
    limit = check_graph(model, manifest)
    try:
        session, rows = open_cpu_session(model, None), _ROWS
    except MissingExtraError:
        from onnx.reference import ReferenceEvaluator

        session, rows = ReferenceEvaluator(model), _ROWS_WITHOUT_ONNXRUNTIME
    per_class = -(-rows // manifest.num_classes)
    labels, indices = order_slice([per_class] * manifest.num_classes, 0, rows)
    latents = draw_latents(_SEED, labels, indices, manifest.latent_dim, manifest.latent_std)
    images = run_in_pieces(session, {"latents": latents, "labels": labels}, limit)
    return Samples(latents=latents, labels=labels, images=np.asarray(images, np.uint8))


def check_batch(engine: TrtEngine, samples: Samples, batch: int) -> list[BatchCheck]:
    """Run one full batch and compare it with the samples and with itself."""
    # At most half of the batch is distinct, so that there is always something to compare within it.
    distinct = max(1, min(len(samples.labels), batch // 2))
    rows = np.arange(batch) % distinct
    images = engine.run(samples.latents[rows], samples.labels[rows])
    ok, found, allowed = image_checks.compare_precision(engine.precision, images[:distinct], samples.images[:distinct])
    checks = [BatchCheck(batch=batch, check="against fp32", found=found, allowed=allowed, ok=ok)]
    if batch > distinct:
        levels = image_checks.max_levels(images[distinct:], images[rows[distinct:]])
        checks.append(
            BatchCheck(batch=batch, check="identical rows", found=f"{levels} levels", allowed="0", ok=levels == 0)
        )
    return checks


def check_engine(
    library: TrtLibrary,
    plan: bytes,
    sidecar: Sidecar,
    manifest: Manifest,
    samples: Samples,
    driver: Driver,
) -> list[BatchCheck]:
    """Check a trusted plan at every batch size of its profile.

    Args:
        library: the library of the plan's format.
        plan: its bytes.
        sidecar: what it covers.
        manifest: the bundle's manifest.
        samples: from `draw_samples`.
        driver: an answer of `find_driver`.

    Returns:
        what each batch size showed; sizes that the GPU has no room for are passed and say so, except the least.

    Raises:
        as `TrtEngine`.
    """
    checks: list[BatchCheck] = []
    for batch in dict.fromkeys(sidecar.batch):
        try:
            engine = TrtEngine(library, plan, sidecar, manifest, batch=batch, driver=driver)
        except GpuMemoryError:
            if batch == sidecar.batch[0]:
                raise
            checks.append(BatchCheck(batch=batch, check="not run", found="no room on the GPU", allowed="", ok=True))
            continue
        try:
            checks += check_batch(engine, samples, batch)
        finally:
            engine.close()
    return checks


def check_built_engine(
    library: TrtLibrary,
    plan: bytes,
    sidecar: Sidecar,
    bundle_path: Path,
    manifest: Manifest,
    driver: Driver,
    say: Callable[[str], None],
) -> str:
    """Check a plan that was just built, before it is published.

    Returns:
        one clause that says what was found.

    Raises:
        ParityError: it draws other images than the ONNX file, or differs between identical rows.
    """
    checks = check_engine(library, plan, sidecar, manifest, draw_samples(bundle_path, manifest), driver)
    for check in checks:
        if not check.ok:
            raise ParityError(
                f"The engine {sidecar.file_name} was built and is not published: at batch {check.batch}, "
                f"{check.check}, it shows {check.found} and {check.allowed} is allowed; try another version of the "
                "library."
            )
        if check.check == "not run":
            say(f"Batch {check.batch} of {sidecar.file_name} was not checked: {check.found}.")
    return ", ".join(f"{check.found} at batch {check.batch}" for check in checks if check.check == "against fp32")
