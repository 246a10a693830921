"""An evaluation's rows as text: accuracies of generated and real images side by side, with steps and bytes."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dim.evaluation.cells import PROTOCOL
from dim.evaluation.results import Row
from dim.runtime.errors import printable
from dim.runtime.inspection.quality_summary import COPIES_COLUMNS, QUALITY_COLUMNS, list_copies, list_quality
from dim.runtime.units import format_units

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

PUBLISHED_EPOCHS = 1000
NOT_RUN = "not run"


def format_accuracy(row: Row | None) -> str:
    """Return "97.12 ± 0.08", "97.12 (one seed)", "97.12 ± 0.08 (3 generators)", or "not run"."""
    if row is None:
        return NOT_RUN
    spread = f" ± {row['accuracy_std']:.2f}" if row["accuracy_std"] is not None else " (one seed)"
    several = f" ({row['generators']} generators)" if row.get("generators", 1) > 1 else ""
    return f"{row['accuracy_mean']:.2f}{spread}{several}"


def format_bytes(count: int) -> str:
    """Return a size in decimal units, "3.9 MB"."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


APART = ("whole", "few", "mixed")
"""Sources that have lines or tables of their own."""


def list_columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """List (labels, subject), hard labels first, in the order of first appearance."""
    found = dict.fromkeys((row["labels"], row["subject"]) for row in rows if row["source"] not in APART)
    return sorted(found, key=lambda column: column[0] != "hard")


def accuracy_table(rows: Sequence[Row], *, caption: bool = True) -> "Table":
    """Build a rich table with one line per network, mode and size, and generated and real images side by side.

    Args:
        caption: whether the steps have a column, every line names its network, and the protocol stands below.
    """
    from rich.text import Text

    columns = list_columns(rows)
    settings = sorted({(row["recipe"], row["epochs"]) for row in rows if row["source"] not in APART})
    described = "; ".join(
        f"{name} recipe, {epochs:,} epochs"
        + ("" if epochs == PUBLISHED_EPOCHS else f" (published: {PUBLISHED_EPOCHS:,})")
        for name, epochs in settings
    )
    seeds = sorted({len(row["seeds"]) for row in rows})
    averaged = "One seed" if seeds == [1] else f"Mean ± deviation over {' or '.join(map(str, seeds))} seeds"
    below = Text(
        f"{averaged}; {described}; {PROTOCOL}. "
        "real: as many random real images (fixed), real images for as many steps (stream). archive: the best "
        "compressed archive of real images in the generator's bytes. gap: generated minus real."
    )
    title = f"Accuracy on the test split of {rows[0]['data']}, %" if rows else "Accuracy, %"
    table = _begin_table(Text(printable(title)), below if rows and caption else None)
    heads = ("network", "mode", "IPC", *["steps"] * caption)
    for name in heads:
        table.add_column(name, justify="left" if name in ("network", "mode") else "right")
    for labels, subject in columns:
        heading = subject if labels == "hard" else f"{subject}, soft labels"
        lines_of_heading = printable(heading).replace(", ", ",\n").replace(" + ", " +\n")
        table.add_column(Text(lines_of_heading), justify="right")
    ours = next((column for column in columns if _is_generated(column)), None)
    has_gap = ours is not None and ("hard", "real") in columns
    if has_gap:
        table.add_column("gap", justify="right")
    lines: dict[tuple[str, int, str, int, int], dict[tuple[str, str], Row]] = {}
    for row in rows:
        if row["source"] not in APART:
            key = (row["arch"], row["width"] or 0, row["mode"], row["ipc"], row["steps"])
            lines.setdefault(key, {})[row["labels"], row["subject"]] = row
    shown = ""
    for (arch, width, mode, ipc, steps), cells in sorted(lines.items(), key=lambda item: item[0]):
        network = _on_lines(arch, width or None)
        named, shown = network if caption or network != shown else "", network
        texts: list[str | Text] = [named, mode, f"{ipc:,}", *[f"{steps:,}"] * caption]
        texts += [format_accuracy(cells[column]) if column in cells else "" for column in columns]
        if has_gap:
            pair = [cells.get(column) for column in (ours, ("hard", "real")) if column is not None]
            means = [row["accuracy_mean"] for row in pair if row is not None]
            texts.append(_format_gap(means[0] - means[1]) if len(means) == 2 else "")
        table.add_row(*texts)
    for row in rows:
        if row["source"] == "whole":
            first = [_on_lines(row["arch"], row["width"]), "whole set", "", f"{row['steps']:,}"][: len(heads)]
            table.add_row(*first, *["" if subject != "real" else format_accuracy(row) for _, subject in columns])
    return table


def _begin_table(title: "str | Text", caption: "str | Text | None" = None) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    return Table(
        title=title, caption=caption, caption_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True
    )


def _is_generated(column: tuple[str, str]) -> bool:
    """Whether it shows hard labels of the bundle under evaluation, in whatever precision its images are drawn."""
    labels, subject = column
    return labels == "hard" and subject.split(", ")[0] == "generated"


def network_name(arch: str, width: int | None) -> str:
    """Return what tables call a network: its name, and its width where that is not the published one."""
    return arch if width is None else f"{arch} (width {width})"


def _on_lines(arch: str, width: int | None) -> str:
    """A network's name where columns are narrow."""
    return network_name(arch, width).replace(" (", "\n(")


def _format_gap(points: float) -> "Text":
    from rich.text import Text

    return Text(f"{points:+.2f}", "green" if points >= 0 else "yellow")


def cost_table(rows: Sequence[Row]) -> "Table":
    """Build a rich table of what every row was trained on: distinct images and bytes, and the time per student.

    Labels and networks have a column where there are several.
    """
    table = _begin_table("What the students saw")
    columns: dict[str, Callable[[Row], str]] = {
        "mode": lambda row: row["mode"],
        "IPC": lambda row: f"{row['ipc']:,}" if row["ipc"] else "",
        "images": lambda row: printable(row["subject"]),
        "labels": lambda row: row["labels"],
        "network": lambda row: _on_lines(row["arch"], row["width"]),
        "steps": lambda row: f"{row['steps']:,}",
        "distinct\nimages": lambda row: f"{row['distinct_images']:,}",
        "bytes\nkept": lambda row: format_bytes(row["data_bytes"]),
        "bits per\nclass": lambda row: format_units(row["bits_per_class"], "bit") if row["bits_per_class"] else "",
        "s per\nstudent": lambda row: f"{row['seconds_per_student']:,.1f}",
    }
    for name in ("labels", "network"):
        if len({columns[name](row) for row in rows}) == 1:
            del columns[name]
    for name in columns:
        table.add_column(name, justify="left" if name in ("mode", "images", "labels", "network") else "right")
    for row in rows:
        table.add_row(*(write(row) for write in columns.values()))
    return table


def class_table(rows: Sequence[Row], classes: Sequence[str]) -> "Table":
    """Build a rich table of the accuracy on the test images of every class, one line per class.

    Rows without accuracies by class are left out.
    """
    from rich.text import Text

    shown = [row for row in rows if len(row["class_accuracies"]) == len(classes)]
    table = _begin_table("Accuracy on the test images of every class, %")
    table.add_column("class")
    alike = len({(row["mode"], row["ipc"]) for row in shown}) == 1
    for row in shown:
        size = f", {row['ipc']}" if row["ipc"] else ""
        heading = printable(row["subject"] if alike else f"{row['subject']}, {row['mode']}{size}")
        table.add_column(Text(heading.replace(", ", ",\n").replace(" + ", "\n+ ")), justify="right")
    for number, name in enumerate(classes):
        table.add_row(Text(printable(name)), *(f"{row['class_accuracies'][number]:.1f}" for row in shown))
    return table


def quality_table(quality: Mapping[str, Any], *, by_class: bool) -> "Table":
    """Build a rich table of the quality of generated images, beside real ones, as `assess` found it."""
    from rich.text import Text

    described = f"{quality['images']:,} images against as many of the test split, in {quality['compared_by']}."
    table = _begin_table("Quality of the images", Text(printable(described)))
    _fill(table, QUALITY_COLUMNS, list_quality(quality, by_class=by_class))
    return table


def copies_table(privacy: Mapping[str, Any]) -> "Table":
    """Build a rich table of the distances behind the verdict on copies, as `assess` found them."""
    caption = (
        "Near duplicates: generated images closer to a training image than 99 % of held-out images; AUC: of a "
        "membership test; distance: median to the closest training image, of generated and of held-out images."
    )
    table = _begin_table("Copies of training images", caption)
    _fill(table, COPIES_COLUMNS, list_copies(privacy))
    return table


def _fill(table: "Table", columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Put rows of text into a table whose first column is text and the others numbers."""
    from rich.text import Text

    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    for cells in rows:
        table.add_row(*(Text(printable(cell)) for cell in cells))


def mixed_table(rows: Sequence[Row]) -> "Table":
    """Build a rich table of students of few real images, alone and with generated ones added."""
    from rich.text import Text

    table = _begin_table("Few real images, alone and with generated ones in every batch, %")
    for name in ("network", "IPC", "real\nimages", "alone", "with", "both", "gain"):
        table.add_column(name, justify="left" if name in ("network", "with") else "right")
    keys = ("ipc", "arch", "width", "labels", "real_percent")
    shown = None
    for row in rows:
        alone = [one for one in rows if one["source"] == "few" and all(one.get(key) == row.get(key) for key in keys)]
        if row["source"] == "mixed" and alone:
            place = (_on_lines(row["arch"], row["width"]), f"{row['ipc']:,}")
            table.add_row(
                *(place if place != shown else ("", "")),
                f"{row['real_percent']:g} %",
                format_accuracy(alone[0]).replace(" (one seed)", ""),
                Text(printable(row["subject"].partition(" + ")[2])),
                format_accuracy(row).replace(" (one seed)", ""),
                _format_gap(row["accuracy_mean"] - alone[0]["accuracy_mean"]),
            )
            shown = place
    return table
