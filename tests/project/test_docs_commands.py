"""The commands of the documentation's pages that need no training, no network and no GPU run as they stand."""

import re
from pathlib import Path

import pytest
from cli_tools import dim
from doc_pages import PAGES, commands_of
from tiny_bundle import build_tiny_bundle

CHEAP = re.compile(r"dim (generate|inspect|verify|doctor)\b(?!.*(--ray|s3://|--engine|--device|\$))")
DAYS = re.compile(r"--total \d{6,}(?!.*--dry-run)")
COMMANDS = [
    pytest.param(line, id=f"{path.name}-{number}")
    for path in PAGES
    if path.name != "cli.md"
    for number, line in enumerate(commands_of(path.read_text()))
    if CHEAP.match(line) and not DAYS.search(line)
]


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_runs(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = build_tiny_bundle(tmp_path / "mnist.dim", classes=tuple("0123456789"))
    for name in ("digits", "mnist"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / f"{name}.dim").symlink_to(bundle)
    monkeypatch.setenv("DIM_BUNDLE", str(bundle))
    monkeypatch.chdir(tmp_path)
    result = dim(*line.split()[1:])
    assert result.code == 0, result.err


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 10
