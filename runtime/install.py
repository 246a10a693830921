"""Writes the lines that install what is missing; right for a published `dim` and for one installed from a clone.

pip adds an extra to the `dim-distill` that is installed and looks for no other. Only to reinstall or upgrade it, pip
asks its index, so such lines name the extra's own packages.
"""

_PACKAGES = {
    "cpu": "onnxruntime onnx",
    "openvino": "openvino onnx",
    "gpu": "'onnxruntime-gpu[cuda,cudnn]' onnx",
    "trt": "tensorrt cuda-core cuda-bindings onnx",
    "rtx": "tensorrt-rtx cuda-core cuda-bindings onnx",
}


def install_extra(extra: str) -> str:
    """Return the line that adds an extra of `dim-distill`."""
    return f"pip install 'dim-distill[{extra}]'"


def reinstall_extra(extra: str, how: str = "--force-reinstall") -> str:
    """Return the line that installs an engine's packages again, or with `how` "--upgrade" their newest versions."""
    return f"pip install {how} {_PACKAGES[extra]}"
