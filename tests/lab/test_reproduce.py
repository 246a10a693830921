"""The list of commands behind lab/all-results.md: every option exists, and an interruption costs nothing."""

import argparse
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.main import get_command

from dim.cli.main import app
from dim.config import CLASSIFIER_NAMES
from dim.presets import PRESETS
from lab import core_hours, image_measures
from lab.core_hours import estimate_hours
from lab.reproduce import INTERRUPTED, UNFINISHED, Stage, list_hours, list_stages, main, run_command, run_stages

ROOT = Path(__file__).parents[2]
FOREVER = float("inf")


def stages_of(out: Path, *data: str, gpus: int = 2, **changes: str) -> list[Stage]:
    options = {"preset": "best", "seeds": 3, "recipe": "holdout", "distill": "", "evaluate": "", "ablation": "full"}
    options["plan"] = "full"
    return list_stages(argparse.Namespace(**(options | {"out": out, "data": data or ("mnist",)} | changes)), gpus)


class Machine:
    """Leaves behind the files by which a command shows that it has finished."""

    def __init__(self, **codes: int) -> None:
        self.codes, self.ran = codes, list[str]()
        self.unfinished = ""

    def __call__(self, words: Sequence[str], stdout: Path | None) -> int:
        line = shlex.join(words)
        self.ran.append(line)
        out = Path(words[words.index("--out") + 1]) if "--out" in words else Path()
        code = next((code for name, code in self.codes.items() if f"/{name.replace('_', '-')} " in line), 0)
        unfinished = bool(self.unfinished) and self.unfinished in line
        if "distill" in words and not code and not unfinished:
            out.mkdir(parents=True, exist_ok=True)
            (out / "generator.safetensors").touch()
        if "eval" in words or "--holdout" in words:
            out.mkdir(parents=True, exist_ok=True)
            (out / "results.json").write_text(json.dumps({"finished": not unfinished}))
        if stdout:
            stdout.write_text("--steps 7 --matching-steps 5\n")
        return code


def test_the_most_valuable_cells_come_first(tmp_path: Path) -> None:
    names = [stage.name for stage in stages_of(tmp_path, "cifar10", "mnist")]
    assert names[:5] == [
        "cifar10",
        "cifar10-bundle",
        "cifar10-convnet3-10",
        "cifar10-resnet18-10",
        "cifar10-convnet3-50",
    ]
    assert names.index("mnist-int8") < names.index("speed") < names.index("cifar10-paper")
    assert names[-2:] == ["ablation-cifar10", "ablation-mnist"] and len(set(names)) == len(names)


def test_the_plan_for_a_cpu_goes_from_bundles_to_ever_dearer_rows(tmp_path: Path) -> None:
    names = [stage.name for stage in stages_of(tmp_path, "mnist", "cifar10", plan="rows")]
    assert names[:5] == ["mnist", "mnist-bundle", "mnist-convnet3-10", "mnist-convnet3-1", "mnist-convnet3-50"]
    later = [
        "cifar10-convnet3-50",
        "mnist-published",
        "cifar10-published",
        "mnist-resnet18-10",
        "cifar10-resnet18-50",
        "mnist-images",
        "mnist-few",
        "mnist-reference",
    ]
    later += ["cifar10-networks", "cifar10-paper", "cifar10-against-cifar10-stage1", "cifar10-convnet3-500"]
    assert [names.index(name) for name in later] == sorted(names.index(name) for name in later)
    assert not {"mnist-networks", "mnist-paper", "mnist-convnet3-500", "cifar10-paper-loss"} & set(names)
    assert len(set(names)) == len(names)


def test_core_hours_are_those_of_every_image_and_step(tmp_path: Path) -> None:
    speeds = {"stage1": 3600.0, "stage2": 1800.0, "pool": 900.0, "draw": 0.01, "classes": 10}
    known = {"mnist": {**speeds, "students": {"convnet3": 0.001, "resnet18": 0.02}}}
    hours = {
        stage.name: estimate_hours(stage.line, known)
        for stage in stages_of(tmp_path, "mnist", plan="rows", evaluate="--epochs 100")
    }
    assert hours["mnist"] == pytest.approx(1.75 * 1.05) and hours["mnist-bundle"] == 0
    # 10,000 images per student: three each of the bundle and of real images, fixed and stream, and of the archive.
    students, drawn = 3 * (2 + 3) * 10_000 * 0.001, 3 * 10_000 * 0.01
    chosen = 9 * 2 * 3 * 10_000 * 0.001
    assert hours["mnist-convnet3-10"] == pytest.approx((students + drawn + chosen) / 3600)
    assert hours["mnist-convnet3-50"] == pytest.approx(5 * (students + drawn) / 3600)
    # One and the same stream for the bundle and for all three parts of real images, which are also shown alone.
    assert hours["mnist-few"] == pytest.approx(3 * 10_000 * (7 * 0.001 + 0.01) / 3600)
    assert hours["mnist-images"] == 0
    assert hours["mnist-reference"] == pytest.approx(10_000 * (2 * 0.001 + 0.01) / 3600)
    assert hours["mnist-resnet18-50"] == pytest.approx(50_000 * (2 * 0.02 + 0.01) / 3600)
    stages = stages_of(tmp_path, "mnist", plan="rows")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "mnist.core-seconds").write_text("3600\n")
    lines = list_hours(stages[:2], tmp_path, {"mnist": 3.5, "mnist-bundle": 0.1})
    assert [" ".join(line.split()) for line in lines] == [
        "mnist 3.5 core-hours 1.0 spent begun",
        "mnist-bundle 0.1 core-hours 0.0 spent",
        "left 2.6 core-hours",
    ]


@pytest.mark.slow
def test_speeds_are_timed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(core_hours, "ARCHITECTURES", ("convnet3", "resnet18"))
    monkeypatch.setattr(image_measures, "can_compile", lambda *_: False)
    line = ["--plan", "rows", "--data", "digits", "--preset", "tiny", "--hours", "--out", str(tmp_path)]
    assert main(line) == 0
    speeds = json.loads((tmp_path / "speeds.json").read_text())["digits tiny"]
    assert all(speeds[part] > 0 for part in ("stage1", "stage2", "pool", "draw"))
    assert speeds["students"]["resnet18"] > speeds["students"]["convnet3"] > 0
    assert "digits-convnet3-10" in capsys.readouterr().err and not list(tmp_path.glob("digits*"))
    monkeypatch.setattr(core_hours, "time_steps", None)
    assert main(line) == 0


def test_what_stages_took_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage("busy", "python -c 'sum(range(10**7))'")
    assert run_stages([stage], tmp_path, FOREVER, run_command, {"busy": 1.25}) == 0
    assert int((tmp_path / "done" / "busy.core-seconds").read_text()) >= 0
    assert "busy: about 1.2 core-hours, 0.0 spent." in capsys.readouterr().err


def test_every_line_has_options_that_its_program_knows(tmp_path: Path) -> None:
    known = {
        f"dim {name}": {flag for p in command.params for flag in p.opts}
        for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    for name in ("ablation", "distill_speed", "processes"):
        source = (ROOT / "lab" / f"{name}.py").read_text()
        known[f"lab.{name}"] = set(re.findall(r'add_argument\(\s*"(--[a-z0-9-]+)"', source))
    for stage in stages_of(tmp_path) + stages_of(tmp_path, "cifar10", plan="rows"):
        words = shlex.split(stage.line)
        program = words[2] if words[0] == "python" else " ".join(words[:2])
        assert {word for word in words if word.startswith("--")} <= known[program], stage.line
        for option, value in zip(words[:-1], words[1:], strict=True):
            if option == "--preset":
                assert value in ({"full"} if program == "dim eval" else PRESETS), stage.line
            if option == "--arch":
                assert set(value.split(",")) <= set(CLASSIFIER_NAMES), stage.line


def test_nothing_is_done_twice_and_what_changed_is_done_again(tmp_path: Path) -> None:
    machine, stages = Machine(), stages_of(tmp_path, "mnist")
    assert run_stages(stages, tmp_path, FOREVER, machine) == 0
    assert len(machine.ran) == len(stages)
    (paper,) = [line for line in machine.ran if "--preset paper" in line and "distill" in line and "speed" not in line]
    assert paper.endswith("--preset paper --steps 7 --matching-steps 5")
    results = {path.stem for path in (tmp_path / "results").iterdir()}
    assert {"mnist-convnet3-10", "mnist-int8", "mnist-against-mnist-paper", "ablation-mnist"} <= results
    assert run_stages(stages, tmp_path, FOREVER, again := Machine()) == 0 and again.ran == []
    longer = stages_of(tmp_path, "mnist", evaluate="--epochs 9")
    assert run_stages(longer, tmp_path, FOREVER, again) == 0
    assert (
        len(again.ran) == sum(" eval " in line for line in machine.ran) == sum(" eval " in line for line in again.ran)
    )
    mark = tmp_path / "done" / "mnist-stage1-bundle"
    newest = max(path.stat().st_mtime_ns for path in mark.parent.iterdir())
    os.utime(mark, ns=(newest + 1, newest + 1))
    assert run_stages(longer, tmp_path, FOREVER, once := Machine()) == 0
    (line,) = once.ran
    assert "'stage 1 alone=" in line


def test_another_folder_with_the_same_files_is_as_far(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert run_stages(stages_of(tmp_path / "a"), tmp_path / "a", FOREVER, Machine()) == 0
    (tmp_path / "a").rename(tmp_path / "b")
    assert run_stages(stages_of(tmp_path / "b"), tmp_path / "b", FOREVER, machine := Machine()) == 0 and not machine.ran


def test_what_fails_is_left_out_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(mnist_stage1=1)
    stages = stages_of(tmp_path, "mnist", "svhn")
    assert run_stages(stages, tmp_path, FOREVER, machine) == 1
    said = capsys.readouterr().err
    assert "mnist-stage1 failed with exit code 1; everything else goes on.\n" in said
    assert "mnist-against-mnist-stage1 is left out: it needs mnist-stage1-bundle.\n" in said
    assert said.endswith(": mnist-stage1, mnist-stage1-bundle, mnist-against-mnist-stage1.\n")
    assert len(machine.ran) == len(stages) - 2
    assert run_stages(stages, tmp_path, FOREVER, again := Machine()) == 0 and len(again.ran) == 3


@pytest.mark.parametrize("kind", ["distill", "eval"])
def test_a_piece_ends_in_time_and_the_next_goes_on(tmp_path: Path, kind: str) -> None:
    machine, stages = Machine(), stages_of(tmp_path)
    machine.unfinished = f" {kind} "
    assert run_stages(stages, tmp_path, 540.0, machine) == UNFINISHED
    assert f" {kind} " in machine.ran[-1] and re.search(r"--time-limit 5[34]\ds$", machine.ran[-1])
    assert run_stages(stages, tmp_path, 0.0, late := Machine()) == UNFINISHED and late.ran == []
    assert run_stages(stages, tmp_path, FOREVER, rest := Machine()) == 0
    assert f" {kind} " in rest.ran[0] and "--time-limit" not in rest.ran[0]


@pytest.mark.parametrize("code", [2, INTERRUPTED, 143])
def test_ctrl_c_and_options_that_do_not_parse_end_it(tmp_path: Path, code: int) -> None:
    machine = Machine(mnist=code)
    assert run_stages(stages_of(tmp_path), tmp_path, FOREVER, machine) == code
    assert len(machine.ran) == 1 and not (tmp_path / "done" / "mnist").exists()


def test_the_list_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--data", "my photos/", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"dim distill --data 'my photos/' --out {tmp_path}/my-photos --resume ")
    with pytest.raises(SystemExit):
        main(["--out", "my out"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--out", str(ROOT / "runs")])
    assert "lies in the repository; give a folder outside it" in capsys.readouterr().err
