"""Progress bars in a notebook: HTML that every front end draws, without widgets."""

import threading
import time
from html import escape

from IPython.display import display

from dim.runtime.progress.work import Work

REDRAW_S = 0.2
"""Least seconds between two drawings of the same bars; every one is a message to the browser."""


class NotebookBars:
    """A context manager that takes reports: one bar per step below the cell, gone at the end."""

    def __init__(self) -> None:
        self._works: dict[str, Work] = {}
        self._lock = threading.Lock()
        self._drawn_s = float("-inf")

    def __enter__(self) -> "NotebookBars":
        self._handle = display(_render([]), raw=True, display_id=True)
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._handle.update(_render([]), raw=True)

    def __call__(self, what: str, done: float, total: float | None, note: str, /) -> None:
        """Take a report; see `dim.runtime.progress.show.Progress`."""
        with self._lock:
            is_new = what not in self._works
            work = self._works.setdefault(what, Work(what))
            work.update(done, total, note)
            now = time.monotonic()
            if is_new or work.is_finished or now - self._drawn_s >= REDRAW_S:
                self._drawn_s = now
                self._handle.update(_render(list(self._works.values())), raw=True)


def _render(works: list[Work]) -> dict[str, str]:
    """Draw the bars as HTML, and as text for front ends that draw none."""
    rows, lines = [], []
    for work in works:
        left = f"{work.time_left} left" if work.time_left else ""
        facts = ", ".join(part for part in (work.counts, work.note, left) if part)
        size = "" if work.total is None else f' value="{work.done:g}" max="{work.total:g}"'
        rows.append(
            f"<tr><td>{escape(work.what)}</td><td><progress{size}></progress></td>"
            f'<td style="text-align:left">{escape(facts)}</td></tr>'
        )
        lines.append(f"{work.what}: {facts}" if facts else work.what)
    return {"text/html": f"<table>{''.join(rows)}</table>" if rows else "", "text/plain": "\n".join(lines)}
