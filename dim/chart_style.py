"""The style of every chart: one colour for generated, one for real, labels at the lines, for light and dark."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GENERATED = "#e0700a"
REAL = "#2f81d6"
OTHERS = ("#7d8590", "#a371a8", "#4f9d78", "#a98950")
"""For whatever is neither, in this order."""
INK = "#7d8590"
"""Of text and axes: between black and white, so that it reads on a light page and on a dark one."""
DPI = 130
_LABEL_GAP = 0.075
"""Least distance between two names, as a share of the height of the axes."""


class Label(NamedTuple):
    """A name at the end of a line."""

    text: str
    colour: str
    x: float
    y: float


def choose_colour(subject: str, others: Sequence[str] = ()) -> str:
    """Return the colour of what is drawn: "generated" and "real" have their own, the rest share pale ones.

    Args:
        subject: its name.
        others: the names that share the chart and have no colour of their own, in order.
    """
    if subject == "real" or subject.startswith("generated"):
        return REAL if subject == "real" else GENERATED
    return OTHERS[list(others).index(subject) % len(OTHERS)] if subject in others else OTHERS[0]


def make_figure(
    panels: int, across: int = 2, width: float = 4.8, height: float = 3.2, heights: Sequence[float] = ()
) -> tuple["Figure", list["Axes"]]:
    """Make a figure of panels on a transparent ground.

    Args:
        panels: how many, at least 1.
        across: panels in a row at most.
        width: of a panel, inches.
        height: of a panel, inches.
        heights: of every row, inches, where rows differ.

    Returns:
        the figure and one axes per panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(across, panels)
    down = -(-panels // across)
    rows = list(heights) or [height] * down
    figure = Figure(figsize=(width * across, sum(rows)), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(down, across, squeeze=False, height_ratios=rows).flatten())
    for axes in grid[panels:]:
        axes.remove()
    for axes in grid[:panels]:
        _style_axes(axes)
    return figure, grid[:panels]


def _style_axes(axes: "Axes") -> None:
    axes.patch.set_alpha(0.0)
    axes.grid(color=INK, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, which="both", labelsize=8)


def name_axes(axes: "Axes", title: str, x: str, y: str) -> None:
    """Write the title and what both axes show.

    A vertical axis that does not begin at zero says where it begins, since differences look larger on it.
    """
    bottom, top = axes.get_ylim()
    if axes.get_yscale() == "linear" and bottom > 0.1 * top > 0:
        y = f"{y} (axis begins at {bottom:.3g})".strip()
    axes.set_title(title, fontsize=10, color=INK, loc="left", weight="bold")
    axes.set_xlabel(x, fontsize=8.5, color=INK)
    axes.set_ylabel(y, fontsize=8.5, color=INK)


def draw_means(
    axes: "Axes",
    across: Sequence[float],
    means: Sequence[float],
    deviations: Sequence[float | None],
    colour: str,
    linestyle: str = "-",
) -> None:
    """Draw a line of means with their standard deviations.

    Args:
        axes: the panel.
        across: where each mean stands on the horizontal axis.
        means: in the unit of the vertical axis.
        deviations: in the same unit; None, as of one seed, draws no bar.
        colour: of line and bars.
        linestyle: as Matplotlib has it.
    """
    axes.plot(across, means, linestyle, marker="o", ms=4, lw=1.4, color=colour, clip_on=False)  # whole marks at 100 %
    bars = [bar for bar in zip(across, means, deviations, strict=True) if bar[2] is not None]
    if bars:
        places, middles, sizes = zip(*bars, strict=True)
        axes.errorbar(places, middles, sizes, fmt="none", capsize=2, lw=1.4, color=colour)


def share_percents(panels: Sequence["Axes"]) -> None:
    """Give panels that show percent one vertical range, between whole tens, so that they compare by eye.

    Args:
        panels: after everything is drawn on them.
    """
    least = min(axes.get_ylim()[0] for axes in panels)
    most = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(max(0, math.floor(least / 10) * 10), min(100, math.ceil(most / 10) * 10))


def label_ends(axes: "Axes", labels: Sequence[Label]) -> None:
    """Write names to the right of the ends of lines, moved apart where they would overlap.

    Args:
        axes: after everything is drawn on it and its limits are set.
        labels: names, colours and ends in data coordinates.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    places = sorted((to_axes.transform((label.x, label.y))[1], label) for label in labels)
    heights = _spread([height for height, _ in places])
    for height, (_, label) in zip(heights, places, strict=True):
        axes.annotate(
            label.text,
            xy=(1.02, height),
            xycoords="axes fraction",
            color=label.colour,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
        )


def _spread(heights: list[float]) -> list[float]:
    """Move rising heights apart by at least the gap, as little as may be, around their common middle."""
    moved = list(heights)
    for number in range(1, len(moved)):
        moved[number] = max(moved[number], moved[number - 1] + _LABEL_GAP)
    down = (sum(moved) - sum(heights)) / len(heights) if heights else 0.0
    return [height - down for height in moved]


def to_png(figure: "Figure") -> bytes:
    """Return the figure as a PNG file with a transparent ground, the same bytes for the same figure."""
    figure.patch.set_alpha(0.0)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()
