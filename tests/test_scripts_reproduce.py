"""`scripts/reproduce.sh`, with a `dim` that only leaves the files behind by which the script sees what is done."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from dim.classifiers import CLASSIFIER_NAMES
from dim.cli.main import app
from dim.presets import PRESETS

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "reproduce.sh"
FAKE = """#!/usr/bin/env bash
line=${0##*/}
for word in "$@"; do case $word in *' '*) line+=" '$word'" ;; *) line+=" $word" ;; esac; done
echo "$line" >> "$CALLS"
case "$line" in *"$FAILING"*) [ -z "$FAILING" ] || exit 3 ;; esac
for ((i = 1; i <= $#; i++)); do [ "${!i}" = --out ] && { next=$((i + 1)); out=${!next}; }; done
case "$1 $*" in
    distill*) mkdir -p "$out"; case "$out" in *"$UNFINISHED") [ -n "$UNFINISHED" ] ;; *) false ;; esac ||
        touch "$out/generator.safetensors" ;;
    export*) mkdir "$2/bundle.dim" ;;
    *--equal-seconds*) echo "--steps 7 --matching-steps 5 --set pool.epoch_steps=3" ;;
    *distill.py*) echo '{}' > "$out" ;;
    *) mkdir -p "$out/recipe"; echo '{}' > "$out/results.json"; touch "$out/recipe/recipe.json" ;;
esac
exit 0
"""


def calls(tmp_path: Path, *datasets: str, **environment: str) -> tuple[int, list[str], str]:
    """Run the script; return its exit code, the commands that it ran, without folders, and the last line of stderr."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("dim", "python", "nvidia-smi"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    log = tmp_path / "calls"
    log.write_text("")
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "CALLS": str(log), "UNFINISHED": "", "FAILING": "", "DATASETS": "cifar10 mnist"}
    ended = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out"), *datasets],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
    )
    lines = log.read_text().replace(f"{tmp_path}/", "").replace(f"{SCRIPT.parent}/", "").splitlines()
    return ended.returncode, lines, (ended.stderr.splitlines() or [""])[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The commands of a script that was left alone."""
    code, lines, _ = calls(tmp_path_factory.mktemp("whole"), ABLATION="full", SIZE="16", TIME_LIMIT="1h")
    assert code == 0
    return lines


def of(lines: list[str], *words: str) -> list[str]:
    return [line for line in lines if all(word in line for word in words)]


def test_the_most_valuable_cells_come_first(whole: list[str]) -> None:
    lines = whole
    assert lines[0].startswith("dim distill --data cifar10 --out out/cifar10 --resume --time-limit ")
    assert lines[0].endswith("s --preset best --set deployment.teacher=convnet3")
    assert lines[1] == "dim export out/cifar10 --precision fp32,fp16,int8"
    cells = [re.search(r"--ipc (\d+) --arch (\w+)", line) for line in lines[2:8]]
    assert [cell.groups() for cell in cells if cell] == [
        (ipc, arch) for ipc in ("10", "50", "1") for arch in ("convnet3", "resnet18")
    ]
    assert all(len(of([line], "--preset full --recipe", "--record", "--seeds 3")) == 1 for line in lines[2:8])
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


def test_every_control_and_column_of_the_page_is_run(whole: list[str]) -> None:
    lines = [line for line in whole if "mnist" not in line]
    (paper,) = of(lines, "dim distill", "--preset paper")
    assert paper.endswith("--steps 7 --matching-steps 5 --set pool.epoch_steps=3")
    (timing,) = of(lines, "ablation.py", "--data cifar10 ", "--equal-seconds 0")
    assert lines.index(timing) < lines.index(paper)
    assert of(lines, "out/cifar10-stage1 ", "--preset best --matching-steps 0")
    assert of(lines, "out/cifar10-paper-loss ", "--matching-loss paper")
    assert of(lines, "--set deployment.teacher=convnet3") == [lines[0]]
    (compared,) = of(lines, "--compare paper=out/cifar10-paper/bundle.dim")
    assert "--ipc 10,50,1 " in compared
    (controls,) = of(lines, "--compare 'stage 1 alone=", "--compare 'paper loss=", "--compare 'no matching=")
    assert of(lines, "--soft") and of(lines, "--whole-epochs 50") and of(lines, "--ipc 100,500")
    assert of(lines, "--precision int8") and of(lines, "bench/distill.py", "--device gpu")
    (networks,) = of(lines, "--arch resnet10,")
    archs = set(networks.split("--arch ")[1].split()[0].split(","))
    left_out = {"resnetap10", "resnetap18", "resnetap18-half"}
    assert archs | {"convnet3", "resnet18"} == set(CLASSIFIER_NAMES) - left_out


def test_every_line_has_options_that_its_program_knows(whole: list[str]) -> None:
    known = {
        f"dim {name}": {flag for p in command.params for flag in p.opts}
        for name, command in get_command(app).commands.items()
    }
    for name in ("ablation", "distill"):
        source = (ROOT / "bench" / f"{name}.py").read_text()
        known[f"python ../bench/{name}.py"] = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', source))
    for line in whole:
        program = " ".join(line.split()[:2])
        words = line.split()[2:]
        assert {word for word in words if word.startswith("--")} <= known[program], line
        for option, value in zip(words[:-1], words[1:], strict=True):
            if option == "--preset":
                assert value in ({"full"} if program == "dim eval" else PRESETS), line
            if option == "--arch":
                assert set(value.split(",")) <= set(CLASSIFIER_NAMES), line
    assert {" ".join(line.split()[:2]) for line in whole} == {
        "dim distill", "dim export", "dim eval", "python ../bench/ablation.py", "python ../bench/distill.py",
    }  # fmt: skip


def test_nothing_is_done_twice_and_every_line_leaves_results_of_its_own(tmp_path: Path) -> None:
    code, first, _ = calls(tmp_path, "mnist", ABLATION="1")
    assert code == 0 and first
    assert calls(tmp_path, "mnist", ABLATION="1") == (0, [], "")
    kept = {path.name for path in (tmp_path / "out" / "results").iterdir()}
    measured = of(first, "dim eval") + of(first, "--holdout") + of(first, "bench/distill.py")
    assert len(kept) == len(measured)
    assert {"mnist-convnet3-10.json", "mnist-int8.json", "ablation-mnist.json", "distill-gpu.json"} <= kept
    again = calls(tmp_path, "mnist", SEEDS="5")[1]
    assert len(again) == len(of(first, "dim eval")) and all("--seeds 5" in line for line in again)


@pytest.mark.parametrize("limit", ["9m", "1h"])
def test_the_first_unfinished_distillation_ends_the_piece(tmp_path: Path, limit: str) -> None:
    code, lines, said = calls(tmp_path, TIME_LIMIT=limit, UNFINISHED="out/cifar10", ABLATION="1")
    assert code == 75 and len(lines) == 1
    assert lines[0].startswith("dim distill --data cifar10 ")
    seconds = int(re.findall(r"--time-limit (\d+)s", lines[0])[0])
    assert {"9m": 540, "1h": 3600}[limit] - 5 <= seconds <= {"9m": 540, "1h": 3600}[limit]
    assert said.endswith("out/cifar10 is not finished. Run the same line again to go on.")


def test_an_unfinished_rival_ends_the_piece_before_the_ablation(tmp_path: Path) -> None:
    code, lines, _ = calls(tmp_path, "mnist", TIME_LIMIT="9m", UNFINISHED="out/mnist-stage1", ABLATION="1")
    assert code == 75 and lines[-1].startswith("dim distill --data mnist --out out/mnist-stage1 ")
    assert not of(lines, "--holdout")
    code, lines, _ = calls(tmp_path, "mnist", TIME_LIMIT="9m")
    assert code == 0 and not of(lines, "ablation.py")  # only when asked


def test_a_piece_whose_time_is_over_begins_nothing(tmp_path: Path) -> None:
    assert calls(tmp_path, TIME_LIMIT="0s") == (
        75, [], "The time limit is over and there is more to do. Run the same line again to go on.",
    )  # fmt: skip
    code, lines, said = calls(tmp_path, TIME_LIMIT="soon")
    assert (code, lines, said) == (2, [], "TIME_LIMIT is soon; it takes a time such as 90s, 9m or 1h30m.")


@pytest.mark.parametrize(
    "failing", ["dim distill", "dim export", "--ipc 50", "--equal-seconds", "mnist-stage1 --precision", "--holdout"]
)
def test_a_command_that_fails_ends_the_script_with_its_code(tmp_path: Path, failing: str) -> None:
    code, lines, _ = calls(tmp_path, "mnist", FAILING=failing, ABLATION="1")
    assert code == 3 and failing in lines[-1]
    code, lines, _ = calls(tmp_path, "mnist", UNFINISHED="out/mnist-paper", ABLATION="1")
    assert failing in lines[0]  # it goes on with what failed


def test_a_folder_of_the_user_has_file_names_of_its_own(tmp_path: Path) -> None:
    code, lines, _ = calls(tmp_path, "./pets and/my photos/")
    assert code == 0
    assert lines[0].startswith("dim distill --data './pets and/my photos/' --out out/my-photos --resume ")
    assert (tmp_path / "out" / "results" / "my-photos-convnet3-10.json").exists()
    code, lines, said = calls(tmp_path, "a/photos", "b/photos")
    assert (code, lines) == (2, []) and said.startswith("a/photos and b/photos would share the name photos in ")


def test_the_published_recipe_gets_the_seconds_of_all_pieces(tmp_path: Path) -> None:
    calls(tmp_path, "mnist", UNFINISHED="out/mnist")
    times = tmp_path / "out" / "mnist.seconds"
    assert times.read_text() in ("0\n", "1\n")
    times.write_text("100\n23\n")
    _, lines, _ = calls(tmp_path, "mnist")
    assert re.findall(r"--equal-seconds (\d+)", "\n".join(lines))[0] in ("123", "124")
