"""Loads a compiled plan, or explains in one message why it does not load.

TensorRT cannot check a plan before loading: it returns nothing and logs. TensorRT for RTX can, but only with a driver;
the caller has checked for one before.
"""

from typing import Any

from dim.runtime.errors import DeviceError, EngineError
from dim.runtime.trt.library import TrtLibrary
from dim.runtime.trt.sidecar import Sidecar, library_title

_REASONS = {
    "VERSION_MISMATCH": "another version of the library built it",
    "UNSUPPORTED_CC": "it was not built for this GPU",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory",
    "MALFORMED_ENGINE": "it is damaged",
    "CUDA_ERROR": "the driver or the CUDA runtime reports an error",
}


def load_plan(library: TrtLibrary, plan: bytes, sidecar: Sidecar) -> tuple[Any, Any]:
    """Deserialise a trusted plan.

    Args:
        library: the library of the plan's format; a driver must be there.
        plan: its bytes.
        sidecar: what it covers.

    Returns:
        the library's `IRuntime`, which must live as long as the engine, and the `ICudaEngine`.

    Raises:
        DeviceError: the library refuses the plan for this GPU alone.
        EngineError: the library refuses the plan.
    """
    trt, title = library.module, library_title(library.format)
    library.take_messages()
    runtime = trt.Runtime(library.logger)
    if sidecar.version_compatible:
        # Such plans carry the lean runtime of the version that built them.
        runtime.engine_host_code_allowed = True
    if hasattr(runtime, "get_engine_validity"):
        validity, reasons = runtime.get_engine_validity(plan)
        if validity == trt.EngineValidity.INVALID:
            kind = DeviceError if _is_only_gpu_refused(trt, int(reasons)) else EngineError
            raise kind(f"{title} refuses the engine {sidecar.file_name}: {_describe_refusal(trt, int(reasons))}.")
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        raise EngineError(f"{title} {library.version} cannot load {sidecar.file_name}: {library.take_first_error()}")
    return runtime, loaded


def check_tensors(
    library: TrtLibrary, loaded: Any, shape: tuple[int, int, int], latent_dim: int, sidecar: Sidecar
) -> None:
    """Check names, types, shapes and batches of a loaded plan against the bundle and the sidecar.

    Args:
        library: the library.
        loaded: the `ICudaEngine` of `load_plan`.
        shape: height, width and channels of an image.
        latent_dim: latents per image.
        sidecar: what the plan should cover.

    Raises:
        EngineError: the plan is not of this bundle, or not of this sidecar.
    """
    trt = library.module
    wanted = {
        "latents": (trt.float32, (-1, latent_dim)),
        "labels": (trt.int64, (-1,)),
        "images": (trt.uint8, (-1, *shape)),
    }
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    found = {name: (loaded.get_tensor_dtype(name), tuple(loaded.get_tensor_shape(name))) for name in names}
    if found != wanted:
        listed = ", ".join(f"{name} {dims}" for name, (_, dims) in sorted(found.items()))
        raise EngineError(f"The engine {sidecar.file_name} is not of this bundle: it has {listed}.")
    batches = tuple(int(tuple(dims)[0]) for dims in loaded.get_tensor_profile_shape("labels", 0))
    if batches != sidecar.batch:
        raise EngineError(
            f"The sidecar of {sidecar.file_name} says batches of {sidecar.batch} and the engine takes {batches}."
        )


def _is_only_gpu_refused(trt: Any, bits: int) -> bool:
    """Say whether the plan is refused for the GPU alone."""
    return bits == int(trt.EngineInvalidityDiagnostics.__members__["UNSUPPORTED_CC"])


def _describe_refusal(trt: Any, bits: int) -> str:
    members = trt.EngineInvalidityDiagnostics.__members__
    reasons = [text for name, text in _REASONS.items() if name in members and bits & int(members[name])]
    return " and ".join(reasons) or "it gives no reason"
