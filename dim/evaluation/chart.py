"""Charts of an evaluation: accuracy over images per class, and several networks side by side."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dim.evaluation.results import Row
from dim.evaluation.table import list_columns, network_name
from dim.runtime.errors import OutputError
from dim.runtime.storage.below import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHART_NAME = "accuracy.png"


def draw_chart(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy over images per class, one panel per network and mode, as a PNG; nothing where there are no rows.

    A network that was measured at a single number of images is no curve, and left out where there are curves.

    Args:
        rows: as `aggregate` returns them, of one dataset.
        path: the PNG file.

    Raises:
        OutputError: the disk refused.
    """
    drawn = [row for row in rows if row["source"] != "whole"]
    if not drawn:
        return
    from matplotlib.figure import Figure

    sizes: dict[tuple[str, int | None, str], set[int]] = {}
    for row in drawn:
        sizes.setdefault((row["arch"], row["width"], row["mode"]), set()).add(row["ipc"])
    panels = [panel for panel, ipcs in sizes.items() if len(ipcs) == max(map(len, sizes.values())) or len(ipcs) > 1]
    panels.sort(key=lambda panel: (panel[0], panel[1] or 0, panel[2]))
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(5.2 * across, 3.6 * down), layout="constrained", dpi=120)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    columns = list_columns(drawn)
    for axis, panel in zip(axes, panels, strict=False):
        for number, (labels, subject) in enumerate(columns):
            points = sorted(
                (row["ipc"], row["accuracy_mean"], row["accuracy_std"] or 0.0)
                for row in drawn
                if (row["arch"], row["width"], row["mode"]) == panel
                and (row["labels"], row["subject"]) == (labels, subject)
            )
            if points:
                ipcs, means, deviations = zip(*points, strict=True)
                style = {
                    "marker": "o",
                    "capsize": 3,
                    "color": f"C{number}",
                    "linestyle": "-" if labels == "hard" else "--",
                }
                axis.errorbar(ipcs, means, deviations, label=subject + ("" if labels == "hard" else ", soft"), **style)
        axis.set_xscale("log")
        ticks = sorted({row["ipc"] for row in drawn})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(f"{network_name(panel[0], panel[1])}, {panel[2]}", fontsize=10)
        axis.set_xlabel("images per class and epoch" if panel[2] == "stream" else "images per class")
        axis.set_ylabel("test accuracy, %")
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    _legend(figure, columns=2 * across)
    figure.suptitle(drawn[0]["data"])
    _save(figure, path)


def draw_networks_chart(rows: Sequence[Row], path: Path) -> None:
    """Draw what several networks learn as bars, generated beside real images, one panel per mode, as a PNG.

    Args:
        rows: as `aggregate` returns them, of one dataset, size and kind of labels; at least one.
        path: the PNG file.

    Raises:
        OutputError: the disk refused.
    """
    from matplotlib.figure import Figure

    modes = list(dict.fromkeys(row["mode"] for row in rows))
    of_modes = {mode: {(row["arch"], row["width"]) for row in rows if row["mode"] == mode} for mode in modes}
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    most = max(map(len, of_modes.values()))
    figure = Figure(figsize=(2 + 1.1 * most, 3.4 * len(modes)), layout="constrained", dpi=120)
    for axis, mode in zip(figure.subplots(len(modes), 1, squeeze=False).flatten(), modes, strict=True):
        networks = sorted(of_modes[mode], key=lambda network: (network[0], network[1] or 0))
        for number, subject in enumerate(subjects):
            bars = [
                (networks.index((row["arch"], row["width"])), row["accuracy_mean"], row["accuracy_std"] or 0.0)
                for row in rows
                if (row["mode"], row["subject"]) == (mode, subject)
            ]
            if bars:
                places, means, deviations = zip(*bars, strict=True)
                width = 0.8 / len(subjects)
                shifted = [place + (number - (len(subjects) - 1) / 2) * width for place in places]
                axis.bar(shifted, means, width, yerr=deviations, capsize=3, label=subject, color=f"C{number}")
        axis.set_xticks(range(len(networks)), [network_name(*network) for network in networks], rotation=20, fontsize=8)
        axis.set_title(f"{mode}, {rows[0]['ipc']:,} images per class", fontsize=10)
        axis.set_ylabel("test accuracy, %")
        axis.grid(alpha=0.3, axis="y")
        axis.set_xlim(-0.6, most - 0.4)  # bars of one width in every panel
    _legend(figure, columns=4)
    figure.suptitle(rows[0]["data"])
    _save(figure, path)


def _legend(figure: "Figure", columns: int) -> None:
    """Put one legend of all panels below them."""
    pairs = [pair for axis in figure.axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    shown = {label: line for line, label in pairs}
    figure.legend(list(shown.values()), list(shown), fontsize=8, loc="outside lower center", ncols=columns)


def _save(figure: "Figure", path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path.parent, path.name, buffer.getvalue())
    except OSError as error:
        raise OutputError(f"The chart {path} cannot be written: {error.strerror}.") from error
