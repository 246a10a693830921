"""`scripts/check` runs every stage, says how long each took, and fails if any did."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = {
    "ruff format": "ruff",
    "ruff check": "ruff",
    "mypy": "mypy",
    "import-linter": "lint-imports",
    "sentences": "python",
    "pytest": "python",
}


@pytest.mark.parametrize("broken", [None, "mypy", "python"])
def test_check_reports_the_time_of_each_stage(tmp_path: Path, broken: str | None) -> None:
    for command in set(STAGES.values()):
        stub = tmp_path / command
        stub.write_text(f"#!/bin/sh\nexit {int(command == broken)}\n")
        stub.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        [ROOT / "scripts" / "check"], env={"PATH": path}, capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == (broken is not None)
    times = ran.stdout.partition("== times\n")[2].splitlines()
    stages = [f"{name}  failed" if command == broken else name for name, command in STAGES.items()]
    assert [re.sub(r"^ *\d+ s  ", "", line) for line in times] == [*stages, "in all"]
    failed = [name for name, command in STAGES.items() if command == broken]
    assert ran.stderr == (f"failed: {','.join(failed)}\n" if failed else "")
