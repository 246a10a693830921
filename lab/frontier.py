#!/usr/bin/env python3
"""Draw accuracy over bytes: bundles, fixed sets, archives of real images, and what other methods quote.

    python -m lab.frontier --data cifar10 --results lab/results/cifar10*.json --out lab/results/frontier-cifar10.png
    python -m lab.frontier --data mnist --results lab/results/mnist-width.json --recipe onecycle-0.12-smooth-0.1 \\
        --out lab/results/frontier-mnist.png

Results are `results.json` files of `dim eval`; quotes stand in `lab/quotes.json` with their protocols and sources.
Students differ from method to method, so points are no ranking by themselves.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dim.chart_style import GENERATED, INK, OTHERS, REAL, make_figure, name_axes, to_png
from dim.evaluation.table import format_bytes
from dim.runtime.storage.below import replace_file

MARKERS = "osD^vPXhp<>*"
QUOTES = Path(__file__).with_name("quotes.json")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Accuracy over bytes of one kind of training data."""

    name: str
    points: tuple[tuple[float, float], ...]
    """Bytes for all classes, and accuracy in percent; the fewest bytes first."""
    note: str
    """Protocol and source."""
    colour: str
    quoted: bool
    """Whether others claim it."""


def read_measured(
    paths: Sequence[Path], *, arch: str, recipe: str, epochs: int, ipc: int, width: int | None = None
) -> list[Curve]:
    """Read what students of one network, recipe and number of epochs reach, hard labels.

    Args:
        paths: `results.json` files.
        arch: network of the students.
        recipe: name of their recipe.
        epochs: passes over the images.
        ipc: images per class and epoch of streams; fixed sets are taken at every size.
        width: of the network; None for the published one.

    Returns:
        Curves of streams and of fixed sets, generated and real, and of archives; of several bundles the best.
    """
    wanted = {"arch": arch, "recipe": recipe, "epochs": epochs, "width": width, "labels": "hard"}
    found: dict[tuple[str, str], dict[Any, tuple[float, float]]] = {}
    for path in paths:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            is_ours = row["source"] in ("real", "archive") or str(row["subject"]).startswith("generated")
            if not is_ours or any(row.get(key) != value for key, value in wanted.items()):
                continue
            if row["mode"] == "stream" and row["ipc"] != ipc:
                continue
            # One point per precision of a generator, size of a fixed set, or archive.
            size = row.get("engine_precision") if row["mode"] == "stream" else row["ipc"]
            key = size if row["source"] == "bundle" else row["data_bytes"]
            points = found.setdefault((row["source"], row["mode"]), {})
            point = (row["accuracy_mean"], row["data_bytes"])
            points[key] = max(point, points.get(key, point))
    names = {
        ("bundle", "stream"): ("bundle, stream", GENERATED),
        ("bundle", "fixed"): ("bundle, fixed set", GENERATED),
        ("archive", "stream"): ("real images, best archive", REAL),
        ("real", "fixed"): ("random real images, raw", REAL),
    }
    narrowed = f" of width {width}" if width else ""
    note = f"measured: {arch}{narrowed}, recipe {recipe}, {epochs:,} epochs"
    return [
        Curve(
            name=name + (f", width {width}" if width else ""),
            points=_by_bytes(found[key].values()),
            note=note,
            colour=colour,
            quoted=False,
        )
        for key, (name, colour) in names.items()
        if key in found
    ]


def _by_bytes(points: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((size, accuracy) for accuracy, size in points))


def read_quotes(described: Mapping[str, Any]) -> list[Curve]:
    """Read the curves of one dataset of `lab/quotes.json`."""
    curves = []
    for number, entry in enumerate(described["quoted"]):
        curves.append(
            Curve(
                name=entry["name"],
                points=tuple(sorted((float(size), float(accuracy)) for size, accuracy in entry["points"])),
                note=f"quoted: {entry['protocol']}; bytes: {entry['bytes']}; {entry['source']}",
                colour=OTHERS[number % len(OTHERS)],
                quoted=True,
            )
        )
    return curves


def draw_frontier(curves: Sequence[Curve], title: str) -> bytes:
    """Draw curves on a logarithmic axis of bytes and return the PNG; what others claim is dashed."""
    figure, (axes,) = make_figure(1, width=8.6, height=5.2)
    for number, curve in enumerate(curves):
        sizes, accuracies = zip(*curve.points, strict=True)
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(
            sizes,
            accuracies,
            color=curve.colour,
            marker=marker,
            markerfacecolor="none" if curve.quoted else curve.colour,
            linestyle="--" if curve.quoted else "-",
            linewidth=1.2,
            markersize=5.5,
            label=curve.name,
        )
    axes.set_xscale("log")
    name_axes(axes, title, "bytes of the training data, all classes", "test accuracy, %")
    sizes = [size for curve in curves for size, _ in curve.points]
    ticks = [10.0**power for power in range(3, 10) if min(sizes) / 2 <= 10.0**power <= 2 * max(sizes)]
    axes.set_xticks(ticks, [format_bytes(int(tick)) for tick in ticks])
    axes.minorticks_off()
    # By the accuracy at the end, so that the legend follows the picture.
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(curves)), key=lambda number: -curves[number].points[-1][1])
    axes.legend(
        [handles[number] for number in order],
        [names[number] for number in order],
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=8.5,
        labelcolor="linecolor",
        handlelength=3,
    )
    figure.supxlabel("dashed: as quoted, with students of their own", fontsize=8, color=INK)
    return to_png(figure)


def write_table(curves: Sequence[Curve], num_classes: int) -> str:
    """Write every point as Markdown, with bits per class and where it comes from."""
    lines = ["| training data | bytes | bits per class | accuracy % | |", "|---|---:|---:|---:|---|"]
    for curve in curves:
        for size, accuracy in curve.points:
            bits = 8 * size / num_classes
            lines.append(f"| {curve.name} | {format_bytes(int(size))} | {bits:,.0f} | {accuracy:.1f} | {curve.note} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw accuracy over bytes.")
    parser.add_argument("--data", default="cifar10", help="the dataset's name in lab/quotes.json")
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="results.json files of dim eval")
    parser.add_argument("--arch", default="convnet3")
    parser.add_argument("--width", type=int, action="append", default=[], help="draw students of this width as well")
    parser.add_argument("--recipe", default="condensation")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--ipc", type=int, default=10, help="images per class and epoch of streams")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="the PNG file")
    options = parser.parse_args(arguments)
    quotes = json.loads(QUOTES.read_text(encoding="utf-8"))
    if options.data not in quotes:
        parser.error(f"lab/quotes.json knows {', '.join(quotes)}, not {options.data}")
    described = quotes[options.data]
    settings = {"arch": options.arch, "recipe": options.recipe, "epochs": options.epochs, "ipc": options.ipc}
    curves = [
        curve for width in (None, *options.width) for curve in read_measured(options.results, **settings, width=width)
    ]
    curves += read_quotes(described)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(options.out.parent, options.out.name, draw_frontier(curves, described["title"]))
    print(write_table(curves, options.classes))


if __name__ == "__main__":
    main()
