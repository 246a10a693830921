"""An evaluation's report, `report.html`: its tables, its chart and a look at the bundles, in one file."""

from collections.abc import Sequence
from pathlib import Path

from dim.data.cautions import find_cautions
from dim.data.image_set import ImageSet
from dim.evaluation.chart import CHART_NAME
from dim.evaluation.results import Row
from dim.evaluation.subjects import GENERATED, Subject
from dim.evaluation.table import accuracy_table, cost_table
from dim.runtime.bundle_format.files import read_checked_file
from dim.runtime.bundle_format.names import PREVIEW
from dim.runtime.errors import BundleError
from dim.runtime.gallery.report import REPORT_NAME, Part, Picture, read_rich_table, write_report

_MAX_PREVIEW_BYTES = 4 * 2**20


def write_evaluation_report(
    rows: Sequence[Row], subjects: Sequence[Subject], data: ImageSet, out: Path, *, finished: bool
) -> Path:
    """Write the report of an evaluation.

    Args:
        rows: as `aggregate` returns them; at least one.
        subjects: the bundles under evaluation.
        data: their dataset.
        out: folder of the results, where the chart is.
        finished: whether these are all the rows that were asked for.

    Returns:
        the file.

    Raises:
        OutputError: the disk refused.
    """
    parts: list[Part] = [
        f"Classifiers trained on generated and on real images, tested once on the {len(data.test_labels):,} real test "
        f"images of {data.name}."
        + ("" if finished else " Some students are not trained yet: the same command goes on."),
        read_rich_table(accuracy_table(rows)),
    ]
    if (chart := out / CHART_NAME).is_file():
        description = "Test accuracy over images per class, one panel per network and mode."
        parts.append(Picture(title="Accuracy over images per class", png=chart.read_bytes(), description=description))
    parts.append(read_rich_table(cost_table(rows)))
    parts += [picture for subject in subjects if (picture := _preview(subject)) is not None]
    parts += [f"Caution about the data: {caution}." for caution in find_cautions(data)]
    path = out / REPORT_NAME
    write_report(path, f"Evaluation on {data.name}", parts)
    return path


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
