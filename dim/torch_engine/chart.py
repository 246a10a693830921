"""The chart of `dim bench`: images per second over the batch size, one line per engine and precision."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dim.chart_style import GENERATED, REAL, Label, label_ends, make_figure, name_axes, to_png
from dim.runtime.errors import MissingExtraError


def draw_bench_chart(report: Mapping[str, Any], chart_path: Path) -> None:
    """Draw a benchmark: engines of a bundle as full lines, PyTorch, which they are measured against, dashed.

    Args:
        report: `BenchReport.to_dict()`, or the JSON that it became.
        chart_path: PNG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401  # only asks whether it is there
    except ImportError:
        raise MissingExtraError("matplotlib", "train", "draw charts") from None
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in report["results"]:
        device = "" if row["device"] == "cpu" else f", {row['device']}"
        lines.setdefault(f"{row['engine']} {row['precision']}{device}", []).append((row["batch"], row["images_per_s"]))
    figure, (axes,) = make_figure(1, width=6.4, height=4.4)
    colours = {name: REAL if name.startswith("torch") else GENERATED for name in lines}
    markers = "os^vDPX*"
    ends = []
    for number, (name, points) in enumerate(lines.items()):
        points.sort()
        dashed = "--" if name.startswith("torch") else "-"
        marker = markers[number % len(markers)]
        axes.plot(*zip(*points, strict=True), dashed, marker=marker, ms=4, lw=1.3, color=colours[name])
        ends.append(Label(name, colours[name], *points[-1]))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    batches = sorted({row["batch"] for row in report["results"]})
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    speeds = [row["images_per_s"] for row in report["results"]]
    round_speeds = [first * 10**power for power in range(9) for first in (1, 2, 5)]
    shown = [speed for speed in round_speeds if 0.5 * min(speeds, default=1) <= speed <= 2 * max(speeds, default=1)]
    axes.set_yticks(shown, [f"{speed:,}" for speed in shown])
    axes.minorticks_off()
    where = report["gpu"] or report["machine"]
    title = f"{where}, {report['cores']} cores, {report['gflop_per_image']:.3g} GFLOP per image"
    name_axes(axes, title, "images per call", "images per second")
    axes.title.set_fontsize(8.5)
    label_ends(axes, ends)
    chart_path.parent.mkdir(parents=True, exist_ok=True)
    chart_path.write_bytes(to_png(figure))
