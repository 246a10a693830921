"""The chart of a run's losses, drawn from its `metrics.jsonl`."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path

from dim.runs.files import read_file, write_file

METRICS_FILE = "metrics.jsonl"
"""JSON lines with `stage`, `step` and numbers."""


def draw_curves(run_dir: Path) -> None:
    """Draw every metric of a run against its steps, one panel per stage, as `curves.png`.

    Args:
        run_dir: the run; nothing is written while its `metrics.jsonl` has no lines.

    Raises:
        RunError: the disk refused, or a link lies there.
    """
    with suppress(FileNotFoundError):
        if text := read_file(run_dir, METRICS_FILE).decode():
            write_file(run_dir, "curves.png", curves_png(text))


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
