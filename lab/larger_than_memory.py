#!/usr/bin/env python3
"""Distil a set that is larger than the memory which the kernel allows.

    python -m lab.larger_than_memory --set-gb 6 --limit-gb 3 --out runs/larger  # root, or a group of your own

A folder of JPEG files is made, whose decoded images take `--set-gb`. `dim distill` then runs in a control group that is
allowed `--limit-gb` of memory, pages of files included: beyond that the kernel ends it. It runs twice; the second time
shows how long a set that is decoded already takes to start. `results.json` holds seconds, sizes and the group's peak.
"""

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dim.evaluation.context import describe_machine
from dim.runtime.storage.below import replace_file

IMAGE_PX, CLASSES, DIFFERENT = 128, 10, 64
FILES = {
    1: ("memory/", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    2: ("", "memory.max", "memory.peak"),
}
"""By version of control groups: folder, limit and peak."""


def main(arguments: list[str] | None = None) -> int:
    """Make the set, distil it twice under the limit, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set-gb", type=float, default=6.0, help="of the decoded images")
    parser.add_argument("--limit-gb", type=float, default=3.0, help="of memory")
    parser.add_argument("--steps", type=int, default=20, help="of stage 1")
    parser.add_argument("--out", type=Path, default=Path("runs/larger"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    count = write_set(options.out / "set", int(options.set_gb * 1e9))
    group = Group(int(options.limit_gb * 1e9))
    try:
        runs = [distil(options, group, number) for number in range(2)]
    finally:
        group.remove()
    report = {
        "images": count,
        "decoded_bytes": count * IMAGE_PX * IMAGE_PX * 3,
        "limit_bytes": group.limit,
        "steps": options.steps,
        "runs": runs,
        "machine": describe_machine("cpu"),
    }
    replace_file(options.out, "results.json", json.dumps(report, indent=1).encode())
    print(json.dumps(report, indent=1))
    return 0


def write_set(folder: Path, num_bytes: int) -> int:
    """Write class folders of JPEG files, many of them links to the same few; returns how many."""
    per_class = num_bytes // (IMAGE_PX * IMAGE_PX * 3) // CLASSES
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        place = folder / f"class-{label}"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            path = place / f"{number:07d}.jpg"
            if path.exists():
                continue
            if number >= DIFFERENT:
                os.link(place / f"{number % DIFFERENT:07d}.jpg", path)
                continue
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            file = io.BytesIO()
            coarse.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC).save(file, "JPEG")
            path.write_bytes(file.getvalue())
    return per_class * CLASSES


class Group:
    """A control group with a limit of memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        version = 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1
        folder, self._limit_file, self._peak_file = FILES[version]
        self.path = Path("/sys/fs/cgroup") / folder / f"dim-larger-{os.getpid()}"
        try:
            self.path.mkdir()
            (self.path / self._limit_file).write_text(str(limit))
        except OSError as error:
            sys.exit(
                f"{self.path} cannot be made ({error.strerror}): run it as root, where control groups can be written"
            )

    def peak(self) -> int:
        """Return the most memory that was in use, in bytes."""
        return int((self.path / self._peak_file).read_text())

    def enter(self) -> None:
        """Put this process into the group."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        """Remove the group, once its processes have ended."""
        self.path.rmdir()


def distil(options: argparse.Namespace, group: Group, number: int) -> dict[str, Any]:
    """Distil the set in the group; returns what it took."""
    run = options.out / f"run-{number}"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "dim", "distill", "--data", str(options.out / "set"), "--out", str(run)]
    command += ["--preset", "tiny", "--steps", str(options.steps), "--matching-steps", "0"]
    for name in ("generator", "discriminator"):  # at 128 pixels the networks of a preset take more than the images
        command += ["--set", f"{name}.width=8", "--set", f"{name}.max_width=8"]
    command += ["--set", "stage1.batch_size=8"]
    command += ["--set", "deployment.latent_stds=[]", "--set", "deployment.fixed_latents=0"]
    started = time.monotonic()
    with open(options.out / f"run-{number}.log", "w") as log:
        environment = os.environ | {"DIM_CACHE": str((options.out / "cache").resolve())}
        child = subprocess.Popen(command, env=environment, stderr=log, preexec_fn=group.enter)
        begun = wait_for_training(child, run)
        code = child.wait()
    if code:
        sys.exit(f"dim distill ended with {code}; see {options.out / f'run-{number}.log'}")
    said = (options.out / f"run-{number}.log").read_text()
    return {
        "seconds_to_first_step": round(begun - started, 1),
        "seconds": round(time.monotonic() - started, 1),
        "peak_bytes": group.peak(),
        "was_decoded_before": bool(re.search("images were decoded before", said)),
    }


def wait_for_training(child: subprocess.Popen[bytes], run: Path) -> float:
    """Wait until the run's folder appears or the process ends; returns when that was."""
    while child.poll() is None and not (run / "config.json").exists():
        time.sleep(0.05)
    return time.monotonic()


if __name__ == "__main__":
    sys.exit(main())
