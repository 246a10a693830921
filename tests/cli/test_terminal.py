"""What goes to stdout, what to stderr, and how numbers are written."""

import json
import math
from pathlib import Path

import pytest
from cli_tools import dim

from dim.cli.terminal import print_json, print_table, require_training_extra
from dim.runtime.errors import MissingExtraError
from dim.runtime.units import format_duration, format_units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (7, "7 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (4_430_000_000, "4.43 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_bytes_are_written_in_three_digits(count: float, text: str) -> None:
    assert format_units(count, "B") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (7800, "2 h 10 min")],
)
def test_durations_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_json_keeps_paths_and_leaves_out_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"path": Path("a/b"), "inner": {"values": (1, math.nan, math.inf)}, "name": "zwölf"})
    assert json.loads(capsys.readouterr().out) == {
        "path": "a/b",
        "inner": {"values": [1, None, None]},
        "name": "zwölf",
    }


def test_a_table_off_a_terminal_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Title", ("name", "size"), [("x" * 120, "1")], numbers=("size",))
    out = capsys.readouterr().out
    assert "x" * 120 in out and out.startswith("Title")


@pytest.mark.parametrize("command", [["doctor", "--all"], ["inspect", "mnist"]])
def test_columns_narrow_no_table_in_a_pipe(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    free = dim(*command).out
    monkeypatch.setenv("COLUMNS", "40")
    assert dim(*command).out == free and max(map(len, free.splitlines())) > 60


def test_a_table_shows_square_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ("name",), [("[bold]",)])
    assert "[bold]" in capsys.readouterr().out


def test_a_missing_training_package_names_its_extra() -> None:
    with pytest.raises(MissingExtraError) as caught, require_training_extra():
        import torch_that_is_not_there.nn  # type: ignore[import-not-found] # noqa: F401
    assert str(caught.value) == (
        "The package 'torch_that_is_not_there' is not installed and is needed to distil, export and evaluate: "
        "run  pip install 'dim-distill[train]'"
    )


def test_a_missing_module_of_our_own_is_not_hidden() -> None:
    with pytest.raises(ModuleNotFoundError), require_training_extra():
        import dim.not_there  # type: ignore[import-not-found] # noqa: F401
