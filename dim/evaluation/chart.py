"""Charts of an evaluation: accuracy over images per class, and several networks side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dim.chart_style import (
    INK,
    Label,
    choose_colour,
    draw_means,
    label_ends,
    make_figure,
    name_axes,
    share_percents,
    to_png,
)
from dim.evaluation.files import write_file
from dim.evaluation.results import Row
from dim.evaluation.table import APART, list_columns, network_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHART_NAME = "accuracy.png"
_ACROSS = 2
"""Panels of curves in a row."""
_BAR_INCHES = 0.19
_PANEL_INCHES = 0.85
"""What a panel needs above and below its bars."""


def draw_chart(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy over images per class, one panel per network and mode, as a PNG; nothing where there are no rows.

    Generated and real images have a colour of their own, and every line its name at its end. A network that was
    measured at a single number of images is no curve, and left out where there are curves. Where nothing was measured
    at more than one number, `draw_networks_chart` draws bars instead.

    Raises:
        OutputError: the disk refused.
    """
    drawn = [row for row in rows if row["source"] not in APART]
    if not drawn:
        return
    sizes: dict[tuple[str, int | None, str], set[int]] = {}
    for row in drawn:
        sizes.setdefault((row["arch"], row["width"], row["mode"]), set()).add(row["ipc"])
    panels = [panel for panel, ipcs in sizes.items() if len(ipcs) > 1]
    if not panels:
        draw_networks_chart(drawn, path)
        return
    panels.sort(key=lambda panel: (panel[0], panel[1] or 0, panel[2]))
    figure, grid = make_figure(len(panels), across=_ACROSS)
    ends = [
        _draw_panel(axes, [row for row in drawn if (row["arch"], row["width"], row["mode"]) == panel])
        for axes, panel in zip(grid, panels, strict=True)
    ]
    share_percents(grid)
    for place, (axes, (arch, width, mode)) in enumerate(zip(grid, panels, strict=True)):
        across = "images per class and epoch" if mode == "stream" else "images per class"
        down = "test accuracy, %" if place % _ACROSS == 0 else ""
        name_axes(axes, f"{network_name(arch, width)}, {mode}", across, down)
        label_ends(axes, ends[place])
    figure.suptitle(drawn[0]["data"], color=INK, fontsize=11)
    write_file(path, to_png(figure), f"The chart {path}")


def _draw_panel(axes: "Axes", rows: Sequence[Row]) -> list[Label]:
    """Draw one line with deviations per kind of images, and return their names."""
    columns = list_columns(rows)
    others = [subject for _, subject in columns if subject not in ("generated", "real")]
    ends = []
    for labels, subject in columns:
        points = sorted(
            (row["ipc"], row["accuracy_mean"], row["accuracy_std"])
            for row in rows
            if (row["labels"], row["subject"]) == (labels, subject)
        )
        ipcs, means, deviations = zip(*points, strict=True)
        colour = choose_colour(subject, others)
        draw_means(axes, ipcs, means, deviations, colour, "-" if labels == "hard" else "--")
        ends.append(Label(subject + ("" if labels == "hard" else ", soft labels"), colour, ipcs[-1], means[-1]))
    axes.set_xscale("log")
    ticks = sorted({row["ipc"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    return ends


def draw_networks_chart(rows: Sequence[Row], path: Path) -> None:
    """Draw what several networks learn as bars from 0 to 100 %, generated beside real images, one panel per mode.

    Args:
        rows: of one dataset and one kind of labels; at least one.
        path: the PNG file.

    Raises:
        OutputError: the disk refused.
    """
    panels: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        panels.setdefault((row["mode"], row["ipc"]), []).append(row)
    others = list(dict.fromkeys(row["subject"] for row in rows if row["subject"] not in ("generated", "real")))
    heights = [_PANEL_INCHES + len(shown) * _BAR_INCHES for shown in panels.values()]
    figure, grid = make_figure(len(panels), across=1, width=6.4, heights=heights)
    for axes, ((mode, ipc), shown) in zip(grid, panels.items(), strict=True):
        shown.sort(key=lambda row: (row["arch"], row["width"] or 0, row["subject"]))
        for place, row in enumerate(shown):
            colour = choose_colour(row["subject"], others)
            mean = row["accuracy_mean"]
            axes.barh(place, mean, 0.75, xerr=row["accuracy_std"], color=colour, ecolor=INK, capsize=2)
            soft = "" if row["labels"] == "hard" else ", soft labels"
            axes.text(101, place, f"{mean:.1f} {row['subject']}{soft}", color=colour, fontsize=8.5, va="center")
        places: dict[str, list[int]] = {}
        for place, row in enumerate(shown):
            places.setdefault(network_name(row["arch"], row["width"]), []).append(place)
        axes.set_yticks([sum(of) / len(of) for of in places.values()], list(places))
        axes.set_xlim(0, 100)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        name_axes(axes, f"{mode}, {ipc:,} images per class", "test accuracy, %" if axes is grid[-1] else "", "")
    figure.suptitle(rows[0]["data"], color=INK, fontsize=11)
    write_file(path, to_png(figure), f"The chart {path}")
