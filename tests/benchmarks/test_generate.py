"""The benchmarks of generation, workers and start-up run and print what they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *options: str) -> dict[str, object]:
    result = subprocess.run(
        [sys.executable, str(BENCH / name), *options, "--json"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    printed: dict[str, object] = json.loads(result.stdout)
    return printed


@pytest.mark.parametrize("format", ["imagefolder", "npz", "webdataset"])
def test_generation_against_its_parts(tiny_bundle: Path, format: str) -> None:
    printed = run("generate.py", "--bundle", str(tiny_bundle), "--images", "30", "--rounds", "1", "--format", format)
    assert printed["images"] == 30
    parts = {"engine", "disk", "end to end"} | ({"encoders"} if format != "npz" else set())
    for rates in (printed["images_per_s"], printed["cpu_us_per_image"]):
        assert isinstance(rates, dict) and parts <= set(rates) and all(rate > 0 for rate in rates.values())
    ratios = printed["ratios"]
    assert isinstance(ratios, dict) and 0 < ratios["end to end / slowest part"] and 0 < ratios["end to end / limit"]


@pytest.mark.slow
def test_starting_against_bare_python(tiny_bundle: Path) -> None:
    printed = run("startup.py", "--bundle", str(tiny_bundle), "--runs", "1")
    rows = printed["results"]
    assert isinstance(rows, list)
    measured = {"bare python", "dim --help", "first batch of a stream, ONNX Runtime CPU"}
    assert {row["what"] for row in rows} >= measured
    assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 for row in rows)


@pytest.mark.slow
def test_workers_side_by_side(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_BUNDLE", str(tiny_bundle))
    printed = run("workers.py", "--images", "32", "--rounds", "1", "--engine", "fake")
    rows = printed["results"]
    assert isinstance(rows, list) and [row["what"] for row in rows] == ["1 x --shard", "2 x --shard"]
    assert all(row["images_per_s"] > 0 and row["images_per_cpu_s"] > 0 for row in rows)
