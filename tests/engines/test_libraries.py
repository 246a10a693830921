"""Engine libraries are imported in one place, with their usage data off; nothing is left outside the private cache."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dim.runtime.engines.names import ENGINES

ROOT = Path(__file__).parents[2]
LIBRARIES = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
DRAW = """
import sys
from dim.runtime import open_bundle
from dim.runtime.errors import DimError
try:
    with open_bundle(sys.argv[1], engine=sys.argv[2], threads=1) as bundle:
        bundle.sample([0, 1], [0, 0])
except DimError as error:
    print(error)
"""


def test_engine_libraries_are_imported_in_one_place() -> None:
    for package in ("dim", "runtime", "export", "cli"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not LIBRARIES & {name.partition(".")[0] for name in names}, path


@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_writes_outside_of_the_private_cache(tiny_bundle: Path, tmp_path: Path, engine: str) -> None:
    """ONNX Runtime 1.29 and later keeps a device id and a queue of events under the user's cache unless told not to."""
    home, temporary, cache = (tmp_path / name for name in ("home", "temporary", "cache"))
    for folder in (home, temporary):
        folder.mkdir()
    kept = {"PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name in kept}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "DIM_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    before = sorted(tiny_bundle.iterdir())
    done = subprocess.run(
        [sys.executable, "-B", "-c", DRAW, str(tiny_bundle), engine],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert [path for folder in (home, temporary) for path in folder.rglob("*")] == []
    assert sorted(tiny_bundle.iterdir()) == before


def test_usage_data_are_off_before_the_first_import() -> None:
    program = """
import os, sys
from dim.runtime.engines.libraries import import_engine_library
import_engine_library("json")
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
try:
    import openvino_telemetry
except ImportError:
    print("off")
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "off\n", done.stderr
