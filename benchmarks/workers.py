#!/usr/bin/env python3
"""How `dim generate` scales from one worker to two: shards side by side, and Ray, in interleaved turns.

    python benchmarks/workers.py [--images 2000] [--rounds 3] [--format webdataset] [--ray] [--json]

Every worker has one engine thread and one core of its own where there are enough. Whole commands are timed, start
included: images per second of wall time, and of CPU time of all processes together (on Ray, whose processes are not
children of the command, wall time only). Medians over rounds; ratios are taken within a round.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def timed(commands: list[list[str]], pinned: bool) -> tuple[float, float]:
    """Run commands at the same time, each on a core of its own if `pinned`; return wall and CPU seconds."""
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    running = []
    for number, command in enumerate(commands):
        os.sched_setaffinity(0, {cores[number % len(cores)]} if pinned else cores)
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    os.sched_setaffinity(0, cores)
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(f"A worker failed: {codes}.")
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--format", default="webdataset", help="what `dim generate --format` takes")
    parser.add_argument("--engine", default="onnxruntime-cpu")
    parser.add_argument("--ray", action="store_true", help="Ray's workers too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    generate = [sys.executable, "-m", "dim.cli.main", "generate", "--total", str(options.images), "--threads", "1"]
    generate += ["--engine", options.engine, "--device", "cpu", "--format", options.format]
    if options.format != "imagefolder":
        generate += ["--shard-images", str(max(1, options.images // 16))]
    rates: dict[str, list[float]] = {}
    cpus: dict[str, list[float]] = {}
    try:
        for turn in range(options.rounds):
            for workers in (1, 2):
                out = ["--out", str(folder / f"{turn}-{workers}")]
                shards = [[*generate, *out, "--shard", f"{shard}/{workers}"] for shard in range(workers)]
                contenders = {f"{workers} x --shard": shards}
                if options.ray:
                    ray = [*generate, "--out", str(folder / f"{turn}-{workers}-ray"), "--ray"]
                    contenders[f"--ray --num-workers {workers}"] = [[*ray, "--num-workers", str(workers)]]
                for name, commands in contenders.items():
                    wall, cpu = timed(commands, pinned="--ray" not in name)
                    rates.setdefault(name, []).append(options.images / wall)
                    cpus.setdefault(name, []).append(options.images / cpu)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        {
            "what": name,
            "images_per_s": round(statistics.median(rate), 1),
            "images_per_cpu_s": None if "--ray" in name else round(statistics.median(cpus[name]), 1),
        }
        for name, rate in rates.items()
    ]
    if options.json:
        print(json.dumps({"images": options.images, "format": options.format, "results": rows}))
        return
    print(f"{options.images} images as {options.format} by {options.engine}, one thread per worker")
    for row in rows:
        cpu = "" if row["images_per_cpu_s"] is None else f"{row['images_per_cpu_s']:>10,.0f} per second of CPU"
        print(f"  {row['what']:<24}{row['images_per_s']:>10,.0f} images/s{cpu}")


if __name__ == "__main__":
    main()
