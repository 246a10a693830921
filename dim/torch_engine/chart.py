"""The chart of `dim bench`: images per second over the batch size, one line per engine and precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dim.runtime.errors import MissingExtraError


def draw_bench_chart(report: Mapping[str, Any], chart_path: Path) -> None:
    """Draw a benchmark.

    Args:
        report: `BenchReport.to_dict()`, or the JSON that it became.
        chart_path: PNG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "train", "draw charts") from None
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in report["results"]:
        name = f"{row['engine']} {row['precision']}, {row['device']}"
        lines.setdefault(name, []).append((row["batch"], row["images_per_s"]))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in lines.items():
        points.sort()
        # PyTorch's lines are dashed: they are what the engines are measured against.
        style = "--" if name.startswith("torch") else "-"
        axes.plot([batch for batch, _ in points], [speed for _, speed in points], style, marker="o", ms=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("images per call")
    axes.set_ylabel("images per second")
    where = report["gpu"] or report["machine"]
    axes.set_title(f"{report['gflop_per_image']:.3g} GFLOP per image, {where}, {report['cores']} cores", fontsize=9)
    axes.grid(alpha=0.3, which="both")
    if lines:
        axes.legend(fontsize=7)
    chart_path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(chart_path, dpi=150, metadata={"Software": None})
