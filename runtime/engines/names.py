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

OFFERED_ENGINES = tuple(name for name in ENGINES if name != "fake")
"""The engines that draw in earnest, as users are told them."""

DEVICES = ("auto", "cpu", "gpu")

PRECISIONS = ("fp32", "fp16", "int8", "bf16")
"""What images are drawn in: the precisions of files, and bf16, which is one of the run: `openvino-cpu` rounds the fp32
file to it while it draws."""


def describe_unknown(name: str, known: tuple[str, ...] = ("auto", *OFFERED_ENGINES)) -> str:
    """Say in one sentence that there is no such engine, which ones there are, and which one was perhaps meant."""
    import difflib

    near = difflib.get_close_matches(name.lower(), known, n=1) or [each for each in known if name.lower() in each][:1]
    hint = f" (did you mean {near[0]}?)" if near and name else ""
    return f"There is no engine {name!r}{hint}; there are {', '.join(known)}, and dim doctor says which work here."


def draws_in(engine: str, precision: str) -> bool:
    """Whether an engine ever draws in a precision."""
    if engine == "openvino-cpu":
        return precision in ("fp32", "bf16")
    return precision != "bf16"
