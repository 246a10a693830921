"""The chart of a run's losses, drawn from its `metrics.jsonl`."""

from __future__ import annotations

import io
import json
from pathlib import Path

from dim.runs.checkpoint import write_atomically


def draw_curves(metrics_path: Path, chart_path: Path) -> None:
    """Draw every metric of a run against its steps, one panel per stage.

    Args:
        metrics_path: JSON lines with `stage`, `step` and numbers.
        chart_path: PNG to write, which appears whole; nothing is written while there are no lines.

    Raises:
        RunError: the disk refused.
    """
    text = metrics_path.read_text() if metrics_path.exists() else ""
    if text:
        write_atomically(chart_path, curves_png(text))


def curves_png(metrics: str) -> bytes:
    """The chart of at least one line of metrics, as a PNG file."""
    lines = [json.loads(line) for line in metrics.splitlines()]
    stages = sorted({line["stage"] for line in lines})
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
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
    return stream.getvalue()
