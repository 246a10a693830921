"""The chart of a run's training, drawn from its `metrics.jsonl`: one panel per quantity."""

import textwrap
from pathlib import Path
from typing import Any

from dim.chart_style import GENERATED, INK, OTHERS, REAL, Label, label_ends, make_figure, name_axes, to_png
from dim.runs.files import read_file, write_file
from dim.runs.metrics import METRICS_FILE, parse_metrics, read_metrics

CURVES_FILE = "curves.png"
STAGE_LABEL_HEIGHT = 0.12
"""Part of a panel's height that is kept free of lines for the names of stages."""

QUANTITIES: dict[str, tuple[str, tuple[tuple[str, str, str], ...]]] = {
    "discriminator's output": (
        "Good: both lines near each other and level. Lines far apart mean that the discriminator wins.",
        (("real_logit", "real", REAL), ("fake_logit", "generated", GENERATED)),
    ),
    "adversarial losses": (
        "Good: both level out, and neither falls to 0.",
        (("discriminator_loss", "discriminator", OTHERS[0]), ("generator_loss", "generator", GENERATED)),
    ),
    "R1, squared gradient": (
        "Good: small and level. A rise without end means that training diverges.",
        (("r1", "", OTHERS[0]),),
    ),
    "gradient penalty": ("Good: small and level.", (("gradient_penalty", "", OTHERS[0]),)),
    "matching loss": (
        "Good: falls. At 0 the pool cannot tell generated images from real ones.",
        (("matching_loss", "", GENERATED),),
    ),
}
"""What each panel shows: what good looks like, then metric, name at the line, colour. Other metrics follow."""


def draw_curves(run_dir: Path) -> None:
    """Draw every metric of a run against its steps as `curves.png`; nothing where there are no numbers yet.

    Raises:
        RunError: the disk refused, or a link lies there.
    """
    if any(len(line) > 2 for line in read_metrics(run_dir)):
        write_file(run_dir, CURVES_FILE, curves_png(read_file(run_dir, METRICS_FILE)))


def curves_png(metrics: bytes) -> bytes:
    """The chart of the lines of a `metrics.jsonl`, at least one of them with a number, as a PNG file."""
    lines = parse_metrics(metrics)
    measured = dict.fromkeys(key for line in lines for key in line if key not in ("stage", "step"))
    known = {metric for _, drawn in QUANTITIES.values() for metric, _, _ in drawn}
    panels = {title: panel for title, panel in QUANTITIES.items() if any(m in measured for m, _, _ in panel[1])}
    panels |= {m.replace("_", " "): ("", ((m, "", OTHERS[0]),)) for m in measured if m not in known}
    places, ends = _join_stages(lines)
    figure, grid = make_figure(len(panels), width=5.2, height=2.9)
    for axes, (title, (good, drawn)) in zip(grid, panels.items(), strict=True):
        labels = []
        for metric, name, colour in drawn:
            points = [(places[number], line[metric]) for number, line in enumerate(lines) if metric in line]
            if points:
                alone = len(points) == 1  # no line can be drawn of it
                style: dict[str, Any] = {"marker": "o", "markersize": 4, "clip_on": False} if alone else {}
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, **style)
                labels.append(Label(name, colour, *points[-1]))
        for stage, (begin, _) in list(ends.items())[1:]:
            axes.axvline(begin, color=INK, linewidth=0.8, linestyle=":")
            axes.text(
                begin,
                1.0,
                f" {stage.replace('stage', 'stage ')}",
                transform=axes.get_xaxis_transform(),
                color=INK,
                fontsize=8,
                va="top",
            )
        axes.set_xlim(0, max(end for _, end in ends.values()))
        if axes.get_ylim()[0] > 0:
            axes.set_ylim(bottom=0)
        if len(ends) > 1:
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + STAGE_LABEL_HEIGHT * (high - low))
        name_axes(axes, title, "\n".join(["step", *textwrap.wrap(good, 60)]), "")
        label_ends(axes, labels)
    return to_png(figure)


def _join_stages(lines: list[dict[str, Any]]) -> tuple[list[int], dict[str, tuple[int, int]]]:
    """Place stage 2 behind stage 1: the place of every line, and where each stage begins and ends."""
    begin, ends = 0, {}
    for stage in sorted({line["stage"] for line in lines}):
        end = begin + max(line["step"] for line in lines if line["stage"] == stage)
        ends[stage] = (begin, end)
        begin = end
    return [ends[line["stage"]][0] + line["step"] for line in lines], ends
