"""The built wheel in a clean virtual environment outside the repository, with the extra `cpu` alone and no torch.

The wheel and the environment are made by the steps of the Dockerfile, so the container is tested without Docker.
"""

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

pytestmark = pytest.mark.slow
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


DOCKERFILE = (ROOT / "Dockerfile").read_text()


def stages() -> list[list[tuple[str, str]]]:
    """Read the Dockerfile: for each stage, its instructions after FROM as keyword and text."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]
    steps = [line.split(maxsplit=1) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]
    starts = [number for number, step in enumerate(steps) if step[0] == "FROM"]
    bounds = zip(starts, [*starts[1:], len(steps)], strict=True)
    return [[(keyword, text) for keyword, text in steps[begin + 1 : end]] for begin, end in bounds]


def run_steps(stage: list[tuple[str, str]], interpreter: str | Path, folder: Path, places: dict[str, Path]) -> None:
    """Run the `RUN pip` steps of a stage by an interpreter's pip, with folders of this machine for the image's."""
    for keyword, text in stage:
        line = re.sub(r"--mount=\S+\s+", "", text)
        if keyword == "RUN" and line.startswith("pip "):
            for place, here in places.items():
                line = line.replace(place, shlex.quote(str(here)))
            line = f"{shlex.quote(str(interpreter))} -m {line} {os.environ.get('PIP_ARGS', '')}"
            done = subprocess.run(
                line, shell=True, cwd=folder, env=clean_environment(folder), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as the Dockerfile does, from a copy, so that nothing of an earlier build gets in."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    build, _ = stages()
    for names in (text.split()[:-1] for keyword, text in build if keyword == "COPY"):
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy / name)
    run_steps(build, sys.executable, copy, {"/wheels": built})
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install what the Dockerfile's last stage installs; return the environment's interpreter."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=True)
    interpreter = folder / "venv" / "bin" / "python"
    places = {"/install/cpu.txt": ROOT / "constraints" / "cpu.txt", "/install/wheels": wheel.parent}
    run_steps(stages()[-1], interpreter, folder, places)
    return interpreter


@pytest.fixture(scope="module")
def python_with_sklearn(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment that has scikit-learn besides what the clean one has."""
    folder = tmp_path_factory.mktemp("sklearn")
    venv.create(folder / "venv", with_pip=True)
    pins = [line.partition(" \\")[0] for line in (ROOT / "constraints" / "dev.txt").read_text().splitlines()]
    (folder / "pins.txt").write_text("\n".join(pin for pin in pins if "==" in pin))
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
    expected = {"dim/py.typed", "dim/runtime/sets/croissant_context.json"}
    for folder, package in (("dim", "dim"), ("export", "dim/export"), ("runtime", "dim/runtime"), ("cli", "dim/cli")):
        files = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")]  # links are not followed
        expected |= {f"{package}/{path}" for path in files}
    expected |= {f"dim/runtime/gallery/page/{path.name}" for path in (ROOT / "runtime" / "gallery" / "page").iterdir()}
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


def test_the_environment_is_as_large_as_the_dockerfile_says(python: Path) -> None:
    (packages,) = (python.parents[1] / "lib").glob("python*/site-packages")
    pip = [path for path in packages.iterdir() if path.name.startswith(("pip", "setuptools"))]
    files = [path for path in packages.rglob("*") if path.is_file() and not any(path.is_relative_to(p) for p in pip)]
    found = sum(path.stat().st_size for path in files) / 1e6
    said = re.search(r"adds about (\d+) MB", DOCKERFILE)
    assert said and found == pytest.approx(int(said[1]), rel=0.15), f"{found:.0f} MB"


def test_the_container_runs_the_command_and_not_as_root() -> None:
    last = stages()[-1]
    settings = dict(last)
    assert settings["USER"] not in ("root", "0") and f"useradd --create-home {settings['USER']}" in settings["RUN"]
    assert json.loads(settings["ENTRYPOINT"]) == ["dim"] and json.loads(settings["CMD"])[0] == "generate"
    assert [keyword for keyword, _ in last].index("USER") > max(n for n, (k, _) in enumerate(last) if k == "RUN")
