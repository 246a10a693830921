#!/usr/bin/env python3
"""How fast a set is written: engine, encoders and disk alone, all together, and PyTorch, in interleaved turns.

    python bench/generate.py [--images 2000] [--rounds 5] [--format imagefolder] [--engine onnxruntime-cpu] [--json]
    python bench/generate.py --engine fake        # the encoders' and the disk's limit

Images per second, medians over rounds; ratios are taken within a round. `slowest part` is the least of the three alone:
what a perfect overlap reaches where the parts do not share cores. On a CPU engine and encoders do share them; `in turn`
is the rate of doing one after the other. PyTorch draws with the bundle's own network and random weights, which do not
change its speed; its rows end with images in memory, as `engine` does, and are left out where torch is not installed.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.runtime import open_bundle
from dim.runtime.bundle import Bundle
from dim.runtime.generate import generate
from dim.runtime.pipeline import usable_cores
from dim.runtime.sampling import order_slice
from dim.runtime.writers_png import encode_png

BATCH = 256


def quiet(line: str) -> None:
    """Say nothing."""


class Parts:
    """What is timed, over one fixed set of samples.

    Args:
        bundle: open, with its engine chosen.
        images: how many samples; rounded down to a multiple of the classes.
        format: of the sets that are written.
        folder: an empty one on the disk that is measured.
    """

    def __init__(self, bundle: Bundle, images: int, format: str, folder: Path) -> None:
        self.bundle, self.format, self.folder = bundle, format, folder
        self.counts = [max(images // len(bundle.classes), 1)] * len(bundle.classes)
        self.count = sum(self.counts)
        self.labels, indices = order_slice(self.counts, 0, self.count)
        self.latents = bundle.latents(self.labels, indices)
        self.pixels = bundle.sample(self.labels, indices)
        self.encoded = encode_png(self.pixels)

    def batches(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """The samples, 256 at a time."""
        for start in range(0, self.count, BATCH):
            yield self.latents[start : start + BATCH], self.labels[start : start + BATCH]

    def engine(self) -> None:
        """Latents in memory to images in memory."""
        for latents, labels in self.batches():
            self.bundle.engine.run(latents, labels)

    def encoders(self) -> None:
        """Images in memory to PNG in memory, on one thread."""
        for start in range(0, self.count, BATCH):
            encode_png(self.pixels[start : start + BATCH])

    def disk(self) -> None:
        """PNG in memory to one file each, in one folder per class."""
        target = Path(tempfile.mkdtemp(dir=self.folder))
        for label in range(len(self.counts)):
            (target / str(label)).mkdir()
        for number, (label, data) in enumerate(zip(self.labels, self.encoded, strict=True)):
            (target / str(label) / f"{number:06d}.png").write_bytes(data)
        shutil.rmtree(target)

    def end_to_end(self) -> None:
        """`dim generate`: latents drawn, images drawn, encoded, written and recorded."""
        target = Path(tempfile.mkdtemp(dir=self.folder))
        generate(self.bundle, target / "set", counts=self.counts, format=self.format, say=quiet)
        shutil.rmtree(target)


def torch_parts(parts: Parts, threads: int) -> dict[str, Callable[[], None]]:
    """PyTorch eager and channels_last on the CPU, where torch is installed and the bundle names its network."""
    try:
        from dim.torch_rivals import torch_rivals
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
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5, help="turns, after one that is not counted")
    parser.add_argument("--format", default="imagefolder", help="what `dim generate --format` takes")
    parser.add_argument("--engine", default="onnxruntime-cpu")
    parser.add_argument("--bundle", help="the bundle; the default bundle if left out")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure; a temporary one if left out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    device = "cpu" if options.engine in ("fake", "onnxruntime-cpu") else "auto"
    try:
        with open_bundle(options.bundle, engine=options.engine, device=device, say=quiet) as bundle:
            parts = Parts(bundle, options.images, options.format, folder)
            timed = {"engine": parts.engine, "encoders": parts.encoders, "disk": parts.disk}
            timed |= {"end to end": parts.end_to_end} | torch_parts(parts, usable_cores())
            rates: dict[str, list[float]] = {name: [] for name in timed}
            for turn in range(options.rounds + 1):
                for name, work in timed.items():
                    began = time.perf_counter()
                    work()
                    if turn:
                        rates[name].append(parts.count / (time.perf_counter() - began))
            report(options, bundle, parts, rates)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(options: argparse.Namespace, bundle: Bundle, parts: Parts, rates: dict[str, list[float]]) -> None:
    """Print rates and the ratios that matter."""
    alone = list(zip(rates["engine"], rates["encoders"], rates["disk"], strict=True))
    slowest = [min(turn) for turn in alone]
    in_turn = [1 / sum(1 / rate for rate in turn) for turn in alone]

    def ratio(a: list[float], b: list[float]) -> float:
        return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)

    ratios = {
        "end to end / slowest part": ratio(rates["end to end"], slowest),
        "end to end / in turn": ratio(rates["end to end"], in_turn),
    }
    ratios |= {
        f"engine / {name}": ratio(rates["engine"], values) for name, values in rates.items() if name.startswith("torch")
    }
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    if options.json:
        described = {"engine": bundle.engine.version, "images": parts.count, "format": options.format}
        print(json.dumps({**described, "images_per_s": medians, "ratios": ratios}))
        return
    print(f"{bundle.manifest.name}, {bundle.engine.name}, {parts.count} images as {options.format}")
    for name, rate in medians.items():
        print(f"  {name:<24}{rate:>12,.0f} images/s")
    for name, value in ratios.items():
        print(f"  {name:<36}{value:>8.2f}")


if __name__ == "__main__":
    main()
