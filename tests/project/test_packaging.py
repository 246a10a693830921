"""The folders at the top level, their import names, the links between them, and what a wheel holds."""

import importlib.util
import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dim.runtime.bundle_format.files import check_file_hash, list_unlisted_files, load_manifest

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", ["export", "runtime", "cli"])
def test_the_link_is_relative_and_leads_to_the_folder(name: str) -> None:
    assert os.readlink(ROOT / "dim" / name) == f"../{name}"


def test_the_package_list_is_pinned() -> None:
    found = ["dim"]
    for top, name in (("dim", "dim"), ("export", "dim.export"), ("runtime", "dim.runtime"), ("cli", "dim.cli")):
        found += [] if top == "dim" else [name]
        rooms = [path.parent.relative_to(ROOT / top).parts for path in (ROOT / top).glob("*/**/__init__.py")]
        linked = {path.name for path in (ROOT / top).iterdir() if path.is_symlink()}
        found += [".".join((name, *room)) for room in rooms if room[0] not in linked]
    packages = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(found) and len(packages) == 31
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == {
        "dim": "dim",
        "dim.export": "export",
        "dim.runtime": "runtime",
        "dim.cli": "cli",
    }


def test_every_folder_with_code_is_a_package() -> None:
    for top in ("dim", "export", "runtime", "cli"):
        for path in (ROOT / top).rglob("*.py"):
            depth = len(path.relative_to(ROOT / top).parts) + (top != "dim")
            assert (path.parent / "__init__.py").is_file() and depth <= 3, path


def test_bare_dependencies_and_extras_are_those_of_the_documentation() -> None:
    project = PYPROJECT["project"]
    assert [_name(line) for line in project["dependencies"]] == ["numpy", "typer", "rich", "Pillow", "fsspec"]
    assert {extra: [_name(line) for line in lines] for extra, lines in project["optional-dependencies"].items()} == {
        "cpu": ["onnxruntime", "onnx"],
        "gpu": ["onnxruntime-gpu[cuda,cudnn]", "onnx"],
        "openvino": ["openvino", "onnx"],
        "trt": ["tensorrt", "cuda-core", "cuda-bindings", "onnx"],
        "rtx": ["tensorrt-rtx", "cuda-core", "cuda-bindings", "onnx"],
        "train": ["torch", "onnx", "onnxscript", "safetensors", "scikit-learn", "pooch", "scipy", "matplotlib"],
        "parquet": ["pyarrow"],
        "hf": ["datasets", "huggingface_hub"],
        "s3": ["s3fs"],
        "gcs": ["gcsfs"],
        "ray": ["ray[data]"],
        "tensorboard": ["tensorboard"],
        "docs": ["zensical", "mkdocstrings-python"],
        "dev": [_name(line) for line in project["optional-dependencies"]["dev"]],
    }


def _name(requirement: str) -> str:
    return requirement.partition(">=")[0]


@pytest.mark.parametrize("name", ["dev", "demo", "cpu"])
def test_pins_have_hashes_and_name_no_place(name: str) -> None:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    assert all("==" in line or line.lstrip().startswith("--hash=sha256:") for line in lines)
    starts = [number for number, line in enumerate(lines) if "==" in line]
    assert all(lines[number + 1].lstrip().startswith("--hash=sha256:") for number in starts)
    assert not any("://" in line or line.startswith(("-", "torch==")) for line in lines)


def test_the_container_the_demo_and_the_tests_pin_the_same_versions() -> None:
    dev, demo, cpu = (set(_pins(name)) for name in ("dev", "demo", "cpu"))
    assert cpu <= demo <= dev


def _lines(name: str) -> list[str]:
    text = (ROOT / "constraints" / f"{name}.txt").read_text()
    return [line for line in text.splitlines() if "==" in line]


def _pins(name: str) -> list[str]:
    return [line.partition(" ")[0] for line in _lines(name)]


def test_every_script_is_executable() -> None:
    files = subprocess.run(["git", "ls-files", "-s", "scripts", ".ci"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:  # an unpacked source archive is no repository
        return
    for line in files.stdout.splitlines():
        mode, _, _, path = line.split(maxsplit=3)
        if (ROOT / path).read_bytes().startswith(b"#!"):
            assert mode == "100755", f"{path} is not executable"


def test_the_page_of_dependencies_lists_the_pinned_versions() -> None:
    text = (ROOT / "docs" / "reference" / "dependencies.md").read_text()
    rows = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| ")]
    listed = {f"{package.removeprefix('| ')}=={version}" for package, version in rows[1:]}
    machine = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux"}
    machine |= {"platform_machine": "x86_64", "platform_python_implementation": "CPython"}
    pins = [Requirement(line.rstrip(" \\")) for line in _lines("dev")]
    apply = {f"{pin.name}{pin.specifier}" for pin in pins if pin.marker is None or pin.marker.evaluate(machine)}
    assert listed == apply | {"torch==2.13.0"}, "run  python scripts/licences.py"


def test_the_hashes_of_the_shipped_bundles_are_recorded() -> None:
    """Nobody changes a bundle that users get without saying so in shipped.md, and none is larger than promised."""
    specification = importlib.util.spec_from_file_location("shipped", ROOT / "scripts" / "shipped.py")
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    page = (ROOT / "docs" / "reference" / "shipped.md").read_text()
    assert page == script.render_page(), "run  python scripts/shipped.py"
    for folder in script.find_bundles():
        manifest = load_manifest(folder)
        in_wheel = folder.parent.name == "shipped"
        assert sum(path.stat().st_size for path in folder.iterdir()) <= (5 if in_wheel else 30) * 10**6
        assert f"`{manifest.manifest_sha256}`" in page and f"`{manifest.content_id}`" in page
        for name in manifest.files:
            check_file_hash(folder, manifest, name)
        assert list_unlisted_files(folder, manifest) == []
