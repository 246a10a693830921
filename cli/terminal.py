"""Output of all commands: results go to stdout, everything else to stderr; bars appear only on a terminal."""

import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dim.runtime.errors import MissingExtraError, printable
from dim.runtime.messages import print_message

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_MAX_COLUMNS, _MAX_ROWS, _MAX_CELLS, _MAX_CELL_CHARS = 64, 2048, 10_000, 1000

_PIPE_COLUMNS = 200
"""Width of a table in a pipe or file, whatever `$COLUMNS` says: a script reads one line per row."""

STDOUT = "standard output"
"""The file name in errors of standard output."""


class _Stdout(io.TextIOWrapper):
    """Standard output whose errors say that they are its own."""

    def write(self, text: str) -> int:
        with _naming_stdout():
            return super().write(text)

    def flush(self) -> None:
        with _naming_stdout():
            super().flush()


@contextmanager
def _naming_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = STDOUT
        raise


def prepare_streams(own: bool) -> None:
    """Make standard input, output and error fit to use, whatever the caller left of them.

    What was closed becomes the null device: otherwise the next file that is opened would take its number, and get what
    libraries print. Letters that the encoding lacks are printed as their numbers.

    Args:
        own: whether the process is the command's own, so that nobody else holds its standard output.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            try:
                os.fstat(descriptor)
            except OSError:
                null = os.open(os.devnull, os.O_RDWR)
                if null != descriptor:
                    os.dup2(null, descriptor)
                    os.close(null)
            setattr(sys, name, open(descriptor, mode, closefd=False))
    if own and type(sys.stdout) is io.TextIOWrapper:
        old, line_by_line, unbuffered = sys.stdout, sys.stdout.line_buffering, sys.stdout.write_through
        # Also as sys.__stdout__, of which shutil.get_terminal_size asks the width.
        sys.stdout = _Stdout(old.detach(), old.encoding, line_buffering=line_by_line, write_through=unbuffered)
        sys.__stdout__ = sys.stdout  # type: ignore[misc]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_stdout() -> OSError | None:
    """Write what is still held back for standard output; return the error if that fails, and hold back no more."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def say(line: str) -> None:
    """Print a line about what is going on, on stderr, above the progress bars if some are shown."""
    print_message(line)


def print_line(line: str = "") -> None:
    """Print a line of a result on stdout; whatever a stranger wrote in it stays on this line and does nothing."""
    print(printable(line))


def print_json(result: Mapping[str, Any]) -> None:
    """Print the one object that `--json` promises; what is no number in JSON becomes null."""
    text = json.dumps(_plain(result), indent=2, ensure_ascii=False, allow_nan=False)
    # JSON itself escapes only the oldest control characters; the others would act on a terminal, too.
    text = "\n".join(_escape_unprintable(line) for line in text.split("\n"))
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # another encoding, or a file name that is not Unicode
        text = json.dumps(_plain(result), indent=2, ensure_ascii=True, allow_nan=False)
    print(text)


def _escape_unprintable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in line)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print a table on stdout, and below it how much of a very large one was left out.

    Args:
        title: the line above it; empty for none.
        columns: the headings.
        rows: the cells as text; shown as they are, without markup, each in one line.
        numbers: the columns that are aligned to the right.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=_to_text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns[:_MAX_COLUMNS]:
        table.add_column(_to_text(column), justify="right" if column in numbers else "left", overflow="fold")
    most_rows = min(_MAX_ROWS, _MAX_CELLS // max(1, min(len(columns), _MAX_COLUMNS)))
    for row in rows[:most_rows]:
        table.add_row(*(_to_text(cell) for cell in row[:_MAX_COLUMNS]))
    print_rich(table)
    for count, most, what in ((len(columns), _MAX_COLUMNS, "columns"), (len(rows), most_rows, "rows")):
        if count > most:
            print_line(f"{count - most:,} more {what} are not shown; --json gives all.")


def _to_text(cell: str) -> "Text":
    """A stranger's text as it is, shortened."""
    from rich.text import Text

    return Text(printable(cell if len(cell) <= _MAX_CELL_CHARS else f"{cell[:_MAX_CELL_CHARS]}..."))


def is_narrow() -> bool:
    """Say whether results are read on a terminal of less than 64 columns, where tables leave out what they can."""
    return sys.stdout.isatty() and shutil.get_terminal_size().columns < 64


def print_rich(table: "Table") -> None:
    """Print a table on stdout: as wide as the terminal or `$COLUMNS` at most, off a terminal up to 200 letters."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=_PIPE_COLUMNS)
    console.print(table)


@contextmanager
def require_training_extra() -> Iterator[None]:
    """Turn a missing torch, or another package of the extra `train`, into the line that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "dim"):
            raise
        raise MissingExtraError(package, "train", "distil, export and evaluate") from None
