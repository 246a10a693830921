"""The pipeline: order, bounded memory, overlap, errors from every stage, interruption."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from plans import PLAN

from dim.runtime.set_formats.part import Batch, PartRecord
from dim.runtime.set_formats.plan import Plan
from dim.runtime.sets import pipeline
from dim.runtime.sets.pipeline import choose_draw_images, run_pipeline


class Collector:
    """A part writer that remembers, and fails or dawdles on demand."""

    unflushed = False

    def __init__(self, plan: Plan, part: int, log: list[Any], fail: str = "") -> None:
        self.plan, self.part, self.log, self.fail = plan, part, log, fail
        self.images = 0

    def encode(self, batch: Batch) -> Any:
        if self.fail == "encode":
            raise RuntimeError("encode failed")
        time.sleep(0.001 * (batch.indices[0] % 3))
        return list(zip(batch.labels.tolist(), batch.indices.tolist(), strict=True))

    def write(self, encoded: Any) -> int:
        if self.fail == "write":
            raise RuntimeError("write failed")
        if self.fail == "interrupt":
            raise KeyboardInterrupt
        self.log.extend(encoded)
        self.images += len(encoded)
        return len(encoded)

    def finish(self) -> PartRecord:
        if self.fail == "finish":
            raise RuntimeError("finish failed")
        return PartRecord(part=self.part, images=self.images, bytes=self.images, sha256="0" * 64, files=())

    def abort(self) -> None:
        self.log.append("abort")


def plan_of(images: int, part_images: int) -> Plan:
    from dataclasses import replace

    return replace(PLAN, counts=(images - images // 2, images // 2), part_images=part_images, start=0)


def run(plan: Plan, fail: str = "", draw_fails_at: int = -1, **more: Any) -> tuple[Any, Any, Any]:
    log: list[Any] = []
    records: list[PartRecord] = []
    steps: list[tuple[int, int]] = []
    calls = [0]

    def draw(labels: Any, indices: Any) -> Any:
        calls[0] += 1
        if calls[0] == draw_fails_at:
            raise RuntimeError("draw failed")
        return np.zeros((len(labels), 8, 8, 3), np.uint8), None

    try:
        run_pipeline(
            plan,
            range(plan.parts),
            draw,
            lambda part: Collector(plan, part, log, fail),
            records.append,
            lambda *step: steps.append(step),
            **{"flush": lambda: log.append("flush")} | more,
        )
    finally:
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("dim-")]
        run.log = log  # type: ignore[attr-defined]
    return log, records, steps


def test_everything_comes_once_and_in_order() -> None:
    plan = plan_of(2000, 300)
    log, records, steps = run(plan, encoders=4)
    labels, indices = plan.samples(0, 2000)
    assert log == list(zip(labels.tolist(), indices.tolist(), strict=True))
    assert [record.part for record in records] == list(range(7))
    assert sum(images for images, _ in steps) == 2000


@pytest.mark.parametrize("stage", ["encode", "write", "finish"])
def test_the_first_error_stops_all(stage: str) -> None:
    with pytest.raises(RuntimeError, match=f"{stage} failed"):
        run(plan_of(5000, 700), fail=stage)
    assert "abort" in run.log  # type: ignore[attr-defined]


@pytest.mark.parametrize("at", [1, 7])
def test_an_engine_that_fails(at: int) -> None:
    with pytest.raises(RuntimeError, match="draw failed"):
        run(plan_of(5000, 700), draw_fails_at=at)


def test_an_interruption_leaves_no_thread_behind() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(plan_of(50_000, 700), fail="interrupt")
    assert run.log.count("abort") >= 1  # type: ignore[attr-defined]


def test_one_flush_serves_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(pipeline, "UNNAMED_IMAGES", 1000)
    monkeypatch.setattr(Collector, "unflushed", True)
    monkeypatch.setattr(Collector, "finish", lambda self: self.log.append(f"finish {self.part}"))
    written: list[Any] = []

    def flush() -> None:
        clock[0] += 1
        written.append("flush")

    log = run(plan_of(3000, 100), flush=flush)[0]
    finished = [entry for entry in log if str(entry).startswith("finish")]
    # The first at once, then ten parts at a time because 1,000 images may wait, then what is left.
    assert finished == [f"finish {part}" for part in range(30)] and written == ["flush"] * 4
    assert log.index("finish 1") > log.index("finish 0") + 1000 and log.index("finish 10") == log.index("finish 1") + 9


def test_images_on_the_way_are_bounded() -> None:
    plan, drawn, written, ahead = plan_of(20_000, 20_000), [0], [0], [0]

    class Slow(Collector):
        def write(self, encoded: Any) -> int:
            time.sleep(0.002)
            written[0] += len(encoded)
            return 1

    def draw(labels: Any, indices: Any) -> Any:
        drawn[0] += len(labels)
        ahead[0] = max(ahead[0], drawn[0] - written[0])
        return np.zeros((len(labels), 8, 8, 3), np.uint8), None

    run_pipeline(
        plan, [0], draw, lambda part: Slow(plan, part, []), lambda record: None, lambda *step: None, lambda: None, 2
    )
    assert drawn[0] == written[0] == 20_000
    # Six batches in the queue, one being written, one being drawn, one being put.
    assert ahead[0] <= 256 * 9


def test_choose_draw_images() -> None:
    assert choose_draw_images(512, 3072) == 512
    assert choose_draw_images(None, 64) == 256
    assert choose_draw_images(None, 128 * 128 * 3) == 170
    assert choose_draw_images(None, 10**9) == 1
