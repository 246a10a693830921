"""What an engine is, and how one is chosen.

`auto` takes the first that works of TensorRT, TensorRT for RTX, ONNX Runtime on CUDA, ONNX Runtime on the CPU. Nothing
falls back in silence: every engine that was passed over is named with its reason, and `device="gpu"` fails before it
runs on the CPU.
"""

from collections.abc import Callable, Sequence
from functools import partial

from dim.runtime.bundle_format.manifest import onnx_name
from dim.runtime.bundle_format.names import PRECISIONS
from dim.runtime.engines.base import DEVICES, BundleLike, Engine, EngineRequest
from dim.runtime.errors import BadValueError, BundleError, DeviceError, EngineError, MissingExtraError, ParityError
from dim.runtime.gpu.driver import Driver, find_driver, require_gpu
from dim.runtime.messages import say_to_log
from dim.runtime.trt.trust import parse_pins


def _open_plan(format: str, request: EngineRequest) -> Engine:
    from dim.runtime.trt.open import open_plan

    return open_plan(request, format)


def _open_onnx_cuda(request: EngineRequest) -> Engine:
    from dim.runtime.engines.onnx_cuda import CudaEngine

    return CudaEngine(request)


def _open_onnx_cpu(request: EngineRequest) -> Engine:
    from dim.runtime.engines.onnx_cpu import OnnxEngine

    return OnnxEngine(request)


def _open_fake(request: EngineRequest) -> Engine:
    from dim.runtime.engines.fake import FakeEngine

    return FakeEngine(request.bundle.manifest)


# Engine name -> device, opener; in the order in which `auto` tries them. A new engine is one line here.
ENGINES: dict[str, tuple[str, Callable[[EngineRequest], Engine]]] = {
    "tensorrt": ("gpu", partial(_open_plan, "trt")),
    "tensorrt-rtx": ("gpu", partial(_open_plan, "rtx")),
    "onnxruntime-cuda": ("gpu", _open_onnx_cuda),
    "onnxruntime-cpu": ("cpu", _open_onnx_cpu),
    "fake": ("cpu", _open_fake),
}


def open_engine(
    bundle: BundleLike,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    trust: Sequence[str] = (),
    threads: int | None = None,
    batch: int | None = None,
    driver: Driver | None = None,
    say: Callable[[str], None] = say_to_log,
) -> Engine:
    """Choose an engine, open it, and say which one it is and why.

    Args:
        bundle: where the ONNX files are.
        engine: "auto", or a name from ENGINES, which is then opened or fails.
        device: "auto", "cpu" or "gpu"; "gpu" fails where there is none, nothing falls back in silence.
        precision: "fp32", "fp16" or "int8"; None for fp32, or for whatever a prebuilt engine that fits has.
        trust: "sha256:..." of prebuilt plans that may be loaded.
        threads: threads of a CPU engine; None for every core this process may use.
        batch: the padded batch of a GPU engine, as a plan says it; None for the engine's own.
        driver: an answer of `find_driver`; None asks anew.
        say: gets one sentence about the choice.

    Returns:
        the engine; `reason` tells why it was chosen.

    Raises:
        BadValueError: an unknown name, or an engine that does not run on that device.
        BundleError: the bundle has no file of that precision, or it was altered.
        GraphError: the ONNX file breaks the graph contract.
        MissingExtraError: the engine's library is not installed.
        DeviceError: the device is not to be had.
        EngineError: the engine cannot be opened.
        ParityError: the engine had to be built and draws other images than the ONNX file.
    """
    if engine != "auto" and engine not in ENGINES:
        raise BadValueError(f"There is no engine {engine!r}; there are auto, {', '.join(ENGINES)}.")
    if device not in DEVICES:
        raise BadValueError(f"There is no device {device!r}; there are {', '.join(DEVICES)}.")
    if engine != "auto" and device not in ("auto", ENGINES[engine][0]):
        raise BadValueError(f"The engine {engine} runs on the {ENGINES[engine][0]}, not on the {device}.")
    for name, value in (("number of threads", threads), ("batch", batch)):
        if value is not None and value < 1:
            raise BadValueError(f"The {name} is {value}; it must be at least 1.")
    pins, chosen = parse_pins(trust), choose_precision(bundle, precision)
    wants_gpu = device != "cpu" and (engine == "auto" or ENGINES[engine][0] == "gpu")
    request = EngineRequest(
        bundle=bundle,
        precision=chosen,
        any_precision=precision is None,
        trust=pins,
        threads=threads,
        batch=batch,
        driver=driver or (find_driver() if wants_gpu else _UNASKED),
        say=say,
    )
    if engine != "auto":
        return _opened(ENGINES[engine][1](request), "as asked", say)
    return _open_first(request, device)


_UNASKED = Driver(version=None, cuda=None, gpus=(), problem="the driver was not asked")


def choose_precision(bundle: BundleLike, precision: str | None) -> str:
    """Check that the bundle has an ONNX file of the precision asked for; None stands for fp32.

    Raises:
        BadValueError: no such precision.
        BundleError: the bundle has no file of it.
    """
    if precision is not None and precision not in PRECISIONS:
        raise BadValueError(f"There is no precision {precision!r}; there are {', '.join(PRECISIONS)}.")
    chosen = precision or "fp32"
    if onnx_name(chosen) not in bundle.manifest.files:
        raise BundleError(
            f"The bundle {bundle.path} has no {onnx_name(chosen)}; it has {', '.join(bundle.manifest.precisions)}."
        )
    return chosen


def _open_first(request: EngineRequest, device: str) -> Engine:
    """Open the first engine of the table that works on the device, the fake one excepted."""
    passed_over: list[str] = []
    if device == "gpu":
        require_gpu("run with --device gpu", request.driver)
    elif device == "auto" and request.driver.problem is not None:
        device = "cpu"
        passed_over.append(f"no GPU engine, because {request.driver.problem}")
    for name, (engine_device, opener) in ENGINES.items():
        if name == "fake" or device not in ("auto", engine_device):
            continue
        try:
            opened = opener(request)
        except (EngineError, MissingExtraError, ParityError) as error:
            passed_over.append(f"{name}: {str(error).rstrip('.')}")
            last_error: EngineError | MissingExtraError | ParityError = error
            continue
        return _opened(opened, "; ".join(passed_over) or "the first choice", request.say)
    if device == "gpu":
        raise DeviceError(f"No engine works on the GPU. {'; '.join(passed_over)}")
    raise last_error


def _opened(engine: Engine, reason: str, say: Callable[[str], None]) -> Engine:
    engine.reason = f"{reason}; {engine.reason}" if engine.reason else reason
    padded = f", batch {engine.batch}" if engine.batch is not None else ""
    say(f"Engine: {engine.name} on the {engine.device}, {engine.precision}{padded}, {engine.reason.rstrip('.')}.")
    return engine
