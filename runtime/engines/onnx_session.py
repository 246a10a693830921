"""ONNX Runtime on the CPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.files import read_checked_file
from dim.runtime.bundle_format.graph_contract import MAX_ONNX_BYTES, check_graph
from dim.runtime.bundle_format.manifest import onnx_name
from dim.runtime.cores import usable_cores
from dim.runtime.engines.base import EngineRequest
from dim.runtime.engines.libraries import import_engine_library
from dim.runtime.errors import EngineError, MissingExtraError, describe_error

_PROVIDER = "CPUExecutionProvider"
_QUANTIZE = b"\x22\x0eQuantizeLinear"
"""Begins the type of a node, in the encoding of ONNX files, where values are int8 and not only weights."""
LOG_NOTHING = 4
"""ONNX Runtime's log level but for a crash: it writes names out of the file to stderr as they are, and every error
comes as an exception anyway."""


def open_cpu_session(model: bytes, threads: int | None = None) -> Any:
    """Open an ONNX file that was checked, on the CPU.

    Args:
        model: the file's bytes.
        threads: None for every core this process may use.

    Returns:
        an `onnxruntime.InferenceSession`.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: the session cannot be made.
    """
    onnxruntime = import_onnxruntime("cpu")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_NOTHING
    # Set explicitly, because the default counts the machine's cores and tries to pin threads to them.
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    if _QUANTIZE not in model:
        # Weights that are int8 alone are restored once, when the session is made, not at every call.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        # Without enable_fallback=0 a failure is printed on stdout and tried again.
        session = onnxruntime.InferenceSession(model, options, providers=[(_PROVIDER, {})], enable_fallback=0)
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot open the ONNX file: {describe_error(error)}") from error
    session.disable_fallback()
    return session


def run_in_pieces(session: Any, inputs: Mapping[str, NDArray[Any]], rows: int) -> NDArray[Any]:
    """Run a session on a few rows at a time; on the CPU the pieces do not show in the result.

    Args:
        session: what `open_cpu_session` returned.
        inputs: arrays [N, ...] by name, N at least 1.
        rows: the most that one run is given, as `check_graph` says.

    Returns:
        the first output, [N, ...].
    """
    count = len(next(iter(inputs.values())))
    pieces = [
        session.run(None, {name: array[start : start + rows] for name, array in inputs.items()})[0]
        for start in range(0, count, rows)
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def import_onnxruntime(extra: str) -> Any:
    """Import ONNX Runtime.

    Args:
        extra: "cpu" or "gpu", the extra that brings the wheel.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_engine_library("onnxruntime")
    except ImportError:
        raise MissingExtraError("onnxruntime", extra, f"run ONNX files on the {extra.upper()}") from None


def read_checked_onnx(request: EngineRequest) -> tuple[tuple[int, int, int], bytes, int]:
    """Read the ONNX file of a request and check its hash and its graph.

    Returns:
        height, width and channels of an image; the file; the most rows that one run may be given.

    Raises:
        BundleError, GraphError: it is missing, altered, or breaks the graph contract.
    """
    manifest = request.manifest
    model = read_checked_file(request.path, manifest, onnx_name(request.precision), max_bytes=MAX_ONNX_BYTES)
    return (manifest.height, manifest.width, manifest.channels), model, check_graph(model, manifest)
