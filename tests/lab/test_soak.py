"""lab/soak: it measures what it says, and says what it measures."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "lab" / "soak.py"


def test_a_tiny_soak(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    command = [sys.executable, str(SCRIPT), "--images", "1001", "--what", "stream", "npy", "webdataset"]
    command += ["--bundle", str(tiny_bundle), "--folder", str(folder), "--json", str(tmp_path / "soak.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["stream", "npy", "webdataset"]
    assert done.stdout.count("fake 1") == 3 and "NOT FLAT" not in done.stdout
    rows = json.loads((tmp_path / "soak.json").read_text())
    assert [row["images"] for row in rows] == [1001] * 3
    assert all(0 < row["quarter_mib"] <= row["peak_mib"] and row["left_open"] == 0 for row in rows)
    assert list(folder.iterdir()) == []
