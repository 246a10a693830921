"""The protocol of progress, and the choice of what shows it.

Every call that may take long has an argument `progress`:

| value | what happens |
|---|---|
| None, the default | bars on a terminal or in a notebook; nothing elsewhere |
| False | nothing |
| True | bars on a terminal or in a notebook; elsewhere a line on stderr after every 30 seconds of silence |
| a callable | it is called: `progress(what, done, total, note)` |
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

from dim.runtime.progress.lines import Lines


class Progress(Protocol):
    """Is told how far long work is, often, and from whichever thread does the work."""

    def __call__(self, what: str, done: float, total: float | None, note: str, /) -> None:
        """Take a report.

        Args:
            what: the step at work, such as "stage1", "students" or "generating"; it names a bar.
            done: how much of it is done, from 0 to `total`.
            total: all of it, in the same unit; None where nobody knows.
            note: what else there is to say, such as the speed; often empty.
        """


ProgressOption: TypeAlias = Progress | bool | None
"""What calls take as `progress`; the table above says what each value does."""

_shown = threading.Lock()
"""Held while a display is shown: calls within calls, or in other threads, then show nothing of their own."""


def ignore_progress(what: str, done: float, total: float | None, note: str, /) -> None:
    """Show nothing."""


@contextmanager
def show_progress(wanted: ProgressOption) -> Iterator[Progress]:
    """Give what reports go to, and take its bars away at the end.

    Args:
        wanted: what the caller was given as `progress`.
    """
    if callable(wanted):
        yield wanted
        return
    if not _shown.acquire(blocking=False):
        yield ignore_progress
        return
    try:
        display = _choose_display(wanted)
        if display is None:
            yield ignore_progress
        else:
            with display as report:
                yield report
    finally:
        _shown.release()


def _choose_display(wanted: bool | None) -> Any:
    """Choose by who is looking; None for nobody. The libraries that draw are imported only where they draw."""
    if wanted is False:
        return None
    if is_notebook():
        from dim.runtime.progress.notebook import NotebookBars

        return NotebookBars()
    if _is_terminal():
        from dim.runtime.progress.terminal import TerminalBars

        return TerminalBars()
    return Lines() if wanted else None


def is_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def _is_terminal() -> bool:
    # A program may have closed its stderr, or have none.
    stream = sys.stderr
    return stream is not None and not stream.closed and stream.isatty() and os.environ.get("TERM") != "dumb"
