"""Run `dim` as a user does, in this process, and keep what it prints."""

import contextlib
import io
from dataclasses import dataclass

from dim.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


def dim(*arguments: object) -> Ran:
    """Run `dim` with these arguments, as far off a terminal as a script is."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        else:
            code = 0
    return Ran(code, out.getvalue(), err.getvalue())


def one_line(ran: Ran) -> str:
    """Return the one error line of a command that failed with exit code 1 and printed no result."""
    assert ran.code == 1, (ran.code, ran.err)
    assert ran.out == ""
    lines = [line for line in ran.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and ran.err.splitlines()[-1] == lines[0], ran.err
    return lines[0].removeprefix("Error: ")
