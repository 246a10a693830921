"""Runs cells one after another in this process, or in parallel in others.

Small students do not fill two cores, let alone a GPU, so several are trained at once on shares of the threads.
"""

import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from dim.evaluation.cells import Cell, CellResult, write_result
from dim.evaluation.context import EvalContext
from dim.evaluation.run import run_cell
from dim.execution.allocator import keep_freed_memory

_STEPS_PER_REPORT = 20
_POLL_SECONDS = 0.2

NumberedCell = tuple[int, Cell]
"""A cell and its number in the order of `plan_cells`."""
Report = Callable[[int, int, int], None]
"""Called with a cell's number, its finished steps and its steps."""


def run_cells(
    context: EvalContext,
    cells: Sequence[NumberedCell],
    out: Path,
    jobs: int,
    report: Report,
    deadline: float | None = None,
) -> Generator[tuple[int, CellResult], None, None]:
    """Run cells, write each one's file as soon as it is done, and yield the results in the order in which they end.

    Close the iterator to stop earlier; students in training are given up then.

    Args:
        context: what cells share; `threads` counts those of one job.
        cells: the most valuable first.
        out: the evaluation's folder.
        jobs: processes; 1 stays in this one.
        report: gets the progress now and then, with several jobs from another thread.
        deadline: value of `time.monotonic()` from which no further cell is started.

    Raises:
        anything that a cell raises; the files of finished cells stay.
    """
    if jobs > 1 and len(cells) > 1:
        yield from _run_side_by_side(context, cells, out, min(jobs, len(cells)), report, deadline)
        return
    threads_before = torch.get_num_threads()
    _set_up_torch(context)
    try:
        for index, cell in cells:
            if deadline is not None and time.monotonic() >= deadline:
                break
            yield index, _run(context, index, cell, out, report)
    finally:
        context.close()
        torch.set_num_threads(threads_before)


def _set_up_torch(context: EvalContext) -> None:
    torch.set_num_threads(context.threads)
    if context.device == "cpu":
        keep_freed_memory()


def _run(context: EvalContext, index: int, cell: Cell, out: Path, report: Report) -> CellResult:
    def progress(step: int, steps: int) -> None:
        if step % _STEPS_PER_REPORT == 0 or step == steps:
            report(index, step, steps)

    result = run_cell(context, cell, progress)
    write_result(result, out)
    return result


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """What a process of the pool keeps from cell to cell."""

    context: EvalContext
    out: Path
    reports: Any
    """A queue of arguments of `Report`."""
    stop: Event
    """Set when nobody waits for the results any more."""

    def report(self, index: int, step: int, steps: int) -> None:
        if self.stop.is_set():
            raise _StoppedError
        self.reports.put((index, step, steps))


class _StoppedError(Exception):
    """A student in training is given up."""


_worker: list[_Worker] = []
"""The one worker of this process, where it is one: a pool's initializer can leave its tasks something only here."""


def _start_worker(worker: _Worker) -> None:
    _worker.append(worker)
    _set_up_torch(worker.context)


def _run_in_worker(index: int, cell: Cell) -> CellResult:
    (worker,) = _worker
    return _run(worker.context, index, cell, worker.out, worker.report)


def _run_side_by_side(
    context: EvalContext,
    cells: Sequence[NumberedCell],
    out: Path,
    jobs: int,
    report: Report,
    deadline: float | None,
) -> Generator[tuple[int, CellResult], None, None]:
    processes = multiprocessing.get_context("spawn")
    reports, stop = processes.Queue(), processes.Event()
    relaying = threading.Thread(target=_relay, args=(reports, report, stop), name="dim-eval-progress", daemon=True)
    relaying.start()
    worker = _Worker(context=context, out=out, reports=reports, stop=stop)
    pool = ProcessPoolExecutor(jobs, mp_context=processes, initializer=_start_worker, initargs=(worker,))
    try:
        running = {pool.submit(_run_in_worker, index, cell): index for index, cell in cells}
        while running:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, _ = wait(running, timeout=left_s, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
            if deadline is not None and time.monotonic() >= deadline:
                running = {future: index for future, index in running.items() if not future.cancel()}
                deadline = None
    finally:
        # After an error a student may have many minutes to go; what it has not written is lost either way.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        relaying.join(timeout=5 * _POLL_SECONDS)
        reports.cancel_join_thread()
        reports.close()


def _relay(reports: Any, report: Report, stop: Event) -> None:
    """Hand on the progress of the workers until they are stopped."""
    while not stop.is_set():
        try:
            report(*reports.get(timeout=_POLL_SECONDS))
        except queue.Empty:
            continue
