"""`dim bench` and `dim doctor` on this machine's CPU."""

import json
from inspect import signature
from pathlib import Path

import pytest
from cli_tools import dim, one_line

from dim.cli.bench import bench
from dim.runtime.benchmark.contenders import Contender, Runner
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


@pytest.mark.slow
@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_ctrl_c_within_the_first_batch_keeps_what_ran(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, json_too: list[str]
) -> None:
    whole, chart = InterleavedRuns._open, tmp_path / "chart.png"

    def open_or_stop(self: InterleavedRuns, contender: Contender, batch: int, spare_s: float = 0.0) -> Runner | None:
        if contender.precision == "int8":
            raise KeyboardInterrupt
        return whole(self, contender, batch, spare_s)

    monkeypatch.setattr(InterleavedRuns, "_open", open_or_stop)
    arguments = [*ARGUMENTS, "--precision", "fp32,int8", "--no-torch", "--chart", chart]
    ran = dim("bench", "--bundle", tiny_bundle, *arguments, *json_too)
    assert ran.code == 130 and ran.err.splitlines()[-1] == "Interrupted."
    assert chart.read_bytes().startswith(b"\x89PNG")
    if json_too:
        assert [(row["precision"], row["turns"]) for row in json.loads(ran.out)["results"]] == [("fp32", 0)]
    else:
        assert ran.out.count("onnxruntime-cpu      fp32      cpu         4") == 1
        assert "Cut short: 0 of 1 round at batch 4; what had none has the speed of its warm-up.\n" in ran.out


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("with_chart", [False, True])
def test_ctrl_c_before_anything_ran_says_so(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_chart: bool, started: bool
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if started:
        monkeypatch.setattr(InterleavedRuns, "_open", stop)
    else:
        monkeypatch.setattr("dim.runtime.benchmark.benchmark.benchmark", stop)
    chart = tmp_path / "chart.png"
    ran = dim("bench", "--bundle", tiny_bundle, *ARGUMENTS, "--no-torch", *["--chart", chart] * with_chart)
    assert (ran.code, ran.out, chart.exists()) == (130, "", False)
    told = f"Nothing was measured, so {chart} was not drawn." if with_chart else "Nothing was measured."
    assert ran.err.splitlines()[-2:] == [told, "Interrupted."]


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
