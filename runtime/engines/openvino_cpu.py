"""OpenVINO on all cores, in fp32 or in bf16: it draws the canonical file in pieces of equal size.

One thread draws each piece, and every piece has the same number of rows; the last one is padded. So pixels depend
neither on the number of threads nor on the batch size. OpenVINO compiles for this one shape, which made it 1.2 to 1.4
times as fast as a free one.
"""

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.cores import find_bf16_instructions, usable_cores
from dim.runtime.engines.base import EngineRequest, make_drawing_error
from dim.runtime.engines.libraries import import_engine_library
from dim.runtime.engines.onnx_session import read_checked_onnx
from dim.runtime.errors import EngineError, MissingExtraError, describe_error
from dim.runtime.units import format_count

ROWS_PER_PIECE = 16
"""Measured in steps from 1 to 256: from here on an image takes hardly less time."""
_OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16"}
_opening = threading.Lock()
"""OpenVINO's Python types deadlock where two threads use one for the first time."""
_cores: dict[int, Any] = {}
"""One core for each process, by its id, never dropped.

A core's CPU plugin puts a signal stack under the thread that first compiles. When plugins are dropped in the order in
which they were made, the last one puts back the stack of the first, whose memory is free. The next signal that Python
handles then ends the process without a word, or overwrites what lies there now.
"""


class OpenVinoEngine:
    """OpenVINO over a bundle's canonical ONNX file, on the CPU; threads may share it.

    Args:
        request: bundle, precision ("fp32" or "bf16") and threads.

    Raises:
        BundleError, GraphError: the ONNX file is missing, altered, or breaks the graph contract.
        MissingExtraError: openvino is not installed.
        EngineError: the processor has no bf16, or OpenVINO cannot compile the file.
    """

    name = "openvino-cpu"
    device = "cpu"
    # The pieces are padded in here, so nothing is padded outside.
    batch: int | None = None

    def __init__(self, request: EngineRequest) -> None:
        self.reason, self.precision = "", request.precision
        instructions = find_bf16_instructions()
        if self.precision == "bf16" and instructions is None:
            raise EngineError(
                "This processor has neither AMX-BF16 nor AVX512-BF16, which bf16 needs: draw in fp32, or on a machine "
                "that has one of them."
            )
        manifest, threads = request.manifest, request.options.threads or usable_cores()
        self._shape, model, rows = read_checked_onnx(request)
        self._rows = min(ROWS_PER_PIECE, rows)
        with _opening:
            openvino = _import_openvino(self.precision)
            compiled = _compile(openvino, model, manifest, self._rows, self.precision, threads)
            self._idle: SimpleQueue[_Piece] = SimpleQueue()
            for _ in range(threads):
                self._idle.put(_Piece(openvino, compiled, manifest, self._rows))
        self.version = f"openvino {openvino.__version__.partition('-')[0]}"
        if self.precision == "bf16":
            self.version += f" with {instructions}"
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, thread_name_prefix="dim-draw")

    def run(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw images; see `Engine.run`."""
        pool, rows = self._pool, self._rows
        if pool is None:
            raise EngineError("The engine was closed; open the bundle again.")
        images = np.empty((len(labels), *self._shape), np.uint8)

        def draw(start: int) -> None:
            part = slice(start, start + rows)
            piece = self._idle.get()
            try:
                piece.draw(latents[part], labels[part], images[part])
            finally:
                self._idle.put(piece)

        starts = range(0, len(labels), rows)
        try:
            for _ in pool.map(draw, starts) if len(starts) > 1 else map(draw, starts):
                pass
        except Exception as error:
            doing = f"failed while drawing {format_count(len(labels), 'image')}"
            raise make_drawing_error(self.name, doing, describe_error(error)) from error
        return images

    def close(self) -> None:
        """Drop the compiled network; runs in other threads end first."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
            self._idle = SimpleQueue()


class _Piece:
    """An inference request, and the arrays that it reads and writes."""

    def __init__(self, openvino: Any, compiled: Any, manifest: Manifest, rows: int) -> None:
        self._latents = np.zeros((rows, manifest.latent_dim), np.float32)
        self._labels = np.zeros(rows, np.int64)
        self._images = np.zeros((rows, manifest.height, manifest.width, manifest.channels), np.uint8)
        self._request: Any = compiled.create_infer_request()
        self._request.set_tensor("latents", openvino.Tensor(self._latents, shared_memory=True))
        self._request.set_tensor("labels", openvino.Tensor(self._labels, shared_memory=True))
        self._request.set_tensor("images", openvino.Tensor(self._images, shared_memory=True))

    def draw(self, latents: NDArray[np.float32], labels: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Draw at most a piece's rows; the others keep what an earlier call left, and no row depends on another."""
        count = len(labels)
        self._latents[:count], self._labels[:count] = latents, labels
        self._request.start_async()
        self._request.wait()
        out[:] = self._images[:count]


def _import_openvino(precision: str) -> Any:
    try:
        return import_engine_library("openvino")
    except ImportError:
        raise MissingExtraError("openvino", "openvino", f"draw in {precision} with OpenVINO") from None


def _compile(openvino: Any, model: bytes, manifest: Manifest, rows: int, precision: str, threads: int) -> Any:
    """Compile for pieces, a stream of one thread each. Nothing is cached on disk, which would save 0.03 s."""
    core = _cores.get(os.getpid()) or _cores.setdefault(os.getpid(), openvino.Core())
    settings = {
        "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        graph = core.read_model(io.BytesIO(model))
        graph.reshape({"latents": [rows, manifest.latent_dim], "labels": [rows]})
        compiled = core.compile_model(graph, "CPU", settings)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        shape = list(compiled.output("images").get_shape())
    except Exception as error:
        raise EngineError(f"OpenVINO cannot open the ONNX file: {describe_error(error)}") from error
    if used != _OPENVINO_TYPES[precision]:
        raise EngineError(f"OpenVINO would draw in {used} on this processor, not in {precision}.")
    if shape != [rows, manifest.height, manifest.width, manifest.channels]:
        raise EngineError(f"OpenVINO would draw images of the shape {shape[1:]}.")
    return compiled
