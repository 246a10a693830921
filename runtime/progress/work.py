"""The last report of one step of long work, and its text."""

import time
from dataclasses import dataclass, field

from dim.runtime.errors import printable
from dim.runtime.units import format_duration

WINDOW_S = 120.0
"""The time left follows the speed of the last one to two of these, so it is right again soon after a change of load."""


@dataclass
class Work:
    """One step; `update` takes each report. What a stranger wrote in a name stays on its line and does nothing."""

    what: str
    done: float = 0.0
    total: float | None = None
    note: str = ""
    _marks: list[tuple[float, float]] = field(default_factory=list, init=False)
    """Times and `done` of two reports, `WINDOW_S` apart or more; the speed is measured since the first."""

    def __post_init__(self) -> None:
        self.what = printable(self.what)

    def update(self, done: float, total: float | None, note: str) -> None:
        """Take a report; arguments as in `dim.runtime.progress.show.Progress`."""
        now = time.monotonic()
        if not self._marks or now - self._marks[-1][0] >= WINDOW_S:
            self._marks = [*self._marks[-1:], (now, done)]
        self.done, self.total, self.note = done, total, printable(note)

    @property
    def is_finished(self) -> bool:
        """Whether all of it is done, as far as anybody knows."""
        return self.total is not None and self.done >= self.total

    @property
    def counts(self) -> str:
        """ "1,200/5,000", or "40 %" of what is one whole."""
        if self.total is None:
            return f"{int(self.done):,}" if self.done else ""
        if self.total == 1:
            return f"{self.done:.0%}"
        return f"{int(self.done):,}/{int(self.total):,}"

    @property
    def time_left(self) -> str:
        """How long the rest takes at the latest speed, as in "40 s"; empty where that is unknown."""
        if not self._marks or self.total is None or self.is_finished:
            return ""
        began_s, first = self._marks[0]
        elapsed_s, moved = time.monotonic() - began_s, self.done - first
        if elapsed_s < 1 or moved <= 0:
            return ""
        return format_duration(elapsed_s / moved * (self.total - self.done))
