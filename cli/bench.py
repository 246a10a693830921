"""`dim bench`: images per second of every engine that works here, against PyTorch where it is installed."""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim.cli.options import (
    BundleOption,
    DeviceOption,
    JsonOption,
    Sha256Option,
    ThreadsOption,
    TrustOption,
    choose_bundle,
)
from dim.cli.parsing import parse_duration, parse_names, parse_numbers
from dim.cli.terminal import print_json, print_line, print_table, say
from dim.runtime.engines.names import ENGINES
from dim.runtime.errors import RunError
from dim.runtime.gpu.driver import has_nvidia_hardware
from dim.runtime.units import format_count

if TYPE_CHECKING:
    from dim.runtime.benchmark.report import BenchReport

_measure_option = partial(typer.Option, rich_help_panel="Measurement")


def bench(
    bundle: BundleOption = None,
    sha256: Sha256Option = None,
    engines: Annotated[
        str | None, typer.Option("--engine", help="Engines, joined by commas; else all that work here.")
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option("--precision", help="fp32, bf16, fp16, int8 or auto, joined by commas; else all there are."),
    ] = None,
    device: DeviceOption = "auto",
    no_torch: Annotated[bool, typer.Option("--no-torch", help="Leave PyTorch out of the comparison.")] = False,
    batches: Annotated[str, _measure_option("--batch", help="Images per call, joined by commas.")] = "256,1",
    rounds: Annotated[int, _measure_option(help="Turns of each contender.")] = 3,
    seconds: Annotated[float, _measure_option(help="Least time of a turn, in seconds.")] = 0.25,
    no_search: Annotated[bool, _measure_option("--no-search", help="Do not look for the best batch.")] = False,
    time_limit: Annotated[
        str,
        _measure_option(
            help="After this time of measuring, 45s or 10m, open nothing more and begin no further round. What is "
            "being opened is finished, which takes torch.compile up to a minute or two; what is open has one turn."
        ),
    ] = "45s",
    threads: ThreadsOption = None,
    trust: TrustOption = None,
    chart: Annotated[Path | None, typer.Option(help="Draw a chart into this PNG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure images per second of every engine here.

    The contenders take turns, and a ratio is the median over neighbours in time, so that a noisy machine disturbs it
    little. What cannot run here is listed with the reason. Ctrl-C keeps what was measured, in --json and --chart too.

    Example:  [bold]dim bench --batch 64,256[/bold]
    """
    from dim.runtime.benchmark.benchmark import benchmark
    from dim.runtime.benchmark.options import BenchOptions

    path = choose_bundle(bundle, sha256)
    options = BenchOptions(
        engines=None if engines is None else parse_names(engines),
        precisions=None if precisions is None else parse_names(precisions),
        device=device,
        batches=parse_numbers("--batch", batches),
        threads=threads,
        trust=trust or (),
        rounds=rounds,
        turn_s=seconds,
        find_best=not no_search,
        time_limit_s=parse_duration(time_limit),
    )
    shown = _Rows(quiet=as_json)
    try:
        rivals = () if no_torch else _torch_rivals(path, device, threads)
        benchmark(path, options, rivals=rivals, measured=shown.add, say=say, progress=True)
    except KeyboardInterrupt:
        if shown.report is None:
            _say_nothing_measured(chart)
        raise
    finally:
        if shown.report is not None:
            if not shown.report.results:
                _say_nothing_measured(chart)
            elif chart is not None:
                from dim.torch_engine.chart import draw_bench_chart

                draw_bench_chart(shown.report.to_dict(), chart)
            print_json(shown.report.to_dict()) if as_json else _print_rest(
                shown.report, options.batches, with_gpu=engines is not None or device == "gpu" or has_nvidia_hardware()
            )


def _say_nothing_measured(chart: Path | None) -> None:
    say("Nothing was measured" + (f", so {chart} was not drawn." if chart is not None else "."))


def _torch_rivals(path: Path, device: str, threads: int | None) -> Sequence[Any]:
    """Return PyTorch's contenders, none where it is not installed or the bundle does not say what to build."""
    if find_spec("torch") is None:
        say("PyTorch is not installed, so the engines are compared with one another alone.")
        return ()
    from dim.runtime.bundle_format.files import load_manifest
    from dim.torch_engine.rivals import torch_rivals

    try:
        return torch_rivals(load_manifest(path), device, threads=threads)
    except RunError as error:
        say(str(error))
        return ()


class _Rows:
    """Prints each row as soon as it is measured, and keeps the report so far."""

    def __init__(self, quiet: bool) -> None:
        self.report: BenchReport | None = None
        self._quiet = quiet
        self._printed: set[tuple[str, str, str, int]] = set()

    def add(self, report: "BenchReport") -> None:
        """Take a report that holds all earlier rows."""
        if report.results and not self._printed and not self._quiet:
            where = f"{report.machine}, {format_count(report.cores, 'core')}" + (
                f", {report.gpu}" if report.gpu else ""
            )
            print_line(f"{report.gflop_per_image:.3g} GFLOP per image; {where}")
            self._print("engine", "precision", "device", "batch", "images/s", "ms per batch")
        self.report = report
        for row in report.results:
            key = (row.engine, row.precision, row.device, row.batch)
            if key not in self._printed and not self._quiet:
                self._print(*key[:3], f"{row.batch:,}", f"{row.images_per_s:,.0f}", f"{row.latency_ms:,.2f}")
            self._printed.add(key)

    def _print(self, engine: str, precision: str, device: str, batch: str, speed: str, latency: str) -> None:
        print_line(f"{engine:<20} {precision:<9} {device:<6} {batch:>6} {speed:>12} {latency:>13}")


def _print_rest(report: "BenchReport", batches: Sequence[int], with_gpu: bool) -> None:
    """Print what follows the rows; what GPU engines miss only where one was asked for or a GPU is there."""
    from dim.runtime.benchmark.report import recommend_precision

    best = [f"{row.engine} {row.precision} {row.batch:,}" for row in report.results if row.best]
    if len({row.batch for row in report.results}) > 1:
        print_line(f"Best batches: {', '.join(best)}")
    _print_ratios(report)
    for size in batches:
        turns = min((row.turns for row in report.results if row.batch == size), default=report.rounds)
        if turns < report.rounds:
            warm_up = "" if turns else "; what had none has the speed of its warm-up"
            print_line(f"Cut short: {turns} of {format_count(report.rounds, 'round')} at batch {size:,}{warm_up}.")
    if (recommended := recommend_precision(report)) is not None:
        print_line(recommended)
    for missing in report.not_run:
        if ENGINES.get(missing.engine) == "gpu" and not with_gpu:
            continue
        batch = "" if missing.batch is None else f" at batch {missing.batch:,}"
        print_line(f"Not run: {missing.engine} {missing.precision}{batch}: {missing.reason}")


def _print_ratios(report: "BenchReport") -> None:
    rows = [
        (
            f"{ratio.engine} {ratio.precision}",
            f"{ratio.against} {ratio.against_precision}",
            ratio.device,
            f"{ratio.batch:,}",
            f"{ratio.ratio:.2f}",
            f"{ratio.least:.2f} to {ratio.most:.2f}",
        )
        for ratio in report.ratios
    ]
    if rows:
        columns = ("engine", "against", "device", "batch", "times as fast", "range over the rounds")
        print_table("Ratios from neighbours in time", columns, rows, numbers=("batch", "times as fast"))
