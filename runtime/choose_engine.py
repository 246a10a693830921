"""Chooses the engine.

`auto` takes the first that works of TensorRT, TensorRT for RTX, ONNX Runtime on CUDA, ONNX Runtime on the CPU, OpenVINO
on the CPU. It never changes the precision; only OpenVINO draws bf16. There is no silent fallback: every skipped engine
is named with its reason, and `device="gpu"` never runs on the CPU.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from dim.runtime.bundle_format.manifest import Manifest, onnx_name
from dim.runtime.cores import find_bf16_instructions
from dim.runtime.engines.base import Engine, EngineOptions, EngineRequest
from dim.runtime.engines.names import ENGINES, OFFERED_ENGINES, draws_in
from dim.runtime.errors import BadValueError, BundleError, DeviceError, EngineError, MissingExtraError, ParityError
from dim.runtime.gpu.driver import Driver, find_driver, has_nvidia_hardware, require_gpu
from dim.runtime.messages import say_to_log


def _open(name: str, request: EngineRequest) -> Engine:
    """Open an engine by its name; its library is imported only now."""
    if name == "onnxruntime-cuda":
        from dim.runtime.engines.onnx_cuda import CudaEngine

        return CudaEngine(request)
    if name == "onnxruntime-cpu":
        from dim.runtime.engines.onnx_cpu import OnnxEngine

        return OnnxEngine(request)
    if name == "openvino-cpu":
        from dim.runtime.engines.openvino_cpu import OpenVinoEngine

        return OpenVinoEngine(request)
    if name == "fake":
        from dim.runtime.engines.fake import FakeEngine

        return FakeEngine(request.manifest)
    from dim.runtime.trt.open import open_trt_engine

    return open_trt_engine(request, "trt" if name == "tensorrt" else "rtx")


def open_engine(
    path: Path,
    manifest: Manifest,
    options: EngineOptions | None = None,
    *,
    batch: int | None = None,
    driver: Driver | None = None,
    reason: str = "as asked",
    say: Callable[[str], None] = say_to_log,
) -> Engine:
    """Choose an engine for a bundle, open it, and say which one it is and why.

    Args:
        path: the bundle's folder.
        manifest: the bundle's manifest.
        options: which engine is wanted; None for the best that works here, in fp32.
        batch: the padded batch of a GPU engine, as a plan says it; None for the engine's own.
        driver: an answer of `find_driver`; None asks anew.
        reason: why the engine is named, as a phrase, where `options` name one.
        say: gets one sentence about the choice.

    Returns:
        the engine; `reason` tells why it was chosen.

    Raises:
        BadValueError: a batch below 1.
        BundleError: the bundle has no file of that precision, or it was altered.
        GraphError: the ONNX file breaks the graph contract.
        MissingExtraError: the engine's library is not installed.
        DeviceError: the device is not to be had.
        EngineError: the engine cannot be opened.
        ParityError: the engine had to be built and draws other images than the ONNX file.
    """
    options = options or EngineOptions()
    if batch is not None and batch < 1:
        raise BadValueError(f"The batch is {batch}; it must be at least 1.")
    if _may_use_gpu(options):
        driver = driver or find_driver()
    options = settle_precision(options, driver)
    request = EngineRequest(path=path, manifest=manifest, options=options, batch=batch, driver=driver, say=say)
    if onnx_name(request.precision) not in manifest.files:
        raise BundleError(
            f"The bundle {path} has no {onnx_name(request.precision)}; it has {', '.join(manifest.precisions)}."
        )
    if options.engine != "auto":
        return _announce(_open(options.engine, request), reason, say)
    return _open_first(request, options.device)


def settle_precision(options: EngineOptions, driver: Driver | None = None) -> EngineOptions:
    """Turn the precision "auto" into the one that pays here and stays within 45 dB of fp32.

    Args:
        options: any; those of another precision are returned as they are.
        driver: an answer of `find_driver`; None asks anew.

    Returns:
        options in bf16 where no GPU is to draw, the processor multiplies it and OpenVINO is installed; else without a
        precision.
    """
    if options.precision != "auto":
        return options
    on_gpu = _may_use_gpu(options) and (options.device == "gpu" or (driver or find_driver()).problem is None)
    has_bf16 = find_bf16_instructions() is not None and find_spec("openvino") is not None
    pays = not on_gpu and has_bf16 and options.engine in ("auto", "openvino-cpu")
    return replace(options, precision="bf16" if pays else None)


def _may_use_gpu(options: EngineOptions) -> bool:
    wanted = options.engine == "auto" or ENGINES[options.engine] == "gpu"
    return wanted and options.device != "cpu" and options.precision != "bf16"


def _open_first(request: EngineRequest, device: str) -> Engine:
    """Open the first engine of the table that works on the device, the fake one excepted."""
    errors: dict[str, EngineError | MissingExtraError | ParityError] = {}
    passed_over: list[str] = []
    if device == "gpu":
        require_gpu("run with --device gpu", request.driver)
    elif device == "auto" and request.driver is not None and request.driver.problem is not None:
        device = "cpu"
        if has_nvidia_hardware():
            passed_over.append(f"no GPU engine, because {request.driver.problem}")
    for name in OFFERED_ENGINES:
        if device not in ("auto", ENGINES[name]) or not draws_in(name, request.precision):
            continue
        try:
            opened = _open(name, request)
        except (EngineError, MissingExtraError, ParityError) as error:
            passed_over.append(f"{name}: {str(error).rstrip('.')}")
            errors[name] = error
            continue
        return _announce(opened, "; ".join(passed_over) or "chosen automatically", request.say)
    if device == "gpu":
        raise DeviceError(f"No engine works on the GPU. {'; '.join(passed_over)}")
    raise errors[next(name for name in ("onnxruntime-cpu", "openvino-cpu") if name in errors)]


def _announce(engine: Engine, reason: str, say: Callable[[str], None]) -> Engine:
    engine.reason = f"{reason}; {engine.reason}" if engine.reason else reason
    padded = f", batch {engine.batch}" if engine.batch is not None else ""
    say(f"Engine: {engine.name} on the {engine.device}, {engine.precision}{padded}, {engine.reason.rstrip('.')}.")
    return engine
