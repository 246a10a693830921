"""Progress bars on stderr, by rich."""

import sys
import threading
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from dim.runtime.messages import bar_consoles
from dim.runtime.progress.work import Work


class TerminalBars:
    """A context manager that takes reports: one bar per step, and the latest note in a line below them."""

    def __init__(self) -> None:
        self._progress = _WithNote(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=9)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=30)),
            TextColumn("{task.fields[counts]}", markup=False, table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            console=Console(stderr=True, force_terminal=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # results that go to a file stay there
            expand=True,
        )
        self._lock = threading.Lock()
        self._tasks: dict[str, tuple[TaskID, Work]] = {}

    def __enter__(self) -> "TerminalBars":
        self._progress.start()
        bar_consoles.append(self._progress.console)
        return self

    def __exit__(self, *error: object) -> None:
        bar_consoles.remove(self._progress.console)
        self._progress.stop()

    def __call__(self, what: str, done: float, total: float | None, note: str, /) -> None:
        """Take a report; see `dim.runtime.progress.show.Progress`."""
        with self._lock:
            if what not in self._tasks:
                work = Work(what)
                self._tasks[what] = (self._progress.add_task(work.what, total=total, counts=""), work)
            task, work = self._tasks[what]
            work.update(done, total, note)
            self._progress.update(task, completed=done, total=total, counts=work.counts)
            self._progress.note = work.note


class _WithNote(Progress):
    """Bars, and a line of text below them that is cut at the terminal's edge."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, style="dim", no_wrap=True, overflow="ellipsis")
