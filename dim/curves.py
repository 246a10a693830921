"""The chart of a run's losses, drawn from its `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path


def draw_curves(metrics_path: Path, chart_path: Path) -> None:
    """Draw every metric of a run against its steps, one panel per stage.

    Args:
        metrics_path: JSON lines with `stage`, `step` and numbers.
        chart_path: PNG to write; nothing is written while there are no lines.
    """
    if not metrics_path.exists():
        return
    lines = [json.loads(line) for line in metrics_path.read_text().splitlines()]
    stages = sorted({line["stage"] for line in lines})
    if not stages:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(stages), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), number + 1)
        rows = [line for line in lines if line["stage"] == stage]
        for name in sorted({key for row in rows for key in row} - {"stage", "step"}):
            points = [(row["step"], row[name]) for row in rows if name in row]
            axes.plot([x for x, _ in points], [y for _, y in points], label=name.replace("_", " "), linewidth=1)
        axes.set(title=stage, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    temporary = chart_path.with_name(chart_path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    temporary.replace(chart_path)
