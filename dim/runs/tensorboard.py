"""Where the values of a run's steps are written, and TensorBoard's event files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dim.runs.curves import METRICS_FILE
from dim.runs.files import list_names, make_folder, read_file, remove_file
from dim.runtime.errors import BadValueError, MissingExtraError

FOLDER = "tensorboard"
"""Of a run."""
LOGS = ("jsonl", "tensorboard")
"""`metrics.jsonl` alone, or event files too."""


def check_log(log: str) -> None:
    """Check that a log is one that can be written, without importing what writes it.

    Raises:
        BadValueError: there is no such log.
        MissingExtraError: TensorBoard is not installed.
    """
    if log not in LOGS:
        raise BadValueError(
            f"There is no log {log!r}; there are {' and '.join(LOGS)}, and any other takes the values of on_step."
        )
    if log == "tensorboard" and find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard", "tensorboard", "write TensorBoard event files")


def import_summary_writer() -> Callable[[str], Any]:
    """Return TensorBoard's `SummaryWriter`.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("tensorboard", "tensorboard", "write TensorBoard event files") from None
    return SummaryWriter


class TensorBoardLog:
    """Event files with the same values as `metrics.jsonl`, also after a resume from before its last lines.

    Args:
        run_dir: the run; event files in its folder `tensorboard` are replaced.
        open_writer: `SummaryWriter`, by its folder.
    """

    def __init__(self, run_dir: Path, open_writer: Callable[[str], Any]) -> None:
        self._run_dir = run_dir
        self._open_writer = open_writer
        self._writer: Any = None

    def __call__(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Add a line that the metrics hold already; the first time, every line before it."""
        if self._writer is None:
            make_folder(self._run_dir, FOLDER)
            for name in list_names(self._run_dir, FOLDER):
                if name.startswith("events.out.tfevents."):
                    remove_file(self._run_dir, f"{FOLDER}/{name}")
            self._writer = self._open_writer(str(self._run_dir / FOLDER))
            for line in read_file(self._run_dir, METRICS_FILE).splitlines():
                self._add(**json.loads(line))
        else:
            self._add(stage=stage, step=step, **values)
        self._writer.flush()

    def _add(self, *, stage: str, step: int, **values: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """End the event file."""
        if self._writer is not None:
            self._writer.close()
