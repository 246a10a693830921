"""`dim bench`: images per second and latency of every engine that works here, ratios from interleaved runs.

Machines are noisy and clocks drift, so contenders take turns: in every round each draws for a moment, and a ratio is
the median over the rounds of two neighbours in time. `dim.torch_engine.rivals` adds PyTorch as contenders where it is
installed; this module imports no torch.
"""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.runtime.benchmark.contenders import Batch, Contender, Runner
from dim.runtime.benchmark.flops import flop_per_image
from dim.runtime.benchmark.interleaved import Clock, InterleavedRuns
from dim.runtime.benchmark.report import BenchReport
from dim.runtime.bundle_format.files import load_manifest, read_checked_file
from dim.runtime.bundle_format.graph_contract import MAX_ONNX_BYTES
from dim.runtime.bundle_format.manifest import Manifest, onnx_name
from dim.runtime.choose_engine import open_engine, settle_precision
from dim.runtime.cores import processor_name, usable_cores
from dim.runtime.engines.base import Engine, EngineOptions, run_ahead
from dim.runtime.engines.names import DEVICES, ENGINES, draws_in
from dim.runtime.errors import BadValueError, BundleError
from dim.runtime.gpu.driver import Driver, find_driver, require_gpu
from dim.runtime.progress.show import ProgressOption, show_progress
from dim.version import __version__

BATCHES = (1, 64, 256, 1024)
ROUNDS = 5
TURN_S = 0.25
"""Seconds that an engine draws in its turn, at least."""


def benchmark(
    bundle_path: str | Path,
    *,
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    device: str = "auto",
    batches: Sequence[int] = BATCHES,
    rivals: Sequence[Contender] = (),
    threads: int | None = None,
    trust: Sequence[str] = (),
    rounds: int = ROUNDS,
    turn_s: float = TURN_S,
    find_best: bool = True,
    driver: Driver | None = None,
    say: Callable[[str], None] = lambda message: None,
    progress: ProgressOption = None,
    clock: Clock = time.perf_counter,
) -> BenchReport:
    """Measure every engine that works here on a bundle.

    Args:
        bundle_path: the bundle's folder.
        engines: names from `dim.runtime.engines.names.ENGINES`; None for all but the fake one, empty for
            the rivals alone.
        precisions: "fp32", "fp16", "int8", "bf16", or "auto" for what `settle_precision` takes here; None for all
            that there are.
        device: "auto" for both, "cpu" or "gpu".
        batches: images per call.
        rivals: further contenders, such as those of `dim.torch_engine.rivals.torch_rivals(manifest, device)`.
        threads: threads of CPU engines; None for every core this process may use.
        trust: "sha256:..." of prebuilt engines that may be loaded.
        rounds: turns of each contender at each batch size.
        turn_s: seconds that a turn lasts at least.
        find_best: look for each engine's best batch size among `PROBED_BATCHES`, too.
        driver: an answer of `find_driver`; None asks anew.
        say: called with a sentence about every engine that is opened or built.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`.
        clock: seconds.

    Returns:
        the report; what cannot run here is listed as not run.

    Raises:
        BadValueError: an unknown engine or device, or a number out of range.
        BundleError: no bundle, or it lacks a precision.
        DeviceError: `device` is "gpu" and there is none.
    """
    path = Path(bundle_path)
    manifest = load_manifest(path)
    _check_arguments(manifest, engines, precisions, device, batches, rounds, turn_s)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    driver = driver or find_driver()
    if device == "gpu":
        require_gpu("measure with --device gpu", driver)
    precisions = _settle_precisions(precisions, manifest, device, driver)
    common = EngineOptions(threads=threads, trust=trust)
    contenders = [
        Contender(
            engine=name,
            precision=precision,
            device=ENGINES[name],
            open=_opener(path, manifest, replace(common, engine=name, precision=precision), driver, say),
        )
        for name in ([name for name in ENGINES if name != "fake"] if engines is None else engines)
        for precision in precisions
        if device in ("auto", ENGINES[name]) and draws_in(name, precision)
    ]
    contenders += [rival for rival in rivals if device in ("auto", rival.device)]
    with show_progress(progress) as report:
        runs = InterleavedRuns(manifest, contenders, rounds, turn_s, clock, report, len(batches))
        for batch in sorted(set(batches)):
            runs.compare(batch)
        if find_best:
            runs.probe_other_batches()
    flop = flop_per_image(read_checked_file(path, manifest, onnx_name("fp32"), max_bytes=MAX_ONNX_BYTES))
    return BenchReport(
        bundle=str(path),
        content_id=manifest.content_id,
        dim=__version__,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        machine=f"{platform.system()} {platform.machine()}, {processor_name()}",
        cores=usable_cores(),
        threads=threads or usable_cores(),
        load=load,
        gpu=driver.gpus[0].name if driver.gpus else None,
        versions=_versions(driver),
        gflop_per_image=flop / 1e9,
        rounds=rounds,
        results=tuple(runs.results()),
        ratios=tuple(runs.ratios()),
        not_run=tuple(runs.not_run),
    )


class _EngineRunner:
    """An engine as a contender: those that can, run ahead."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
        return run_ahead(self.engine, batches)

    def close(self) -> None:
        self.engine.close()


def _opener(
    path: Path, manifest: Manifest, options: EngineOptions, driver: Driver, say: Callable[[str], None]
) -> Callable[[int], Runner]:
    def open_at(batch: int) -> Runner:
        engine = open_engine(
            path,
            manifest,
            options,
            batch=batch if ENGINES[options.engine] == "gpu" else None,
            driver=driver,
            say=lambda message: None if message.startswith("Engine: ") else say(message),
        )
        return _EngineRunner(engine)

    return open_at


def _settle_precisions(
    wanted: Sequence[str] | None, manifest: Manifest, device: str, driver: Driver
) -> tuple[str, ...]:
    """Name every precision once, "auto" by what it stands for here."""
    if wanted is None:
        return (*manifest.precisions, "bf16")
    auto = settle_precision(EngineOptions(device=device, precision="auto"), driver).precision or "fp32"
    return tuple(dict.fromkeys(auto if precision == "auto" else precision for precision in wanted))


def _check_arguments(
    manifest: Manifest,
    engines: Sequence[str] | None,
    precisions: Sequence[str] | None,
    device: str,
    batches: Sequence[int],
    rounds: int,
    turn_s: float,
) -> None:
    for name in engines or ():
        if name not in ENGINES:
            raise BadValueError(f"There is no engine {name!r}; there are {', '.join(ENGINES)}.")
    for precision in precisions or ():
        if precision not in (*manifest.precisions, "bf16", "auto"):
            raise BundleError(f"The bundle has no {precision}; it has {', '.join(manifest.precisions)}.")
    if device not in DEVICES:
        raise BadValueError(f"There is no device {device!r}; there are {', '.join(DEVICES)}.")
    if not batches or min(batches) < 1:
        raise BadValueError(f"The batches are {list(batches)}; each must be at least 1.")
    if rounds < 1 or turn_s <= 0:
        raise BadValueError(f"There must be at least 1 round and some time per turn, not {rounds} and {turn_s} s.")


def _versions(driver: Driver) -> dict[str, str]:
    found = {} if driver.version is None else {"driver": driver.version}
    for package in ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
