"""`dim bench`: images per second and latency of every engine that works here, ratios from interleaved runs.

Machines are noisy and clocks drift, so engines take turns: in every round each draws for a moment. A ratio is the
median over the rounds of two neighbours in time. `dim.torch_engine.rivals` adds PyTorch as contenders where it is
installed; this module imports no torch.
"""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.runtime.benchmark.contenders import Batch, Contender, Runner
from dim.runtime.benchmark.flops import flop_per_image
from dim.runtime.benchmark.interleaved import Clock, InterleavedRuns
from dim.runtime.benchmark.options import BenchOptions
from dim.runtime.benchmark.report import BenchReport
from dim.runtime.bundle_format.files import load_manifest, read_checked_file
from dim.runtime.bundle_format.graph_contract import MAX_ONNX_BYTES
from dim.runtime.bundle_format.manifest import Manifest, onnx_name
from dim.runtime.choose_engine import open_engine, settle_precision
from dim.runtime.cores import processor_name, usable_cores
from dim.runtime.engines.base import Engine, EngineOptions, run_ahead
from dim.runtime.engines.names import ENGINES, OFFERED_ENGINES, draws_in
from dim.runtime.errors import BundleError
from dim.runtime.gpu.driver import Driver, find_driver, require_gpu
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import ProgressOption, show_progress
from dim.version import __version__


def benchmark(
    bundle_path: str | Path,
    options: BenchOptions | None = None,
    *,
    rivals: Sequence[Contender] = (),
    driver: Driver | None = None,
    measured: Callable[[BenchReport], None] = lambda report: None,
    say: Callable[[str], None] = say_to_log,
    progress: ProgressOption = None,
    clock: Clock = time.perf_counter,
) -> BenchReport:
    """Measure every engine that works here on a bundle.

    Args:
        bundle_path: the bundle's folder.
        options: what is measured, and for how long; None for all that works here.
        rivals: further contenders, such as those of `dim.torch_engine.rivals.torch_rivals(manifest, device)`.
        driver: an answer of `find_driver`; None asks anew.
        measured: gets the report so far after every batch size, and at an interruption what was measured until then;
            what had no turn yet has the figures of its warm-up.
        say: called with a sentence about every engine that is opened or built.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`.
        clock: seconds.

    Returns:
        the report; what cannot run here is listed as not run.

    Raises:
        BundleError: no bundle, or it lacks a precision.
        DeviceError: the device is "gpu" and there is none.
    """
    path, options = Path(bundle_path), options or BenchOptions()
    manifest = load_manifest(path)
    for precision in options.precisions or ():
        if precision not in (*manifest.precisions, "bf16", "auto"):
            raise BundleError(f"The bundle has no {precision}; it has {', '.join(manifest.precisions)}.")
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    driver = driver or find_driver()
    if options.device == "gpu":
        require_gpu("measure with --device gpu", driver)
    contenders = list_contenders(path, manifest, options, driver, say)
    contenders += [rival for rival in rivals if options.device in ("auto", rival.device)]
    flop = flop_per_image(read_checked_file(path, manifest, onnx_name("fp32"), max_bytes=MAX_ONNX_BYTES))

    def report_so_far() -> BenchReport:
        return BenchReport(
            bundle=str(path),
            content_id=manifest.content_id,
            dim=__version__,
            date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            machine=f"{platform.system()} {platform.machine()}, {processor_name()}",
            cores=usable_cores(),
            threads=options.threads or usable_cores(),
            load=load,
            gpu=driver.gpus[0].name if driver.gpus else None,
            versions=_versions(driver),
            gflop_per_image=flop / 1e9,
            rounds=options.rounds,
            results=tuple(runs.results()),
            ratios=tuple(runs.ratios()),
            not_run=tuple(runs.not_run),
        )

    with show_progress(progress) as report:
        runs = InterleavedRuns(manifest, contenders, options, clock, report)
        try:
            for batch in dict.fromkeys(options.batches):
                runs.compare(batch)
                measured(report_so_far())
            if options.find_best:
                runs.probe_other_batches()
                measured(report_so_far())
        except KeyboardInterrupt:
            measured(report_so_far())
            raise
    return report_so_far()


def list_contenders(
    path: Path, manifest: Manifest, options: BenchOptions, driver: Driver, say: Callable[[str], None]
) -> list[Contender]:
    """List every engine in every precision that was asked for."""
    precisions = _settle_precisions(options.precisions, manifest, options.device, driver)
    common = EngineOptions(threads=options.threads, trust=options.trust)
    return [
        Contender(
            engine=name,
            precision=precision,
            device=ENGINES[name],
            open=partial(_open, path, manifest, replace(common, engine=name, precision=precision), driver, say),
        )
        for name in (OFFERED_ENGINES if options.engines is None else options.engines)
        for precision in precisions
        if options.device in ("auto", ENGINES[name]) and draws_in(name, precision)
    ]


class _EngineRunner:
    """An engine as a contender: those that can, run ahead."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
        return run_ahead(self.engine, batches)

    def close(self) -> None:
        self.engine.close()


def _open(
    path: Path, manifest: Manifest, options: EngineOptions, driver: Driver, say: Callable[[str], None], batch: int
) -> Runner:
    engine = open_engine(
        path,
        manifest,
        options,
        batch=batch if ENGINES[options.engine] == "gpu" else None,
        driver=driver,
        say=lambda message: None if message.startswith("Engine: ") else say(message),
    )
    return _EngineRunner(engine)


def _settle_precisions(
    wanted: Sequence[str] | None, manifest: Manifest, device: str, driver: Driver
) -> tuple[str, ...]:
    """Name every precision once, "auto" by what it stands for here."""
    if wanted is None:
        return (*manifest.precisions, "bf16")
    auto = settle_precision(EngineOptions(device=device, precision="auto"), driver).precision or "fp32"
    return tuple(dict.fromkeys(auto if precision == "auto" else precision for precision in wanted))


def _versions(driver: Driver) -> dict[str, str]:
    found = {} if driver.version is None else {"driver": driver.version}
    for package in ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
