"""What Ctrl-C and SIGTERM do to long commands: the first one may end at a checkpoint, and what is kept is said."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dim.cli.terminal import say


class Stop(threading.Event):
    """Is set by the first signal."""

    number: int = signal.SIGINT
    """The signal that set it."""

    def end_by_signal(self) -> None:
        """Send the signal again, to whoever handled it before: the command ends as if it had ended at once."""
        signal.raise_signal(self.number)


@contextmanager
def explain_interruption(sentence: str) -> Iterator[None]:
    """Say what is kept and how to go on where Ctrl-C or SIGTERM ends the block at once."""
    try:
        yield
    except KeyboardInterrupt:
        say(sentence)
        raise


@contextmanager
def stop_on_signal(say: Callable[[str], None]) -> Iterator[Stop]:
    """Give an event that the first Ctrl-C or SIGTERM sets; a second Ctrl-C ends at once.

    Args:
        say: receives the line that answers the first signal.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A shell lets what it starts in the background, or by nohup, ignore a signal.
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def ask(number: int, frame: FrameType | None) -> None:
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one, as to a whole group, may not cut this short
        stop.number = number
        stop.set()
        say("Stopping at a checkpoint after the step under way; Ctrl-C ends at once.")

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
