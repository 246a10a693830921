#!/usr/bin/env python3
"""Distil and measure every dataset of lab/all-results.md: a list of commands, the most valuable ones first.

    python -m lab.reproduce                                        # everything, as on a GPU: days
    python -m lab.reproduce --plan rows --out ~/runs --time-limit 3h   # what a CPU can do, in as many parts as it takes
    python -m lab.reproduce --out ~/out --data mnist --preset small    # one dataset, with the preset for a CPU
    python -m lab.reproduce --plan rows --out ~/runs --hours       # what it would cost, and run none
    python -m lab.reproduce --list                                 # print the commands and run none

The plan `rows` does the bundles with `best` as it stands, ConvNet-3 at 10, 1 and 50, the protocol of the DiM code,
ResNet-18, quality and copies, few real images, then ever dearer rows. On a CPU the core-hours of everything that is
left are printed first; a few steps of every kind are timed once for that. All files lie below `--out`, which must not
lie in the repository.

What is done is not done again: run the same line after an interruption. A command runs again when it reads otherwise
now, or when one that it needs has run since. What fails is left out, with what needs it, and is tried again by the next
call. `OUT/results/*.json` are for lab/results/. Exit codes: 0 all is done, 1 something failed, 75 there is more to do.
"""

import argparse
import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dim.cli.parsing import parse_duration
from lab.core_hours import estimate_hours, read_speeds

PROGRAMS = {"dim": [sys.executable, "-m", "dim"], "python": [sys.executable]}
DATASETS = ("cifar10", "mnist", "svhn", "fashion-mnist", "cifar100")
SIZES = "10,50,1"
FURTHER_NETWORKS = "resnet10,resnet18-half,resnet10-half,resnetap10-half,vgg11,densenet,mlp"
RIVALS = {
    "stage1": ("stage 1 alone", "--matching-steps 0"),
    "paper-loss": ("paper loss", "--matching-loss paper"),
    "unmatched": ("no matching", "--matching-loss none"),
}
"""Generators with our stage 1 and another stage 2: their names in tables, and the options of `dim distill`."""
UNFINISHED, INTERRUPTED, TERMINATED = 75, 130, 143
ROOT = Path(__file__).resolve().parents[1]
ROWS_DATASETS = ("mnist", "fashion-mnist", "cifar10")
ROWS_SIZES = "10,1,50"
OTHER_NETWORKS = "resnet10,vgg11,densenet"
FURTHER_ROWS = ("cifar10",)
"""Datasets that get more than the rows of all others."""


@dataclass(frozen=True)
class Stage:
    """One command, as one types it; a word `@PATH` stands for the words in that file."""

    name: str
    line: str
    needs: tuple[str, ...] = ()
    """Names of stages before it."""
    stdout: Path | None = None
    """A file for what it prints."""


def list_stages(options: argparse.Namespace, gpus: int) -> list[Stage]:
    """List every command in the order to run: what each dataset's bundle is worth, speeds, rivals, the ablation."""
    names = {data: re.sub(r"[^\w.-]+", "-", Path(data).name) for data in options.data}
    if options.plan == "rows":
        return _list_rows(options, names)
    stages = [stage for data, name in names.items() for stage in _list_main(options, data, name)]
    if gpus:
        stages += _list_speeds(f"{options.out}/results", gpus)
    for data, name in names.items():
        stages += _list_rivals(options, data, name, RIVALS, SIZES)
        stages += [
            _evaluate(options, data, name, part, line)
            for part, line in {
                "soft": f"--ipc {SIZES} --arch convnet3 --soft",
                "ratios": "--ipc 100,500 --arch convnet3",
                "networks": f"--ipc 10 --arch {FURTHER_NETWORKS}",
            }.items()
        ]
    if options.ablation != "no":
        full = " --full" * (options.ablation == "full")
        line = f"python -m lab.ablation --preset {options.preset} --holdout --device auto{full}"
        stages += [
            Stage(f"ablation-{name}", f"{line} --data {shlex.quote(data)} --out {options.out}/ablation-{name}")
            for data, name in names.items()
        ]
    return stages


def _list_rows(options: argparse.Namespace, names: Mapping[str, str]) -> list[Stage]:
    """List the bundles, and rows of students in the order of what they say per hour."""
    stages: list[Stage] = []
    for data, name in names.items():
        stages += _distil(options, data, name, f"--preset {options.preset} {options.distill}", "fp32,fp16")
        stages += [
            _evaluate(options, data, name, f"convnet3-{size}", f"--ipc {size} --arch convnet3 --record")
            for size in ROWS_SIZES.split(",")
        ]
    for data, name in names.items():
        stages.append(_evaluate(options, data, name, "published", "--ipc 10 --arch convnet3 --recipe published"))
    streams = "--mode stream --controls real"
    for size, seeds in ((10, options.seeds), (50, 1)):
        for data, name in names.items():
            line = f"--ipc {size} --arch resnet18 {streams} --seeds {seeds} --record"
            stages.append(_evaluate(options, data, name, f"resnet18-{size}", line))
    few = "--ipc 10 --arch convnet3 --mode stream --controls none --with-real 1,5,10 --record"
    reference = f"--ipc 10 --arch convnet3 {streams} --recipe reference --seeds 1 --record"
    for data, name in names.items():
        stages.append(_evaluate(options, data, name, "images", "--seeds 0 --quality --privacy --record"))
        stages.append(_evaluate(options, data, name, "few", few))
        stages.append(_evaluate(options, data, name, "reference", reference))
    for data, name in names.items():
        if name not in FURTHER_ROWS:
            continue
        stages.append(_evaluate(options, data, name, "networks", f"--ipc 10 --arch {OTHER_NETWORKS} {streams}"))
        for rival in _list_rivals(options, data, name, {"stage1": RIVALS["stage1"]}, "10"):
            stages.append(rival)
        line = f"--ipc 500 --arch convnet3 {streams} --seeds 1"
        stages.append(_evaluate(options, data, name, "convnet3-500", line))
    for name in names.values():
        add = f"dim export {options.out}/{name}/bundle.dim --precision int8"
        stages.append(Stage(f"{name}-add-int8", add, (f"{name}-bundle",)))
    return stages


def _list_main(options: argparse.Namespace, data: str, name: str) -> list[Stage]:
    """What is promised: the bundle, three sizes, two networks; then other recipes, the whole split, and int8."""
    ours = f"--preset {options.preset} {options.distill} --set deployment.teacher=convnet3"
    stages = [*_distil(options, data, name, ours, "fp32,fp16")]
    for size in SIZES.split(","):
        for arch in ("convnet3", "resnet18"):
            stages.append(_evaluate(options, data, name, f"{arch}-{size}", f"--ipc {size} --arch {arch} --record"))
    small = f"--ipc {SIZES} --arch convnet3 --mode fixed --recipe"
    for part, line in {
        "published": "--ipc 10,50 --arch convnet3,resnet18,resnet18-half --recipe published",
        "condensation": f"{small} condensation",
        "condensation-all": f"{small} condensation-all",
        "whole": "--ipc 10 --mode fixed --arch convnet3,resnet18 --whole-epochs 50",
    }.items():
        stages.append(_evaluate(options, data, name, part, line))
    add = f"dim export {options.out}/{name}/bundle.dim --precision int8"
    int8 = "--ipc 10 --arch convnet3 --precision int8 --engine onnxruntime-cpu --record"
    stages.append(Stage(f"{name}-add-int8", add, (f"{name}-bundle",)))
    return [*stages, _evaluate(options, data, name, "int8", int8, f"{name}-add-int8")]


def _list_speeds(results: str, gpus: int) -> list[Stage]:
    """Distilling against the published recipe on a GPU, and several GPUs against one."""
    best, speed = "--preset best --image-px 32 --channels 3 --device gpu", "python -m lab.distill_speed"
    return [
        Stage("speed", f"{speed} --preset paper --device gpu --out {results}/distill-gpu.json"),
        Stage("speed-best", f"{speed} {best} --out {results}/distill-gpu-best.json"),
        *[Stage("processes", f"python -m lab.processes {best} --out {results}/processes-gpu.json")] * (gpus > 1),
    ]


def _list_rivals(
    options: argparse.Namespace, data: str, name: str, rivals: Mapping[str, tuple[str, str]], sizes: str
) -> list[Stage]:
    """The published recipe in as many seconds, and our stage 1 with another stage 2."""
    out, paper = options.out, f"{name}-paper"
    fit = f"python -m lab.ablation --data {shlex.quote(data)} --out {out}/{paper}-timing --device auto"
    fit += f" --equal-seconds @{out}/done/{name}.seconds"
    stages = [Stage(f"{paper}-options", fit, (name,), stdout=out / f"{paper}.options")]
    stages += _distil(options, data, paper, f"--preset paper @{out}/{paper}.options", "fp32", f"{paper}-options")
    compared = {paper: "paper"}
    for suffix, (words, changes) in rivals.items():
        line = f"--from-stage1 {out}/{name} --preset {options.preset} {options.distill} {changes}"
        stages += _distil(options, data, f"{name}-{suffix}", line, "fp32", name)
        compared[f"{name}-{suffix}"] = words
    for rival, words in compared.items():
        line = f"--ipc {sizes} --arch convnet3 --compare {shlex.quote(f'{words}={out}/{rival}/bundle.dim')}"
        stages.append(_evaluate(options, data, name, f"against-{rival}", line, f"{rival}-bundle"))
    return stages


def _distil(options: argparse.Namespace, data: str, name: str, line: str, precisions: str, *needs: str) -> list[Stage]:
    run = f"{options.out}/{name}"
    return [
        Stage(name, f"dim distill --data {shlex.quote(data)} --out {run} --resume {line}", needs),
        Stage(
            f"{name}-bundle", f"dim export {run} --out {run}/bundle.dim --overwrite --precision {precisions}", (name,)
        ),
    ]


def _evaluate(options: argparse.Namespace, data: str, name: str, part: str, line: str, *needs: str) -> Stage:
    """One line of the evaluation; the first one of a dataset chooses the recipe that the others use."""
    first, recipe = f"{name}-convnet3-10", options.recipe
    if recipe == "holdout" and f"{name}-{part}" != first:
        recipe, needs = f"{options.out}/eval-{name}/recipe/recipe.json", (first, *needs)
    common = (
        f"dim eval --bundle {options.out}/{name}/bundle.dim --data {shlex.quote(data)} --out {options.out}/eval-{name}"
    )
    # What a line says itself counts, because it comes last.
    common += f" --preset full --recipe {recipe} --seeds {options.seeds} {options.evaluate}"
    return Stage(f"{name}-{part}", f"{common} {line}", (f"{name}-bundle", *needs))


def run_stages(
    stages: Sequence[Stage],
    out: Path,
    limit_s: float,
    run: Callable[..., int],
    hours: Mapping[str, float] = MappingProxyType({}),
) -> int:
    """Run what is not done; return the exit code.

    Args:
        stages: in order.
        out: the folder of everything. `done/NAME` marks a stage that is done, `done/NAME.seconds` adds up its time.
        limit_s: nothing begins after so many seconds.
        run: runs words with standard output in a file or None, and returns the exit code: `run_command`.
        hours: core-hours that stages take, as far as they are known.
    """
    began, missing = time.monotonic(), []
    for folder in ("done", "results"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if lost := [name for name in stage.needs if name in missing]:
            _say(f"{stage.name} is left out: it needs {', '.join(lost)}.")
            missing.append(stage.name)
        elif not _is_done(stage, out):
            left_s = limit_s - (time.monotonic() - began)
            if left_s <= 0:
                _say("The time limit is over and there is more to do. Run the same line again to go on.")
                return UNFINISHED
            if stage.name in hours:
                _say(f"{stage.name}: about {hours[stage.name]:.1f} core-hours, {_read_hours(stage, out):.1f} spent.")
            code = _run_stage(stage, out, left_s, run)
            if code in (2, UNFINISHED, INTERRUPTED, TERMINATED):
                return code
            if code:
                _say(f"{stage.name} failed with exit code {code}; everything else goes on.")
                missing.append(stage.name)
            else:
                (out / "done" / stage.name).write_text(_mark(stage, out))
    if missing:
        _say(f"All else is done. These failed or need what failed: {', '.join(missing)}.")
        return 1
    _say(f"All is done: copy {out}/results/*.json to lab/results/ and run  python -m lab.pages.results")
    return 0


def _read_hours(stage: Stage, out: Path) -> float:
    """Core-hours that a stage took so far."""
    path = out / "done" / f"{stage.name}.core-seconds"
    return int(path.read_text()) / 3600 if path.exists() else 0.0


def list_hours(stages: Sequence[Stage], out: Path, hours: Mapping[str, float]) -> list[str]:
    """Write what every stage costs, what is done, and the sum of what is left."""
    lines, left = [], 0.0
    for stage in stages:
        done, spent = _is_done(stage, out), _read_hours(stage, out)
        left += 0.0 if done else max(0.0, hours.get(stage.name, 0.0) - spent)
        state = "done" if done else "begun" if spent else ""
        lines.append(
            f"{stage.name:<32} {hours.get(stage.name, 0.0):7.1f} core-hours {spent:7.1f} spent  {state}".rstrip()
        )
    return [*lines, f"{'left':<32} {left:7.1f} core-hours"]


def _mark(stage: Stage, out: Path) -> str:
    return stage.line.replace(f"{out}/", "") + "\n"  # still true where the folder has moved


def _is_done(stage: Stage, out: Path) -> bool:
    """Whether a stage's mark has its command, and nothing that it needs was marked later."""
    mark, needed = out / "done" / stage.name, [out / "done" / name for name in stage.needs]
    if not all(path.exists() for path in (mark, *needed)):
        return False
    times = [path.stat().st_mtime_ns for path in needed]
    return mark.read_text() == _mark(stage, out) and mark.stat().st_mtime_ns >= max(times, default=0)


def _run_stage(stage: Stage, out: Path, left_s: float, run: Callable[..., int]) -> int:
    """Run a command; return its exit code, or `UNFINISHED` where it stopped before its end."""
    parts = shlex.split(stage.line)
    words = [each for part in parts for each in (Path(part[1:]).read_text().split() if part[:1] == "@" else [part])]
    folder = Path(words[words.index("--out") + 1]) if "--out" in words else out
    made, kind = folder / "results.json", words[1]
    if kind in ("distill", "eval") and left_s < float("inf"):
        words += ["--time-limit", f"{max(1, int(left_s))}s"]
    if kind == "eval":
        made.unlink(missing_ok=True)  # of another line
    seconds, began = out / "done" / f"{stage.name}.seconds", time.monotonic()
    before = int(seconds.read_text()) if seconds.exists() else 0
    core_before, core_began = _read_hours(stage, out) * 3600, _core_seconds()
    _say(stage.line)
    try:
        code = run([*PROGRAMS[words[0]], *words[1:]], stage.stdout)
    finally:
        seconds.write_text(f"{before + round(time.monotonic() - began)}\n")
        spent = core_before + _core_seconds() - core_began
        (out / "done" / f"{stage.name}.core-seconds").write_text(f"{round(spent)}\n")
    if not code and kind == "distill" and not (folder / "generator.safetensors").exists():
        code = UNFINISHED
    if not code and kind == "eval" and not (made.exists() and json.loads(made.read_bytes())["finished"]):
        code = UNFINISHED
    if not code and made.exists() and (kind == "eval" or "--holdout" in words):
        shutil.copy(made, out / "results" / f"{stage.name}.json")
    if code == UNFINISHED:
        _say(f"{stage.name} is not finished. Run the same line again to go on.")
    return code


def _core_seconds() -> float:
    """Processor's time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_command(words: Sequence[str], stdout: Path | None) -> int:
    """Run a program to its end; return its exit code."""
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE if stdout else None, text=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    if stdout and not done.returncode:
        stdout.write_text(done.stdout)
    return done.returncode


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or list the commands; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plan", choices=("full", "rows"), default="full", help="rows: what a CPU can do")
    parser.add_argument(
        "--out", type=Path, default=Path.home() / "dim-runs", help="of all files, outside the repository; ~/dim-runs"
    )
    parser.add_argument("--data", nargs="+", help="as for dim distill --data; every dataset of the plan if left out")
    parser.add_argument("--preset", default="best", help="best (for a GPU) or small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", default="holdout", help="of the students: holdout, a name or a recipe.json")
    parser.add_argument("--distill", default="", help='more options of dim distill, as "--steps 8000"')
    parser.add_argument("--evaluate", default="", help='more options of dim eval, as "--epochs 100 --engine torch"')
    parser.add_argument("--ablation", choices=("no", "short", "full"), default="no")
    parser.add_argument("--time-limit", help="begin nothing after this time: 90s, 9m or 1h30m")
    parser.add_argument("--threads", type=int, default=1, help="of the timing behind the core-hours")
    parser.add_argument("--hours", action="store_true", help="print the core-hours of everything and run none")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    options = parser.parse_args(arguments)
    options.data = options.data or (ROWS_DATASETS if options.plan == "rows" else DATASETS)
    options.out = options.out.expanduser()
    if shlex.quote(str(options.out)) != str(options.out):
        parser.error("--out takes a path without blanks and quotes")
    if options.out.resolve().is_relative_to(ROOT):
        parser.error(f"--out {options.out} lies in the repository; give a folder outside it")
    gpus = 0
    if shutil.which("nvidia-smi"):
        gpus = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.count("GPU ")
    stages = list_stages(options, gpus)
    if options.list:
        print("\n".join(stage.line for stage in stages))
        return 0
    limit_s = parse_duration(options.time_limit) if options.time_limit else float("inf")
    hours: dict[str, float] = {}
    if not gpus or options.hours:
        speeds = read_speeds(options.data, options.preset, options.out, options.threads)
        hours = {stage.name: estimate_hours(stage.line, speeds) for stage in stages}
        _say("\n".join(list_hours(stages, options.out, hours)))
    return 0 if options.hours else run_stages(stages, options.out, limit_s, run_command, hours)


if __name__ == "__main__":
    sys.exit(main())
