"""The engines and devices there are, by name; light, so that the command line can complete them without NumPy."""

ENGINES = {
    "tensorrt": "gpu",
    "tensorrt-rtx": "gpu",
    "onnxruntime-cuda": "gpu",
    "onnxruntime-cpu": "cpu",
    "fake": "cpu",
}
"""Engine name -> its device, in the order in which `auto` tries them; `fake` is for tests and never tried."""

DEVICES = ("auto", "cpu", "gpu")
