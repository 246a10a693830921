"""The last report of one step of long work, and its text."""

import time
from dataclasses import dataclass, field

from dim.runtime.errors import printable
from dim.runtime.units import format_duration


@dataclass
class Work:
    """One step; `update` takes each report. What a stranger wrote in a name stays on its line and does nothing."""

    what: str
    done: float = 0.0
    total: float | None = None
    note: str = ""
    _began: tuple[float, float] | None = field(default=None, init=False)
    """Time and `done` of the first report."""

    def __post_init__(self) -> None:
        self.what = printable(self.what)

    def update(self, done: float, total: float | None, note: str) -> None:
        """Take a report; arguments as in `dim.runtime.progress.show.Progress`."""
        if self._began is None:
            self._began = (time.monotonic(), done)
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
        """How long the rest takes at the speed so far, as in "40 s"; empty where that is unknown."""
        if self._began is None or self.total is None or self.is_finished:
            return ""
        began_s, first = self._began
        elapsed_s, moved = time.monotonic() - began_s, self.done - first
        if elapsed_s < 1 or moved <= 0:
            return ""
        return format_duration(elapsed_s / moved * (self.total - self.done))
