"""Soft labels: the logits that a bundle's small teacher gives to every image, on ONNX Runtime's CPU provider."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.files import read_checked_file
from dim.runtime.bundle_format.names import TEACHER_ONNX
from dim.runtime.errors import EngineError, MissingExtraError

Score = Callable[[NDArray[np.uint8]], NDArray[np.float16]]


def name_teacher_library() -> str:
    """Name the library that runs the teacher, for the plan.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    from dim.runtime.engines.libraries import import_engine_library

    try:
        onnxruntime = import_engine_library("onnxruntime")
    except ImportError:
        raise MissingExtraError("onnxruntime", "cpu", "make soft labels") from None
    return f"onnxruntime {onnxruntime.__version__}"


def open_teacher(bundle: Bundle, threads: int | None = None) -> Score:
    """Open a bundle's teacher.

    Args:
        bundle: a bundle with `teacher.onnx`.
        threads: None for every core this process may use.

    Returns:
        a function from images uint8 [N, H, W, C] to logits float16 [N, K].

    Raises:
        BundleError, GraphError: the file was altered or breaks its contract.
        EngineError: it cannot be run, or gives values that are not finite.
    """
    from dim.runtime.bundle_format.graph_contract import MAX_ONNX_BYTES, check_contract, teacher_contract
    from dim.runtime.engines.onnx_session import open_cpu_session, run_in_pieces

    model = read_checked_file(bundle.path, bundle.manifest, TEACHER_ONNX, max_bytes=MAX_ONNX_BYTES)
    rows = check_contract(model, teacher_contract(bundle.manifest))
    session = open_cpu_session(model, threads)

    def score(images: NDArray[np.uint8]) -> NDArray[np.float16]:
        logits: NDArray[np.float16] = run_in_pieces(session, {"images": images}, rows).astype(np.float16)
        if not np.isfinite(logits).all():
            raise EngineError(f"{TEACHER_ONNX} gave logits that are not finite as float16: run  dim verify")
        return logits

    return score
