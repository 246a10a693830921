"""The command `dim`: one Typer app, and the one place where an error becomes a line on stderr and an exit code."""

import errno
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from dim.cli import bench, distill, doctor, evaluate, export, generate, inspect, verify, view
from dim.cli.terminal import STDOUT, flush_stdout, prepare_streams
from dim.runtime.errors import BadValueError, DimError, describe_error, hide_secrets, printable
from dim.version import __version__

MACHINES = ("x86_64", "aarch64")
MAX_LINE_CHARS = 200
MIN_BOX_COLUMNS = 80
"""The narrowest terminal that shows help in boxes."""
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, which Slurm and Kubernetes send some seconds before they kill; cleaned up after as after Ctrl-C."""


@contextmanager
def _clean_up_on_sigterm() -> Iterator[None]:
    """Make the first SIGTERM an exception in the main thread, where nobody else has a use for the signal."""
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: object) -> None:
        # A second one, as to a whole group of processes, may not cut the cleaning up short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _TerminatedError

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Group(TyperGroup):
    """Ends with 130 on Ctrl-C, whatever Typer's version makes of it, and with 143 on SIGTERM.

    Its help is plain text, because importing what draws boxes takes longer than all the rest of `dim --help`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panels.setdefault(command.rich_help_panel, []).append((name, command.get_short_help_str(MAX_LINE_CHARS)))
        _write_plain_help(self, ctx, formatter, panels)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _clean_up_on_sigterm():
                return super().invoke(ctx)
        except _TerminatedError:
            typer.echo("Terminated.", err=True)
            raise typer.Exit(TERMINATED) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None

    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_flag_types(super().get_params(ctx))


class _Command(TyperCommand):
    """Speaks of options where the library speaks of arguments; shows a flag without the type of a value.

    Its help is plain text where boxes would cut the names of options.
    """

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if shutil.get_terminal_size().columns >= MIN_BOX_COLUMNS:
            super().format_help(ctx, formatter)
            return
        self.help = re.sub(r"\[/?bold\]", "", self.help or "")
        _write_plain_help(self, ctx, formatter, {})

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BadValueError as error:
            error.args = (_name_options(str(error), self.params),)
            raise

    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_flag_types(super().get_params(ctx))


def _write_plain_help(command: Any, ctx: Any, formatter: Any, panels: dict[str, list[tuple[str, str]]]) -> None:
    """Write help without boxes: what `panels` hold, by title, and the options by theirs."""
    for option in command.get_params(ctx):
        if record := option.get_help_record(ctx):
            title = "Arguments" if option.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(option, "rich_help_panel", None) or title, []).append(record)
    command.format_usage(ctx, formatter)
    command.format_help_text(ctx, formatter)
    for title, lines in panels.items():
        with formatter.section(title):
            formatter.write_dl(lines)
    command.format_epilog(ctx, formatter)


def _name_options(sentence: str, parameters: list[Any]) -> str:
    """Write the argument `per_class` as --per-class."""
    for parameter in parameters:
        if (option := parameter.opts[0]).startswith("--"):
            for argument in (parameter.name, option[2:].replace("-", "_")):
                sentence = sentence.replace(f"`{argument}`", option)
    return sentence


def _hide_flag_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    cls=_Group,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First steps: `dim generate --ipc 10 --out digits/` draws a set from the bundle that comes with dim; "
    "`dim distill --data digits --preset tiny` makes a bundle of your own.",
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
for _name, _panel, _function in (
    ("distill", _MAKE, distill.distill),
    ("export", _MAKE, export.export),
    ("generate", _USE, generate.generate),
    ("eval", _USE, evaluate.evaluate),
    ("bench", _USE, bench.bench),
    ("view", _ASK, view.view),
    ("inspect", _ASK, inspect.inspect),
    ("verify", _ASK, verify.verify),
    ("doctor", _ASK, doctor.doctor),
):
    app.command(_name, cls=_Command, rich_help_panel=_panel)(_function)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    0; 1 for a bad value or the world; 2 for options that do not parse; 130 for Ctrl-C; 143 for SIGTERM.

    Args:
        arguments: what follows `dim`; the process's own when None.
    """
    prepare_streams(own=arguments is None)
    _check_platform()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run([argument for argument in given if argument != "--traceback"], "--traceback" in given)
    except SystemExit:
        if (error := flush_stdout()) is not None:
            _fail_to_print(error)
        raise


def _run(arguments: list[str], with_traceback: bool) -> None:
    """Run the command line; an error becomes a line on stderr and exit code 1, unless its traceback is wanted."""
    try:
        app(arguments, prog_name="dim")
    except Exception as error:
        if with_traceback:
            raise
        if isinstance(error, OSError) and (error.filename == STDOUT or error.errno == errno.EPIPE):
            flush_stdout()
            _fail_to_print(error)
        _fail(_explain(error))


def _explain(error: Exception) -> str:
    if isinstance(error, DimError):
        return str(error)
    if isinstance(error, MemoryError):
        return "There is not enough memory for this: ask for less at once, or use a machine with more."
    if str(error) == "can't start new thread" or isinstance(error, BlockingIOError):
        return (
            "No more threads or processes can be started here: ask for fewer with --threads or --encoders, or raise "
            "the limit (ulimit -u)."
        )
    if isinstance(error, OSError):
        what = os.strerror(error.errno) if error.errno else str(error)
        return f"{error.filename}: {what}." if error.filename else f"{what}."
    said = str(error).rstrip(" .")
    return f"An error of dim itself, {type(error).__name__}: {said}. Run it again with --traceback to see where."


def _fail_to_print(error: OSError) -> NoReturn:
    """Exit with 1 because stdout took no more; in silence where its reader went away, as in `dim inspect | head`."""
    if error.errno != errno.EPIPE:
        _fail(
            f"Standard output cannot be written ({describe_error(error)}): what the command makes is there, what it "
            "prints is lost."
        )
    raise SystemExit(1)


def _check_platform() -> None:
    """Refuse other systems, whose locks and processes differ; on Linux, name a processor that was not tried."""
    if sys.platform != "linux":
        _fail(f"dim runs on Linux, x86-64 or aarch64, and this is {sys.platform}: use a Linux machine or a container.")
    if (machine := os.uname().machine) not in MACHINES:
        typer.echo(f"dim was not tried on {machine}, only on {' and '.join(MACHINES)}.", err=True)


def _fail(message: str) -> NoReturn:
    """Print one line, whatever the message holds, and exit with 1."""
    typer.echo("Error: " + printable(hide_secrets(" ".join(message.split()))), err=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
