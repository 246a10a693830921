"""`lab/reproduce.sh`, with a `dim` that only leaves the files behind by which the script sees what is done."""

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

from dim.cli.main import app
from dim.networks.classifiers import CLASSIFIER_NAMES
from dim.presets import PRESETS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "lab" / "reproduce.sh"
FAKE = """#!/usr/bin/env bash
if [ "${0##*/}" = nvidia-smi ]; then
    for ((i = 0; i < GPUS; i++)); do echo "GPU $i: a fake (UUID: GPU-$i)"; done
    exit
fi
line=${0##*/}
for word in "$@"; do case $word in *' '*) line+=" '$word'" ;; *) line+=" $word" ;; esac; done
line=${line//"$HERE/"/}
echo "$line" >> "$CALLS"
if [ -n "$WAITING" ] && [[ $line =~ $WAITING ]]; then exec sleep 60; fi
if [ -n "$FAILING" ] && [[ $line =~ $FAILING ]]; then
    [ -z "$SILENT" ] && printf 'Trying.\\n\\nError: it broke.\\n' >&2
    exit "$CODE"
fi
for ((i = 1; i <= $#; i++)); do [ "${!i}" = --out ] && { next=$((i + 1)); out=${!next}; }; done
case "$1 $*" in
    doctor*) echo "Recommended engine: $ENGINE" ;;
    distill*)
        mkdir -p "$out/checkpoints"
        echo "$line" > "$out/config.json"
        touch "$out/checkpoints/stage1-00000009.json" "$out/checkpoints/stage1-00000004.json"
        head -c "$BYTES" /dev/zero > "$out/checkpoints/stage1-00000009.safetensors"
        if [ -n "$UNFINISHED" ] && [[ $out =~ $UNFINISHED$ ]]; then exit; fi
        touch "$out/generator.safetensors"
        ;;
    export*.dim*) touch "$2/generator.int8.onnx" ;;
    export*)
        mkdir "$2/bundle.dim"
        printf '{\\n  "accuracy": [{\\n      "content_id": "none"}],\\n  "content_id": "%s",\\n}' \\
            "$(sha256sum < "$2/config.json")" > "$2/bundle.dim/manifest.json"
        ;;
    *--equal-seconds*) echo "--steps 7 --matching-steps 5 --set pool.epoch_steps=3" ;;
    *distill.py* | *processes.py*) echo '{}' > "$out" ;;
    *)
        mkdir -p "$out/recipe"
        touch "$out/recipe/recipe.json"
        finished=true
        if [ -n "$UNMEASURED" ] && [[ $line =~ $UNMEASURED ]]; then finished=false; fi
        [ "$finished $NOTHING" = "false 1" ] || echo "{\\"finished\\": $finished, \\"rows\\": []}" > "$out/results.json"
        ;;
esac
exit 0
"""
DEFAULTS = {"CODE": "1", "GPUS": "2", "ENGINE": "tensorrt", "BYTES": "5", "DATASETS": "cifar10 mnist"}
KNOBS = ("UNFINISHED", "FAILING", "WAITING", "SILENT", "UNMEASURED", "NOTHING", *DEFAULTS)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a call of the script left."""

    code: int
    lines: list[str]
    """The commands that it ran, without folders, and without `dim doctor`, of which there is one at most."""
    said: list[str]
    """The lines of stderr, without folders."""


def heed_interrupts() -> None:
    """A shell that starts the tests in the background has them ignore Ctrl-C, which bash then cannot trap."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin(tmp_path: Path, *datasets: str, **environment: str) -> "subprocess.Popen[str]":
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("dim", "python", "nvidia-smi"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    (tmp_path / "calls").write_text("")
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    settings = (
        dict.fromkeys(KNOBS, "")
        | DEFAULTS
        | {"PATH": path, "HERE": str(tmp_path), "CALLS": str(tmp_path / "calls")}
        | environment
    )
    return subprocess.Popen(
        ["bash", str(SCRIPT), str(tmp_path / "out"), *datasets],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def calls_so_far(tmp_path: Path) -> list[str]:
    text = (tmp_path / "calls").read_text()
    return text.replace(f"{tmp_path}/", "").replace(f"{SCRIPT.parent}/", "").splitlines()


def calls(tmp_path: Path, *datasets: str, **environment: str) -> Ended:
    """Run the script to its end."""
    process = begin(tmp_path, *datasets, **environment)
    _, stderr = process.communicate()
    lines = calls_so_far(tmp_path)
    assert lines.count("dim doctor") <= 1 and "dim doctor" not in lines[1:]
    said = stderr.replace(f"{tmp_path}/", "").splitlines()
    return Ended(code=process.returncode, lines=[line for line in lines if line != "dim doctor"], said=said)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The commands of a script that was left alone."""
    ended = calls(tmp_path_factory.mktemp("whole"), ABLATION="full", SIZE="16", TIME_LIMIT="1h")
    assert ended.code == 0
    return ended.lines


def of(lines: list[str], *words: str) -> list[str]:
    return [line for line in lines if all(word in line for word in words)]


def test_the_most_valuable_cells_come_first(whole: list[str]) -> None:
    lines = whole
    assert lines[0].startswith("dim distill --data cifar10 --out out/cifar10 --resume --time-limit ")
    assert lines[0].endswith("s --preset best --set deployment.teacher=convnet3")
    assert lines[1:3] == [
        "dim export out/cifar10 --precision fp32,fp16",
        "dim export out/cifar10/bundle.dim --precision int8",
    ]
    cells = [re.search(r"--ipc (\d+) --arch (\w+)", line) for line in lines[3:9]]
    assert [cell.groups() for cell in cells if cell] == [
        (ipc, arch) for ipc in ("10", "50", "1") for arch in ("convnet3", "resnet18")
    ]
    assert all(len(of([line], "--preset full --recipe", "--record", "--seeds 3")) == 1 for line in lines[3:9])
    distilled = [line.split("--out ")[1].split()[0] for line in of(lines, "dim distill")]
    rivals = ("-paper", "-stage1", "-paper-loss", "-unmatched")
    assert distilled == ["out/cifar10", "out/mnist", *(f"out/{n}{r}" for n in ("cifar10", "mnist") for r in rivals)]
    ablations = of(lines, "ablation.py", "--holdout")
    assert lines[-2:] == ablations and all("--full" in line and "--size 16" in line for line in ablations)


def test_the_recipe_is_chosen_once_per_dataset_and_given_to_every_line(whole: list[str]) -> None:
    for name in ("cifar10", "mnist"):
        lines_of = of(whole, "dim eval", f"--data {name} ")
        assert [("--recipe holdout" in line) for line in lines_of] == [True] + [False] * (len(lines_of) - 1)
        assert all(f"--recipe out/eval-{name}/recipe/recipe.json" in line for line in lines_of[1:])
        # The last of two options counts.
        assert len(of(lines_of, "--recipe published", "--ipc 10,50 --arch convnet3,resnet18,resnet18-half")) == 1
        small = of(lines_of, "--ipc 10,50,1 ", "--mode fixed", "--recipe condensation")
        assert [re.findall(r"--recipe (condensation\S*)", line) for line in small] == [
            ["condensation"],
            ["condensation-all"],
        ]
        assert not of(lines_of, "--epochs") and not of(lines_of, "--jobs")


def test_the_speed_of_distilling_is_measured_on_gpus_alone_and_that_of_several_where_there_are(
    tmp_path: Path, whole: list[str]
) -> None:
    speeds = of(whole, "lab/distill_speed.py")
    assert [("--compile on" in line) for line in speeds] == [False, False, True]
    (several,) = of(whole, "lab/processes.py")
    assert several.endswith("--device gpu --out out/results/processes-gpu.json")
    assert not of(calls(tmp_path, "mnist", GPUS="1").lines, "lab/processes.py")


def test_every_control_and_column_of_the_page_is_run(whole: list[str]) -> None:
    lines = [line for line in whole if "mnist" not in line]
    (paper,) = of(lines, "dim distill", "--preset paper")
    assert paper.endswith("--preset paper --steps 7 --matching-steps 5 --set pool.epoch_steps=3")
    (timing,) = of(lines, "ablation.py", "--data cifar10 ", "--equal-seconds ")
    assert lines.index(timing) < lines.index(paper)
    assert of(lines, "out/cifar10-stage1 ", "--preset best --matching-steps 0")
    assert of(lines, "out/cifar10-paper-loss ", "--matching-loss paper")
    assert of(lines, "--set deployment.teacher=convnet3") == [lines[0]]
    (compared,) = of(lines, "--compare paper=out/cifar10-paper/bundle.dim")
    assert "--ipc 10,50,1 " in compared
    (controls,) = of(lines, "--compare 'stage 1 alone=", "--compare 'paper loss=", "--compare 'no matching=")
    assert of(lines, "--soft") and of(lines, "--whole-epochs 50") and of(lines, "--ipc 100,500")
    assert of(lines, "--precision int8") and of(lines, "lab/distill_speed.py", "--device gpu")
    (networks,) = of(lines, "--arch resnet10,")
    archs = set(networks.split("--arch ")[1].split()[0].split(","))
    left_out = {"resnetap10", "resnetap18", "resnetap18-half"}
    assert archs | {"convnet3", "resnet18"} == set(CLASSIFIER_NAMES) - left_out


def test_every_line_has_options_that_its_program_knows(whole: list[str]) -> None:
    known = {
        f"dim {name}": {flag for p in command.params for flag in p.opts}
        for name, command in get_command(app).commands.items()
    }
    for name in ("ablation", "distill_speed", "processes"):
        source = (ROOT / "lab" / f"{name}.py").read_text()
        known[f"python ../lab/{name}.py"] = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', source))
    for line in whole:
        program = " ".join(line.split()[:2])
        words = line.split()[2:]
        assert {re.sub(r"\d", "", word) for word in words if word.startswith("--from")} <= {"--from-stage"}
        assert {word for word in words if word.startswith("--")} <= known[program], line
        for option, value in zip(words[:-1], words[1:], strict=True):
            if option == "--preset":
                assert value in ({"full"} if program == "dim eval" else PRESETS), line
            if option == "--arch":
                assert set(value.split(",")) <= set(CLASSIFIER_NAMES), line
    assert {" ".join(line.split()[:2]) for line in whole} == {
        "dim distill", "dim export", "dim eval", "python ../lab/ablation.py", "python ../lab/distill_speed.py",
        "python ../lab/processes.py",
    }  # fmt: skip


def test_rivals_begin_with_our_stage_1_and_train_it_where_it_is_gone(whole: list[str], tmp_path: Path) -> None:
    taken = of(whole, "dim distill", "--from-stage1 out/mnist ")
    assert [line.split("--out out/mnist")[1].split()[0] for line in taken] == ["-stage1", "-paper-loss", "-unmatched"]
    assert len(of(whole, "--from-stage1")) == 2 * len(taken)
    calls(tmp_path, "mnist", UNFINISHED="mnist-stage1")
    for path in (tmp_path / "out" / "mnist" / "checkpoints").iterdir():
        path.unlink()
    again = calls(tmp_path, "mnist")
    assert again.code == 0 and len(of(again.lines, "dim distill")) == 3 and not of(again.lines, "--from-stage1")


def test_nothing_is_done_twice_and_every_line_leaves_results_of_its_own(tmp_path: Path) -> None:
    first = calls(tmp_path, "mnist", ABLATION="1")
    assert first.code == 0 and first.lines
    assert calls(tmp_path, "mnist", ABLATION="1") == Ended(code=0, lines=[], said=[])
    assert calls_so_far(tmp_path) == []  # nor is the machine examined
    kept = {path.name for path in (tmp_path / "out" / "results").iterdir()}
    measured = of(first.lines, "dim eval") + of(first.lines, "--holdout") + of(first.lines, "lab/distill_speed.py")
    measured += of(first.lines, "lab/processes.py")
    assert len(kept) == len(measured)
    assert {"mnist-convnet3-10.json", "mnist-int8.json", "ablation-mnist.json", "distill-gpu.json"} <= kept
    again = calls(tmp_path, "mnist", SEEDS="5").lines
    assert len(again) == len(of(first.lines, "dim eval")) and all("--seeds 5" in line for line in again)


def test_another_out_with_the_same_files_is_as_far(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert calls(tmp_path / "a", "mnist").code == 0
    shutil.move(tmp_path / "a" / "out", tmp_path / "b" / "out")
    assert calls(tmp_path / "b", "mnist").lines == []


def test_a_new_distillation_is_measured_again(tmp_path: Path) -> None:
    first = calls(tmp_path, "mnist")
    run = tmp_path / "out" / "mnist-unmatched"
    shutil.rmtree(run / "bundle.dim")
    assert calls(tmp_path, "mnist").lines == ["dim export out/mnist-unmatched --precision fp32"]
    (run / "bundle.dim" / "manifest.json").write_text('{\n  "content_id": "another",\n}')
    (again,) = calls(tmp_path, "mnist").lines
    assert again in first.lines and "--compare 'no matching=" in again
    shutil.rmtree(tmp_path / "out" / "mnist")
    (tmp_path / "out" / "done" / "mnist.run").unlink()
    ended = calls(tmp_path, "mnist", DISTILL="--seed 3")
    assert (ended.code, ended.lines) == (2, []) and ended.said[0].startswith("out/mnist-stage1 was begun with ")
    for name in ("stage1", "paper-loss", "unmatched"):
        shutil.rmtree(tmp_path / "out" / f"mnist-{name}")
        (tmp_path / "out" / "done" / f"mnist-{name}.run").unlink()
    again = calls(tmp_path, "mnist", DISTILL="--seed 3").lines
    assert len(of(again, "dim distill", "--seed 3")) == len(of(again, "dim distill")) == 4
    assert of(again, "dim eval")[1:5] == of(first.lines, "dim eval")[1:5]
    # The published recipe gets other seconds now, and may get other options.
    assert len(of(again, "--equal-seconds")) == 1
    (tmp_path / "out" / "mnist-paper.options").write_text("--steps 9\n")
    ended = calls(tmp_path, "mnist", DISTILL="--seed 3")
    assert ended.code == 2 and ended.said[-1].startswith("out/mnist-paper was begun with ")


def test_other_options_for_a_run_that_is_there_are_refused(tmp_path: Path) -> None:
    assert calls(tmp_path, "mnist", UNFINISHED="/mnist").code == 75
    for changed in ({"PRESET": "small"}, {"DISTILL": "--steps 5"}):
        ended = calls(tmp_path, "mnist", **changed)
        options = {"PRESET": "--preset small", "DISTILL": "--preset best --steps 5"}[next(iter(changed))]
        assert (ended.code, ended.lines) == (2, [])
        assert ended.said == [
            "out/mnist was begun with  --data mnist --preset best --set deployment.teacher=convnet3  and not with  "
            f"--data mnist {options} --set deployment.teacher=convnet3: choose another OUT, or remove out/mnist and "
            "out/done/mnist.run."
        ]
    assert calls(tmp_path, "mnist").code == 0


def test_a_run_without_a_mark_is_left_to_the_check_of_dim(tmp_path: Path) -> None:
    assert calls(tmp_path, "mnist").code == 0
    (tmp_path / "out" / "done" / "mnist.run").unlink()
    (line,) = calls(tmp_path, "mnist").lines
    assert line.startswith("dim distill --data mnist --out out/mnist --resume ")
    assert calls(tmp_path, "mnist").lines == []


def test_sizes_for_a_short_session(tmp_path: Path) -> None:
    ended = calls(tmp_path, "mnist", DISTILL="--steps 80 --matching-steps 15", EPOCHS="9", RECIPE="default")
    assert ended.code == 0
    distilled = of(ended.lines, "dim distill")
    for line in distilled:
        assert ("--preset best --steps 80 --matching-steps 15" in line) == ("mnist-paper " not in line)
    (stage1,) = of(distilled, "mnist-stage1")
    assert stage1.endswith("--matching-steps 15 --matching-steps 0")  # the last of two options counts
    measured = of(ended.lines, "dim eval")
    assert len(of(measured, "--recipe default --epochs 9")) == len(measured) == len(of(measured, "--seeds 3"))
    assert len(of(measured, "--recipe published")) == 1
    again = calls(tmp_path, "mnist", DISTILL="--steps 80 --matching-steps 15", EPOCHS="9", RECIPE="my/recipe.json")
    assert len(of(again.lines, "dim eval", "--recipe my/recipe.json")) == len(again.lines) == len(measured)


@pytest.mark.parametrize("limit", ["9m", "1h"])
def test_the_first_unfinished_distillation_ends_the_piece(tmp_path: Path, limit: str) -> None:
    ended = calls(tmp_path, TIME_LIMIT=limit, UNFINISHED="out/cifar10", ABLATION="1")
    assert ended.code == 75 and len(ended.lines) == 1
    assert ended.lines[0].startswith("dim distill --data cifar10 ")
    seconds = int(re.findall(r"--time-limit (\d+)s", ended.lines[0])[0])
    assert {"9m": 540, "1h": 3600}[limit] - 5 <= seconds <= {"9m": 540, "1h": 3600}[limit]
    assert ended.said[-1].endswith("out/cifar10 is not finished. Run the same line again to go on.")


@pytest.mark.parametrize("nothing", ["", "1"])
def test_an_unfinished_evaluation_ends_the_piece_without_a_mark(tmp_path: Path, nothing: str) -> None:
    """The time limit may end it before there are any results, in the choice of the recipe."""
    ended = calls(tmp_path, "mnist", TIME_LIMIT="9m", UNMEASURED="--ipc 50 ", NOTHING=nothing)
    assert ended.code == 75 and "--ipc 50 --arch convnet3" in ended.lines[-1]
    assert 530 <= int(re.findall(r"--time-limit (\d+)s", ended.lines[-1])[0]) <= 540
    assert ended.said[-1] == "The evaluation mnist-convnet3-50 is not finished. Run the same line again to go on."
    assert not (tmp_path / "out" / "results" / "mnist-convnet3-50.json").exists()
    again = calls(tmp_path, "mnist")
    assert again.code == 0 and "--ipc 50 --arch convnet3" in again.lines[0] and "--time-limit" not in again.lines[0]


def test_an_unfinished_rival_ends_the_piece_before_the_ablation(tmp_path: Path) -> None:
    ended = calls(tmp_path, "mnist", TIME_LIMIT="9m", UNFINISHED="out/mnist-stage1", ABLATION="1")
    assert ended.code == 75 and ended.lines[-1].startswith("dim distill --data mnist --out out/mnist-stage1 ")
    assert not of(ended.lines, "--holdout")
    ended = calls(tmp_path, "mnist", TIME_LIMIT="9m")
    assert ended.code == 0 and not of(ended.lines, "ablation.py")  # only when asked


def test_a_piece_whose_time_is_over_begins_nothing(tmp_path: Path) -> None:
    ended = calls(tmp_path, TIME_LIMIT="0s")
    said = "The time limit is over and there is more to do. Run the same line again to go on."
    assert ended == Ended(code=75, lines=[], said=[said]) and calls_so_far(tmp_path) == []
    ended = calls(tmp_path, TIME_LIMIT="soon")
    assert ended == Ended(code=2, lines=[], said=["TIME_LIMIT is soon; it takes a time such as 90s, 9m or 1h30m."])


GONE = {
    # what fails: its name, words of the lines that are left out because of it, words of some that are not
    "dim distill --data cifar10 ": ("cifar10", ["--bundle out/cifar10/"], ["--bundle out/mnist/"]),
    "export out/mnist --precision": ("mnist", ["--bundle out/mnist/"], ["--bundle out/cifar10/"]),
    "export out/mnist/bundle.dim": ("mnist-int8", ["mnist .*--precision int8 --record"], ["mnist .*--ipc 10 "]),
    "eval --bundle out/mnist/.*--ipc 50 --arch resnet18 ": ("mnist-resnet18-50", [], ["mnist .*--ipc 1 "]),
    "mnist .*--equal-seconds": ("mnist-paper", ["out/mnist-paper "], ["out/mnist-stage1 "]),
    "distill --data mnist --out out/mnist-paper ": (
        "mnist-paper",
        ["paper=out/mnist-paper/"],
        ["'paper loss=out/mnist-"],
    ),
    "export out/mnist-stage1 ": ("mnist-stage1", ["1 alone=out/mnist"], ["'no matching=out/mnist"]),
    "distill_speed.py --preset paper": ("speed", [], ["distill_speed.py --preset best"]),
    "mnist .*--holdout": ("ablation-mnist", [], ["cifar10 .*--holdout"]),
}


@pytest.mark.parametrize("failing", GONE)
def test_what_fails_is_left_out_and_everything_else_goes_on(tmp_path: Path, whole: list[str], failing: str) -> None:
    name, without, others = GONE[failing]
    ended = calls(tmp_path, FAILING=failing, ABLATION="full")
    assert ended.code == 1
    assert (tmp_path / "out" / "failed" / name).read_text() == "Error: it broke.\n"
    left_out = (
        f"{name} failed and is left out, with what needs it: Error: it broke. Remove out/failed/{name} to try it again."
    )
    assert ended.said.count(left_out) == 1
    assert ended.said[-1] == f"All else is done. These failed, and out/failed/ says why: {name}."
    ran = "\n".join(ended.lines)
    assert len(re.findall(failing, ran)) == 1
    assert not any(re.search(words, ran) for words in without)
    assert all(re.search(words, ran) for words in others)
    assert ended.lines[-1].startswith("python ../lab/ablation.py --out out/ablation-mnist ")
    again = calls(tmp_path, ABLATION="full")
    assert (again.code, again.lines, again.said) == (1, [], [left_out, ended.said[-1]])
    (tmp_path / "out" / "failed" / name).unlink()
    again = calls(tmp_path, ABLATION="full")
    assert again.code == 0 and re.search(failing, again.lines[0])
    assert calls(tmp_path, ABLATION="full").lines == []


def test_what_fails_in_silence_leaves_its_code(tmp_path: Path) -> None:
    assert calls(tmp_path, "mnist", FAILING="dim distill", SILENT="1", CODE="137").code == 1
    assert (tmp_path / "out" / "failed" / "mnist").read_text() == "It ended with exit code 137.\n"


def test_a_failure_is_no_end_while_there_is_more_to_do(tmp_path: Path) -> None:
    ended = calls(tmp_path, FAILING="distill --data cifar10", UNFINISHED="out/mnist")
    assert ended.code == 75 and (tmp_path / "out" / "failed" / "cifar10").exists()


@pytest.mark.parametrize("code", [2, 127, 130, 143])
@pytest.mark.parametrize("failing", ["dim distill", "dim eval"])
def test_signals_and_options_that_do_not_parse_end_the_script(tmp_path: Path, failing: str, code: int) -> None:
    ended = calls(tmp_path, "mnist", FAILING=failing, CODE=str(code))
    assert ended.code == code and ended.lines[-1].startswith(failing)
    assert not list((tmp_path / "out" / "failed").iterdir())
    assert calls(tmp_path, "mnist").lines[0].startswith(failing)  # it goes on with what was stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("waiting", ["doctor", "distill", "eval"])
def test_a_signal_to_all_processes_stops_the_script_at_once(tmp_path: Path, waiting: str, number: int) -> None:
    process = begin(tmp_path, "mnist", WAITING=waiting, STATE=str(tmp_path / "state"))
    deadline = time.monotonic() + 20
    while not of(calls_so_far(tmp_path), f"dim {waiting}") and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    os.killpg(process.pid, number)
    process.communicate(timeout=20)
    assert process.returncode in (-number, 128 + number)
    assert calls_so_far(tmp_path)[-1].startswith(f"dim {waiting}")
    assert not list((tmp_path / "out" / "failed").iterdir()) and not (tmp_path / "state").exists()


def test_the_machine_is_described_before_anything_begins(tmp_path: Path) -> None:
    said = calls(tmp_path, "mnist", UNFINISHED="mnist").said
    assert said[0] == "Recommended engine: tensorrt" and not of(said, "NVIDIA")
    for engine in ("onnxruntime-cpu", "none works, see below"):
        said = calls(tmp_path, "mnist", UNFINISHED="mnist", ENGINE=engine).said
        assert said[:2] == [
            f"Recommended engine: {engine}",
            "There is an NVIDIA GPU here, and no engine draws on it: PyTorch draws the images of the evaluation. "
            "For the engine  pip uninstall -y onnxruntime && pip install 'dim-distill[gpu]'",
        ]
    ended = calls(tmp_path, "mnist", UNFINISHED="mnist", FAILING="doctor", CODE="7", SILENT="1")
    assert ended.code == 75 and ended.said[0] == "dim doctor ended with exit code 7."


def test_pytorch_draws_where_no_engine_does_on_the_gpu(tmp_path: Path) -> None:
    for engine, drawing in (("tensorrt", False), ("onnxruntime-cuda", False), ("onnxruntime-cpu", True)):
        out = tmp_path / engine
        out.mkdir()
        evaluations = of(calls(out, "mnist", WHOLE_EPOCHS="0", ENGINE=engine, JOBS="5").lines, "dim eval")
        assert len(evaluations) > 6 and not of(evaluations, "--whole-epochs")
        assert len(of(evaluations, " --jobs 5 ")) == len(evaluations)
        for line in evaluations:
            assert (" --engine torch " in line) == (drawing and " --precision int8 " not in line)
        assert of(evaluations, "--precision int8")


def test_a_folder_of_the_user_has_file_names_of_its_own(tmp_path: Path) -> None:
    ended = calls(tmp_path, "./pets and/my photos/")
    assert ended.code == 0
    assert ended.lines[0].startswith("dim distill --data './pets and/my photos/' --out out/my-photos --resume ")
    assert (tmp_path / "out" / "results" / "my-photos-convnet3-10.json").exists()
    ended = calls(tmp_path, "a/photos", "b/photos")
    assert (ended.code, ended.lines) == (2, [])
    assert ended.said[-1].startswith("a/photos and b/photos would share the name photos in ")


def test_the_published_recipe_gets_the_seconds_of_all_pieces(tmp_path: Path) -> None:
    calls(tmp_path, "mnist", UNFINISHED="out/mnist")
    times = tmp_path / "out" / "mnist.seconds"
    assert times.read_text() in ("0\n", "1\n")
    times.write_text("100\n23\n")
    lines = calls(tmp_path, "mnist").lines
    assert 123 <= int(re.findall(r"--equal-seconds (\d+)", "\n".join(lines))[0]) < 153  # a busy machine adds some
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "out").mkdir()
    (tmp_path / "lost" / "out" / "mnist.seconds").write_text("100\n")
    lines = calls(tmp_path / "lost", "mnist").lines  # of a run that is not there
    assert int(re.findall(r"--equal-seconds (\d+)", "\n".join(lines))[0]) < 100


def parts(state: Path) -> list[int]:
    assert [path.name for path in sorted(state.iterdir())] == [
        f"state.tar.{n:02}" for n in range(len(list(state.iterdir())))
    ]
    return [path.stat().st_size for path in sorted(state.iterdir())]


def left_by(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != ".said"}


def test_a_bare_machine_goes_on_with_the_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    ended = calls(tmp_path, "mnist", STATE=str(state), UNMEASURED="--ipc 50 ", TIME_LIMIT="9m")
    assert ended.code == 75 and len(parts(state)) == 1
    out = tmp_path / "out"
    shutil.move(out, tmp_path / "before")
    ended = calls(tmp_path, "mnist", STATE=str(state), UNFINISHED="mnist-stage1")
    assert ended.code == 75 and ended.said[0] == "Unpacked state into out."
    assert "--ipc 50 --arch convnet3" in ended.lines[0]  # neither distilled nor measured again
    assert left_by(tmp_path / "before") - left_by(out) == {"mnist/checkpoints/stage1-00000004.json"}
    shutil.rmtree(out)
    ended = calls(tmp_path, "mnist", STATE=str(state))
    assert ended.code == 0 and ended.lines[0].startswith("dim distill --data mnist --out out/mnist-stage1 --resume ")
    assert of(ended.lines, "--from-stage1 out/mnist ", "mnist-unmatched")
    shutil.rmtree(out)
    assert calls(tmp_path, "mnist", STATE=str(state)).lines == []
    assert "mnist-stage1/checkpoints/stage1-00000009.safetensors" not in left_by(out)  # nothing needs it
    before = left_by(out)
    assert calls(tmp_path, "mnist", STATE=str(state), SEEDS="4").code == 0
    assert before <= left_by(out)  # what is there is not unpacked into


def test_a_state_with_a_failure_is_carried_too(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert calls(tmp_path, "mnist", STATE=str(state), FAILING="mnist-stage1").code == 1
    shutil.rmtree(tmp_path / "out")
    again = calls(tmp_path, "mnist", STATE=str(state))
    assert (again.code, again.lines) == (1, [])


def test_a_state_has_seven_parts_and_what_does_not_fit_is_told(tmp_path: Path) -> None:
    state, mib = tmp_path / "state", 1 << 20
    ended = calls(tmp_path, STATE=str(state), UNFINISHED="mnist", BYTES=str(40 * mib))
    assert ended.code == 75 and not of(ended.said, "no room")
    assert [size <= 15 * mib for size in parts(state)] == [True] * 6
    ended = calls(tmp_path, STATE=str(state), UNFINISHED="mnist", BYTES=str(110 * mib))
    assert [line for line in ended.said if "no room" in line] == [
        "STATE has no room for these 111 MiB: mnist/config.json mnist/checkpoints/stage1-00000009.safetensors "
        "mnist/checkpoints/stage1-00000009.json"
    ]
    assert sum(parts(state)) < 45 * mib
    shutil.rmtree(tmp_path / "out")
    ended = calls(tmp_path, STATE=str(state), UNFINISHED="mnist")
    assert len(ended.lines) == 1 and ended.lines[0].startswith("dim distill --data mnist --out out/mnist --resume ")
    assert (tmp_path / "out" / "mnist.seconds").read_text().count("\n") == 1


def test_a_damaged_state_is_not_gone_on_with(tmp_path: Path) -> None:
    state = tmp_path / "state"
    calls(tmp_path, "mnist", STATE=str(state), UNFINISHED="mnist")
    content = (state / "state.tar.00").read_bytes()
    (state / "state.tar.00").write_bytes(content[: content.index(b"dim distill") + 3])
    shutil.rmtree(tmp_path / "out")
    ended = calls(tmp_path, "mnist", STATE=str(state))
    assert ended.code not in (0, 75) and ended.lines == [] and of(ended.said, "tar: ")
