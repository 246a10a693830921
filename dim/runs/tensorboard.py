"""Writes the metrics of a run to TensorBoard's event files, and checks the value of `--log`."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dim.runs.files import create_file, list_names, make_folder, remove_file
from dim.runs.metrics import read_metrics
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


class TensorBoardLog:
    """An event file with the same values as `metrics.jsonl`, also after a resume from before its last lines.

    It replaces those in the run's folder `tensorboard`.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, run_dir: Path) -> None:
        try:
            # Its own SummaryWriter opens the file by its path, and so through a link.
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise MissingExtraError("tensorboard", "tensorboard", "write TensorBoard event files") from None
        self._run_dir = run_dir
        self._events, self._summaries, self._record_writer = event_pb2, summary_pb2, RecordWriter
        self._writer: Any = None

    def __call__(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Add a line that the metrics hold already; the first time, every line before it."""
        if self._writer is None:
            self._open()
            for line in read_metrics(self._run_dir):
                self._add(**line)
        else:
            self._add(stage=stage, step=step, **values)
        self._writer.flush()

    def _open(self) -> None:
        make_folder(self._run_dir, FOLDER)
        for name in list_names(self._run_dir, FOLDER):
            if name.startswith("events.out.tfevents."):
                remove_file(self._run_dir, f"{FOLDER}/{name}")
        name = f"{FOLDER}/events.out.tfevents.{time.time_ns() // 10**9}.{platform.node()}.{os.getpid()}"
        self._writer = self._record_writer(create_file(self._run_dir, name))
        self._write(file_version="brain.Event:2")

    def _add(self, *, stage: str, step: int, **values: float) -> None:
        for name, value in values.items():
            scalar = self._summaries.Summary.Value(tag=f"{stage}/{name}", simple_value=value)
            self._write(step=step, summary=self._summaries.Summary(value=[scalar]))

    def _write(self, **event: Any) -> None:
        self._writer.write(self._events.Event(wall_time=time.time(), **event).SerializeToString())

    def close(self) -> None:
        """End the event file."""
        if self._writer is not None:
            self._writer.close()
