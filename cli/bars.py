"""Progress bars on stderr; imported only by commands that show some."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from dim.cli.terminal import bar_consoles
from dim.runtime.errors import printable


class Bars:
    """One bar per name and a line below them; a context manager that shows nothing off a terminal.

    Args:
        hidden: show nothing in any case.
    """

    def __init__(self, hidden: bool = False) -> None:
        console = Console(stderr=True)
        self._progress = _WithNote(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=9)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=30)),
            TextColumn("{task.fields[detail]}", markup=False, table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            console=console,
            disable=hidden or not console.is_terminal,
            transient=True,
            expand=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        if not self._progress.disable:
            bar_consoles.append(self._progress.console)
        return self

    def __exit__(self, *error: object) -> None:
        if not self._progress.disable:
            bar_consoles.remove(self._progress.console)
        self._progress.stop()

    def show(self, name: str, done: float, total: float | None, detail: str = "") -> None:
        """Bring the bar of that name up to date; `total` is None while nobody knows."""
        detail = printable(detail)
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, detail=detail)
        self._progress.update(self._tasks[name], completed=done, total=total, detail=detail)

    def note(self, text: str) -> None:
        """Put a line below the bars, in the place of the one before."""
        self._progress.text = printable(text)

    def clear(self) -> None:
        """Take the bars and the line away."""
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()
        self._progress.text = ""


class _WithNote(Progress):
    """Bars, and a line of text below them that is cut at the terminal's edge."""

    text = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.text:
            yield Text(self.text, style="dim", no_wrap=True, overflow="ellipsis")
