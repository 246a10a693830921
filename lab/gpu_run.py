#!/usr/bin/env python3
"""Everything that only a GPU can show, in stages, the most valuable first, within a budget of minutes.

    python -m lab.gpu_run --data parts --out out --minutes 9      # parts of lab/gpu_prepare.py, as many as have come
    python -m lab.gpu_run --data ~/data --out out                 # a folder as for `dim distill --data-dir`

The same command goes on where the last one stopped. Every stage is a process of its own and ends in a file below
`--work`; `--out` gets at most eight files of 16 MiB: the report, the log, bundles, a checkpoint, curves and pictures.
Exit codes: 0 all is done, 1 something failed, 75 there is more to do.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dim.runtime.gpu.driver import find_driver
from dim.version import __version__
from lab.gpu_prepare import receive
from lab.gpu_stages import list_stages, pack
from lab.gpu_steps import PENDING, ROOT, Context, Stage, run_stage, write_rows

GRACE_S = 15.0
"""So long after its time a stage may take to end by itself."""
CLOSING_S = 5.0
"""For what is left to do after the last stage."""
MAX_FILES, MAX_BYTES = 8, 64 * 2**20 - 2**20
"""Of what is brought back by one command."""
UNFINISHED = 75
SETS = ("cifar10", "fashion-mnist")
BLOCKED: dict[str, tuple[str, ...]] = {"cifar10": (), "packages": ("engines", "checks")}
"""Stages that wait until all parts of a group have come; none stands for all but `machine`."""
FIRST_BACK = ("cifar10-bundle", "runs", "cifar10-checkpoint", "fashion-mnist-bundle", "cifar10-weights")
"""The order in which files are brought back, after the report and the log."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is pending and fits; returns the exit code."""
    began = time.monotonic()
    options = parse(arguments)
    if arguments is None and not options.stage:  # a process of its own
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    driver = find_driver()
    if options.device == "gpu" and driver.problem is not None:
        sys.exit(f"There is nothing to run here, because {driver.problem}; nothing was written.")
    context = Context(
        work=options.work,
        device=options.device,
        driver=driver,
        tiny=options.tiny,
        steps=options.steps,
        matching_steps=options.matching_steps,
    )
    stages = list_stages()
    if options.stage:
        threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
        use_packages(options.work)
        context.deadline = began + options.seconds
        run_stage(next(stage for stage in stages if stage.name == options.stage), context)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    waiting = receive_all(options.data, options.work)
    deadline = began + 60 * options.minutes - CLOSING_S
    known = brought(options.work)
    for stage in stages if options.minutes else []:
        if not stage.pending(context):
            continue
        left = deadline - time.monotonic() - GRACE_S
        if why := why_not(stage, options.work, waiting, left):
            print(f"   waiting             {stage.name}: {why}", flush=True)
            continue
        launch(stage, left if options.tiny else min(stage.limit_s, left), options, context)
        write_report(stages, context, options.out, time.monotonic() - began, options.minutes)
        bring(options.work, options.out, known)
    report = write_report(stages, context, options.out, time.monotonic() - began, options.minutes)
    remember(options.work, known, bring(options.work, options.out, known))
    if report["failed"]:
        return 1
    return UNFINISHED if report["pending"] else 0


def why_not(stage: Stage, work: Path, waiting: Mapping[str, str], left: float) -> str:
    """Why a stage is not begun now; empty if it is."""
    for group, stages in BLOCKED.items():
        if group in waiting and (stage.name in stages or (not stages and stage.name != "machine")):
            return f"{group} waits for {waiting[group]}"
    if missing := [path for path in stage.needs if not (work / path).exists()]:
        return f"there is no {missing[0]}"
    if left < stage.needs_s:
        return f"{max(left, 0):.0f} s are left, and it needs {stage.needs_s:.0f} s"
    return ""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command, or of a stage's process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="what is brought back; may be emptied between")
    parser.add_argument("--data", type=Path, default=Path("parts"), help="parts, or the official files themselves")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="what outlasts a command")
    parser.add_argument("--minutes", type=float, default=9, help="of this command; 0 only unpacks what has come")
    parser.add_argument("--steps", type=int, help="of stage 1; else as many as fit, at most the preset's")
    parser.add_argument("--matching-steps", type=int, help="of stage 2, likewise")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal with tiny sizes")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()
    return options


def end_with_parent(parent: int) -> None:
    """End a stage's process and its children when the command that started it is gone, even if it was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def use_packages(work: Path) -> None:
    """Let this process find the packages that came, after those that the machine has."""
    sys.path.append(str(work / "site"))


def receive_all(data: Path, work: Path) -> dict[str, str]:
    """Unpack what has come; returns what sets wait for. Official files in `data` are used as they are."""
    waiting = receive(data, work, print)
    if not (work / "parts" / "index.json").exists():
        for name in SETS:
            if any((data / sub).exists() for sub in (name, "cifar-10-batches-bin" if name == "cifar10" else name)):
                origin = {"name": name, "note": "", "folder": str(data.resolve())}
                (work / "origin").mkdir(exist_ok=True)
                (work / "origin" / f"{name}.json").write_text(json.dumps(origin))
    return waiting


def stage_command(stage: Stage, seconds: float, options: argparse.Namespace) -> list[str]:
    """What runs one stage."""
    command = [sys.executable, "-m", "lab.gpu_run", "--stage", stage.name, "--seconds", f"{seconds:.1f}"]
    command += ["--work", str(options.work), "--device", options.device, *(["--tiny"] if options.tiny else [])]
    for name in ("steps", "matching_steps"):
        if getattr(options, name):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return command


def launch(stage: Stage, seconds: float, options: argparse.Namespace, context: Context) -> None:
    """Run a stage in a process of its own; one that outlasts its time is ended with all that it started."""
    print(f"-- {stage.name}: at most {seconds:.0f} s", flush=True)
    work = str(options.work)
    environment = os.environ | {
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "DIM_CACHE": f"{work}/cache",
        "TORCHINDUCTOR_CACHE_DIR": f"{work}/inductor",
    }
    with open(options.work / "log.txt", "ab") as log:
        log.write(f"\n== {stage.name}, {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC\n".encode())
        log.flush()
        child = subprocess.Popen(
            stage_command(stage, seconds, options),
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            child.wait(seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            print(f"   {stage.name} did not end in time and was ended", flush=True)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    rows = context.rows(stage.name)
    if child.returncode and stage.pending(context) and not any(row["seconds"] is None for row in rows.values()):
        reason = f"the process of {stage.name} ended with {child.returncode}; see log.txt"
        rows[f"{stage.name} as a whole"] = {"status": "failed", "reason": reason, "seconds": 0.0, "packages": False}
        write_rows(options.work, stage.name, rows)
    for name, row in rows.items():
        print(f"{row['status']:>10}  {row['seconds'] or 0:7.1f} s  {name}  {row.get('reason', '')}", flush=True)


def write_report(
    stages: Sequence[Stage], context: Context, out: Path, seconds: float, minutes: float
) -> dict[str, Any]:
    """Write all rows as one file, `gpu-<name of the GPU>.json`, which lab/pages reads."""
    steps = [
        {"step": name, **row, "seconds": row["seconds"] or 0.0}
        for stage in stages
        for name, row in context.rows(stage.name).items()
    ]
    gpu = context.driver.gpus[0].name if context.driver.gpus else "no GPU"
    report = {
        "gpu": gpu,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "dim": __version__,
        "driver": asdict(context.driver),
        "seconds": round(sum(row["seconds"] for row in steps), 1),
        "seconds_of_this_command": round(seconds, 1),
        "minutes": minutes,
        "steps": steps,
        "not_run": [row["step"] for row in steps if row["status"] == "not run"],
        "failed": [row["step"] for row in steps if row["status"] == "failed"],
        "pending": [
            step.name
            for stage in stages
            for step in stage.pending(context)
            if context.rows(stage.name).get(step.name, {"status": "waiting"})["status"] in PENDING
        ],
    }
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")
    (out / f"gpu-{slug}.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def brought(work: Path) -> set[str]:
    """What earlier commands brought back: name and time of each file."""
    path = work / "brought.json"
    return set(json.loads(path.read_text())) if path.exists() else set()


def remember(work: Path, known: set[str], now: set[str]) -> None:
    """Keep what was brought back, so that the next command brings the rest first."""
    (work / "brought.json").write_text(json.dumps(sorted(known | now)))


def bring(work: Path, out: Path, known: set[str]) -> set[str]:
    """Copy into `out` what fits: the log, then what no command has brought yet, then the rest.

    Returns:
        the keys of the files of `back` that are in `out`.
    """
    back = work / "back"
    members = {
        f"{name}/{path.relative_to(work / name)}": path
        for name in SETS
        for pattern in (
            "run/*.json*",
            "run/*.png",
            "run/grids/*",
            "students/*.json",
            "students/*.png",
            "students/cells/*",
        )
        for path in sorted((work / name).glob(pattern))
    }
    if members:
        pack(members, back, "runs")
    if (work / "log.txt").exists():
        (out / "log.txt").write_bytes((work / "log.txt").read_bytes()[-8 * 2**20 :])
    keys = {path: f"{path.name} {path.stat().st_mtime_ns}" for path in back.glob("*.tar.gz*")}
    order = sorted(keys, key=lambda path: (keys[path] in known, FIRST_BACK.index(path.name.split(".")[0]), path.name))
    own = [path for path in out.iterdir() if path.name == "log.txt" or path.name.startswith("gpu-")]
    files, total, chosen = len(own), sum(path.stat().st_size for path in own), []
    for path in order:
        if files < MAX_FILES and total + path.stat().st_size <= MAX_BYTES:
            files, total = files + 1, total + path.stat().st_size
            chosen.append(path)
    for old in out.glob("*.tar.gz*"):
        if old.name not in {path.name for path in chosen}:
            old.unlink()
    for path in chosen:
        copy = out / path.name
        if not copy.exists() or copy.stat().st_mtime_ns != path.stat().st_mtime_ns:
            shutil.copy2(path, copy)
    return {keys[path] for path in chosen}


if __name__ == "__main__":
    sys.exit(main())
