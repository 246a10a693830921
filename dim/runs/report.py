"""A run's report, `report.html`: its pictures, its last losses and its settings, in one file."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from dim.runs.curves import CURVES_FILE
from dim.runs.files import list_names, read_file, write_resume_command
from dim.runs.metrics import read_metrics
from dim.runs.record import CONFIG_FILE, RunRecord
from dim.runtime.gallery.report import REPORT_NAME, Part, Picture, Table, write_report
from dim.runtime.storage.records import to_plain

_MAX_GRIDS = 12


def write_run_report(run_dir: Path, record: RunRecord, finished: bool) -> Path:
    """Write the report of a run, from the files that it has so far, and return its path.

    Raises:
        OutputError: the disk refused.
        RunError: a link lies in the run.
    """
    data = record.data
    state = "finished" if finished else f"stopped at a checkpoint; {write_resume_command(run_dir)} goes on"
    parts: list[Part] = [
        f"{sum(data.class_counts):,} training images of {data.name}, {len(data.classes)} classes, "
        f"{data.image_px} x {data.image_px} pixels. The run is {state}.",
        *_last_grids(run_dir),
    ]
    with suppress(FileNotFoundError):
        description = "Every metric of the run against its steps, one panel per stage."
        parts.append(Picture(title="Losses", png=read_file(run_dir, CURVES_FILE), description=description))
    parts += [_last_metrics(run_dir), _settings(record)]
    path = run_dir / REPORT_NAME
    write_report(path, f"Distilling {data.name}", parts)
    return path


def _last_grids(run_dir: Path) -> list[Picture]:
    """The newest grid first, then some of those before it, evenly spread."""
    found = [name for name in list_names(run_dir, "grids") if name.endswith(".png")]
    stride = max(1, -(-len(found) // _MAX_GRIDS))
    return [
        Picture(
            title=_name_grid(name.removesuffix(".png")),
            png=read_file(run_dir, f"grids/{name}"),
            description="Images that the generator draws, one row per class.",
        )
        for name in found[::-1][::stride]
    ]


def _name_grid(stem: str) -> str:
    """`stage1-000500` as people say it."""
    stage, _, step = stem.partition("-")
    return f"Samples, {stage}, step {int(step):,}" if step.isdecimal() else f"Samples, {stem}"


def _last_metrics(run_dir: Path) -> Table:
    last = {line["stage"]: line for line in read_metrics(run_dir)}
    rows = [
        (stage, f"{line['step']:,}", name.replace("_", " "), f"{value:.4g}")
        for stage, line in sorted(last.items())
        for name, value in line.items()
        if name not in ("stage", "step")
    ]
    columns = ("stage", "step", "metric", "value")
    return Table(title="Last metrics", columns=columns, rows=rows, numbers=("step", "value"))


def _settings(record: RunRecord) -> Table:
    """Every field of the configuration, nested ones with dots."""
    rows: list[tuple[str, str]] = []

    def add(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{prefix}.{name}" if prefix else name, inner)
        else:
            rows.append((prefix, json.dumps(value, ensure_ascii=False)))

    add("", to_plain(record.config))
    return Table(title="Settings", columns=("field", "value"), rows=rows, note=f"As in {CONFIG_FILE}.")
