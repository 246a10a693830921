"""The whole tour of docs/guides/embedding.md in a notebook: every call works, and shows its progress."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

TOUR = re.search(
    r"## The whole tour\n.*?```python\n(.*?)```",
    (Path(__file__).parents[2] / "docs" / "guides" / "embedding.md").read_text(),
    re.DOTALL,
)


def test_the_tour_takes_ten_lines() -> None:
    assert TOUR is not None and len([line for line in TOUR[1].splitlines() if line]) == 10


@pytest.mark.slow
def test_the_tour_works_in_a_notebook_with_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def display(shown: dict[str, str], **options: Any) -> Any:
        return SimpleNamespace(update=lambda shown, *, raw: seen.append(shown["text/plain"]))

    ipython, frontend = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    ipython.version_info = (9, 0)  # type: ignore[attr-defined]
    frontend.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", frontend)
    monkeypatch.delitem(sys.modules, "dim.runtime.progress.notebook", raising=False)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"__name__": "tour"}
    assert TOUR is not None
    try:
        exec(compile(TOUR[1], "tour", "exec"), found)
    finally:
        sys.modules.pop("dim.runtime.progress.notebook", None)
    assert found["X"].shape[0] == 100 and len(found["batches"]) == 4
    assert (tmp_path / "tour-set" / "dataset.json").is_file()
    assert found["accuracy"].finished and found["whole"]
    names = {line.partition(":")[0] for shown in seen for line in shown.splitlines()}
    assert {"stage1", "pool", "stage2", "exporting", "generating", "students", "verifying"} <= names
    assert seen[-1] == ""
    assert capsys.readouterr() == ("", "")
