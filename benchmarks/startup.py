#!/usr/bin/env python3
"""How long a start takes: `dim --help` and the first image, each beside a bare Python, in interleaved turns.

    python benchmarks/startup.py [--runs 7] [--bundle NAME.dim] [--json]

Whole processes, wall seconds and CPU seconds, medians; the ratio is taken turn by turn against the bare Python of that
turn. On a machine with other work the wall seconds are too many and the CPU seconds still right.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from dim.runtime.bundle_format.locate import find_bundle

IMPORT = "import dim.runtime"
FIRST_IMAGE = """
from dim.runtime import open_bundle
with open_bundle({path!r}, engine={engine!r}, device="cpu", say=lambda line: None) as bundle:
    assert bundle.sample([0], [0]).shape[0] == 1
"""
FIRST_BATCH = """
from dim.runtime import open_bundle
with open_bundle({path!r}, engine="onnxruntime-cpu", device="cpu", say=lambda line: None) as bundle:
    images, labels = next(iter(bundle.stream(ipc=10, batch_size=64, epochs=1)))
    assert 0 < len(images) <= 64
"""


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one whole process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="turns, after one that is not counted")
    parser.add_argument("--bundle", help="the bundle; the default bundle if left out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    path = str(find_bundle(options.bundle)[0])
    python = [sys.executable, "-c"]
    contenders = {
        "bare python": [*python, "pass"],
        "python, import numpy": [*python, "import numpy"],
        "dim --help": [sys.executable, "-m", "dim.cli.main", "--help"],
        "import dim.runtime": [*python, IMPORT],
        "first image, fake engine": [*python, FIRST_IMAGE.format(path=path, engine="fake")],
        "first image, ONNX Runtime CPU": [*python, FIRST_IMAGE.format(path=path, engine="onnxruntime-cpu")],
        "first batch of a stream, ONNX Runtime CPU": [*python, FIRST_BATCH.format(path=path)],
    }
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(options.runs + 1):
        for name, command in contenders.items():
            spent = seconds(command)
            if turn:
                turns[name].append(spent)
    bare = turns["bare python"]
    rows = [
        {
            "what": name,
            "seconds": round(statistics.median(wall for wall, _ in spent), 4),
            "cpu_seconds": round(statistics.median(cpu for _, cpu in spent), 4),
            "ratio_to_bare_python": round(statistics.median(a[0] / b[0] for a, b in zip(spent, bare, strict=True)), 2),
        }
        for name, spent in turns.items()
    ]
    if options.json:
        print(json.dumps({"bundle": path, "runs": options.runs, "results": rows}))
        return
    print(f"{'what':<50}{'seconds':>9}{'CPU':>9}{'ratio':>8}")
    for row in rows:
        print(f"{row['what']:<50}{row['seconds']:>9.3f}{row['cpu_seconds']:>9.3f}{row['ratio_to_bare_python']:>8.2f}")


if __name__ == "__main__":
    main()
