"""The tables and charts of docs/results.md: of each bundle in the repository, one protocol, measured rows only.

Everything else that was measured stands in lab/all-results.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dim.chart_style import Label, choose_colour, draw_means, label_ends, make_figure, name_axes, share_percents, to_png
from dim.evaluation.archive import Archive
from dim.evaluation.protocol import PROTOCOLS
from dim.evaluation.results import Row
from dim.evaluation.table import PUBLISHED_EPOCHS, format_accuracy, format_bytes, network_name
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.storage.below import replace_file
from dim.students.recipes import CONDENSATION
from lab.pages.evaluation import TITLES
from lab.pages.quotes import quote_sets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
SAME_GENERATOR = {"065bf807": "201ea0c5"}
"""Begin content ids of bundles that differ from one in the repository in the refinement of their fixed latents alone,
and that bundle's: their rows of `stream`, which uses no fixed latents, are its rows."""


@dataclass(frozen=True)
class Summary:
    """One table and one chart of the page."""

    name: str
    """Of the dataset in the result files, and between the marks of the page."""
    bundle: str
    """Its folder, from the top of the repository."""
    recipe: str
    """Of students of a stream."""
    fixed_recipe: str
    """Of students of one set."""
    epochs: int
    precision: str
    archs: tuple[str, ...]
    """Networks of the table, in its order; the first one is drawn."""


_CYCLE = "onecycle-0.12-smooth-0.1"
SUMMARIES = (
    Summary("mnist", "runtime/shipped/mnist.dim", _CYCLE, _CYCLE, 1000, "bf16", ("convnet3",)),
    Summary(
        "cifar10", "bundles/cifar10.dim", "condensation", "condensation-all", 1000, "bf16", ("convnet3", "resnet18")
    ),
)
_COLUMNS = (
    ("`fixed`", "fixed", "generated"),
    ("real, as many", "fixed", "real"),
    ("`stream`", "stream", "generated"),
    ("real, equal steps", "stream", "real"),
    ("archive, equal bytes", "stream", "archive"),
    ("pixels, equal bytes", "stream", "real, equal bytes"),
)
"""Heading, mode and subject of every column that holds an accuracy."""
_NO_BREAK = "\N{NO-BREAK SPACE}"


def choose_rows(summary: Summary, rows: Sequence[Row]) -> dict[tuple[str, int, str, str], Row]:
    """Choose what a table shows: rows of its protocol, and generated ones only from the bundle in the repository.

    Args:
        summary: the table.
        rows: of all result files.

    Returns:
        the rows by network, images per class, mode and subject; where two files have a row, that of more seeds.
    """
    content_id = load_manifest(ROOT / summary.bundle).content_id
    found: dict[tuple[str, int, str, str], Row] = {}
    for row in rows:
        recipe = summary.fixed_recipe if row["mode"] == "fixed" else summary.recipe
        settings = (row["data"], row["recipe"], row["epochs"], row["precision"], row["width"], row["labels"])
        if settings != (summary.name, recipe, summary.epochs, summary.precision, None, "hard"):
            continue
        same = row["mode"] == "stream" and SAME_GENERATOR.get(row["content_id"][:8]) == content_id[:8]
        if row["arch"] not in summary.archs or row["content_id"] not in ("", content_id) and not same:
            continue
        key = (row["arch"], row["ipc"], row["mode"], row["subject"])
        if key not in found or len(found[key]["seeds"]) < len(row["seeds"]):
            found[key] = row
    return found


def render_table(summary: Summary, rows: Sequence[Row]) -> str:
    """Write the table of a dataset; a column or row without a measured figure is left out."""
    found = choose_rows(summary, rows)
    columns = [column for column in _COLUMNS if any(key[2:] == column[1:] for key in found)]
    pairs = sorted(
        {key[:2] for key in found if key[2] != "whole"}, key=lambda pair: (summary.archs.index(pair[0]), pair)
    )
    lines = [
        "| network | images per class | " + " | ".join(heading for heading, _, _ in columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for arch, ipc in pairs:
        cells = [found.get((arch, ipc, mode, subject)) for _, mode, subject in columns]
        texts = [_unbroken(row) if row else "" for row in cells]
        lines.append(f"| {network_name(arch, None)} | {ipc} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def render_archives(rows: Sequence[Row], content_id: str) -> str:
    """Write the table of a bundle's streams by precision, each beside the best archive of real images of its bytes."""
    lines = [
        "| drawn in | bytes | `stream` | best archive | its real images per class |",
        "|---|---:|---:|---:|---|",
    ]
    archives = {row["subject"]: row for row in rows if row["source"] == "archive"}
    for row in sorted(rows, key=lambda one: -one["data_bytes"]):
        beside = archives.get(row["subject"].replace("generated", "archive"))
        if row["content_id"] == content_id and row["source"] == "bundle" and beside and beside["archive"]:
            coded, _, count = str(Archive(**beside["archive"])).partition(", ")
            cells = [row["engine_precision"], format_bytes(row["data_bytes"]), _unbroken(row), _unbroken(beside)]
            lines.append(f"| {' | '.join(map(str, cells))} | {count.removesuffix(' images per class')}, {coded} |")
    return "\n".join(lines)


def render_few(rows: Sequence[Row]) -> str:
    """Write the table of students of few real images, alone and with generated ones."""
    lines = ["| real images | alone | with generated ones |", "|---:|---:|---:|"]
    mixed = {row["real_percent"]: row for row in rows if row["source"] == "mixed"}
    for row in sorted((row for row in rows if row["source"] == "few"), key=lambda one: one["real_percent"]):
        if row["real_percent"] in mixed:
            cells = [_unbroken(row), _unbroken(mixed[row["real_percent"]])]
            lines.append(f"| {row['real_percent']:g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_reference(rows: Sequence[Row]) -> str:
    """Write the table of students by the protocol of the DiM code, one line per dataset and size."""
    wanted = {
        "recipe": PROTOCOLS["reference"].recipe,
        "epochs": PUBLISHED_EPOCHS,
        "width": None,
        "mode": "stream",
        "labels": "hard",
    }
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        if row["subject"] in ("generated", "real") and all(row.get(name) == value for name, value in wanted.items()):
            found.setdefault((row["data"], row["ipc"]), {})[row["subject"]] = row
    lines = [
        "| data | images per class | steps | batch | `stream` | real, equal steps |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (data, ipc), pair in sorted(found.items(), key=lambda item: (item[0][0] != "mnist", item[0])):
        if len(pair) == 2:
            ours = pair["generated"]
            batch = ours["recipe_settings"]["batch_size"]
            cells = [TITLES.get(data, data), ipc, f"{ours['steps']:,}", batch, _unbroken(ours), _unbroken(pair["real"])]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _unbroken(row: Row) -> str:
    return format_accuracy(row).replace(" ", _NO_BREAK)


def _choose(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """Choose the streams of ten images per class, hard labels, students in bf16, with these fields."""
    wanted |= {"ipc": 10, "mode": "stream", "labels": "hard", "precision": "bf16"}
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def write_summaries(page: str, rows: Sequence[Row]) -> str:
    """Put every table between its marks into the page.

    Raises:
        ValueError: the page lacks a mark.
    """
    quick = PROTOCOLS["quick"]
    digits = _choose(rows, data="mnist", recipe=quick.recipe, epochs=quick.epochs, width=quick.width)
    colours = _choose(rows, data="cifar10", recipe=CONDENSATION.name, epochs=PUBLISHED_EPOCHS, width=None)
    mnist, cifar10 = (load_manifest(ROOT / summary.bundle).content_id for summary in SUMMARIES[:2])
    tables = {summary.name: render_table(summary, rows) for summary in SUMMARIES}
    tables["mnist-archives"] = render_archives(digits, mnist)
    tables["cifar10-archives"] = render_archives(colours, cifar10)
    drawn = [row for row in rows if row["data"] == "cifar10" and row["content_id"] in ("", cifar10)]
    tables["cifar10-sets"] = "\n".join(quote_sets(drawn)[2:])
    tables["mnist-few"] = render_few(digits)
    tables["reference"] = render_reference(rows)
    for name, table in tables.items():
        begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
        before, middle, rest = page.partition(begin)
        _, last, after = rest.partition(end)
        if not middle or not last:
            raise ValueError(f"The page of results lacks the mark {begin} or {end}.")
        page = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return page


def draw_summary(summary: Summary, rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy over images per class, generated and real, one panel per mode, as a PNG."""
    figure = make_summary(summary, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path.parent, path.name, to_png(figure))


def make_summary(summary: Summary, rows: Sequence[Row]) -> Figure:
    """Make the figure of `draw_summary`: both panels have one range of accuracy, which begins at a whole ten."""
    found = choose_rows(summary, rows)
    arch = summary.archs[0]
    figure, grid = make_figure(2)
    ends: dict[str, list[Label]] = {"fixed": [], "stream": []}
    for axes, mode in zip(grid, ends, strict=True):
        for subject in ("real", "generated"):
            points = sorted(
                (ipc, row["accuracy_mean"], row["accuracy_std"])
                for (of, ipc, in_mode, name), row in found.items()
                if (of, in_mode, name) == (arch, mode, subject)
            )
            if points:
                ipcs, means, deviations = zip(*points, strict=True)
                colour = choose_colour(subject)
                draw_means(axes, ipcs, means, deviations, colour)
                ends[mode].append(Label(f"{subject} {means[-1]:.1f}", colour, ipcs[-1], means[-1]))
        axes.set_xscale("log")
        ticks = sorted({ipc for of, ipc, in_mode, _ in found if (of, in_mode) == (arch, mode)})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    share_percents(grid)
    for axes, mode in zip(grid, ends, strict=True):
        title = {"fixed": "One set, shown again and again", "stream": "Fresh images in every epoch"}[mode]
        down = "test accuracy, %" if axes is grid[0] else ""
        name_axes(axes, title, "images per class" + " and epoch" * (mode == "stream"), down)
        label_ends(axes, ends[mode])
    return figure
