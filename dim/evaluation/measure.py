"""Trains and tests every student of a protocol that earlier runs did not finish."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dim.data.image_set import ImageSet
from dim.evaluation.archive import Archive
from dim.evaluation.cells import Cell, CellResult, read_result
from dim.evaluation.chart import CHART_NAME, draw_chart
from dim.evaluation.context import EvalContext
from dim.evaluation.drawn import keep_drawn
from dim.evaluation.jobs import NumberedCell, run_cells
from dim.evaluation.plan import plan_cells
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.evaluation.results import Row, aggregate, write_results
from dim.evaluation.subjects import Subject
from dim.evaluation.table import accuracy_table
from dim.execution.compiled import can_compile
from dim.networks.classifiers import GAIN_BY_COMPILING
from dim.runtime.cores import usable_cores
from dim.runtime.progress.show import Progress, ignore_progress

_MIN_STEPS_FOR_JOBS = 2000
"""Starting a process takes as long as some hundreds of steps."""
_MIN_STEPS_TO_COMPILE = 6000
"""Compiling takes as long as some thousand small steps, the first time."""
_MAX_JOBS = 8

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation measured. A notebook shows it as a table."""

    out: Path
    """Folder with `results.json`, `accuracy.png` and a file per student in `cells/`."""
    results: tuple[CellResult, ...]
    """Of every student in the order of the plan, those of earlier runs included."""
    students_left: int
    """Students that a time limit left untrained; the same call goes on."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """What was found besides, `quality` and `privacy`, as in `results.json`."""

    @property
    def finished(self) -> bool:
        """Whether every student was trained."""
        return not self.students_left

    @property
    def rows(self) -> list[Row]:
        """Mean and deviation over the seeds, as in `results.json`."""
        return aggregate(self.results)

    def __repr__(self) -> str:
        return f"Evaluation({len(self.results)} students, {self.students_left} left, in {self.out})"

    def _repr_mimebundle_(self, include: Sequence[str], exclude: Sequence[str], **options: Any) -> dict[str, str]:
        return accuracy_table(self.rows)._repr_mimebundle_(include, exclude, **options)


def measure(
    subjects: Sequence[Subject],
    data: ImageSet,
    protocol: EvalProtocol,
    execution: Execution,
    out: Path,
    *,
    archives: Sequence[Archive] = (),
    deadline: float | None = None,
    say: Say = lambda sentence: None,
    progress: Progress = ignore_progress,
) -> Evaluation:
    """Train and test what is missing in `out`, and write its results and chart.

    Args:
        subjects: bundles; none for the controls alone.
        data: their dataset.
        protocol: what is measured; its recipe is chosen already.
        execution: by what means; its time limit is the caller's.
        out: folder of the results.
        archives: archives of real images that stand beside every stream.
        deadline: value of `time.monotonic()` from which no student is started; None for none.
        say: as in `dim.evaluation.evaluate.evaluate`.
        progress: is told how many students are done.

    Raises:
        as `evaluate`.
    """
    cells = plan_cells(data, subjects, protocol, execution, archives)
    log = _Log(cells=cells, data=data, out=out, progress=progress)
    if execution.resume:
        log.read_finished()
        if log.results:
            say(f"{len(log.results)} of {len(cells)} students were finished before, in {out}.")
    missing = log.list_missing()
    device, threads = execution.choose_device(), execution.threads or usable_cores()
    steps = sum(cell.steps(len(data.classes), len(data.train_labels)) for _, cell in missing)
    jobs = execution.jobs or (_MAX_JOBS if device.type == "cpu" and steps >= _MIN_STEPS_FOR_JOBS else 1)
    jobs = max(1, min(jobs, threads, len(missing)))
    context = EvalContext(
        data=data,
        bundles={subject.manifest.content_id: subject.folder for subject in subjects},
        device=str(device),
        threads=threads // jobs,
        execution=execution,
        archives=out / "archives",
    )
    if missing:
        context.compiled = _wants_compiling(cells, data, execution) and can_compile(execution.compile, device, say)
        kind = f"{cells[0].precision}{' compiled' * context.compiled} on {device}"
        say(f"Students: {cells[0].recipe.name} recipe, {kind}, {jobs} at a time.")
        _try_engines(context, subjects, protocol, say)
    with (
        keep_drawn(_list_streams(missing), data, out) as context.kept,
        closing(run_cells(context, missing, out, jobs, log.report, deadline)) as finished,
    ):
        for index, result in finished:
            log.add(index, result)
    rows = log.write()
    if rows:
        draw_chart(rows, out / CHART_NAME)
    return Evaluation(out=out, results=tuple(log.in_order()), students_left=len(cells) - len(log.results))


@dataclass(kw_only=True)
class _Log:
    """The results so far, and what is written and shown of them."""

    cells: Sequence[Cell]
    data: ImageSet
    out: Path
    progress: Progress
    results: dict[int, CellResult] = field(default_factory=dict)
    """By the number of the cell."""
    begun: dict[int, float] = field(default_factory=dict)
    """Number of every cell in training -> the part of its steps that is done."""

    def read_finished(self) -> None:
        found = {index: read_result(cell, self.out) for index, cell in enumerate(self.cells)}
        self.results = {index: result for index, result in found.items() if result is not None}

    def list_missing(self) -> list[NumberedCell]:
        return [(index, cell) for index, cell in enumerate(self.cells) if index not in self.results]

    def in_order(self) -> list[CellResult]:
        return [self.results[index] for index in sorted(self.results)]

    def report(self, index: int, step: int, steps: int) -> None:
        if index not in self.results:
            self.begun[index] = step / max(steps, 1)
        done = len(self.results) + sum(self.begun.values())
        self.progress("students", done, len(self.cells), f"{_describe(self.cells[index])}: step {step:,} of {steps:,}")

    def add(self, index: int, result: CellResult) -> None:
        self.results[index] = result
        self.begun.pop(index, None)
        self.report(index, result.steps, result.steps)
        self.write()

    def write(self) -> list[Row]:
        finished = len(self.results) == len(self.cells)
        return write_results(self.in_order(), self.data, self.out, finished=finished)


def _describe(cell: Cell) -> str:
    size = f" {cell.ipc} per class," if cell.ipc else ""
    return f"{cell.arch}, {cell.subject}, {cell.mode},{size} {cell.labels} labels, seed {cell.seed}"


def _list_streams(cells: Sequence[NumberedCell]) -> list[tuple[Hashable, int]]:
    """For every student of a bundle's stream, which stream that is, and how many images per class it sees."""
    return [
        ((cell.content_id, cell.engine_precision, cell.seed), cell.ipc * cell.epochs)
        for _, cell in cells
        if cell.source == "bundle" and cell.mode == "stream"
    ]


def _wants_compiling(cells: Sequence[Cell], data: ImageSet, execution: Execution) -> bool:
    """Whether the students that gain by it take steps enough; those of earlier runs count, so that all are alike."""
    size = len(data.classes), len(data.train_labels)
    steps = sum(cell.steps(*size) for cell in cells if cell.arch in GAIN_BY_COMPILING)
    return execution.compile == "on" or steps >= _MIN_STEPS_TO_COMPILE


def _try_engines(context: EvalContext, subjects: Sequence[Subject], protocol: EvalProtocol, say: Say) -> None:
    """Open every engine once: one that does not work shall say so now, not after an hour of students."""
    for subject in subjects:
        engine = context.open_bundle(subject.manifest.content_id, context.execution.image_precision).engine
        say(f"{subject.name}: {subject.folder}, drawn by {engine.name} {engine.precision} on the {engine.device}.")
    if "soft" in protocol.labels:
        context.open_teacher(subjects[0].teacher_sha256)
    context.close()
