#!/usr/bin/env python3
"""How fast a set is written: engine, encoders and disk alone, and all together, in interleaved turns.

    python benchmarks/generate.py [--images 5000] [--rounds 5] [--format imagefolder] [--torch] [--json]
    python benchmarks/generate.py --engine fake --encoders 1    # the limit of encoders and disk, each with a core

Images per second, and microseconds of CPU time per image, medians over rounds; ratios are taken within a round. The
parts, each alone: `engine` draws latents and images, `encoders` makes PNG in as many processes as the pipeline has,
`disk` makes files of them as a set needs it: hashed, under temporary names, flushed once, renamed. `slowest part` is
the least of the three: what a perfect overlap reaches where each part has cores of its own. A CPU engine and the
encoders share theirs, and no overlap makes cores of nothing: there the limit is the cores over the parts' CPU times
together. `limit` is the lower of the two. On a machine with other work the rates are too low and the CPU times still
right, so look at `CPU of the parts / end to end`. CPU times include the encoders' processes.

With `--torch` PyTorch draws too, by the bundle's own network with random weights, which do not change its speed, from
latents in memory to images in memory.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.runtime import open_bundle
from dim.runtime.bundle import Bundle
from dim.runtime.cores import usable_cores
from dim.runtime.sampling.latents import order_slice
from dim.runtime.set_formats.plan import SINGLE_FILE_FORMATS
from dim.runtime.set_formats.png import encode_png
from dim.runtime.set_formats.png_processes import EncoderProcesses
from dim.runtime.sets.generate import generate
from dim.runtime.sets.pipeline import ENCODE_IMAGES, choose_encoders
from dim.runtime.sets.request import SetRequest
from dim.runtime.storage.local_store import sync_file_system, write_file

BATCH = 256


def quiet(line: str) -> None:
    """Say nothing."""


class Parts:
    """What is timed, over one fixed set of samples.

    Args:
        bundle: open, with its engine chosen.
        images: how many samples; rounded down to a multiple of the classes.
        format: of the sets that are written.
        encoders: how many.
        folder: an empty one on the disk that is measured; what is written stays there, because file systems are slow
            where many files were just removed.
    """

    def __init__(self, bundle: Bundle, images: int, format: str, folder: Path, encoders: int) -> None:
        self.bundle, self.format, self.folder, self.count_encoders = bundle, format, folder, encoders
        self.counts = [max(images // len(bundle.classes), 1)] * len(bundle.classes)
        self.count = sum(self.counts)
        self.labels, self.indices = order_slice(self.counts, 0, self.count)
        self.latents = bundle.latents(self.labels, self.indices)
        self.pixels = bundle.sample(self.labels, self.indices)
        self.encoded = encode_png(self.pixels)

    def alone(self) -> dict[str, Callable[[], None]]:
        """The parts that writing this format has."""
        if self.format in SINGLE_FILE_FORMATS:
            return {"engine": self.engine, "disk": self.disk}
        return {"engine": self.engine, "encoders": self.encoders, "disk": self.disk}

    def slices(self, step: int) -> list[slice]:
        """Cut the samples."""
        return [slice(start, start + step) for start in range(0, self.count, step)]

    def batches(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Latents and labels, 256 at a time."""
        for part in self.slices(BATCH):
            yield self.latents[part], self.labels[part]

    def engine(self) -> None:
        """Labels and indices in memory to images in memory."""
        for part in self.slices(BATCH):
            self.bundle.engine.run(self.bundle.latents(self.labels[part], self.indices[part]), self.labels[part])

    def encoders(self) -> None:
        """Images in memory to PNG in memory, in processes of their own."""
        with EncoderProcesses(self.count_encoders) as processes, ThreadPoolExecutor(processes.count + 2) as pool:
            list(pool.map(lambda part: processes.encode_png(self.pixels[part]), self.slices(ENCODE_IMAGES)))

    def disk(self) -> None:
        """Bytes in memory to files: one per image in a folder per class, else one for all."""
        target = tempfile.mkdtemp(dir=self.folder)
        if self.format == "imagefolder":
            for label in range(len(self.counts)):
                Path(target, str(label)).mkdir()
            for number, (label, data) in enumerate(zip(self.labels.tolist(), self.encoded, strict=True)):
                write_file(f"{target}/{label}-{number:08d}", data)
                hashlib.sha256(data).hexdigest()
            sync_file_system(Path(target))
            for number, label in enumerate(self.labels.tolist()):
                os.rename(f"{target}/{label}-{number:08d}", f"{target}/{label}/{number:08d}.png")
        else:
            data = self.pixels.data if self.format in SINGLE_FILE_FORMATS else b"".join(self.encoded)
            write_file(f"{target}/data", memoryview(data).cast("B"), durable=True)
            hashlib.sha256(data).hexdigest()
            os.rename(f"{target}/data", f"{target}/data.set")

    def end_to_end(self) -> None:
        """`dim generate`: latents drawn, images drawn, encoded, written and recorded."""
        target = Path(tempfile.mkdtemp(dir=self.folder))
        request = SetRequest(per_class=self.counts, format=self.format, encoders=self.count_encoders)
        generate(self.bundle, request, target / "set", say=quiet)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that ended."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def torch_parts(parts: Parts, threads: int) -> dict[str, Callable[[], None]]:
    """PyTorch eager and channels_last on the CPU, where torch is installed and the bundle names its network."""
    try:
        from dim.torch_engine.rivals import torch_rivals
    except ImportError:
        return {}
    from dim.runtime.errors import RunError

    try:
        rivals = torch_rivals(
            parts.bundle.manifest, "cpu", threads=threads, variants=("torch-eager", "torch-channels-last")
        )
    except RunError:
        return {}

    def timed(runner) -> Callable[[], None]:  # type: ignore[no-untyped-def]
        return lambda: [None for _ in runner.run_ahead(parts.batches())] and None

    return {rival.engine: timed(rival.open(BATCH)) for rival in rivals}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5, help="turns, after one that is not counted")
    parser.add_argument("--format", default="imagefolder", help="what `dim generate --format` takes")
    parser.add_argument("--engine", default="onnxruntime-cpu")
    parser.add_argument("--encoders", type=int, default=choose_encoders(), help="PNG files made at once")
    parser.add_argument("--bundle", help="the bundle; the default bundle if left out")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure; a temporary one if left out")
    parser.add_argument("--torch", action="store_true", help="time PyTorch too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    device = "cpu" if options.engine in ("fake", "onnxruntime-cpu") else "auto"
    try:
        with open_bundle(options.bundle, engine=options.engine, device=device, say=quiet) as bundle:
            parts = Parts(bundle, options.images, options.format, folder, options.encoders)
            timed = parts.alone() | {"end to end": parts.end_to_end}
            timed |= torch_parts(parts, usable_cores()) if options.torch else {}
            walls: dict[str, list[float]] = {name: [] for name in timed}
            cpus: dict[str, list[float]] = {name: [] for name in timed}
            for turn in range(options.rounds + 1):
                for name, work in timed.items():
                    began, cpu_began = time.perf_counter(), cpu_seconds()
                    work()
                    if turn:
                        walls[name].append((time.perf_counter() - began) / parts.count)
                        cpus[name].append((cpu_seconds() - cpu_began) / parts.count)
            report(options, bundle, parts, walls, cpus)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(
    options: argparse.Namespace,
    bundle: Bundle,
    parts: Parts,
    walls: dict[str, list[float]],
    cpus: dict[str, list[float]],
) -> None:
    """Print rates, CPU times and the ratios that matter; `walls` and `cpus` are seconds per image."""
    cores, alone = usable_cores(), list(parts.alone())
    slowest = [max(turn) for turn in zip(*(walls[name] for name in alone), strict=True)]
    cpu = [sum(turn) for turn in zip(*(cpus[name] for name in alone), strict=True)]
    limit = [max(wall, used / cores) for wall, used in zip(slowest, cpu, strict=True)]

    def ratio(a: list[float], b: list[float]) -> float:
        return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)

    ratios = {
        "end to end / slowest part": ratio(slowest, walls["end to end"]),
        "end to end / limit": ratio(limit, walls["end to end"]),
        "CPU of the parts / end to end": ratio(cpu, cpus["end to end"]),
    }
    ratios |= {f"engine / {name}": ratio(wall, walls["engine"]) for name, wall in walls.items() if "torch" in name}
    rates = {name: round(1 / statistics.median(values), 1) for name, values in walls.items()}
    cpu_us = {name: round(1e6 * statistics.median(values), 1) for name, values in cpus.items()}
    if options.json:
        described = {"engine": bundle.engine.version, "images": parts.count, "format": options.format, "cores": cores}
        described["encoders"] = options.encoders
        print(json.dumps({**described, "images_per_s": rates, "cpu_us_per_image": cpu_us, "ratios": ratios}))
        return
    print(f"{bundle.manifest.name}, {bundle.engine.name}, {parts.count} images as {options.format}", end="")
    print(f", {cores} cores, {options.encoders} encoder(s)")
    for name, rate in rates.items():
        print(f"  {name:<24}{rate:>12,.0f} images/s{cpu_us[name]:>10,.1f} us of CPU per image")
    for name, value in ratios.items():
        print(f"  {name:<36}{value:>8.2f}")


if __name__ == "__main__":
    main()
