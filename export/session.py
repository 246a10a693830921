"""ONNX Runtime on the CPU, for the checks of an export."""

from __future__ import annotations

import os
from typing import Any

from dim.runtime.errors import GraphError, MissingExtraError


def open_session(model: bytes) -> Any:
    """Open an ONNX file on the CPU, quietly, with as many threads as this process may use.

    Args:
        model: the file's bytes.

    Returns:
        an `onnxruntime.InferenceSession`.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        GraphError: ONNX Runtime refuses the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "cpu", "check an exported file") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise GraphError(f"ONNX Runtime {onnxruntime.__version__} refuses the exported file: {error}") from error
