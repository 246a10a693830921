"""Results of an evaluation: rows of mean and deviation over seeds, and `results.json`."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

from dim.data.image_set import ImageSet
from dim.evaluation.cells import FORMAT_VERSION, PROTOCOL, CellResult
from dim.evaluation.files import write_json
from dim.version import __version__

RESULTS_NAME = "results.json"


class Row(TypedDict):
    """Students that differ by their seed only, as plain JSON data. See `Cell` and `CellResult` for what is not here."""

    data: str
    fingerprint: str
    subject: str
    source: str
    content_id: str
    """Of the first generator."""
    content_ids: list[str]
    """Of every generator of the row; empty for real images alone."""
    generators: int
    """Number of generators; 0 for real images alone."""
    mode: str
    ipc: int
    images_per_class: int
    """Of an archive: images per class at most; 0 where all may be used."""
    archive: dict[str, Any] | None
    """The fields of `Archive`."""
    real_percent: float
    """Part of the real images that was shown, in percent, where it was a part."""
    arch: str
    width: int | None
    labels: str
    recipe: str
    """Its name."""
    recipe_settings: dict[str, Any]
    """The fields of `Recipe`."""
    precision: str
    epochs: int
    steps: int
    distinct_images: int
    data_bytes: int
    bits_per_class: int | None
    """`data_bytes` in bits, divided by the number of classes; None in rows of earlier releases."""
    accuracy_mean: float
    """Percent, 0 to 100."""
    accuracy_std: float | None
    """Deviation of a sample, in percent: over the seeds, or over the means of several generators; None for one."""
    accuracies: list[float]
    """By seed; those of several generators one after another."""
    class_accuracies: list[float]
    """Percent of the test images of every class, mean over the seeds; empty in rows of earlier releases."""
    seeds: list[int]
    diverged: int
    """Number of students whose last loss was not finite."""
    test_images: int
    seconds_per_student: float
    engine: str
    engine_precision: str | None
    machine: str
    """Of the student that ended last, as are the next six."""
    threads: int
    compiled: bool
    torch_version: str
    dim_version: str
    date: str
    data_note: str
    protocol: str


def aggregate(results: Sequence[CellResult]) -> list[Row]:
    """Join the students that differ by their seed, or by a generator of one name, into rows of plain JSON data.

    Args:
        results: finished cells in any order; rows come in the order of their first cell.
    """
    grouped: dict[str, list[CellResult]] = {}
    for result in results:
        # Generators of one name share a row; bundles to compare have names of their own.
        generic = replace(result.cell, content_id="", generator="")
        key = f"{result.cell.subject} {generic.identity(with_seed=False)}"
        grouped.setdefault(key, []).append(result)
    return [_row(group) for group in grouped.values()]


def _row(group: list[CellResult]) -> Row:
    found = list(dict.fromkeys(result.cell.content_id for result in group))
    group = sorted(group, key=lambda result: (found.index(result.cell.content_id), result.cell.seed))
    cell, last = group[0].cell, max(group, key=lambda result: result.date)
    means = [statistics.fmean(r.accuracy for r in group if r.cell.content_id == one) for one in found]
    accuracies = [result.accuracy for result in group]
    by_class = list(zip(*(result.class_accuracies for result in group if result.class_accuracies), strict=True))
    return {
        "data": cell.data,
        "fingerprint": cell.fingerprint,
        "subject": cell.subject,
        "source": cell.source,
        "content_id": cell.content_id,
        "content_ids": [one for one in found if one],
        "generators": sum(1 for one in found if one),
        "mode": cell.mode,
        "ipc": cell.ipc,
        "images_per_class": cell.archive.images_per_class if cell.archive else cell.images_per_class,
        "archive": asdict(cell.archive) if cell.archive else None,
        "real_percent": cell.real_percent,
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
        "bits_per_class": round(8 * group[0].data_bytes / len(by_class)) if by_class else None,
        "accuracy_mean": round(statistics.fmean(means), 4),
        "accuracy_std": _deviation(means if len(means) > 1 else accuracies),
        "accuracies": [round(accuracy, 4) for accuracy in accuracies],
        "class_accuracies": [round(statistics.fmean(one), 4) for one in by_class],
        "seeds": [result.cell.seed for result in group],
        "diverged": sum(result.diverged for result in group),
        "test_images": group[0].test_images,
        "seconds_per_student": round(statistics.fmean(result.seconds for result in group), 1),
        "engine": last.engine,
        "engine_precision": last.engine.split()[1] if last.engine else None,
        "machine": last.machine,
        "threads": last.threads,
        "compiled": last.compiled,
        "torch_version": last.torch_version,
        "dim_version": last.dim_version,
        "date": last.date,
        "data_note": last.data_note,
        "protocol": last.protocol,
    }


def _deviation(values: Sequence[float]) -> float | None:
    return round(statistics.stdev(values), 4) if len(values) > 1 else None


def write_results(
    results: Sequence[CellResult],
    data: ImageSet,
    out: Path,
    *,
    finished: bool,
    found: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Write `results.json` in one step and return its rows.

    Args:
        finished: whether these are all that were asked for.
        found: what was found besides, `quality` or `privacy`.

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
        **(found or {}),
    }
    write_json(out / RESULTS_NAME, described, f"The results in {out}")
    return rows
