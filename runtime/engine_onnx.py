"""ONNX Runtime, on the CPU and through CUDA, with every way of falling back in silence shut.

Measured: ONNX Runtime claims CUDA where there is none and then runs on the CPU, even with `enable_fallback=0`; only
listing CUDA alone with `session.disable_cpu_ep_fallback` raises. So exactly one provider is ever listed, and the
session is asked afterwards which one it took.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_files import check_file
from dim.runtime.engine import EngineRequest
from dim.runtime.errors import DeviceError, EngineError, MissingExtraError
from dim.runtime.graph import MAX_ONNX_BYTES, check_graph
from dim.runtime.manifest import onnx_name

_PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}
_CUDA_BATCH = 256
# Every error comes back as an exception; the same lines on stderr would only be noise.
_FATAL_ONLY = 4


def usable_cores() -> int:
    """Count the cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxEngine:
    """One ONNX Runtime session over one ONNX file of a bundle.

    Args:
        request: bundle, precision and threads.
        device: "cpu" or "gpu".

    Raises:
        BundleError, GraphError: the ONNX file is missing, altered, or breaks the graph contract.
        MissingExtraError: onnxruntime is not installed.
        DeviceError: CUDA is not to be had.
        EngineError: the session cannot be made.
    """

    def __init__(self, request: EngineRequest, device: str) -> None:
        onnxruntime = _import_onnxruntime(device)
        manifest = request.bundle.manifest
        provider = _PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise DeviceError(
                "The onnxruntime that is installed has no CUDA provider: run  pip uninstall onnxruntime  and then  "
                "pip install 'dim-distill[gpu]'"
            )
        name = onnx_name(request.precision)
        model = check_file(request.bundle.path, manifest, name, max_bytes=MAX_ONNX_BYTES)
        check_graph(model, manifest)
        self.name = "onnxruntime-cpu" if device == "cpu" else "onnxruntime-cuda"
        self.device = device
        self.precision = request.precision
        # On the CPU pixels were bit-exact at every batch size; cuDNN chooses other kernels for other batches.
        self.batch: int | None = None if device == "cpu" else _CUDA_BATCH
        self.version = f"onnxruntime {onnxruntime.__version__}"
        self._shape = (manifest.height, manifest.width, manifest.channels)
        self._session: Any = _open_session(model, device, request.threads)

    def run(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw images; see `Engine.run`."""
        session = self._session
        if session is None:
            raise EngineError("The engine was closed; open the bundle again.")
        n = len(labels)
        if n == 0:
            return np.empty((0, *self._shape), np.uint8)
        if self.batch is not None and n < self.batch:
            latents = np.concatenate([latents, np.zeros((self.batch - n, latents.shape[1]), np.float32)])
            labels = np.concatenate([labels, np.zeros(self.batch - n, np.int64)])
        try:
            images: NDArray[np.uint8] = session.run(["images"], {"latents": latents, "labels": labels})[0]
        except Exception as error:
            raise EngineError(f"{self.name} failed while drawing {n} images: {_first_line(error)}") from error
        if images.shape != (len(labels), *self._shape) or images.dtype != np.uint8:
            raise EngineError(f"{self.name} returned {images.dtype} {images.shape}, not uint8 {(n, *self._shape)}.")
        return images[:n]

    def close(self) -> None:
        """Drop the session; runs in other threads end first."""
        self._session = None


def open_cpu_session(model: bytes, threads: int | None = None) -> Any:
    """Open an ONNX file that was checked, on the CPU: for graphs that are no generators, such as a teacher.

    Args:
        model: the file's bytes.
        threads: None for every core this process may use.

    Returns:
        an `onnxruntime.InferenceSession`.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: the session cannot be made.
    """
    _import_onnxruntime("cpu")
    return _open_session(model, "cpu", threads)


def _import_onnxruntime(device: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", device, f"run ONNX files on the {device.upper()}") from None
    return onnxruntime


def _open_session(model: bytes, device: str, threads: int | None) -> Any:
    onnxruntime = _import_onnxruntime(device)
    provider = _PROVIDERS[device]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    # Set explicitly, because the default counts the machine's cores and tries to pin threads to them.
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    provider_options: dict[str, str] = {}
    if device == "gpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.use_deterministic_compute = True
        # An exhaustive search may choose another kernel, and so other last bits, at every start.
        provider_options = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[(provider, provider_options)])
    except Exception as error:
        if device == "gpu":
            raise DeviceError(f"ONNX Runtime cannot use CUDA here: {_first_line(error)}") from error
        raise EngineError(f"ONNX Runtime cannot open the ONNX file: {_first_line(error)}") from error
    taken = session.get_providers()[0]
    if taken != provider:
        raise DeviceError(f"ONNX Runtime took {taken} although {provider} was asked for: run  dim doctor")
    session.disable_fallback()
    return session


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
