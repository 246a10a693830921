"""lab/gpu_check.py on a machine whose GPU is a fake: every step runs, and what cannot is listed as not run."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_machine import ADA, NONE, Machine
from fake_trt import FakeContext

from dim.runtime.benchmark.benchmark import benchmark
from dim.runtime.trt import library as trt_library
from dim.runtime.trt.build import build_engines

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "lab" / "gpu_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: ModuleType) -> Iterator[Machine]:
    machine = Machine(tmp_path, monkeypatch)
    for name in ("dim.runtime.choose_engine", "dim.runtime.inspection.verify", "gpu_check"):
        monkeypatch.setattr(f"{name}.find_driver", lambda: machine.driver)
    monkeypatch.setattr(
        script, "build_engines", lambda path, **options: build_engines(path, **options, batch=(1, 8, 16))
    )
    short = {"rounds": 1, "turn_s": 0.001, "batches": (8,), "find_best": False}
    monkeypatch.setattr(script, "benchmark", lambda path, **options: benchmark(path, **{**options, **short}))
    monkeypatch.setattr("dim.export.untrained.export_untrained", lambda preset, folder, precisions: machine.path)
    yield machine
    trt_library.load_library.cache_clear()


def run(script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, Any]:
    out = machine.path.parent / "out" / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(machine.path), "--out", str(out), *arguments])
    with pytest.raises(SystemExit) as ended:
        script.main()
    report = json.loads(out.read_text()) if out.exists() else None
    return ended.value.code, report  # type: ignore[return-value]


def test_every_step_runs(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.install("rtx")
    code, report = run(script, machine, monkeypatch)
    steps = {row["step"]: row for row in report["steps"]}
    assert code == 0 and report["failed"] == [], report["failed"]
    assert report["gpu"] == ADA.gpus[0].name and report["bundle"] == "tiny.dim"
    assert steps["tensorrt-rtx accepts this GPU"]["found"].startswith("tensorrt-rtx 1.7.1.116 plan ")
    built = steps["tensorrt-rtx: built and verified"]["found"]
    assert list(built["engines"]) == [f"generator.{precision}.rtx.sm80plus.engine" for precision in ("fp32", "fp16")]
    assert all(row["ok"] for row in built["verify"]) and len(built["verify"]) == 10
    assert set(steps["engines for other machines are refused"]["found"]) == {"gpu", "library", "onnx"}
    assert set(steps["tensorrt-rtx: the same pixels again"]["found"]) == {"fp32", "fp16"}
    assert steps["generate --device gpu: a set, twice the same"]["found"]["engine"].startswith("tensorrt-rtx")
    speeds = steps["benchmark at batch 256"]["found"]["results"]
    assert {(row["engine"], row["batch"]) for row in speeds} == {("tensorrt-rtx", 8)}
    published = steps["benchmark of the published generator"]["found"]
    assert {(row["engine"], row["precision"]) for row in published["results"]} == {("tensorrt-rtx", "fp16")}
    promised = {claim["claim"]: claim["holds"] for claim in published["claims"]}
    assert promised == {
        "fp16 tensorrt-rtx against torch.compile fp16": None,
        "tensorrt-rtx against 500 TFLOP/s of arithmetic": False,
    }
    assert "tensorrt accepts this GPU" in report["not_run"]
    assert "the tests of training that need a GPU" in report["not_run"]
    assert "tensorrt-rtx: DLPack to torch" in report["not_run"]
    assert "not run" in capsys.readouterr().out


def test_a_step_that_fails_is_told_and_the_others_run(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install("rtx")
    real, drawn = FakeContext.compute, [0]

    def unsteady(self: FakeContext) -> None:
        real(self)
        if self.plan.tensors["images"][1][1] == 8:  # not the self test
            drawn[0] += 1
            self.at("images", np.uint8)[...] ^= drawn[0] % 2

    monkeypatch.setattr(FakeContext, "compute", unsteady)
    code, report = run(script, machine, monkeypatch)
    assert code == 1 and "tensorrt-rtx: the same pixels again" in report["failed"]
    assert len(report["steps"]) == 18


def test_when_time_is_over_the_rest_is_not_run(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install("rtx")
    code, report = run(script, machine, monkeypatch, "--limit-s", "0")
    assert code == 0 and len(report["not_run"]) == len(report["steps"])
    assert report["steps"][0] == {
        "step": "tensorrt-rtx accepts this GPU",
        "status": "not run",
        "reason": "it may take 60 s and 0 s were left",
        "seconds": 0.0,
    }


def test_an_engine_that_is_there_and_draws_wrong_pixels_has_failed(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install("rtx")
    real = FakeContext.compute

    def wrong(self: FakeContext) -> None:
        real(self)
        self.at("images", np.uint8)[...] ^= 128

    monkeypatch.setattr(FakeContext, "compute", wrong)
    code, report = run(script, machine, monkeypatch)
    assert code == 1 and report["failed"] == ["tensorrt-rtx accepts this GPU"]
    steps = {row["step"]: row for row in report["steps"]}
    assert steps["tensorrt-rtx: built and verified"]["reason"].startswith("its self test failed: ")
    assert steps["benchmark at batch 256"]["reason"] == "no GPU engine works here"


def test_an_interrupted_run_keeps_what_it_found(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(check: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "build", interrupted)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(machine.path), "--out", str(machine.path.parent / "o.json")])
    with pytest.raises(KeyboardInterrupt):
        script.main()
    report = json.loads((machine.path.parent / "o.json").read_text())
    assert [row["status"] for row in report["steps"]] == ["not run"] * 18
    assert report["steps"][3]["reason"] == "the run was interrupted"


def test_a_step_that_hangs_is_given_up_with_the_process(tmp_path: Path) -> None:
    program = f"""
import importlib.util, pathlib, sys, time
sys.path.insert(0, {str(ROOT / "tests" / "support")!r})
from fake_machine import ADA
from tiny_bundle import build_tiny_bundle
spec = importlib.util.spec_from_file_location("gpu_check", {str(ROOT / "lab" / "gpu_check.py")!r})
script = importlib.util.module_from_spec(spec)
sys.modules["gpu_check"] = script
spec.loader.exec_module(script)
bundle = build_tiny_bundle(pathlib.Path("tiny.dim"))
script.find_driver, script.PATIENCE_S = lambda: ADA, 0
fine, hangs = script.Step("fine", 0, lambda check: 1), script.Step("hangs", 0, lambda check: time.sleep(60))
script.all_steps = lambda folder: [fine, hangs, script.Step("last", 0, lambda check: 2)]
sys.argv = ["gpu_check.py", str(bundle), "--out", "o.json", "--limit-s", "0.2"]
script.main()
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=55)
    assert ended.returncode == 1, ended.stderr
    report = json.loads((tmp_path / "o.json").read_text())
    found = [(row["step"], row["status"], row.get("reason")) for row in report["steps"]]
    assert found == [
        ("fine", "ok", None),
        ("hangs", "failed", "it did not end in time"),
        ("last", "not run", "no time was left"),
    ]


def test_without_a_gpu_nothing_is_written(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.driver = NONE
    code, report = run(script, machine, monkeypatch)
    assert report is None
    assert str(code) == (
        "There is nothing to check here, because no NVIDIA driver is installed (libcuda.so.1 not found); nothing was "
        "written."
    )


def test_the_shell_script_hands_its_arguments_on() -> None:
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    shown = subprocess.run(
        [ROOT / "lab" / "gpu_check.sh", "--help"], capture_output=True, text=True, env=environment, check=True
    )
    assert "--limit-s" in shown.stdout


@pytest.mark.parametrize(
    ("said", "code", "outcome"),
    [("5 passed, 20 deselected in 9.00s", 0, ""), ("1 failed, 4 passed", 1, "1 failed"), ("5 skipped", 0, "5 skipped")],
)
def test_the_tests_of_training_count_where_all_of_them_ran(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, said: str, code: int, outcome: str
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    commands: list[list[str]] = []

    def ended(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, code, f"...\n{said}\n", "")

    monkeypatch.setattr(script.subprocess, "run", ended)
    if outcome:
        with pytest.raises(RuntimeError, match=f"^pytest: {outcome}"):
            script.training_tests(None)
    else:
        assert script.training_tests(None) == said
    (command,) = commands
    file, wanted = Path(command[-3]), command[-1]
    names = re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    need = re.findall(r"@pytest\.mark\.gpu\n(?:@.*\n)*def (test_\w+)", file.read_text())
    assert need and {name for name in names if wanted in name} == set(need)
