"""Files that promise more than they hold, or unpack to more than they weigh: what reading them costs in memory.

Measured in a process of its own, as the growth of its largest resident size. The figures allowed are those of
docs/security.md where a small file may reach them; elsewhere a few megabytes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "support" / "hostile_files.py"


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux counts the largest resident size")
def test_hostile_files_cost_no_more_memory_than_stated(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, PROGRAM, tmp_path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 16
    for row in rows:
        assert row["said"] != "accepted", row
        assert row["grown"] <= row["allowed"], row
