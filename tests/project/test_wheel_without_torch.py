"""The built wheel in a clean virtual environment outside the repository, with the extra `cpu` alone and no torch."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = "dim/runtime/shipped/mnist.dim/"

# What the command line loads may not hold torch even where somebody installed it; so the modules are listed too.
RUN = """
import json, sys
from dim.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
raise SystemExit(code)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that nothing left over from an earlier build gets in."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("dim", "export", "runtime", "cli"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel with the extra `cpu` at the pinned versions; return the environment's interpreter."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=True)
    pins = [line.partition(" \\")[0] for line in (ROOT / "constraints" / "dev.txt").read_text().splitlines()]
    (folder / "pins.txt").write_text("\n".join(pin for pin in pins if "==" in pin))
    interpreter = folder / "venv" / "bin" / "python"
    install(interpreter, folder, f"{wheel}[cpu]")
    return interpreter


@pytest.fixture(scope="module")
def python_with_sklearn(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment that has scikit-learn besides what the clean one has."""
    folder = tmp_path_factory.mktemp("sklearn")
    venv.create(folder / "venv", with_pip=True)
    shutil.copy(python.parents[2] / "pins.txt", folder)
    (clean,) = (python.parents[1] / "lib").glob("python*/site-packages")
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (own / "clean.pth").write_text(f"{clean}\n")
    interpreter = folder / "venv" / "bin" / "python"
    install(interpreter, folder, "scikit-learn")
    return interpreter


def install(interpreter: Path, folder: Path, what: str) -> None:
    """Install a package at the versions in the folder's `pins.txt`."""
    more = shlex.split(os.environ.get("PIP_ARGS", ""))
    command = [interpreter, "-m", "pip", "install", "--quiet", "-c", folder / "pins.txt", *more, what]
    done = subprocess.run(command, cwd=folder, env=clean_environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def clean_environment(home: Path) -> dict[str, str]:
    """Return the environment without what would lead back to the repository or to the user's files."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DIM_", "VIRTUAL_ENV"))}
    return kept | {"DIM_CACHE": str(home / "cache")}


def run(python: Path, folder: Path, *arguments: object) -> tuple[str, set[str]]:
    """Run `dim` in the clean environment; return its stdout and the top-level modules it loaded."""
    command = [python, "-c", RUN, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=clean_environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(json.loads(done.stderr.splitlines()[-1]))


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    expected = {"dim/py.typed"}
    for folder, package in (("dim", "dim"), ("export", "dim/export"), ("runtime", "dim/runtime"), ("cli", "dim/cli")):
        files = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")]  # links are not followed
        expected |= {f"{package}/{path}" for path in files}
    inside = {name for name in names if not name.startswith(("dim_distill-", SHIPPED))}
    assert inside == expected


def test_the_wheel_ships_the_bundle_and_stays_small(wheel: Path) -> None:
    shipped = [info for info in zipfile.ZipFile(wheel).infolist() if info.filename.startswith(SHIPPED)]
    on_disk = {path.relative_to(ROOT / "runtime") for path in (ROOT / "runtime" / "shipped").rglob("*.*")}
    assert {Path(info.filename).relative_to("dim/runtime") for info in shipped} == {
        path for path in on_disk if (ROOT / "runtime" / path).is_file()
    }
    assert sum(info.compress_size for info in shipped) <= 5_000_000


def test_torch_is_not_installed(python: Path) -> None:
    command = [python, "-m", "pip", "list", "--format", "json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    names = {package["name"].lower() for package in listed}
    assert "dim-distill" in names and "onnxruntime" in names
    assert names.isdisjoint({"torch", "onnxscript", "safetensors", "scikit-learn", "matplotlib", "pyarrow"})


def test_generate_inspect_and_verify_work_there(python: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    shipped = (ROOT / "runtime" / "shipped" / "mnist.dim" / "manifest.json").exists()
    named = [] if shipped else [tiny_bundle]
    out, loaded = run(
        python, tmp_path, "generate", "--ipc", 3, "--out", "set", *(["--bundle", *named] if named else [])
    )
    assert "torch" not in loaded
    facts, loaded = run(python, tmp_path, "inspect", "--json", *named)
    assert "torch" not in loaded
    classes = json.loads(facts)["classes"]
    assert out.startswith(f"set: {3 * len(classes)} images as imagefolder, complete.\n")
    written = {path.parent.name for path in (tmp_path / "set").rglob("*.png")}
    assert written == set(classes)
    report, loaded = run(python, tmp_path, "verify", "--json", *named)
    assert json.loads(report)["ok"] and "torch" not in loaded


def test_a_classifier_learns_real_digits_from_the_stream_there(python_with_sklearn: Path, tmp_path: Path) -> None:
    """An edge pipeline: the bundle was distilled from scikit-learn's digits, no PyTorch is installed."""
    listed = subprocess.run([python_with_sklearn, "-m", "pip", "list"], check=True, capture_output=True, text=True)
    assert "scikit-learn" in listed.stdout and "torch" not in listed.stdout
    bundle = shutil.copytree(ROOT / "tests" / "golden" / "digits.dim", tmp_path / "digits.dim")
    command = [python_with_sklearn, ROOT / "examples" / "edge_sklearn.py", bundle, "--test", "digits"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *accuracies, last = done.stdout.splitlines()
    assert last == "torch was never imported"
    generated, real = (float(re.search(r"([\d.]+)% of 359 real test images", line)[1]) for line in accuracies[-2:])
    assert real > 90 and generated > real - 5, done.stdout


def test_the_command_is_installed_and_says_what_is_missing(python: Path, tmp_path: Path) -> None:
    command = [python.parent / "dim", "distill", "--data", "digits"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(tmp_path), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: The package 'torch' is not installed and is needed to distil, export and evaluate: "
        "run  pip install 'dim-distill[train]'\n".replace("  ", " ")
    )
