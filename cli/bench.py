"""`dim bench`: images per second of every engine that works here, against PyTorch where it is installed."""

from collections.abc import Sequence
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
from dim.cli.parsing import parse_names, parse_numbers
from dim.cli.terminal import print_json, print_line, print_table, say
from dim.runtime.errors import RunError

if TYPE_CHECKING:
    from dim.runtime.benchmark.report import BenchReport

_MEASURE = "Measurement"


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
    batches: Annotated[
        str, typer.Option("--batch", help="Images per call, joined by commas.", rich_help_panel=_MEASURE)
    ] = "1,64,256,1024",
    rounds: Annotated[int, typer.Option(help="Turns of each contender.", rich_help_panel=_MEASURE)] = 5,
    seconds: Annotated[float, typer.Option(help="Least time of a turn, in seconds.", rich_help_panel=_MEASURE)] = 0.25,
    no_search: Annotated[
        bool, typer.Option("--no-search", help="Do not look for the best batch.", rich_help_panel=_MEASURE)
    ] = False,
    threads: ThreadsOption = None,
    trust: TrustOption = None,
    chart: Annotated[Path | None, typer.Option(help="Draw a chart into this PNG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure images per second of every engine here.

    The contenders take turns, and a ratio is the median over neighbours in time, so that a noisy machine disturbs it
    little. What cannot run here is listed with the reason.

    Example:  [bold]dim bench --batch 64,256[/bold]
    """
    from dim.runtime.benchmark.benchmark import benchmark

    path = choose_bundle(bundle, sha256)
    report = benchmark(
        path,
        engines=None if engines is None else parse_names(engines),
        precisions=None if precisions is None else parse_names(precisions),
        device=device,
        batches=parse_numbers("--batch", batches),
        rivals=() if no_torch else _torch_rivals(path, device, threads),
        threads=threads,
        trust=trust or (),
        rounds=rounds,
        turn_s=seconds,
        find_best=not no_search,
        say=say,
        progress=True,
    )
    if chart is not None:
        from dim.torch_engine.chart import draw_bench_chart

        draw_bench_chart(report.to_dict(), chart)
    print_json(report.to_dict()) if as_json else _print_report(report)


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


def _print_report(report: "BenchReport") -> None:
    from dim.runtime.benchmark.report import recommend_precision

    where = f"{report.machine}, {report.cores} cores" + (f", {report.gpu}" if report.gpu else "")
    print_line(f"{report.gflop_per_image:.3g} GFLOP per image; {where}")
    rows = [
        (
            f"{row.engine}{' *' if row.best else ''}",
            row.precision,
            row.device,
            f"{row.batch:,}",
            f"{row.images_per_s:,.0f}",
            f"{row.latency_ms:,.2f}",
        )
        for row in report.results
    ]
    columns = ("engine", "precision", "device", "batch", "images/s", "ms per batch")
    print_table("Speed (* best batch of its kind)", columns, rows, numbers=columns[3:])
    _print_ratios(report)
    if (recommended := recommend_precision(report)) is not None:
        print_line(recommended)
    for missing in report.not_run:
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
