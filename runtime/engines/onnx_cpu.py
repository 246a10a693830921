"""ONNX Runtime on all cores: for few images, operators are parallel; for many images, each core draws its own.

Parallel operators wait for the slowest core each time, and some operators run on one core only. So with some dozens of
images or more, every core draws its own pieces, taken from a queue. ONNX Runtime's CPU kernels give the same pixels in
pieces of any size and on any number of threads.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.cores import usable_cores
from dim.runtime.engines.base import EngineRequest, make_drawing_error
from dim.runtime.engines.onnx_session import (
    import_onnxruntime,
    open_cpu_session,
    read_checked_onnx,
    run_in_pieces,
)
from dim.runtime.errors import EngineError, describe_error
from dim.runtime.units import format_count

MIN_ROWS_PER_PIECE = 16
"""With fewer images in a piece, starting the operators takes as long as their work."""
PIECES_PER_THREAD = 4
"""Enough to keep every core busy to the end when one is slower."""


class CpuSessions:
    """The sessions of one ONNX file that was checked; threads may share it.

    Args:
        model: the file's bytes.
        threads: None for every core this process may use.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: the session cannot be made.
    """

    def __init__(self, model: bytes, threads: int | None) -> None:
        self._threads = threads or usable_cores()
        self._session: Any = open_cpu_session(model, self._threads)
        self._model = model
        self._one_thread_session: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def run(self, names: list[str] | None, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run as `InferenceSession.run` does.

        Args:
            names: of the outputs; None for all.
            inputs: arrays [N, ...] by name.

        Returns:
            the outputs, [N, ...].
        """
        count = len(next(iter(inputs.values())))
        if self._threads == 1 or count < self._threads * MIN_ROWS_PER_PIECE:
            found: list[NDArray[Any]] = self._session.run(names, inputs)
            return found
        rows = max(MIN_ROWS_PER_PIECE, -(-count // (PIECES_PER_THREAD * self._threads)))
        pieces = [
            {name: array[start : start + rows] for name, array in inputs.items()} for start in range(0, count, rows)
        ]
        pool, session = self._open_pool()
        outputs = pool.map(lambda piece: session.run(names, piece), pieces)
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    def _open_pool(self) -> tuple[ThreadPoolExecutor, Any]:
        """Return the threads, and the session whose runs each take one of them; both are made when first needed."""
        with self._lock:
            if self._pool is None:
                self._one_thread_session = open_cpu_session(self._model, 1)
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="dim-draw")
            return self._pool, self._one_thread_session


class OnnxEngine:
    """One ONNX Runtime session over one ONNX file of a bundle, on the CPU.

    Args:
        request: bundle, precision and threads.

    Raises:
        BundleError, GraphError: the ONNX file is missing, altered, or breaks the graph contract.
        MissingExtraError: onnxruntime is not installed.
        EngineError: the session cannot be made.
    """

    name = "onnxruntime-cpu"
    device = "cpu"
    # Measured: pixels were bit-exact at every batch size, so nothing is padded.
    batch: int | None = None

    def __init__(self, request: EngineRequest) -> None:
        onnxruntime = import_onnxruntime("cpu")
        self.reason = ""
        self.precision = request.precision
        self.version = f"onnxruntime {onnxruntime.__version__}"
        self._shape, model, self._rows = read_checked_onnx(request)
        self._session: Any = CpuSessions(model, request.options.threads)

    def run(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw images; see `Engine.run`."""
        session = self._session
        if session is None:
            raise EngineError("The engine was closed; open the bundle again.")
        if len(labels) == 0:
            return np.empty((0, *self._shape), np.uint8)
        try:
            images: NDArray[np.uint8] = run_in_pieces(session, {"latents": latents, "labels": labels}, self._rows)
        except Exception as error:
            doing = f"failed while drawing {format_count(len(labels), 'image')}"
            raise make_drawing_error(self.name, doing, describe_error(error)) from error
        if images.shape != (len(labels), *self._shape) or images.dtype != np.uint8:
            found = f"{images.dtype} {images.shape}, not uint8 {(len(labels), *self._shape)}"
            raise make_drawing_error(self.name, "draws what it should not", found)
        return images

    def close(self) -> None:
        """Drop the session; runs in other threads end first."""
        self._session = None
