"""What an evaluation shows: rows of mean and deviation over seeds, a table, a chart, and `results.json`."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dim.data.image_set import ImageSet
from dim.evaluation.cells import FORMAT_VERSION, PROTOCOL, CellResult
from dim.runtime.errors import OutputError
from dim.runtime.storage.atomic import replace_file
from dim.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

RESULTS_NAME, CHART_NAME = "results.json", "accuracy.png"
PUBLISHED_EPOCHS = 1000
NOT_RUN = "not run"
Row = dict[str, Any]


def aggregate(results: Sequence[CellResult]) -> list[Row]:
    """Join the students that differ by their seed only into rows of plain JSON data.

    Args:
        results: finished cells in any order; rows come in the order of their first cell.

    Returns:
        Rows with `accuracy_mean` and `accuracy_std` in percent (the deviation of a sample, None for one seed), the
        accuracies by seed, steps, distinct images, bytes, and where, when and how they were measured.
    """
    grouped: dict[str, list[CellResult]] = {}
    for result in results:
        grouped.setdefault(result.cell.identity(with_seed=False), []).append(result)
    return [_row(sorted(group, key=lambda result: result.cell.seed)) for group in grouped.values()]


def _row(group: list[CellResult]) -> Row:
    cell, last = group[0].cell, max(group, key=lambda result: result.date)
    accuracies = [result.accuracy for result in group]
    return {
        "data": cell.data,
        "fingerprint": cell.fingerprint,
        "subject": cell.subject,
        "source": cell.source,
        "content_id": cell.content_id,
        "mode": cell.mode,
        "ipc": cell.ipc,
        "images_per_class": cell.images_per_class,
        "arch": cell.arch,
        "width": cell.width,
        "labels": cell.labels,
        "recipe": cell.recipe.name,
        "recipe_settings": asdict(cell.recipe),
        "precision": cell.precision,
        "epochs": cell.epochs,
        "steps": group[0].steps,
        "distinct_images": group[0].distinct_images,
        "data_bytes": group[0].data_bytes,
        "accuracy_mean": round(statistics.fmean(accuracies), 4),
        "accuracy_std": round(statistics.stdev(accuracies), 4) if len(accuracies) > 1 else None,
        "accuracies": [round(accuracy, 4) for accuracy in accuracies],
        "seeds": [result.cell.seed for result in group],
        "diverged": sum(result.diverged for result in group),
        "test_images": group[0].test_images,
        "seconds_per_student": round(statistics.fmean(result.seconds for result in group), 1),
        "engine": last.engine,
        "engine_precision": last.engine.split()[1] if last.engine else None,
        "machine": last.machine,
        "threads": last.threads,
        "torch_version": last.torch_version,
        "dim_version": last.dim_version,
        "date": last.date,
        "data_note": last.data_note,
        "protocol": last.protocol,
    }


def write_results(results: Sequence[CellResult], data: ImageSet, out: Path, *, finished: bool) -> list[Row]:
    """Write `results.json` in one step and return its rows.

    Args:
        results: finished cells.
        data: the dataset.
        out: the evaluation's folder.
        finished: whether these are all that were asked for.

    Raises:
        OutputError: the disk refused.
    """
    rows = aggregate(results)
    described = {
        "format_version": FORMAT_VERSION,
        "dim_version": __version__,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint(),
            "note": data.note,
            "licence": data.licence,
            "classes": len(data.classes),
            "image": [data.height, data.width, data.channels],
            "train_images": len(data.train_labels),
            "test_images": len(data.test_labels),
        },
        "protocol": PROTOCOL,
        "finished": finished,
        "rows": rows,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / RESULTS_NAME, (json.dumps(described, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"The results in {out} cannot be written: {error.strerror}.") from error
    return rows


def format_accuracy(row: Row | None) -> str:
    """Return "97.12 ± 0.08", "97.12 (one seed)", or "not run"."""
    if row is None:
        return NOT_RUN
    spread = f" ± {row['accuracy_std']:.2f}" if row["accuracy_std"] is not None else " (one seed)"
    return f"{row['accuracy_mean']:.2f}{spread}"


def format_bytes(count: int) -> str:
    """Return a size in decimal units, "3.9 MB"."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def columns_of(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """List (labels, subject), hard labels first, in the order of first appearance."""
    found = dict.fromkeys((row["labels"], row["subject"]) for row in rows if row["source"] != "whole")
    return sorted(found, key=lambda column: column[0] != "hard")


def accuracy_table(rows: Sequence[Row]) -> "Table":
    """Build a rich table with one line per network, mode and size, and generated and real images side by side.

    Args:
        rows: as `aggregate` returns them, of one dataset.
    """
    from rich.table import Table

    columns = columns_of(rows)
    settings = sorted({(row["recipe"], row["epochs"]) for row in rows if row["source"] != "whole"})
    described = "; ".join(
        f"{name} recipe, {epochs:,} epochs"
        + ("" if epochs == PUBLISHED_EPOCHS else f" (published: {PUBLISHED_EPOCHS:,})")
        for name, epochs in settings
    )
    seeds = sorted({len(row["seeds"]) for row in rows})
    table = Table(
        title=f"Accuracy on the test split of {rows[0]['data']}, %" if rows else "Accuracy, %",
        caption=(
            f"Mean ± deviation over {' or '.join(map(str, seeds))} seeds; {described}; {PROTOCOL}. "
            "real: as many random real images (fixed), real images for as many steps (stream)."
        )
        if rows
        else None,
        caption_justify="left",
    )
    for name in ("network", "mode", "IPC", "steps"):
        table.add_column(name, justify="left" if name in ("network", "mode") else "right")
    for labels, subject in columns:
        table.add_column(subject if labels == "hard" else f"{subject}, soft labels", justify="right")
    has_gap = {("hard", "generated"), ("hard", "real")} <= set(columns)
    if has_gap:
        table.add_column("generated - real", justify="right")
    lines: dict[tuple[Any, ...], dict[tuple[str, str], Row]] = {}
    for row in rows:
        if row["source"] != "whole":
            key = (row["arch"], row["width"], row["mode"], row["ipc"], row["steps"])
            lines.setdefault(key, {})[row["labels"], row["subject"]] = row
    for (arch, width, mode, ipc, steps), cells in sorted(lines.items(), key=lambda item: _line_order(item[0])):
        texts = [network_name(arch, width), mode, f"{ipc:,}", f"{steps:,}"]
        texts += [format_accuracy(cells[column]) if column in cells else "" for column in columns]
        if has_gap:
            ours, real = cells.get(("hard", "generated")), cells.get(("hard", "real"))
            texts.append("" if ours is None or real is None else _gap(ours["accuracy_mean"] - real["accuracy_mean"]))
        table.add_row(*texts)
    for row in rows:
        if row["source"] == "whole":
            first = [network_name(row["arch"], row["width"]), "whole set", "", f"{row['steps']:,}"]
            table.add_row(*first, *["" if subject != "real" else format_accuracy(row) for _, subject in columns])
    return table


def _line_order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    arch, width, mode, ipc, steps = key
    return arch, width or 0, mode, ipc, steps


def network_name(arch: str, width: int | None) -> str:
    """Return what tables call a network: its name, and its width where that is not the published one."""
    return arch if width is None else f"{arch} (width {width})"


def _gap(points: float) -> str:
    return f"[{'green' if points >= 0 else 'yellow'}]{points:+.2f}[/]"


def cost_table(rows: Sequence[Row]) -> "Table":
    """Build a rich table of what every row was trained on: distinct images and bytes, and the time per student."""
    from rich.table import Table

    table = Table(title="What the students saw")
    for name in ("mode", "IPC", "images", "labels", "network"):
        table.add_column(name, justify="right" if name == "IPC" else "left")
    for name in ("steps", "distinct images", "bytes kept", "s per student"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["mode"],
            f"{row['ipc']:,}" if row["ipc"] else "",
            row["subject"],
            row["labels"],
            network_name(row["arch"], row["width"]),
            f"{row['steps']:,}",
            f"{row['distinct_images']:,}",
            format_bytes(row["data_bytes"]),
            f"{row['seconds_per_student']:,.1f}",
        )
    return table


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
    columns = columns_of(drawn)
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
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, buffer.getvalue())
    except OSError as error:
        raise OutputError(f"The chart {path} cannot be written: {error.strerror}.") from error
