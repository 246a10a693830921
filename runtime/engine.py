"""What an engine is, and how one is chosen."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dim.runtime.errors import BadValueError, BundleError, DeviceError, EngineError, MissingExtraError
from dim.runtime.manifest import Manifest, onnx_name
from dim.runtime.manifest_check import PRECISIONS

DEVICES = ("auto", "cpu", "gpu")


class Engine(Protocol):
    """Something that turns latents and labels into images; `run` may be called from several threads at once."""

    @property
    def name(self) -> str:
        """One of ENGINES."""

    @property
    def device(self) -> str:
        """ "cpu" or "gpu"."""

    @property
    def precision(self) -> str:
        """ "fp32", "fp16" or "int8"."""

    @property
    def batch(self) -> int | None:
        """The constant batch that every run is padded to, or None where pixels do not depend on the batch size."""

    @property
    def version(self) -> str:
        """The library and its version."""

    def run(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw images.

        Args:
            latents: float32 [N, Z].
            labels: int64 [N], already checked to lie in 0..K-1; N at most `batch` where that is set.

        Returns:
            uint8 [N, H, W, C].
        """

    def close(self) -> None:
        """Give back memory and device; harmless when called twice."""


class BundleLike(Protocol):
    """The part of a bundle that an engine needs."""

    @property
    def path(self) -> Path:
        """The bundle's folder."""

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What an opener gets to work with."""

    bundle: BundleLike
    precision: str
    trust: tuple[str, ...]
    """SHA-256 hashes of plans that the user vouches for."""
    threads: int | None
    """Threads of a CPU engine; None for every core this process may use."""
    say: Callable[[str], None]


def say_to_log(message: str) -> None:
    """Hand a message to the logger `dim.runtime`: what the library says when nobody listens otherwise."""
    logging.getLogger("dim.runtime").info(message)


def _open_fake(request: EngineRequest) -> Engine:
    from dim.runtime.engine_fake import FakeEngine

    return FakeEngine(request.bundle.manifest)


def _open_onnx_cpu(request: EngineRequest) -> Engine:
    from dim.runtime.engine_onnx import OnnxEngine

    return OnnxEngine(request, device="cpu")


def _open_onnx_cuda(request: EngineRequest) -> Engine:
    from dim.runtime.engine_onnx import OnnxEngine

    return OnnxEngine(request, device="gpu")


# Engine name -> device, opener. A new engine is one line here.
ENGINES: dict[str, tuple[str, Callable[[EngineRequest], Engine]]] = {
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
    say: Callable[[str], None] = say_to_log,
) -> Engine:
    """Choose an engine, open it, and say which one it is and why.

    Args:
        bundle: where the ONNX files are.
        engine: "auto", or a name from ENGINES, which is then opened or fails.
        device: "auto", "cpu" or "gpu"; "gpu" fails where there is none, nothing falls back in silence.
        precision: "fp32", "fp16" or "int8"; None for fp32.
        trust: "sha256:..." of prebuilt plans that may be loaded.
        threads: threads of a CPU engine; None for every core this process may use.
        say: gets one sentence about the choice.

    Returns:
        the engine.

    Raises:
        BadValueError: an unknown name, or an engine that does not run on that device.
        BundleError: the bundle has no file of that precision, or it was altered.
        GraphError: the ONNX file breaks the graph contract.
        MissingExtraError: the engine's library is not installed.
        DeviceError: the device is not to be had.
        EngineError: the engine cannot be opened.
    """
    if engine != "auto" and engine not in ENGINES:
        raise BadValueError(f"There is no engine {engine!r}; there are auto, {', '.join(ENGINES)}.")
    if device not in DEVICES:
        raise BadValueError(f"There is no device {device!r}; there are {', '.join(DEVICES)}.")
    if engine != "auto" and device not in ("auto", ENGINES[engine][0]):
        raise BadValueError(f"The engine {engine} runs on the {ENGINES[engine][0]}, not on the {device}.")
    if threads is not None and threads < 1:
        raise BadValueError(f"The number of threads is {threads}; it must be at least 1.")
    request = EngineRequest(
        bundle=bundle, precision=choose_precision(bundle, precision), trust=tuple(trust), threads=threads, say=say
    )
    if engine != "auto":
        opened = ENGINES[engine][1](request)
        say(f"Engine: {opened.name} on the {opened.device}, {opened.precision}, as asked.")
        return opened
    return _open_first(request, device)


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
    for name, (engine_device, opener) in ENGINES.items():
        if name == "fake" or device not in ("auto", engine_device):
            continue
        try:
            opened = opener(request)
        except (EngineError, MissingExtraError) as error:
            passed_over.append(f"{name}: {error}")
            last_error: EngineError | MissingExtraError = error
            continue
        reason = ", the first that works here; `dim doctor` says why others do not" if passed_over else ""
        request.say(f"Engine: {opened.name} on the {opened.device}, {opened.precision}{reason}.")
        return opened
    if len(passed_over) == 1 or device != "gpu":
        raise last_error
    raise DeviceError(f"No engine works on the {device}: {' '.join(passed_over)}")
