"""The command `dim`: one Typer app, and the one place where an error becomes a line on stderr and an exit code."""

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dim.cli import bench, distill, doctor, evaluate, export, generate, inspect, verify
from dim.runtime.errors import DimError, printable
from dim.version import __version__

INTERRUPTED = 130


class _Group(TyperGroup):
    """Ends with 130 on Ctrl-C, whatever Typer's version makes of it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First steps:  [bold]dim generate --ipc 10 --out digits/[/bold]  draws a set from the bundle that comes "
    "with dim;  [bold]dim distill --data digits --preset tiny[/bold]  makes a bundle of your own.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dim {__version__}")
        raise typer.Exit


@app.callback()
def dim(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from; works after the command too.")
    ] = False,
) -> None:
    """Distil a labelled image dataset into a generator of a few megabytes, and draw training sets from it."""


_MAKE, _USE, _ASK = "Make a bundle", "Use a bundle", "Look and check"
app.command("distill", rich_help_panel=_MAKE)(distill.distill)
app.command("export", rich_help_panel=_MAKE)(export.export)
app.command("generate", rich_help_panel=_USE)(generate.generate)
app.command("eval", rich_help_panel=_USE)(evaluate.evaluate)
app.command("bench", rich_help_panel=_USE)(bench.bench)
app.command("inspect", rich_help_panel=_ASK)(inspect.inspect)
app.command("verify", rich_help_panel=_ASK)(verify.verify)
app.command("doctor", rich_help_panel=_ASK)(doctor.doctor)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0; 1 for a bad value or the world; 2 for unknown options; 130 for Ctrl-C.

    Args:
        arguments: what follows `dim`; the process's own when None.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with_traceback = "--traceback" in given
    try:
        app([argument for argument in given if argument != "--traceback"], prog_name="dim")
    except DimError as error:
        if with_traceback:
            raise
        _fail(str(error))
    except MemoryError:
        if with_traceback:
            raise
        _fail("There is not enough memory for this: ask for less at once, or use a machine with more.")
    except OSError as error:
        if with_traceback:
            raise
        if error.errno == errno.EPIPE:  # the reader of stdout went away, as in `dim inspect | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        _fail(_describe(error))
    except Exception as error:
        if with_traceback:
            raise
        _fail(f"An error of dim itself, {type(error).__name__}: {error}  Run it again with --traceback to see where.")


def _describe(error: OSError) -> str:
    what = os.strerror(error.errno) if error.errno else str(error)
    return f"{error.filename}: {what}." if error.filename else f"{what}."


def _fail(message: str) -> None:
    """Print one line, whatever the message holds, and exit with 1."""
    typer.echo("Error: " + printable(" ".join(message.split())), err=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
