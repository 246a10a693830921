"""An evaluation's report, `report.html`: its answer, tables and chart, and a look at the bundles, in one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dim.data.cautions import find_cautions
from dim.data.image_set import ImageSet
from dim.evaluation.answer import answer_in_words, list_warnings
from dim.evaluation.chart import CHART_NAME
from dim.evaluation.results import Row
from dim.evaluation.subjects import GENERATED, Subject
from dim.evaluation.table import accuracy_table, class_table, copies_table, cost_table, mixed_table, quality_table
from dim.runtime.bundle_format.files import read_checked_file
from dim.runtime.bundle_format.names import PREVIEW
from dim.runtime.errors import BundleError
from dim.runtime.gallery.report import REPORT_NAME, Part, Picture, read_rich_table, write_report

_MAX_PREVIEW_BYTES = 4 * 2**20


def write_evaluation_report(
    rows: Sequence[Row],
    subjects: Sequence[Subject],
    data: ImageSet,
    out: Path,
    *,
    finished: bool,
    found: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of an evaluation beside its chart and return its path.

    Args:
        finished: whether these are all the rows that were asked for.
        found: what was found besides, `quality` or `privacy`.

    Raises:
        OutputError: the disk refused.
    """
    found = found or {}
    parts: list[Part] = [*answer_in_words(rows)]
    parts += [found["privacy"]["verdict"]] if "privacy" in found else []
    if rows:
        parts.append(
            "Classifiers trained on generated and on real images, tested once on the "
            f"{len(data.test_labels):,} real test images of {data.name}."
        )
    if not finished:
        parts.append("Some students are not trained yet: the same command goes on.")
    parts += [f"Caution: {warning}" for warning in list_warnings(rows)]
    parts += [f"Caution about the data: {caution}." for caution in find_cautions(data)]
    parts += _tables_of_students(rows, data, out) if rows else []
    if "quality" in found:
        parts.append(read_rich_table(quality_table(found["quality"], by_class=True)))
    if "privacy" in found:
        # The picture of the nearest pairs stays outside: it shows training images, and reports are sent around.
        parts.append(read_rich_table(copies_table(found["privacy"])))
    parts += [picture for subject in subjects if (picture := _preview(subject)) is not None]
    path = out / REPORT_NAME
    write_report(path, f"Evaluation on {data.name}", parts)
    return path


def _tables_of_students(rows: Sequence[Row], data: ImageSet, out: Path) -> list[Part]:
    """What students reach, what they saw, and how they do class by class."""
    parts: list[Part] = [read_rich_table(accuracy_table(rows))]
    if (chart := out / CHART_NAME).is_file():
        description = "Test accuracy over images per class, one panel per network and mode."
        parts.append(Picture(title="Accuracy over images per class", png=chart.read_bytes(), description=description))
    if any(row["source"] == "mixed" for row in rows):
        parts.append(read_rich_table(mixed_table(rows)))
    return [*parts, read_rich_table(cost_table(rows)), read_rich_table(class_table(rows, data.classes))]


def _preview(subject: Subject) -> Picture | None:
    """The bundle's own grid; nothing where it is missing or altered."""
    if PREVIEW not in subject.manifest.files:
        return None
    try:
        png = read_checked_file(subject.folder, subject.manifest, PREVIEW, max_bytes=_MAX_PREVIEW_BYTES)
    except BundleError:
        return None
    title = "Images that the bundle draws" if subject.name == GENERATED else f"Images that {subject.name} draws"
    return Picture(title=title, png=png, description=f"{title}, one row per class.")
