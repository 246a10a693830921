"""`metrics.jsonl` of a run: the metrics of its steps, one JSON object per line with `stage`, `step` and numbers.

Training does not depend on it, so damaged lines are skipped.
"""

import json
import math
from pathlib import Path
from typing import Any

from dim.runs.files import read_file

METRICS_FILE = "metrics.jsonl"
_MAX_STEP = 2**53


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Read the lines that are whole; none where the run has no such file.

    Raises:
        RunError: a link lies there.
        OSError: it cannot be read.
    """
    try:
        return parse_metrics(read_file(run_dir, METRICS_FILE))
    except FileNotFoundError:
        return []


def parse_metrics(content: bytes) -> list[dict[str, Any]]:
    """Parse the lines that are whole, each with its `stage`, its `step` and its numbers that are finite."""
    return [line for text in content.splitlines() if (line := _parse_line(text)) is not None]


def _parse_line(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(stage := found.pop("stage", None), str):
        return None
    step = found.pop("step", None)
    if type(step) is not int or not 0 <= step < _MAX_STEP or not stage.isprintable():
        return None
    return {"stage": stage, "step": step} | {name: value for name, value in found.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    if type(value) is int:
        return abs(value) < _MAX_STEP
    return type(value) is float and math.isfinite(value)
