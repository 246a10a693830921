"""Progress without bars: a line on stderr after every 30 seconds without output."""

import threading
import time

from dim.runtime.messages import print_message, seconds_since_last_line
from dim.runtime.progress.work import Work
from dim.runtime.units import format_duration

SILENCE_S = 30.0
"""Seconds after which a line is due; lines of `say` count too."""


class Lines:
    """A context manager that takes reports and prints the latest one when a line is due, even if work hangs."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._latest: Work | None = None
        self._name = ""
        self._told_note = ""
        self._ended = threading.Event()
        self._printer = threading.Thread(target=self._print_when_due, name="dim-progress", daemon=True)

    def __enter__(self) -> "Lines":
        self._printer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._printer.join()

    def __call__(self, what: str, done: float, total: float | None, note: str, /) -> None:
        """Take a report; see `dim.runtime.progress.show.Progress`."""
        if self._latest is None or self._name != what:
            self._latest, self._name = Work(what), what
        self._latest.update(done, total, note)

    def _print_when_due(self) -> None:
        while not self._ended.wait(max(0.1, SILENCE_S - seconds_since_last_line())):
            begun = self._latest is not None or time.monotonic() - self._began >= SILENCE_S
            if begun and seconds_since_last_line() >= SILENCE_S:
                print_message(self._describe())

    def _describe(self) -> str:
        work, elapsed = self._latest, format_duration(time.monotonic() - self._began)
        if work is None:
            return f"Working for {elapsed}."
        left = f", about {work.time_left} left of {work.what}" if work.time_left else ""
        # Speed and losses are measured now and then; told again they would look like new ones.
        note = work.note if work.note != self._told_note else ""
        self._told_note = work.note
        parts = ", ".join(part for part in (work.counts, note) if part)
        return f"{work.what}{f': {parts}' if parts else ''}; {elapsed} so far{left}."
