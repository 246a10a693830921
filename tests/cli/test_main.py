"""The command line as a whole: help, exit codes, one line per error."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from cli_tools import dim, one_line

from dim.cli import inspect as inspect_command
from dim.cli import main as main_module
from dim.cli.main import app
from dim.runtime.engines import names as engine
from dim.runtime.errors import BundleError
from dim.runtime.set_formats import plan
from dim.version import __version__

COMMANDS = ["distill", "export", "generate", "eval", "bench", "view", "inspect", "verify", "doctor"]


def test_the_commands_are_those_of_the_documentation() -> None:
    assert list(typer.main.get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]


def test_help_is_one_page_with_a_line_per_command() -> None:
    ran = dim("--help")
    assert ran.code == 0
    assert len(ran.out.splitlines()) <= 50
    for command in COMMANDS:
        assert sum(f" {command} " in line for line in ran.out.splitlines()) >= 1


def test_no_arguments_shows_the_help() -> None:
    ran = dim()
    assert "Usage: dim [OPTIONS] COMMAND" in ran.out + ran.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    ran = dim(command, "--help")
    assert ran.code == 0
    assert f"Example:  dim {command}" in ran.out


@pytest.mark.parametrize("columns", [50, 79, 80])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_cuts_no_name_of_an_option(command: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = dim(command, "--help").out
    assert "…" not in shown and "[bold]" not in shown and max(map(len, shown.splitlines())) <= columns
    for parameter in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        for name in parameter.opts:
            assert re.search(rf"(^|\W){re.escape(name)}(\W|$)", shown, re.MULTILINE) or parameter.metavar in shown
    assert "│" in shown if columns == 80 else "│" not in shown


def test_help_fills_its_lines_however_the_source_breaks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert " real images, and tested once on the real test split. Each student is a file in \n" in dim("eval", "-h").out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str) -> None:
    for parameter in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        assert parameter.help, f"dim {command}: {parameter.name} has no help"


def test_version() -> None:
    assert dim("--version").out == f"dim {__version__}\n"


def test_another_system_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module.sys, "platform", "darwin")
    assert one_line(dim("--version")) == (
        "dim runs on Linux, x86-64 or aarch64, and this is darwin: use a Linux machine or a container."
    )


def test_another_processor_is_named_and_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    known = os.uname()
    monkeypatch.setattr(main_module.os, "uname", lambda: os.uname_result((*known[:4], "riscv64")))
    ran = dim("--version")
    assert (ran.code, ran.out) == (0, f"dim {__version__}\n")
    assert ran.err == "dim was not tried on riscv64, only on x86_64 and aarch64.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["generate"],
        ["generate", "--out", "x", "--ipc", "many"],
        ["generate", "--out", "x", "--nonsense"],
        ["verify", "one", "two"],
    ],
)
def test_what_does_not_parse_exits_with_2(arguments: list[str]) -> None:
    ran = dim(*arguments)
    assert ran.code == 2
    assert "Usage: dim" in ran.err
    assert ran.out == ""


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    assert one_line(dim("verify", tmp_path)) == (f"There is no bundle at {tmp_path}: it has no manifest.json.")


@pytest.mark.parametrize("place", ["before", "after"])
def test_traceback_shows_where_it_came_from(tmp_path: Path, place: str) -> None:
    arguments = ["--traceback", "verify", tmp_path] if place == "before" else ["verify", tmp_path, "--traceback"]
    with pytest.raises(BundleError):
        dim(*arguments)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BundleError("one\n  line"), "one line"),
        (OSError(errno.ENOSPC, "x", "some/file"), "some/file: No space left on device."),
        (PermissionError(errno.EACCES, "x", "some/file"), "some/file: Permission denied."),
        (MemoryError(), "There is not enough memory for this: ask for less at once, or use a machine with more."),
        (BundleError("a \x1b[2J b\x07"), "a ?[2J b?"),
        (KeyError("x"), "An error of dim itself, KeyError: 'x'. Run it again with --traceback to see where."),
        (ValueError("bad."), "An error of dim itself, ValueError: bad. Run it again with --traceback to see where."),
    ],
)
def test_every_kind_of_error_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, line: str) -> None:
    def fail(wanted: str | None, sha256: str | None) -> Path:
        raise error

    monkeypatch.setattr(inspect_command, "choose_bundle", fail)
    assert one_line(dim("inspect")) == line


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(wanted: str | None, sha256: str | None) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_command, "choose_bundle", interrupt)
    ran = dim("inspect")
    assert (ran.code, ran.out, ran.err) == (main_module.INTERRUPTED, "", "Interrupted.\n")


def test_a_signal_to_the_process_exits_with_130(tmp_path: Path) -> None:
    code = f"""
import os, signal
from dim.cli import inspect
inspect.choose_bundle = lambda explicit, sha256: os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores the signal
from dim.cli.main import main
main(["inspect", {str(tmp_path)!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "Interrupted.\n")


def test_a_reader_that_goes_away_is_no_error(tiny_bundle: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "dim.cli.main", "inspect", str(tiny_bundle)]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_json_is_one_object_on_stdout(tiny_bundle: Path) -> None:
    for command in ("inspect", "verify"):
        ran = dim(command, tiny_bundle, "--json")
        assert ran.code == 0
        assert isinstance(json.loads(ran.out), dict)
        assert ran.err.startswith(f"Bundle: {tiny_bundle}, as named.\n")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("dim ge", ["generate"]),
        ("dim generate --format n", ["npz", "npy"]),
        ("dim generate --device g", ["gpu"]),
        ("dim verify --precision", []),
        ("dim generate --precision fp", ["fp32", "fp16"]),
        ("dim generate --engine onnx", ["onnxruntime-cuda", "onnxruntime-cpu"]),
    ],
)
def test_completion_is_offered(typed: str, offered: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from dim.cli.main import main; main()"],
        env={
            **os.environ,
            "_DIM_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - 1),
        },
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == offered


def test_what_is_offered_is_what_there_is() -> None:
    parameters = typer.main.get_command(app).commands["generate"].params  # type: ignore[attr-defined]
    assert engine.OFFERED_ENGINES == tuple(name for name in engine.ENGINES if name != "fake")
    (formats,) = [parameter for parameter in parameters if parameter.name == "format"]
    assert ", ".join(plan.FORMATS[:-1]) + f" or {plan.FORMATS[-1]}." == formats.help


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_a_flag_is_shown_without_a_value(command: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = dim(*([command] if command else []), "--help").out
    assert "bool" not in shown.lower() and re.search(r"--help( +-h|)  +Show this message", shown)
