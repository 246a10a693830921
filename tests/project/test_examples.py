"""The examples run, say what they promise, and keep it."""

import json
import os
import re
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from digits_bundle import build_digits_bundle

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_digits_bundle(tmp_path_factory.mktemp("digits") / "digits.dim")


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error::UserWarning", str(EXAMPLES / name), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_source_archive_has_the_examples(tmp_path: Path) -> None:
    root = EXAMPLES.parent
    names = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "dim", "runtime", "export", "cli", "examples")
    for name in names:
        (tmp_path / name).symlink_to(root / name)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    built = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-3000:]
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        found = {name.partition("/examples/")[2] for name in packed.getnames() if "/examples/" in name}
    assert found == {path.name for path in EXAMPLES.iterdir() if path.is_file()}


@pytest.mark.slow
def test_edge_pipeline_learns_real_digits_without_torch(digits: Path) -> None:
    printed = run("edge_sklearn.py", str(digits), "--batches", "150")
    accuracies = [float(match) for match in re.findall(r"([\d.]+)% of 359 real test images", printed)]
    *on_stream, on_real = accuracies
    assert len(on_stream) == 4 and on_stream[-1] >= 85 and on_real > 93
    assert printed.endswith("torch was never imported\n")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "examples").mkdir()
    (tmp_path / "js").symlink_to(EXAMPLES.parent / "js")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path / "examples",
        env=os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout.splitlines()
    assert float(printed[-1].split(" %")[0]) > 90
    # What it printed when it was saved is what it prints.
    saved = [line for cell in cells for output in cell.get("outputs", []) for line in output.get("text", [])]
    assert "".join(saved).splitlines() == printed


def test_the_notebook_is_saved_with_its_pictures() -> None:
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.slow
def test_jax_loop_lowers_its_loss(digits: Path) -> None:
    losses = [float(match) for match in re.findall(r"loss ([\d.]+)", run("jax_loop.py", str(digits), "--epochs", "60"))]
    assert len(losses) == 5 and losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_classes_are_added_without_the_old_images(tmp_path: Path) -> None:
    printed = run("add_classes.py", "--out", str(tmp_path), "--steps", "30")
    assert re.findall(r"digits (\d to \d): [\d.]+% of (\d+) real test images", printed) == [
        ("0 to 4", "180"),
        ("5 to 9", "179"),
    ]
    record = json.loads((tmp_path / "all" / "config.json").read_text())["data"]
    assert record["classes"] == list("0123456789") and "replayed from the bundle digits-0-4" in record["note"]
    assert record["reading"] == {"replay_ipc": 150}


@pytest.mark.slow
def test_replay_keeps_old_classes_that_are_else_forgotten(digits: Path) -> None:
    printed = run("continual_loop.py", str(digits), "--steps", "200")
    (forgotten, new), (kept, new_too) = (
        [float(share) for share in re.findall(r"([\d.]+)% of the", line)] for line in printed.splitlines()
    )
    assert forgotten < 50 < kept - 20 and new > 80 and new_too > 80


@pytest.mark.slow
def test_a_server_learns_from_the_bundles_of_three_clients(tmp_path: Path) -> None:
    printed = run("federated.py", "--out", str(tmp_path), "--steps", "30")
    assert re.findall(r"(\w+) sends \d+ kB for digits (\d+)", printed) == [
        ("north", "0123"),
        ("east", "456"),
        ("south", "789"),
    ]
    assert re.search(r"the server recognises [\d.]+% of 359 real test images of all ten digits\n$", printed)


def run_ranks(*command: str) -> str:
    """Run a program on two ranks of this machine."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent / "tests" / "support")}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LOOPS = [
    ("torch_loop.py", "torch", (*TORCHRUN, str(EXAMPLES / "torch_loop.py"))),
    ("lightning_loop.py", "lightning", (str(EXAMPLES / "lightning_loop.py"), "--devices", "2")),
    ("accelerate_loop.py", "accelerate", (*TORCHRUN, str(EXAMPLES / "accelerate_loop.py"))),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "library", "ranks"), LOOPS, ids=[name for name, _, _ in LOOPS])
def test_a_loop_runs_alone_and_on_two_ranks_and_its_loss_falls(
    digits: Path, name: str, library: str, ranks: tuple[str, ...]
) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed; the extra `dev` has it")
    alone = run_ranks(str(EXAMPLES / name), str(digits), "--epochs", "3")
    found = re.findall(r"epoch (\d): mean loss ([\d.]+)", alone)
    assert [epoch for epoch, _ in found] == ["0", "1", "2"] and float(found[2][1]) < 0.8 * float(found[0][1])
    # 500 images in batches of 64, or 250 on each of two ranks; Lightning counts from the beginning.
    steps = re.findall(r"(?:over|after) (\d+) steps", alone)
    assert steps == (["8", "16", "24"] if library == "lightning" else ["8"] * 3)
    shared = run_ranks(*ranks, str(digits), "--epochs", "2", "--workers", "1")
    steps = re.findall(r"(?:over|after) (\d+) steps", shared)
    assert steps == (["4", "8"] if library == "lightning" else ["4"] * 2)


@pytest.mark.slow
def test_two_ranks_with_spawned_workers_see_every_image_of_a_pass_once(tiny_bundle: Path) -> None:
    program = Path(__file__).parents[1] / "support" / "rank_program.py"
    lines = [json.loads(line) for line in run_ranks(*TORCHRUN, str(program), str(tiny_bundle)).splitlines()]
    # 21 images, 10 on each rank, in four batches of two workers with five each; none twice, none of another pass.
    assert lines == [[10, [4, 4], 20, 20, 0]] * 2
