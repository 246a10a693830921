"""Running cells one after another in this process, or side by side in others.

Small students do not fill two cores, let alone a GPU, so several are trained at once on shares of the threads.
"""

import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dim.evaluation.cells import Cell, CellResult, write_result
from dim.evaluation.run import Bench, run_cell
from dim.execution.allocator import keep_freed_memory

_STEPS_PER_REPORT = 20
_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class EvalProgress:
    """How far an evaluation is, for a progress display."""

    cell: Cell
    """The cell that moved."""
    cell_index: int
    """Its number in the order of `plan_cells`, from 0."""
    num_cells: int
    done_cells: int
    """Finished ones, those of earlier runs included."""
    step: int
    """Finished steps of the cell."""
    steps: int


Report = Callable[[int, int, int], None]
"""Called with a cell's number in the whole list, its finished steps and its steps."""


def run_cells(
    bench: Bench,
    cells: Sequence[tuple[int, Cell]],
    out: Path,
    jobs: int,
    report: Report,
    finished: Callable[[int, CellResult], None],
    deadline: float | None = None,
) -> None:
    """Run cells and write each one's file as soon as it is done.

    Args:
        bench: dataset, bundles and device; `threads` counts those of one job.
        cells: numbers and cells, the most valuable first.
        out: the evaluation's folder.
        jobs: processes; 1 stays in this one.
        report: gets the progress, now and then.
        finished: gets every result, in the order in which they end.
        deadline: value of `time.monotonic()` from which no further cell is started.

    Raises:
        anything that a cell raises; the files of finished cells stay.
    """
    if jobs > 1 and len(cells) > 1:
        _run_side_by_side(bench, cells, out, min(jobs, len(cells)), report, finished, deadline)
        return
    threads_before = torch.get_num_threads()
    _settle(bench)
    try:
        for index, cell in cells:
            if deadline is not None and time.monotonic() >= deadline:
                break
            finished(index, _run(bench, index, cell, out, report))
    finally:
        bench.close()
        torch.set_num_threads(threads_before)


def _settle(bench: Bench) -> None:
    torch.set_num_threads(bench.threads)
    if bench.device == "cpu":
        keep_freed_memory()


def _run(bench: Bench, index: int, cell: Cell, out: Path, report: Report) -> CellResult:
    def progress(step: int, steps: int) -> None:
        if step % _STEPS_PER_REPORT == 0 or step == steps:
            report(index, step, steps)

    result = run_cell(bench, cell, progress)
    write_result(result, out)
    return result


_worker: tuple[Bench, Path, Any] | None = None


def _start_worker(bench: Bench, out: Path, reports: Any) -> None:
    global _worker
    _worker = bench, out, reports
    _settle(bench)


def _run_in_worker(index: int, cell: Cell) -> CellResult:
    assert _worker is not None
    bench, out, reports = _worker
    return _run(bench, index, cell, out, lambda *progress: reports.put(progress))


def _run_side_by_side(
    bench: Bench,
    cells: Sequence[tuple[int, Cell]],
    out: Path,
    jobs: int,
    report: Report,
    finished: Callable[[int, CellResult], None],
    deadline: float | None,
) -> None:
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    stop = threading.Event()

    def relay() -> None:
        while not stop.is_set():
            try:
                report(*reports.get(timeout=_POLL_SECONDS))
            except queue.Empty:
                continue

    relaying = threading.Thread(target=relay, name="dim-eval-progress", daemon=True)
    relaying.start()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(bench, out, reports))
    try:
        running = {pool.submit(_run_in_worker, index, cell): index for index, cell in cells}
        while running:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, _ = wait(running, timeout=left_s, return_when=FIRST_COMPLETED)
            for future in done:
                finished(running.pop(future), future.result())
            if deadline is not None and time.monotonic() >= deadline:
                running = {future: index for future, index in running.items() if not future.cancel()}
                deadline = None
    except BaseException:
        # A student may have many minutes to go; what it has not written is lost either way.
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        stop.set()
        relaying.join(timeout=5 * _POLL_SECONDS)
        reports.cancel_join_thread()
        reports.close()
