"""`import dim`: the names it offers, where they come from, and what importing them costs."""

import ast
import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from fresh_interpreter import HEAVY, imported_by

import dim
from dim.version import __version__

NAMES = [
    "BadValueError",
    "Bundle",
    "BundleError",
    "DataError",
    "DataOptions",
    "DeviceError",
    "DimError",
    "DivergedError",
    "EngineError",
    "EngineOptions",
    "EvalProtocol",
    "Execution",
    "GraphError",
    "MissingExtraError",
    "OutputError",
    "ParityError",
    "RunError",
    "SetRequest",
    "build_engines",
    "distill",
    "evaluate",
    "export_run",
    "generate",
    "inspect",
    "load_data",
    "open_bundle",
    "preset",
    "verify",
    "view",
]
LOADS = {
    "distill": {"torch"},
    "evaluate": {"torch"},
    "export_run": {"torch", "onnx"},
}
"""What a name needs of the heavy packages; the others need none."""


def test_the_table_is_pinned() -> None:
    assert sorted(dim._HOMES) == NAMES
    assert dim.__all__ == [*NAMES, "__version__"]
    assert dim._ROOMS == ("torch",)
    assert dir(dim) == sorted([*NAMES, "__version__", "torch"])
    assert dim.__version__ == __version__


def test_editors_and_mypy_see_the_same_table() -> None:
    tree = ast.parse(Path(dim.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {}
    for line in block.body:
        assert isinstance(line, ast.ImportFrom)
        for alias in line.names:
            assert alias.asname == alias.name, f"{alias.name} is not marked as exported"
            seen[alias.name] = line.module
    assert seen == {**dim._HOMES, **dict.fromkeys(dim._ROOMS, "dim")}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_what_its_home_calls_so_and_explains_itself(name: str) -> None:
    value = getattr(dim, name)
    assert value is getattr(import_module(dim._HOMES[name]), name)
    assert value.__name__ == name
    text = inspect.getdoc(value)
    assert text and text[0].isupper()
    if inspect.isfunction(value):
        assert "Raises:" in text and ("Returns:" in text or "Example:" in text)
        unexplained = [word for word in inspect.signature(value).parameters if f"{word}:" not in text]
        assert [word for word in unexplained if f"{word}," not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_imported_alone(name: str) -> None:
    loaded = imported_by(f"from dim import {name}")
    assert loaded.intersection((*HEAVY, "typer", "rich")) == LOADS.get(name, set())


def test_importing_dim_loads_nothing_heavy_and_no_numpy() -> None:
    loaded = imported_by("import dim; dir(dim); dim.__version__; dim.__doc__")
    assert not loaded.intersection((*HEAVY, "numpy", "PIL", "fsspec", "typer", "rich"))


@pytest.mark.slow
def test_dim_export_is_the_package() -> None:
    code = "import dim; dim.export_run; import dim.export; assert dim.export.__path__ and callable(dim.export_run)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'dim' has no attribute 'surprise'"):
        dim.surprise  # noqa: B018


def test_a_missing_package_is_told_with_its_install_line() -> None:
    code = """
import sys
sys.modules["torch"] = None
import dim
try:
    dim.distill
except dim.MissingExtraError as error:
    print(error)
assert dim.open_bundle
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd="/", capture_output=True, text=True)
    assert done.stdout == (
        "The package 'torch' is not installed and is needed to distil, export and evaluate: "
        "run  pip install 'dim-distill[train]'\n"
    )


def test_python_m_dim_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dim", "--version"], cwd="/", capture_output=True, text=True, env=dict(os.environ)
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"dim {__version__}\n", "")
