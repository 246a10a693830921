"""The engines and devices there are, by name; light, so that the command line can complete them without NumPy."""

ENGINES = {
    "tensorrt": "gpu",
    "tensorrt-rtx": "gpu",
    "onnxruntime-cuda": "gpu",
    "onnxruntime-cpu": "cpu",
    "openvino-cpu": "cpu",
    "fake": "cpu",
}
"""Engine name -> its device, in the order in which `auto` tries them; `fake` is for tests and never tried."""

DEVICES = ("auto", "cpu", "gpu")

PRECISIONS = ("fp32", "fp16", "int8", "bf16")
"""What images are drawn in: the precisions of files, and bf16, which is one of the run: `openvino-cpu` rounds the fp32
file to it while it draws."""


def draws_in(engine: str, precision: str) -> bool:
    """Whether an engine ever draws in a precision."""
    if engine == "openvino-cpu":
        return precision in ("fp32", "bf16")
    return precision != "bf16"
