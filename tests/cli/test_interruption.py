"""Ctrl-C in commands that end at once: one sentence says what is kept and how to go on."""

from pathlib import Path
from typing import Any, NoReturn

import pytest
from cli_tools import dim


def interrupt(*arguments: Any, **options: Any) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        (
            "dim.evaluation.subjects.load_source_data",
            ["eval", "--bundle", "BUNDLE", "--out", "OUT"],
            "Students that are finished are kept in OUT: the same command goes on.",
        ),
        (
            "dim.evaluation.subjects.load_source_data",
            ["eval", "--bundle", "BUNDLE", "--out", "OUT", "--fresh"],
            "Students that are finished are kept in OUT: the same command without --fresh goes on.",
        ),
        (
            "dim.export.add_precisions.add_precisions",
            ["export", "BUNDLE", "--precision", "fp16"],
            "Files that are finished are kept, and none is left unfinished: the same command begins anew.",
        ),
        (
            "dim.runtime.inspection.verify.verify",
            ["verify", "BUNDLE"],
            "Nothing was changed: the same command checks anew.",
        ),
    ],
)
def test_what_is_kept_is_said(
    function: str,
    arguments: list[str],
    sentence: str,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(function, interrupt)
    places = {"BUNDLE": str(tiny_bundle), "OUT": str(tmp_path / "out")}
    ran = dim(*(places.get(word, word) for word in arguments))
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.splitlines()[-2:] == [sentence.replace("OUT", places["OUT"]), "Interrupted."]
