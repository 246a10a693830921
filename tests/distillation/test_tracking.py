"""TensorBoard and callbacks get what the metrics hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from quick_runs import Stop, quick, stop_at
from small_images import make_images

from dim.distillation.distill import distill
from dim.runtime.errors import BadValueError, MissingExtraError


def read_events(folder: Path) -> list[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]


def test_tensorboard_gets_what_the_metrics_hold_and_nothing_twice_after_a_resume(tmp_path: Path) -> None:
    config = quick(**{"stage1.steps": 6, "stage2.steps": 3, "log_steps": 1, "checkpoint_steps": 4})
    with pytest.raises(Stop):  # two log lines after its last checkpoint
        distill(make_images(), config, tmp_path / "run", log="tensorboard", progress=stop_at("stage1", 6))
    assert distill(make_images(), config, tmp_path / "run", resume=True, log="tensorboard").finished
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("stage1", step) for step in range(1, 7)),
        *(("stage2", step) for step in range(1, 4)),
    ]
    assert sorted(read_events(tmp_path / "run" / "tensorboard")) == sorted(
        (f"{line['stage']}/{name}", line["step"], pytest.approx(value, rel=1e-6))
        for line in lines
        for name, value in line.items()
        if name not in ("stage", "step")
    )


def test_a_missing_tensorboard_is_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(MissingExtraError, match="tensorboard"):
        distill(make_images(), quick(), tmp_path / "run", log="tensorboard")
    assert not (tmp_path / "run").exists()


def test_an_unknown_log_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(BadValueError) as caught:
        distill(make_images(), quick(), tmp_path / "run", log="wandb")
    assert str(caught.value) == (
        "There is no log 'wandb'; there are jsonl and tensorboard, and any other takes the values of on_step."
    )
    assert not (tmp_path / "run").exists()


def test_a_callback_gets_every_line_of_the_metrics_and_repeats_what_a_resume_repeats(tmp_path: Path) -> None:
    calls: list[dict[str, object]] = []

    def receive(stage: str, step: int, values: Mapping[str, float]) -> None:
        calls.append({"stage": stage, "step": step, **values})
        if len(calls) == 6:
            raise Stop

    config = quick(**{"stage1.steps": 6, "stage2.steps": 3, "log_steps": 1, "checkpoint_steps": 4})
    with pytest.raises(Stop):  # an error of the callback ends the run as any other does
        distill(make_images(), config, tmp_path / "run", on_step=receive)
    assert distill(make_images(), config, tmp_path / "run", resume=True, on_step=receive).finished
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert calls[:4] + calls[6:] == lines
    assert calls[4:6] == calls[6:8]
    assert not (tmp_path / "run" / "tensorboard").exists()
