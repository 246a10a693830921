#!/usr/bin/env python3
"""A million images through the stream and through every writer: how fast, and does the memory stay flat?

    python -m lab.soak                                  # everything, with the fake engine
    python -m lab.soak --what stream npz --engine onnxruntime-cpu --images 100000
    python -m lab.soak --json soak.json

Each row is measured in a process of its own, several times a second: resident memory when a quarter of the images is
done, at the end, and at most; open files and threads likewise. The exit code is 1 if memory grew by more than 32 MiB
from the quarter to the end, or if files or threads were left open. Sets are written below --folder and removed.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from dim.runtime import open_bundle
from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.locate import find_bundle
from dim.runtime.set_formats.table import FORMATS
from dim.runtime.sets.generate import generate
from dim.runtime.sets.request import SetRequest

WHAT = ("stream", *FORMATS)
MAX_GROWTH_MIB = 32.0
SAMPLE_SECONDS = 0.2
IPC, BATCH = 50, 64


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one soak showed."""

    what: str
    engine: str
    images: int
    seconds: float
    cpu_seconds: float
    quarter_mib: float
    """Resident memory once a quarter of the images was done."""
    end_mib: float
    """Resident memory at the last image."""
    peak_mib: float
    left_open: int
    """Files and threads more than before, once all is closed."""

    @property
    def growth_mib(self) -> float:
        """Memory gained over the last three quarters."""
        return self.end_mib - self.quarter_mib

    @property
    def flat(self) -> bool:
        """Whether nothing grew."""
        return self.growth_mib <= MAX_GROWTH_MIB and self.left_open == 0


class Watch:
    """Samples this process's memory while images go by."""

    def __init__(self, images: int) -> None:
        self.images, self.done = images, 0
        self.samples: list[tuple[int, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()
        self.samples.append((self.done, resident_mib()))

    def _work(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.samples.append((self.done, resident_mib()))

    def at(self, share: float) -> float:
        """Memory when that share of the images was done."""
        return next(mib for done, mib in self.samples if done >= share * self.images)


def resident_mib() -> float:
    """The resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def count_open() -> int:
    """Open files and threads of this process."""
    return len(os.listdir("/proc/self/fd")) + threading.active_count()


def soak_stream(bundle: Bundle, watch: Watch, folder: Path) -> None:
    """Draw batches until there were enough images."""
    for images, _ in bundle.stream(ipc=IPC, batch_size=BATCH, seed=0):
        watch.done += len(images)
        if watch.done >= watch.images:
            return


def writing(format: str) -> Callable[[Bundle, Watch, Path], None]:
    """The function that writes a set of a format."""

    def soak(bundle: Bundle, watch: Watch, folder: Path) -> None:
        def note(what: str, done: float, total: float | None, note: str) -> None:
            watch.done = int(done)

        classes = len(bundle.classes)
        counts = [watch.images // classes + (label < watch.images % classes) for label in range(classes)]
        summary = generate(bundle, SetRequest(per_class=counts, format=format), folder / "set", progress=note)
        if not summary.complete or summary.images != watch.images:
            raise SystemExit(f"{format}: {summary.images:,} images instead of {watch.images:,}")

    return soak


def measure(what: str, bundle_path: str, engine: str, images: int, folder: str, answer: Connection) -> None:
    """Soak one path in this process and send its `Row`."""
    act = soak_stream if what == "stream" else writing(what)
    before, watch = count_open(), Watch(images)
    began = time.monotonic()
    with open_bundle(bundle_path, engine=engine) as bundle:
        with watch:
            act(bundle, watch, Path(folder))
        name = bundle.engine.version
    row = Row(
        what=what,
        engine=name,
        images=images,
        seconds=time.monotonic() - began,
        cpu_seconds=sum(os.times()[:2]),
        quarter_mib=watch.at(0.25),
        end_mib=watch.at(1.0),
        peak_mib=max(mib for _, mib in watch.samples),
        left_open=max(0, count_open() - before),
    )
    answer.send(row)


def in_own_process(what: str, bundle_path: str, engine: str, images: int, folder: Path) -> Row:
    """Measure a row in a fresh process, so that it does not inherit another's memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(what, bundle_path, engine, images, str(folder), sender))
    child.start()
    sender.close()
    try:
        row: Row = receiver.recv()
    except EOFError:
        raise SystemExit(f"{what} failed; its error stands above.") from None
    child.join()
    return row


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=list(WHAT), choices=WHAT)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--engine", default="fake")
    parser.add_argument("--bundle", help="default: as for  dim generate")
    parser.add_argument("--folder", type=Path, help="where sets are written and removed; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="write the rows as JSON as well")
    options = parser.parse_args()
    bundle, _ = find_bundle(options.bundle)
    rows = []
    print(f"{'':12} {'engine':22} {'images':>10} {'images/s':>9} {'CPU s':>7} {'at 1/4':>8} {'at end':>8} {'peak':>8}")
    for what in options.what:
        folder = Path(tempfile.mkdtemp(prefix="dim-soak-", dir=options.folder))
        try:
            row = in_own_process(what, str(bundle), options.engine, options.images, folder)
            rows.append(row)
            print(
                f"{row.what:12} {row.engine:22} {row.images:10,} {row.images / row.seconds:9,.0f} "
                f"{row.cpu_seconds:7.1f} {row.quarter_mib:4.0f} MiB {row.end_mib:4.0f} MiB {row.peak_mib:4.0f} MiB"
                + ("" if row.flat else f"  NOT FLAT: {row.growth_mib:+.0f} MiB, {row.left_open} left open"),
                flush=True,
            )
        finally:
            shutil.rmtree(folder)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if all(row.flat for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
