"""ONNX Runtime on CUDA, without any silent fallback to the CPU.

Measured: ONNX Runtime claims CUDA where there is none and then runs on the CPU, even with `enable_fallback=0`; only
listing CUDA alone with `session.disable_cpu_ep_fallback` raises. So the driver is asked first, exactly one provider is
listed, and the session is asked afterwards which provider it took and where each node was placed.
"""

import contextlib
import ctypes
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.engines.base import EngineRequest, make_drawing_error
from dim.runtime.engines.onnx_session import import_onnxruntime, read_checked_onnx
from dim.runtime.errors import BadValueError, DeviceError, EngineError, describe_error
from dim.runtime.gpu.driver import check_driver, find_driver, require_gpu
from dim.runtime.install import install_extra

_LOG_WARNINGS, _LOG_FATAL = 2, 4  # ONNX Runtime's log levels: its default, and errors that kill the process

PROVIDER = "CUDAExecutionProvider"
DEFAULT_BATCH = 256

# cuDNN picks kernels by timing them anew at every start under EXHAUSTIVE, and TF32 rounds products to 10 bits.
PROVIDER_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}


class CudaEngine:
    """One ONNX Runtime session over one ONNX file of a bundle, on a GPU, padded to one batch size.

    Args:
        request: bundle, precision and batch.

    Raises:
        BundleError, GraphError: the ONNX file is missing, altered, or breaks the graph contract.
        MissingExtraError: onnxruntime is not installed.
        DeviceError: no CUDA wheel, driver or GPU, or a part of the graph would run on the CPU.
        EngineError: the session cannot be made or run.
    """

    name = "onnxruntime-cuda"
    device = "gpu"

    def __init__(self, request: EngineRequest) -> None:
        self._onnxruntime = import_onnxruntime("gpu")
        check_wheel(self._onnxruntime)
        cuda_major = read_cuda_major(self._onnxruntime)
        driver = request.driver or find_driver()
        gpu = require_gpu("run ONNX Runtime on CUDA", driver, cuda_major)
        check_driver(driver, cuda_major, "ONNX Runtime cannot use CUDA here")
        self.reason = ""
        self.precision = request.precision
        self.version = f"onnxruntime {self._onnxruntime.__version__}"
        self._gpu_index = gpu.index
        self._latent_dim = request.manifest.latent_dim
        self._shape, model, _ = read_checked_onnx(request)
        self._lock = threading.Lock()
        self._session: Any = self._open_session(model)
        self._binding: Any = self._session.io_binding()
        self.batch = self._find_room(request)

    def run(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw images; see `Engine.run`. Any N: one padded batch after the other."""
        images = np.empty((len(labels), *self._shape), np.uint8)
        with self._lock:
            self._check_open()
            for at in range(0, len(labels), self.batch):
                piece = slice(at, at + self.batch)
                self._bind_inputs(latents[piece], labels[piece])
                padded = self._padded_images
                self._binding.bind_output("images", "cpu", 0, np.uint8, padded.shape, padded.ctypes.data)
                self._run_bound()
                images[piece] = padded[: len(labels[piece])]
        return images

    def run_dlpack(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> "CudaImages":
        """Draw images and leave them on the GPU, in memory of their own.

        Args:
            latents: float32 [N, Z].
            labels: int64 [N], any N.

        Returns:
            uint8 [N, H, W, C] for `torch.from_dlpack` and its like; complete when this returns.

        Raises:
            EngineError: this version of ONNX Runtime exports nothing.
        """
        count = len(labels)
        calls = max(1, -(-count // self.batch))
        shape = (self.batch, *self._shape)
        with self._lock:
            self._check_open()
            value = self._onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                (calls * self.batch, *self._shape), np.uint8, "cuda", self._gpu_index
            )
            if not hasattr(value, "__dlpack__"):
                raise EngineError(
                    f"{self.version} cannot hand images on by DLPack: run  pip install --upgrade onnxruntime-gpu"
                )
            for call in range(calls):
                piece = slice(call * self.batch, (call + 1) * self.batch)
                self._bind_inputs(latents[piece], labels[piece])
                start = value.data_ptr() + call * int(np.prod(shape))
                self._binding.bind_output("images", "cuda", self._gpu_index, np.uint8, shape, start)
                self._run_bound()
            return CudaImages(value, count)

    def close(self) -> None:
        """Drop the session; runs in other threads end first."""
        with self._lock:
            self._session = self._binding = None

    def _open_session(self, model: bytes) -> Any:
        onnxruntime = self._onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _LOG_FATAL  # what goes wrong comes as an exception
        options.use_deterministic_compute = True
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                onnxruntime.preload_dlls()  # CUDA and cuDNN from the wheels that the extra installs
        providers = [(PROVIDER, {"device_id": str(self._gpu_index), **PROVIDER_OPTIONS})]
        onnxruntime.set_default_logger_severity(_LOG_FATAL)
        try:
            # Without enable_fallback=0 a failure is printed on stdout and tried again, on the CPU.
            session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
        except Exception as error:
            missing = find_missing_library(onnxruntime)
            if missing is not None:
                raise DeviceError(
                    f"ONNX Runtime cannot use CUDA here, because {missing} is not found: run  {install_extra('gpu')}"
                ) from error
            raise DeviceError(f"ONNX Runtime cannot use CUDA here: {describe_error(error)}; run  dim doctor") from error
        finally:
            onnxruntime.set_default_logger_severity(_LOG_WARNINGS)
        taken = session.get_providers()[0]
        if taken != PROVIDER:
            raise DeviceError(f"ONNX Runtime took {taken} although {PROVIDER} was asked for: run  dim doctor")
        session.disable_fallback()
        check_placement(session)
        return session

    def _find_room(self, request: EngineRequest) -> int:
        """Run the largest batch that fits once, halving from the wanted one."""
        batch, least = request.batch or DEFAULT_BATCH, request.batch or 1
        while True:
            self.batch = batch
            self._padded_images = np.empty((batch, *self._shape), np.uint8)
            try:
                self.run(np.zeros((1, self._latent_dim), np.float32), np.zeros(1, np.int64))
                return batch
            except EngineError as error:
                if not _is_out_of_memory(error):
                    raise
                if batch // 2 < least:
                    raise DeviceError(
                        f"The GPU has no room for a batch of {batch}: close other programs on it, or use --device cpu "
                        f"({error})"
                    ) from error
                request.say(f"The GPU has no room for a batch of {batch}: going on with {batch // 2}.")
                batch //= 2

    def _bind_inputs(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        self._check_open()
        count = len(labels)
        if count > self.batch or latents.shape != (count, self._latent_dim):
            raise BadValueError(
                f"One call takes up to {self.batch} rows of {self._latent_dim} latents; latents of shape "
                f"{latents.shape} and {count} labels were given."
            )
        padded_latents = np.zeros((self.batch, self._latent_dim), np.float32)
        padded_labels = np.zeros(self.batch, np.int64)
        padded_latents[:count], padded_labels[:count] = latents, labels
        # Binding copies to the GPU; the binding keeps the arrays alive besides.
        self._binding.bind_cpu_input("latents", padded_latents)
        self._binding.bind_cpu_input("labels", padded_labels)

    def _check_open(self) -> None:
        if self._session is None:
            raise EngineError("The engine was closed; open the bundle again.")

    def _run_bound(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            doing = f"failed while drawing a batch of {self.batch}"
            raise make_drawing_error(self.name, doing, describe_error(error)) from error


class CudaImages:
    """The first rows of images on the GPU, for DLPack: `torch.from_dlpack(images)`, also JAX and CuPy.

    Args:
        value: an `OrtValue` of uint8 [batch, H, W, C], complete.
        count: rows that hold images; the rest is padding.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, value: Any, count: int) -> None:
        self._value = value
        self.shape: tuple[int, ...] = (count, *value.shape()[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._value.__dlpack_device__()
        return device

    def __dlpack__(self, **options: Any) -> Any:
        """Export the images; whatever stream the consumer names, they are complete."""
        capsule = self._value.__dlpack__()
        _cut_first_dimension(capsule, len(self))
        return capsule


def check_wheel(onnxruntime: Any) -> None:
    """Check that the installed ONNX Runtime was built with CUDA.

    Raises:
        DeviceError: it is the CPU wheel.
    """
    if PROVIDER not in onnxruntime.get_available_providers():
        raise DeviceError(
            "The onnxruntime that is installed has no CUDA provider: run  pip uninstall onnxruntime  and then  "
            f"{install_extra('gpu')}"
        )


def read_cuda_major(onnxruntime: Any) -> int | None:
    """The CUDA major version that ONNX Runtime was built for, None where it does not say."""
    major = str(getattr(onnxruntime, "cuda_version", "") or "").split(".")[0]
    return int(major) if major.isdigit() else None


def find_missing_library(onnxruntime: Any) -> str | None:
    """Name the first CUDA library that ONNX Runtime's provider needs and cannot find, None where it finds all.

    ONNX Runtime itself only logs it, and then reports that nodes would run on the CPU.
    """
    provider = Path(str(onnxruntime.__file__)).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not provider.is_file():
        return None
    try:
        ctypes.CDLL(str(provider))
    except OSError as error:
        name, found, _ = str(error).partition(": cannot open shared object file")
        return name if found else None
    return None


def check_placement(session: Any) -> None:
    """Check where each node of the graph was placed.

    Args:
        session: made with `session.record_ep_graph_assignment_info`; ONNX Runtime before 1.24 does not record it.

    Raises:
        DeviceError: a node would run elsewhere than on CUDA.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return
    placed: dict[str, list[str]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        placed.setdefault(subgraph.ep_name, []).extend(node.op_type for node in subgraph.get_nodes())
    elsewhere = [operator for provider, operators in placed.items() if provider != PROVIDER for operator in operators]
    if elsewhere or not placed:
        total = sum(len(operators) for operators in placed.values())
        listed = ", ".join(sorted(set(elsewhere))) or "nothing was placed"
        raise DeviceError(
            f"ONNX Runtime put {len(elsewhere)} of {total} nodes on the CPU ({listed}), so this is no GPU engine: run  "
            "dim doctor"
        )


def _is_out_of_memory(error: EngineError) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "failed to allocate memory", "cuda failure 2"))


class _DlTensor(ctypes.Structure):
    """The head of DLPack's DLManagedTensor, up to the shape (dlpack.h)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
    )


def _cut_first_dimension(capsule: Any, rows: int) -> None:
    """Cut the first dimension of a fresh DLPack capsule; ONNX Runtime exports whole tensors only."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DlTensor.from_address(get_pointer(capsule, b"dltensor"))
    tensor.shape[0] = rows
