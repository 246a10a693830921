"""What a piece of code imports."""

import subprocess
import sys

HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "pyarrow", "ray", "matplotlib", "sklearn")


def imported_by(code: str) -> set[str]:
    """Run code in a fresh interpreter, outside the repository's root, and list the top-level modules it loaded."""
    listing = f"{code}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", listing], cwd="/", check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())
