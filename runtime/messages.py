"""Sentences for people: into the log, or onto stderr above the progress bars that are shown there."""

import logging
import sys
import time
from typing import TYPE_CHECKING

from dim.runtime.errors import hide_secrets, printable

if TYPE_CHECKING:
    from rich.console import Console

bar_consoles: list["Console"] = []
"""Consoles that show progress bars now; `dim.runtime.progress.terminal` keeps the list."""
_last_line_s = time.monotonic()


def say_to_log(message: str) -> None:
    """Hand a sentence to the logger `dim`; the default of every `say`."""
    logging.getLogger("dim").info(hide_secrets(message))


def print_message(line: str) -> None:
    """Print a line on stderr, above the progress bars if some are shown; what a stranger wrote in it does nothing."""
    global _last_line_s
    _last_line_s = time.monotonic()
    line = printable(hide_secrets(line))
    if bar_consoles:
        bar_consoles[-1].print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def seconds_since_last_line() -> float:
    """Return how long nothing was printed by `print_message`, or since this module was loaded."""
    return time.monotonic() - _last_line_s
