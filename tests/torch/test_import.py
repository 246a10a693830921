"""`dim.torch` never stands in PyTorch's way, nor costs anything where it is not used."""

import subprocess
import sys
from pathlib import Path

from fresh_interpreter import HEAVY, imported_by


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_loaded_on_first_use_and_pytorch_stays_pytorch() -> None:
    code = """
import dim, sys
assert "torch" not in sys.modules
data = dim.torch.StreamDataset("mnist", ipc=1)
import torch
from dim.torch import FixedDataset, StreamDataset
assert torch.__file__ != dim.torch.__file__ and torch.Tensor and type(data) is StreamDataset
from dim import *
assert torch is sys.modules["torch"]
print(torch.__file__)
"""
    assert Path(run(code)).parent.parent.name == "site-packages"


def test_importing_dim_loads_no_torch() -> None:
    assert not imported_by("import dim; dir(dim); dim.open_bundle").intersection(HEAVY)


def test_a_missing_torch_is_told_with_its_install_line() -> None:
    code = """
import sys
sys.modules["torch"] = None
import dim
try:
    dim.torch
except dim.MissingExtraError as error:
    print(error)
"""
    assert run(code) == (
        "The package 'torch' is not installed and is needed to draw into PyTorch's loaders: "
        "run  pip install 'dim-distill[train]'\n"
    )
