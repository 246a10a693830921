"""The benchmarks of generation and start-up run and print what they promise."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench"


def run(name: str, *options: str) -> dict[str, object]:
    result = subprocess.run(
        [sys.executable, str(BENCH / name), *options, "--json"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    printed: dict[str, object] = json.loads(result.stdout)
    return printed


def test_generation_against_its_parts(tiny_bundle: Path) -> None:
    printed = run("generate.py", "--bundle", str(tiny_bundle), "--images", "30", "--rounds", "1")
    assert printed["images"] == 30
    rates = printed["images_per_s"]
    assert isinstance(rates, dict) and {"engine", "encoders", "disk", "end to end"} <= set(rates)
    assert all(rate > 0 for rate in rates.values())
    ratios = printed["ratios"]
    assert isinstance(ratios, dict) and {"end to end / slowest part", "end to end / in turn"} <= set(ratios)


def test_starting_against_bare_python(tiny_bundle: Path) -> None:
    printed = run("startup.py", "--bundle", str(tiny_bundle), "--runs", "1")
    rows = printed["results"]
    assert isinstance(rows, list)
    assert {row["what"] for row in rows} >= {"bare python", "dim --help", "first image, ONNX Runtime CPU"}
    assert all(row["seconds"] > 0 for row in rows)
