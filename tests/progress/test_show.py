"""Progress: who is told what, on a terminal, in a notebook, in a log, and nowhere."""

import io
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dim.runtime import messages
from dim.runtime.progress import lines
from dim.runtime.progress.show import ProgressOption, ignore_progress, show_progress
from dim.runtime.progress.work import Work


class Terminal(io.StringIO):
    """What a program takes for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """A function that makes stderr a terminal of 100 columns; pytest changes stderr between fixture and test."""

    def begin() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("TERM", "xterm")
        return stream

    return begin


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """A notebook, and what is drawn in it."""
    seen: list[dict[str, str]] = []

    def display(shown: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        seen.append(shown)
        return SimpleNamespace(update=lambda shown, *, raw: seen.append(shown))

    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    frontend = ModuleType("IPython.display")
    frontend.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", frontend)
    monkeypatch.delitem(sys.modules, "dim.runtime.progress.notebook", raising=False)
    yield seen
    sys.modules.pop("dim.runtime.progress.notebook", None)


def test_a_callable_gets_every_report_as_it_is() -> None:
    seen: list[tuple[object, ...]] = []

    def note(*report: object) -> None:
        seen.append(report)

    with show_progress(note) as report:
        assert report is note
        report("work", 1, 2, "slow")
    assert seen == [("work", 1, 2, "slow")]


@pytest.mark.parametrize("wanted", [None, False])
def test_off_a_terminal_nothing_is_shown_unless_asked(
    wanted: ProgressOption, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "SILENCE_S", 0.0)
    with show_progress(wanted) as report:
        assert report is ignore_progress
        report("work", 1, 2, "")
        messages.print_message("a line with [brackets]")
    assert capsys.readouterr() == ("", "a line with [brackets]\n")


def test_bars_show_on_a_terminal_and_lines_go_above_them(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    with show_progress(None) as report:
        report("work", 1200, 5000, "840 images/s, generator [0.5]")
        report("share", 0.4, 1, "")
        report("search", 7, None, "")
        messages.print_message("a line [above]")
        time.sleep(0.2)
    text = terminal.getvalue()
    for expected in ("work", "1,200/5,000", "40 %", "a line [above]"):
        assert expected.replace("40 %", "40%") in text, text
    assert not messages.bar_consoles


def test_a_note_stands_below_the_bars(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    with show_progress(True) as report:
        report("work", 1, 2, "generator [0.5]")
        time.sleep(0.2)
    assert "generator [0.5]" in terminal.getvalue()


def test_false_silences_a_terminal_and_a_dumb_one_shows_nothing(
    on_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_terminal()
    with show_progress(False) as report:
        report("work", 1, 2, "")
    monkeypatch.setenv("TERM", "dumb")
    with show_progress(None) as report:
        report("work", 1, 2, "")
    assert terminal.getvalue() == ""


def test_one_display_at_a_time(on_terminal: Callable[[], Terminal]) -> None:
    """A call within a call, or in another thread, shows nothing of its own; the next one does."""
    on_terminal()
    inside: list[object] = []

    def call() -> None:
        with show_progress(None) as report:
            inside.append(report)

    with show_progress(None) as report:
        assert report is not ignore_progress
        call()
        other = threading.Thread(target=call)
        other.start()
        other.join()
    call()
    assert inside[:2] == [ignore_progress] * 2 and inside[2] is not ignore_progress


def test_an_error_takes_the_bars_away(on_terminal: Callable[[], Terminal]) -> None:
    on_terminal()
    with pytest.raises(KeyboardInterrupt), show_progress(None) as report:
        report("work", 1, 2, "")
        raise KeyboardInterrupt
    assert not messages.bar_consoles
    with show_progress(None) as report:
        assert report is not ignore_progress


def test_a_notebook_shows_bars_and_clears_them(drawn: list[dict[str, str]]) -> None:
    with show_progress(None) as report:
        report("<work>", 1, 4, "a & b")
        report("search", 3, None, "")
    texts = [shown["text/plain"] for shown in drawn]
    assert texts == ["", "<work>: 1/4, a & b", "<work>: 1/4, a & b\nsearch: 3", ""]
    assert '<progress value="1" max="4">' in drawn[1]["text/html"]
    assert "&lt;work&gt;" in drawn[1]["text/html"] and "a &amp; b" in drawn[1]["text/html"]
    assert "<progress></progress>" in drawn[2]["text/html"] and drawn[-1]["text/html"] == ""


def test_a_notebook_is_not_flooded(drawn: list[dict[str, str]]) -> None:
    with show_progress(True) as report:
        for step in range(1000):
            report("work", step, 1000, "")
        report("work", 1000, 1000, "")
    assert drawn[-2]["text/plain"] == "work: 1,000/1,000"
    assert len(drawn) < 100


def test_a_terminal_in_ipython_is_no_notebook(
    on_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_terminal()
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with show_progress(None) as report:
        assert type(report).__name__ == "TerminalBars"


def test_a_log_gets_a_line_after_each_silence_even_where_work_hangs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "SILENCE_S", 0.2)
    messages.print_message("begin")
    with show_progress(True) as report:
        report("stage1", 1200, 5000, "840 images/s")
        time.sleep(0.7)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "begin" and 2 <= len(told[1:]) <= 4
    assert told[1].startswith("stage1: 1,200/5,000, 840 images/s; 0.")
    assert all(line.startswith("stage1: 1,200/5,000; 0.") for line in told[2:])  # old losses are not told as new ones
    assert all(line.endswith(" s so far.") for line in told[1:])


def test_a_line_says_of_what_the_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("dim.runtime.progress.work.time.monotonic", lambda: now)
    shown = lines.Lines()
    shown("stage1", 0, 300, "")
    now = 130.0
    shown("stage1", 150, 300, "losses")
    assert shown._describe() == "stage1: 150/300, losses; 30 s so far, about 30 s left of stage1."
    shown("stage1", 151, 300, "newer losses")
    assert "151/300, newer losses; " in shown._describe()


def test_a_display_that_just_began_says_nothing_of_an_older_silence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "SILENCE_S", 0.4)
    time.sleep(0.5)
    with show_progress(True):
        time.sleep(0.25)
    assert capsys.readouterr().err == ""


def test_what_is_said_counts_as_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "SILENCE_S", 2.0)
    with show_progress(True) as report:
        report("work", 1, 2, "")
        for number in range(3):
            messages.print_message(str(number))
            time.sleep(0.05)
    assert capsys.readouterr().err == "0\n1\n2\n"


def test_lines_are_due_after_thirty_seconds() -> None:
    assert lines.SILENCE_S == 30


def test_the_time_left_follows_what_was_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("dim.runtime.progress.work.time.monotonic", lambda: now)
    work = Work("resumed")
    assert (work.counts, work.time_left) == ("", "")
    work.update(500, 1000, "")
    now += 10
    work.update(600, 1000, "")
    assert (work.counts, work.time_left) == ("600/1,000", "40 s")
    work.update(1000, 1000, "")
    assert work.is_finished and work.time_left == ""
    work.update(0.25, 1, "")
    assert work.counts == "25%"


def test_the_time_left_forgets_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("dim.runtime.progress.work.time.monotonic", lambda: now)
    work = Work("stage1")
    left = {}
    for step in range(1001):  # a step takes a second, but the 300th takes an hour
        work.update(step, 10_000, "")
        left[step] = work.time_left
        now += 3600 if step == 299 else 1
    assert left[200] == "2 h 43 min"  # 9,800 s
    assert left[310] != left[1000] == "2 h 30 min"


def test_rich_is_imported_only_where_a_bar_is_drawn(tiny_bundle: Path, tmp_path: Path) -> None:
    code = f"""
import sys
import dim
with dim.open_bundle({str(tiny_bundle)!r}, engine="fake") as bundle:
    dim.generate(bundle, dim.SetRequest(ipc=1, format="npz"), {str(tmp_path / "set")!r})
assert "rich" not in sys.modules and "IPython" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_library_call_on_a_real_terminal_shows_bars_and_cleans_up(tiny_bundle: Path, tmp_path: Path) -> None:
    code = f"""
import dim, time
with dim.open_bundle({str(tiny_bundle)!r}, engine="fake") as bundle:
    dim.generate(bundle, dim.SetRequest(ipc=6000, format="imagefolder"), {str(tmp_path / "set")!r})
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.communicate(timeout=60)[0] == b"" and process.returncode == 0
    text = seen.decode()
    assert "generating" in text and "/18,000" in text and "images/s" in text
    assert text.rstrip().endswith(("\x1b[2K", "\x1b[?25h")) or "\x1b[2K" in text[-200:]
