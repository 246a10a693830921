"""`dim bench` and `dim doctor` on this machine's CPU."""

import json
from inspect import signature
from pathlib import Path

import pytest
from cli_tools import dim, one_line

from dim.cli.bench import bench
from dim.runtime.benchmark.interleaved import InterleavedRuns
from dim.runtime.gpu.driver import has_nvidia_hardware
from dim.runtime.inspection.doctor import PLAIN_COMMAND

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


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_ctrl_c_keeps_the_table_so_far(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, json_too: list[str]) -> None:
    whole = InterleavedRuns.compare

    def compare(self: InterleavedRuns, batch: int) -> None:
        if batch == 8:
            raise KeyboardInterrupt
        whole(self, batch)

    monkeypatch.setattr(InterleavedRuns, "compare", compare)
    ran = dim("bench", "--bundle", tiny_bundle, *ARGUMENTS, "--precision", "fp32,int8", "--no-torch", *json_too)
    assert ran.code == 130 and ran.err.splitlines()[-1] == "Interrupted."
    if json_too:
        assert [row["batch"] for row in json.loads(ran.out)["results"]] == [4, 4]
    else:
        assert ran.out.count("onnxruntime-cpu      fp32      cpu         4") == 1
        assert "Ratios from neighbours in time" in ran.out


def test_the_defaults_take_less_than_a_minute() -> None:
    defaults = {name: parameter.default for name, parameter in signature(bench).parameters.items()}
    assert (defaults["batches"], defaults["rounds"], defaults["time_limit"]) == ("256,1", 3, "45s")


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
    short = dim("doctor")
    assert short.code == 0 and len(short.out.splitlines()) < 10
    assert "Works here:     onnxruntime-cpu" in short.out and ("To draw: " in short.out) == (PLAIN_COMMAND in short.out)
    assert "NVIDIA" not in short.out or has_nvidia_hardware()
    ran = dim("doctor", "--all")
    assert ran.out.startswith(short.out.rpartition("More:")[0])
    report = json.loads(dim("doctor", "--json").out)
    assert {state["engine"]: state["works"] for state in report["engines"]}["onnxruntime-cpu"]
    cache = report["decoded_sets"]
    assert f"Decoded sets: {len(cache['sets'])} in {cache['folder']}, " in ran.out and cache["limit_bytes"] == 10**11
    for state in report["engines"]:
        assert state["works"] or f"{state['engine']}\n" in ran.out
