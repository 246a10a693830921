"""lab/gpu_run on a machine whose GPU is a fake, and a rehearsal of the whole on the CPU with tiny sizes."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import cifar_files, write_mnist
from fake_machine import ADA, NONE, Machine
from fake_trt import FakeContext

from dim.runtime.benchmark import benchmark as benchmark_module
from dim.runtime.trt import library as trt_library
from dim.runtime.trt.build import build_engines
from lab import gpu_checks, gpu_prepare, gpu_run, gpu_stages
from lab.gpu_steps import Context, NotRunHereError, Stage, Step, UnfinishedError, run_stage

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(tmp_path, monkeypatch)
    for name in ("dim.runtime.choose_engine", "dim.runtime.inspection.verify", "lab.gpu_run"):
        monkeypatch.setattr(f"{name}.find_driver", lambda: machine.driver)
    monkeypatch.setattr(
        gpu_checks, "build_engines", lambda path, **options: build_engines(path, **options, batch=(1, 8, 16))
    )
    real, short = benchmark_module.benchmark, {"rounds": 1, "turn_s": 0.001, "batches": (8,), "find_best": False}
    monkeypatch.setattr(
        benchmark_module,
        "benchmark",
        lambda path, options, **others: real(path, replace(options, **short), **others),
    )
    monkeypatch.setattr("benchmarks.engines.export_untrained", lambda preset, folder, precisions: machine.path)
    shutil.copytree(machine.path, tmp_path / "work" / "cifar10" / "tiny.dim")
    yield machine
    trt_library.load_library.cache_clear()


def run_engine_stages(machine: Machine, *names: str) -> dict[str, dict[str, Any]]:
    context = Context(work=machine.path.parent / "work", device="gpu", driver=machine.driver)
    rows: dict[str, dict[str, Any]] = {}
    for stage in gpu_stages.list_stages():
        if stage.name in (names or ("machine", "engines", "checks")):
            run_stage(stage, context)
            rows |= context.rows(stage.name)
    return rows


def test_every_step_of_the_engines_runs(machine: Machine) -> None:
    machine.install("rtx")
    steps = run_engine_stages(machine)
    failed = {name: row for name, row in steps.items() if row["status"] == "failed"}
    assert list(failed) in ([], ["torch on the GPU"]), failed  # torch sees no fake
    assert steps["driver"]["found"]["gpus"][0]["name"] == ADA.gpus[0].name
    assert steps["tensorrt-rtx accepts this GPU"]["found"].startswith("tensorrt-rtx 1.7.1.116 plan ")
    assert steps["tensorrt-rtx: which targets open here"]["found"] == "not needed"
    built = steps["tensorrt-rtx: built and verified"]["found"]
    assert list(built["engines"]) == [f"generator.{precision}.rtx.sm80plus.engine" for precision in ("fp32", "fp16")]
    assert all(row["ok"] for row in built["verify"]) and len(built["verify"]) == 10
    assert set(steps["engines for other machines are refused"]["found"]) == {"gpu", "library", "onnx"}
    assert set(steps["tensorrt-rtx: the same pixels again"]["found"]) == {"fp32", "fp16"}
    assert steps["generate --device gpu: a set, twice the same"]["found"]["engine"].startswith("tensorrt-rtx")
    speeds = steps["engines and torch eager at 1, 256, 4096"]["found"]
    assert {(row["engine"], row["batch"]) for row in speeds["results"]} == {("tensorrt-rtx", 8)}
    assert set(speeds["share_of_floor"]) == {"tensorrt-rtx fp32 at 8", "tensorrt-rtx fp16 at 8"}
    published = steps["the published generator"]["found"]
    assert {(row["engine"], row["precision"]) for row in published["results"]} == {("tensorrt-rtx", "fp16")}
    assert {claim["claim"]: claim["holds"] for claim in published["claims"]} == {
        "fp16 tensorrt-rtx against torch.compile fp16": None,
        "tensorrt-rtx against 500 TFLOP/s of arithmetic": False,
    }
    for name in (
        "tensorrt accepts this GPU",
        "the tests of training that need a GPU",
        "tensorrt-rtx: DLPack to torch",
    ):
        assert steps[name]["status"] == "not run"


def test_a_step_that_fails_is_told_and_the_others_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install("rtx")
    real, drawn = FakeContext.compute, [0]

    def unsteady(self: FakeContext) -> None:
        real(self)
        if self.plan.tensors["images"][1][1] == 8:  # not the self test
            drawn[0] += 1
            self.at("images", np.uint8)[...] ^= drawn[0] % 2

    monkeypatch.setattr(FakeContext, "compute", unsteady)
    steps = run_engine_stages(machine)
    assert steps["tensorrt-rtx: the same pixels again"]["status"] == "failed"
    assert set(steps) == {
        step.name
        for stage in gpu_stages.list_stages()
        if stage.name in ("machine", "engines", "checks")
        for step in stage.steps
    }


def test_an_engine_that_is_there_and_draws_wrong_pixels_has_failed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install("rtx")
    real = FakeContext.compute

    def wrong(self: FakeContext) -> None:
        real(self)
        self.at("images", np.uint8)[...] ^= 128

    monkeypatch.setattr(FakeContext, "compute", wrong)
    monkeypatch.setattr(gpu_checks, "try_targets", lambda context: None)
    steps = run_engine_stages(machine)
    assert steps["tensorrt-rtx accepts this GPU"]["status"] == "failed"
    assert steps["tensorrt-rtx: built and verified"]["reason"] == steps["tensorrt-rtx accepts this GPU"]["reason"]
    assert steps["engines and torch eager at 1, 256, 4096"]["found"]["results"] == []


def test_without_a_gpu_nothing_is_written(machine: Machine) -> None:
    machine.driver, out = NONE, machine.path.parent / "out"
    with pytest.raises(SystemExit) as ended:
        gpu_run.main(["--out", str(out)])
    assert not out.exists()
    assert str(ended.value.code) == (
        "There is nothing to run here, because no NVIDIA driver is installed (libcuda.so.1 not found); nothing was "
        "written."
    )


def test_what_ended_is_not_run_again_and_what_lacked_something_is(tmp_path: Path) -> None:
    calls: list[str] = []
    outcomes: dict[str, Exception | None] = {
        "fine": None,
        "broken": ValueError("no"),
        "lacks": NotRunHereError("a package"),
        "long": UnfinishedError("stopped"),
    }

    def act(name: str) -> Any:
        def action(context: Context) -> str:
            calls.append(name)
            error = outcomes[name]
            if error is not None:
                raise error
            return name

        return action

    stage = Stage("s", 10, [*[Step(name, act(name)) for name in outcomes], Step("slow", act("fine"), needs_s=1e6)])
    context = Context(work=tmp_path, device="cpu", driver=NONE, deadline=time.monotonic() + 100)
    run_stage(stage, context)
    assert {name: row["status"] for name, row in context.rows("s").items()} == {
        "fine": "ok",
        "broken": "failed",
        "lacks": "not run",
        "long": "unfinished",
        "slow": "no time",
    }
    assert context.rows("s")["slow"]["reason"] == "it may take 1000000 s and 100 s were left"
    outcomes["long"] = None
    run_stage(stage, context)
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin" / "packages.json").write_text("{}")
    run_stage(stage, context)
    assert calls == ["fine", "broken", "lacks", "long", "long", "lacks"]


def test_steps_fit_into_the_time() -> None:
    assert gpu_stages.fit_steps(30_000, 8000, 0.012, 230) == (13_600, 3600)
    assert gpu_stages.fit_steps(30_000, 8000, 0.001, 230) == (30_000, 8000)
    assert gpu_stages.fit_steps(30_000, 8000, 10, 30) == (100, 100)


def test_a_stage_that_hangs_is_ended_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import time; time.sleep(60)"
    monkeypatch.setattr(gpu_run, "stage_command", lambda stage, seconds, options: [sys.executable, "-c", program])
    monkeypatch.setattr(gpu_run, "GRACE_S", 0.0)
    stage = Stage("hangs", 1, [Step("step", lambda context: None)])
    context = Context(work=tmp_path, device="cpu", driver=NONE)
    began = time.monotonic()
    gpu_run.launch(stage, 0.5, gpu_run.parse(["--work", str(tmp_path)]), context)
    assert time.monotonic() - began < 30
    row = context.rows("hangs")["hangs as a whole"]
    assert row["status"] == "failed" and row["reason"] == "the process of hangs ended with -9; see log.txt"


def test_what_is_brought_back_keeps_to_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir(), (work / "back").mkdir(parents=True)
    (work / "log.txt").write_text("log")
    (out / "gpu-x.json").write_text("{}")
    monkeypatch.setattr(gpu_run, "MAX_BYTES", 600)
    names = ["cifar10-bundle.tar.gz", *(f"cifar10-checkpoint.tar.gz.{n}" for n in range(1, 8))]
    for name in names:
        (work / "back" / name).write_bytes(bytes(100))
    first = gpu_run.bring(work, out, set())
    assert sorted(path.name for path in out.glob("*.tar.gz*")) == sorted(names[:5])
    gpu_run.remember(work, set(), first)
    gpu_run.bring(work, out, gpu_run.brought(work))
    left = sorted(path.name for path in out.glob("*.tar.gz*"))
    assert set(names[5:]) <= set(left) and len(left) == 5  # what has not come yet goes first
    monkeypatch.setattr(gpu_run, "MAX_BYTES", 10_000)
    gpu_run.bring(work, out, set())
    assert len(list(out.iterdir())) == 8


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for path, content in cifar_files(10, 20, binary=True).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    write_mnist(folder / "fashion-mnist", num_train=100, num_test=20)
    return folder


def pack(data: Path, out: Path, *options: str) -> list[Path]:
    gpu_prepare.main(["--data", str(data), "--out", str(out), "--part-mb", "0.25", *options])
    return sorted(out.iterdir())


def test_lossless_parts_give_the_same_bytes_back(data: Path, tmp_path: Path) -> None:
    parts = pack(data, tmp_path / "parts", "--lossless")
    assert len(parts) > 1 and all(sum(f.stat().st_size for f in part.iterdir()) <= 250_000 for part in parts)
    assert gpu_prepare.receive(tmp_path / "parts", tmp_path / "work", print) == {}
    for file in (data / "cifar-10-batches-bin").glob("*.bin"):
        assert (tmp_path / "work/data/cifar10/cifar-10-batches-bin" / file.name).read_bytes() == file.read_bytes()
    origin = json.loads((tmp_path / "work/origin/cifar10.json").read_text())
    assert origin["name"] == "cifar10-lossless" and "decoded otherwise" not in origin["note"]


def test_official_bytes_are_told_by_their_sums(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (data / "cifar-10-batches-bin").glob("*.bin"):
        digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(gpu_prepare.OFFICIAL_MD5, file.name, digest)
    pack(data, tmp_path / "parts", "--lossless")
    gpu_prepare.receive(tmp_path / "parts", tmp_path / "work", print)
    assert json.loads((tmp_path / "work/origin/cifar10.json").read_text()) == {
        "name": "cifar10",
        "note": "CIFAR-10, official binary batches (MD5 sums match)",
    }


def test_parts_come_one_by_one_and_a_damaged_one_is_sent_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, work, here = pack(data, tmp_path / "parts"), tmp_path / "work", tmp_path / "here"
    shutil.copytree(parts[0], here / "1")
    assert gpu_prepare.receive(here, work, print)["cifar10"].startswith("part 2")
    shutil.rmtree(here / "1")
    for part in parts[1:]:
        shutil.copytree(part, here / part.name)
    stream = bytearray((here / "2" / "stream.bin").read_bytes())
    stream[1000] ^= 1
    (here / "2" / "stream.bin").write_bytes(stream)
    assert gpu_prepare.receive(here, work, print)["cifar10"] == f"part 2 of {len(parts)}"
    assert "part 2 is damaged: its hash differs; send it again" in capsys.readouterr().out
    (here / "2" / "stream.bin").write_bytes((parts[1] / "stream.bin").read_bytes())
    assert "cifar10" not in gpu_prepare.receive(here, work, print)
    note = json.loads((work / "origin" / "cifar10.json").read_text())["note"]
    assert "JPEG 4:4:4 of quality 97" in note and "decoded otherwise" not in note


def test_packages_come_with_the_data(data: Path, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "thing-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing/__init__.py", "x = 1\n")
    pack(data, tmp_path / "parts", "--wheels", str(tmp_path / "wheels"))
    gpu_prepare.receive(tmp_path / "parts", tmp_path / "work", print)
    assert (tmp_path / "work" / "site" / "thing" / "__init__.py").read_text() == "x = 1\n"


@pytest.mark.slow
def test_a_run_goes_on_from_what_was_brought_back(tmp_path: Path) -> None:
    """Adam's first moments are left out, and the weights are those of an undisturbed run."""
    from quick_runs import Stop, quick, same, stop_at, weights
    from small_images import make_images

    import dim

    whole, begun = tmp_path / "whole", tmp_path / "cifar10" / "run"
    dim.distill(make_images(), quick(), whole, device="cpu")
    with pytest.raises(Stop):
        dim.distill(make_images(), quick(), begun, device="cpu", progress=stop_at("stage1", 5))
    pieces = gpu_stages.pack_checkpoint(begun, tmp_path / "back")
    shutil.rmtree(begun / "checkpoints")
    with tarfile.open(pieces[0]) as tar:
        tar.extractall(begun, filter="data")
    dim.distill(make_images(), quick(), begun, device="cpu", resume=True)
    assert same(weights(begun), weights(whole))


@pytest.mark.slow
def test_the_rehearsal(data: Path, tmp_path: Path) -> None:
    """Packed, sent in two goes, interrupted, resumed, finished, and brought back in at most eight files."""
    parts, work, out, here = pack(data, tmp_path / "parts"), tmp_path / "work", tmp_path / "out", tmp_path / "here"
    command = [sys.executable, "-m", "lab.gpu_run", "--data", str(here), "--work", str(work), "--out", str(out)]
    command += ["--device", "cpu", "--tiny"]

    def run(minutes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--minutes", minutes], cwd=ROOT, capture_output=True, text=True, env=environment
        )

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    shutil.copytree(parts[0], here / "1")
    first = run("0")
    assert first.returncode == 75 and not (work / "stages").exists(), first.stdout + first.stderr
    for part in parts[1:]:
        shutil.copytree(part, here / part.name)
    began = time.monotonic()
    assert run("0.2").returncode == 75  # no stage fits
    assert time.monotonic() - began < 30 and not (work / "stages").exists()

    begun = subprocess.Popen(
        [*command, "--minutes", "30"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    checkpoints = work / "cifar10" / "run" / "checkpoints"
    while not list(checkpoints.glob("*.json")):
        assert begun.poll() is None, begun.stdout.read() if begun.stdout else ""
        time.sleep(0.02)
    begun.send_signal(signal.SIGTERM)
    begun.communicate(timeout=60)
    assert begun.returncode == 128 + signal.SIGTERM
    assert json.loads((work / "stages" / "cifar10.json").read_text())["cifar10 by best, both stages"]["status"] == (
        "unfinished"
    )
    last = run("30")
    assert last.returncode == 0, last.stdout + last.stderr
    assert "Resuming at step" in (work / "log.txt").read_text()
    (report,) = out.glob("gpu-*.json")
    found = json.loads(report.read_text())
    assert found["failed"] == [] and found["pending"] == []
    steps = {row["step"]: row for row in found["steps"]}
    assert steps["cifar10 by best, both stages"]["status"] == "ok"
    speed = steps["speed of a step, cifar10"]["found"]
    assert speed["step_ms"] > 0 and speed["problems"] == []
    rivals = {row["precision"] for row in steps["engines and torch eager at 1, 256, 4096"]["found"]["results"]}
    assert rivals == {"fp32", "fp16", "bf16"}
    for ipc in (10, 50):
        for name in ("cifar10", "fashion-mnist"):
            assert steps[f"students of {name}, {ipc} per class"]["found"][0]["accuracy_mean"] >= 0
    files = sorted(path.name for path in out.iterdir())
    assert len(files) <= 8 and all(path.stat().st_size < 16 * 2**20 for path in out.iterdir())
    assert {"cifar10-bundle.tar.gz", "cifar10-checkpoint.tar.gz", "log.txt", "runs.tar.gz"} <= set(files)
    with tarfile.open(out / "cifar10-bundle.tar.gz") as tar:
        tar.extractall(tmp_path / "back", filter="data")
    card = (tmp_path / "back" / "cifar10-jpeg97.dim" / "README.md").read_text()
    assert "training images came as JPEG 4:4:4 of quality 97" in card
    assert re.search(r"SHA-256 of the six batches' sums [0-9a-f]{16}", card)


@pytest.mark.parametrize(
    ("said", "code", "outcome"),
    [("5 passed, 20 deselected in 9.00s", 0, ""), ("1 failed, 4 passed", 1, "1 failed"), ("5 skipped", 0, "5 skipped")],
)
def test_the_tests_of_training_count_where_all_of_them_ran(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, code: int, outcome: str
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    commands: list[list[str]] = []

    def ended(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, code, f"...\n{said}\n", "")

    monkeypatch.setattr(gpu_checks.subprocess, "run", ended)
    context = Context(work=tmp_path, device="gpu", driver=ADA)
    if outcome:
        with pytest.raises(RuntimeError, match=f"^pytest: {outcome}"):
            gpu_checks.training_tests(context)
    else:
        assert gpu_checks.training_tests(context) == said
    (command,) = commands
    file, wanted = Path(command[-3]), command[-1]
    names = re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    need = re.findall(r"@pytest\.mark\.gpu\n(?:@.*\n)*def (test_\w+)", file.read_text())
    assert need and {name for name in names if wanted in name} == set(need)
