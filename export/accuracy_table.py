"""Rows of `dim eval` in a bundle: which of them belong together, and the table of the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dim.runtime.markdown import escape
from dim.runtime.units import format_units, format_whole

Row = Mapping[str, Any]

PROTOCOL_FIELDS = (
    "data",
    "source",
    "subject",
    "mode",
    "ipc",
    "arch",
    "width",
    "labels",
    "recipe",
    "precision",
    "epochs",
)
"""Fields of a row that say what was measured, without the numbers found."""
HEADINGS = (
    "trained on",
    "drawn in",
    "mode",
    "images per class",
    "network",
    "recipe, epochs, precision",
    "labels",
    "accuracy %",
    "seeds",
    "steps",
    "distinct images",
)


def replace_rows(rows: Sequence[Row], new: Sequence[Row]) -> tuple[Row, ...]:
    """Add rows to others; each takes the place of an earlier one of the same protocol."""
    measured = {_identify_protocol(row) for row in new}
    return (*(row for row in rows if _identify_protocol(row) not in measured), *new)


def render_accuracy_table(rows: Sequence[Row]) -> str:
    """Write rows as a Markdown table, with their protocols below."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    lines += [f"| {' | '.join(_render_cells(row))} |" for row in rows]
    protocols = dict.fromkeys(str(row["protocol"]) for row in rows if row.get("protocol"))
    notes = [f"Protocol: {escape(protocol)}." for protocol in protocols]
    several = any(_has_several_generators(row) for row in rows)
    notes.append(f"Mean ± standard deviation over the seeds{', or over the generators of a row' * several}.")
    return "\n".join([*lines, "", *notes])


def _identify_protocol(row: Row) -> tuple[object, ...]:
    return (*(row.get(name) for name in PROTOCOL_FIELDS), _find_engine_precision(row))


def _find_engine_precision(row: Row) -> str:
    """The precision of the engine that drew a row's images; empty for real ones."""
    engine = str(row.get("engine") or "").split()
    return str(row.get("engine_precision") or "".join(engine[1:2]))


def _render_cells(row: Row) -> list[str]:
    network = escape(row.get("arch", "?")) + (f" (width {escape(row['width'])})" if row.get("width") else "")
    recipe = [row.get("recipe", "?"), format_whole(row.get("epochs"))]
    recipe += [row["precision"]] if row.get("precision") else []
    return [
        escape(_name_subject(row)),
        escape(_find_engine_precision(row) or "-"),
        escape(row.get("mode", "?")),
        escape(row.get("ipc") or "all"),
        network,
        escape(", ".join(str(part) for part in recipe)),
        escape(row.get("labels", "hard")),
        _render_accuracy(row),
        _render_seeds(row),
        format_whole(row.get("steps")),
        format_whole(row.get("distinct_images")),
    ]


def _name_subject(row: Row) -> str:
    """What a row was trained on; of an archive, how it is coded as well."""
    name, archive = str(row.get("subject", "?")), row.get("archive")
    if not isinstance(archive, Mapping):
        return name
    quality = "" if archive.get("quality") == 100 else f" of quality {archive.get('quality')}"
    size = row.get("data_bytes")
    in_bytes = f", {format_units(size, 'B')}" if isinstance(size, int) else ""
    return (
        f"{name}: {archive.get('codec')}{quality}, {format_whole(archive.get('images_per_class'))} per class{in_bytes}"
    )


def _render_accuracy(row: Row) -> str:
    mean, deviation = row.get("accuracy_mean"), row.get("accuracy_std")
    if not isinstance(mean, int | float):
        return "?"
    return f"{mean:.2f}" + (f" ± {deviation:.2f}" if isinstance(deviation, int | float) else "")


def _render_seeds(row: Row) -> str:
    """The number of students, and of generators where there are several."""
    seeds = row.get("seeds")
    count = str(len(seeds) if isinstance(seeds, list | tuple) else 0)
    return f"{count} of {row['generators']} generators" if _has_several_generators(row) else count


def _has_several_generators(row: Row) -> bool:
    generators = row.get("generators")
    return isinstance(generators, int) and generators > 1
