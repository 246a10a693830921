"""`dim bench` and `dim doctor` on this machine's CPU."""

import json
from pathlib import Path

import pytest
from cli_tools import dim, one_line

ARGUMENTS = ["--engine", "onnxruntime-cpu", "--batch", "4,8", "--rounds", 1, "--seconds", 0.001, "--no-search"]


@pytest.mark.slow
def test_bench_prints_speeds_and_draws_a_chart(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.cli.bench.find_spec", lambda name: None)
    chart = tmp_path / "chart.png"
    ran = dim("bench", "--bundle", tiny_bundle, *ARGUMENTS, "--precision", "fp32", "--chart", chart)
    assert ran.code == 0, ran.err
    assert "PyTorch is not installed, so the engines are compared with one another alone." in ran.err
    assert sum("onnxruntime-cpu" in line and " cpu " in line for line in ran.out.splitlines()) >= 2
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_bench_json_of_a_bundle_that_torch_cannot_build(tiny_bundle: Path) -> None:
    ran = dim("bench", "--bundle", tiny_bundle, *ARGUMENTS, "--precision", "fp32,int8", "--json")
    assert "The bundle tiny does not say which generator it was made from, so PyTorch cannot run it." in ran.err
    rows = {(row["precision"], row["batch"]) for row in json.loads(ran.out)["results"]}
    assert rows == {(precision, batch) for precision in ("fp32", "int8") for batch in (4, 8)}


@pytest.mark.parametrize(
    "arguments",
    [["--batch", "many"], ["--engine", "warp"], ["--precision", "fp8"], ["--rounds", "0"], ["--device", "x"]],
)
def test_bad_values_are_one_line(tiny_bundle: Path, arguments: list[str]) -> None:
    assert one_line(dim("bench", "--bundle", tiny_bundle, "--no-torch", *arguments))


def test_doctor_tells_what_works() -> None:
    ran = dim("doctor")
    assert ran.code == 0
    assert "onnxruntime-cpu" in ran.out and "works" in ran.out
    report = json.loads(dim("doctor", "--json").out)
    assert {state["engine"]: state["works"] for state in report["engines"]}["onnxruntime-cpu"]
    for state in report["engines"]:
        assert state["works"] or f"{state['engine']}\n" in ran.out
