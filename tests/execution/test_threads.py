"""How many threads a distillation takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quick_runs import Stop, quick, stop_at
from small_images import make_images

from dim.distillation.distill import distill
from dim.execution.threads import CpuMeter, default_threads, use_cpu_threads
from dim.runtime.cores import usable_cores
from dim.runtime.errors import BadValueError


def test_threads_are_set_inside_and_put_back() -> None:
    before = torch.get_num_threads()
    with use_cpu_threads(other := 1 if before > 1 else 2):
        assert torch.get_num_threads() == other != before
    with use_cpu_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
    with pytest.raises(BadValueError, match="threads is 0; it must lie between 1 and"), use_cpu_threads(0):
        pass


def test_every_usable_core_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_threads() == usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert default_threads() == torch.get_num_threads()


@pytest.mark.parametrize(
    ("count", "used_s", "advice"),
    [
        (
            2,
            9.0,
            "2 threads got the time of 0.8 cores over 12 s: on a processor that others use too, fewer may be "
            "faster: --threads 1.",
        ),
        (
            8,
            40.0,
            "8 threads got the time of 3.3 cores over 12 s: on a processor that others use too, fewer may be "
            "faster: --threads 3.",
        ),
        (2, 13.0, None),
        (1, 1.0, None),
    ],
)
def test_a_busy_processor_is_told_once(
    count: int, used_s: float, advice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"monotonic": 100.0, "process_time": 5.0}
    for name in now:
        monkeypatch.setattr(f"dim.execution.threads.time.{name}", lambda name=name: now[name])
    meter = CpuMeter(count)
    now["monotonic"] += 5
    assert meter.advise() is None
    now["monotonic"] += 7
    now["process_time"] += used_s
    assert meter.advise() == advice
    assert meter.advise() is None


@pytest.mark.slow
def test_a_distillation_gives_the_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.execution.threads.MEASURED_S", 0.0)
    monkeypatch.setattr("dim.execution.threads.LEAST_SHARE", 100.0)
    said: list[str] = []
    with pytest.raises(Stop):
        distill(make_images(), quick(), tmp_path / "run", threads=2, say=said.append, progress=stop_at("stage1", 3))
    assert len([line for line in said if line.startswith("2 threads got the time of ")]) == 1
