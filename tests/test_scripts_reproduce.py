"""`scripts/reproduce.sh`, with a `dim` that only leaves the files behind by which the script sees what is done."""

import os
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from dim.cli.main import app

SCRIPT = Path(__file__).parent.parent / "scripts" / "reproduce.sh"
FAKE = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
for ((i = 1; i <= $#; i++)); do [ "${!i}" = --out ] && { next=$((i + 1)); out=${!next}; }; done
case $1 in
    distill) mkdir -p "$out"; [ -z "$UNFINISHED" ] && touch "$out/generator.safetensors" ;;
    export) mkdir "$2/bundle.dim" ;;
    *) mkdir -p "$out"; echo '{}' > "$out/results.json" ;;
esac
exit 0
"""


def calls(tmp_path: Path, **environment: str) -> tuple[int, list[str]]:
    """Run the script; return its exit code and the commands that it ran, without folders."""
    for name in ("dim", "python"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "calls"
    log.unlink(missing_ok=True)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "CALLS": str(log), "UNFINISHED": "", "DATASETS": "cifar10 mnist", **environment}
    ended = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out")], env={**os.environ, **settings}, capture_output=True, text=True
    )
    return ended.returncode, log.read_text().replace(f"{tmp_path}/", "").splitlines()


def test_the_most_valuable_cell_comes_first_and_nothing_is_distilled_twice(tmp_path: Path) -> None:
    code, first = calls(tmp_path)
    assert code == 0
    assert first[0].startswith("dim distill --data cifar10 --out out/cifar10 --resume --preset best")
    assert "--preset full" in first[2] and "--ipc 10 --arch convnet3" in first[2]
    distilled = [line.split("--out ")[1].split()[0] for line in first if line.startswith("dim distill")]
    assert len(distilled) == len(set(distilled)) == 6
    assert distilled[:2] == ["out/cifar10", "out/mnist"]
    known = {
        name: {flag for p in command.params for flag in p.opts} for name, command in get_command(app).commands.items()
    }
    for line in first:
        program, name, *words = line.split()
        if program == "dim":
            assert {word for word in words if word.startswith("--")} <= known[name], line
    code, second = calls(tmp_path)
    assert code == 0
    assert not [line for line in second if line.startswith(("dim distill", "dim export"))]
    assert len(second) == len(first) - 12
    kept = {path.name for path in (tmp_path / "out" / "results").iterdir()}
    assert {"cifar10-convnet3-10.json", "mnist-int8.json", "ablation-mnist.json"} <= kept
    assert len(kept) == len(second)  # every command leaves results of its own


@pytest.mark.parametrize("limit", ["9m", "1h"])
def test_a_time_limit_leaves_the_rest_for_the_next_call(tmp_path: Path, limit: str) -> None:
    code, made = calls(tmp_path, TIME_LIMIT=limit, UNFINISHED="1")
    assert code == 0
    assert [line.split()[:4] for line in made if line.startswith("dim")] == [
        ["dim", "distill", "--data", "cifar10"],
        ["dim", "distill", "--data", "mnist"],
    ]
    assert all(f"--time-limit {limit}" in line for line in made if line.startswith("dim"))
