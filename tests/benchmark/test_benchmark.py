"""The benchmark, with engines of known speed on a clock that only they move."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import fake_driver
from numpy.typing import NDArray
from tiny_bundle import tiny_graph

from dim.runtime import choose_engine
from dim.runtime.benchmark.benchmark import benchmark
from dim.runtime.benchmark.contenders import Batch, Contender
from dim.runtime.benchmark.flops import flop_per_image
from dim.runtime.benchmark.options import BenchOptions
from dim.runtime.benchmark.report import recommend_precision
from dim.runtime.cores import find_bf16_instructions
from dim.runtime.errors import BadValueError, BundleError, DeviceError, EngineError
from dim.runtime.gpu.driver import Driver, find_driver

NONE = find_driver(fake_driver(missing=True))


class Clock:
    """Seconds that pass only when somebody works, and faster in some rounds: a noisy machine."""

    def __init__(self) -> None:
        self.now = 0.0
        self.noise = 1.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """A runner that takes `setup_s` per batch and `image_s` per image, two batches at half the price of one by one."""

    def __init__(self, clock: Clock, batch: int, image_s: float, setup_s: float, log: list[Any], name: str) -> None:
        self.clock, self.batch, self.image_s, self.setup_s, self.log, self.name = (
            clock,
            batch,
            image_s,
            setup_s,
            log,
            name,
        )
        self.closed = False

    def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
        assert not self.closed
        for latents, labels in batches:
            assert latents.shape == (self.batch, 16) and latents.dtype == np.float32
            assert labels.dtype == np.int64 and labels.max() < 3
            self.log.append(self.name)
            self.clock.now += self.clock.noise * (self.setup_s + self.image_s * self.batch)
            yield np.zeros((self.batch, 8, 8, 1), np.uint8)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def worker(clock: Clock, name: str, image_s: float, setup_s: float = 0.0, **options: Any) -> Contender:
    log: list[Any] = options.pop("log", [])
    workers: list[Worker] = options.pop("workers", [])

    def open_at(batch: int) -> Worker:
        workers.append(Worker(clock, batch, image_s, setup_s, log, name))
        return workers[-1]

    return Contender(
        engine=name, precision=options.get("precision", "fp32"), device=options.get("device", "cpu"), open=open_at
    )


def run(bundle: Path, rivals: list[Contender], clock: Clock, **options: Any) -> Any:
    calls = {name: options.pop(name) for name in ("measured", "progress") if name in options}
    settings: dict[str, Any] = {"engines": [], "precisions": ["fp32"], "turn_s": 0.1, "find_best": False}
    return benchmark(bundle, BenchOptions(**{**settings, **options}), rivals=rivals, clock=clock, driver=NONE, **calls)


def test_the_engines_of_this_machine(tiny_bundle: Path) -> None:
    said: list[str] = []
    steps: list[tuple[str, float, float | None, str]] = []
    report = benchmark(
        tiny_bundle,
        BenchOptions(device="cpu", batches=(1, 16), rounds=2, turn_s=0.001, find_best=False),
        say=said.append,
        progress=lambda *step: steps.append(step),
    )
    assert [(row.engine, row.precision, row.batch) for row in report.results] == [
        (engine, precision, batch)
        for engine, precision in [
            *(("onnxruntime-cpu", precision) for precision in ("fp32", "fp16", "int8")),
            ("openvino-cpu", "fp32"),
            *([("openvino-cpu", "bf16")] if find_bf16_instructions() is not None else []),
        ]
        for batch in (1, 16)
    ]
    assert all(row.images_per_s > 0 and row.latency_ms > 0 for row in report.results)
    measured = {(each.engine, each.precision, each.against_precision, each.batch) for each in report.ratios}
    assert ("onnxruntime-cpu", "int8", "fp32", 16) in measured
    assert said == [] and [done for _, done, _, _ in steps] == list(range(10)) and steps[0][2] == 10
    described = json.loads(json.dumps(report.to_dict()))
    assert {"engine", "precision", "device", "batch", "images_per_s", "latency_ms"} <= described["results"][0].keys()
    assert [row["precision"] for row in described["not_run"]] == ["bf16"] * (find_bf16_instructions() is None)


@pytest.mark.parametrize(
    ("speeds", "sentence"),
    [
        ({}, None),
        ({"fp32": 100.0}, "What pays here, from exact to fast: fp32 by x."),
        (
            {"fp32": 100.0, "fp16": 90.0, "bf16": 250.0, "int8": 200.0},
            "What pays here, from exact to fast: fp32 by x; bf16 by x, 2.5 times as fast.",
        ),
        (
            {"fp32": 100.0, "bf16": 200.0, "int8": 240.0},
            "What pays here, from exact to fast: fp32 by x; bf16 by x, 2.0 times as fast; "
            "int8 by x, 1.2 times as fast.",
        ),
    ],
)
def test_nothing_slower_than_bf16_is_recommended(
    tiny_bundle: Path, clock: Clock, speeds: dict[str, float], sentence: str | None
) -> None:
    report = run(tiny_bundle, [worker(clock, "w", image_s=0.001)], clock, batches=(1,))
    rows = [
        replace(report.results[0], engine="x", precision=name, images_per_s=speed) for name, speed in speeds.items()
    ]
    slower = [replace(report.results[0], engine="torch-compile", precision="bf16", images_per_s=1e6)]
    assert recommend_precision(replace(report, results=(*rows, *slower))) == sentence


def test_auto_and_bf16_are_precisions_to_measure(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_engine, "find_bf16_instructions", lambda: None)
    short: dict[str, Any] = {"device": "cpu", "batches": (1,), "rounds": 1, "turn_s": 0.001, "find_best": False}
    report = benchmark(tiny_bundle, BenchOptions(precisions=["auto", "fp32"], **short))
    assert {row.precision for row in report.results} == {"fp32"}
    assert len(report.results) == 2


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_turn_takes_a_finite_time(seconds: float) -> None:
    with pytest.raises(BadValueError, match="^There must be at least 1 round and some time per turn, not 5 and"):
        BenchOptions(turn_s=seconds)


def test_what_cannot_run_here_is_listed(tiny_bundle: Path) -> None:
    report = benchmark(
        tiny_bundle,
        BenchOptions(precisions=["fp32"], batches=(1,), rounds=1, turn_s=0.001, find_best=False),
        driver=NONE,
    )
    listed = {(row.engine, row.batch): row.reason for row in report.not_run}
    assert set(listed) == {("tensorrt", None), ("tensorrt-rtx", None), ("onnxruntime-cuda", None)}
    assert all(listed.values())
    assert {row.engine for row in report.results} == {"onnxruntime-cpu", "openvino-cpu"}


def test_throughput_latency_and_best_batch(tiny_bundle: Path, clock: Clock) -> None:
    report = run(tiny_bundle, [worker(clock, "w", image_s=0.001, setup_s=0.01)], clock, batches=(1, 64))
    rows = {row.batch: row for row in report.results if row.engine == "w"}
    assert rows[1].images_per_s == pytest.approx(1 / 0.011) and rows[1].latency_ms == pytest.approx(11)
    assert rows[64].images_per_s == pytest.approx(64 / 0.074) and rows[64].latency_ms == pytest.approx(74)
    assert [rows[1].best, rows[64].best] == [False, True]


def test_the_best_batch_is_looked_for_beyond_those_asked_for(tiny_bundle: Path, clock: Clock) -> None:
    class Tired(Worker):
        def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
            self.image_s = 0.001 if self.batch <= 128 else 0.002
            return super().run_ahead(batches)

    tired = Contender(
        engine="w", precision="fp32", device="cpu", open=lambda batch: Tired(clock, batch, 0, 0.01, [], "w")
    )
    report = run(tiny_bundle, [tired], clock, batches=(1, 64), find_best=True)
    rows = [(row.batch, row.best) for row in report.results if row.engine == "w"]
    assert rows == [(1, False), (64, False), (128, True)]


def test_ratios_come_from_neighbours_in_time(tiny_bundle: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    fast = worker(clock, "onnxruntime-cpu", image_s=0.01, log=log)
    slow = worker(clock, "torch-eager", image_s=0.03, log=log)

    # The machine slows down ten times while the benchmark runs; the ratio stays.
    real = Worker.run_ahead

    def drift(self: Worker, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
        self.clock.noise = 1 + 9 * min(1, len(log) / 60)
        return real(self, batches)

    monkeypatch.setattr(Worker, "run_ahead", drift)
    report = run(tiny_bundle, [fast, slow], clock, batches=(4,), rounds=5)
    (ratio,) = [each for each in report.ratios if each.engine == "onnxruntime-cpu"]
    assert (ratio.against, ratio.batch) == ("torch-eager", 4)
    assert 2.5 < ratio.ratio < 3.5 and ratio.least <= ratio.ratio <= ratio.most
    turns = [name for at, name in enumerate(log[6:]) if at == 0 or log[6:][at - 1] != name]
    assert len(turns) >= 5, "they did not take turns"


def test_a_batch_that_would_take_too_long_is_left_out(tiny_bundle: Path, clock: Clock) -> None:
    report = run(tiny_bundle, [worker(clock, "torch-eager", image_s=0.1)], clock, batches=(1, 256, 1024))
    assert [(row.engine, row.batch, row.reason) for row in report.not_run] == [
        ("torch-eager", 256, "one run takes 26 s"),
        ("torch-eager", 1024, "one run would take about 102 s"),
    ]


def test_every_runner_is_closed(tiny_bundle: Path, clock: Clock) -> None:
    workers: list[Worker] = []

    class Broken(Worker):
        def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
            raise EngineError("it broke.")
            yield

    def open_broken(batch: int) -> Worker:
        workers.append(Broken(clock, batch, 0, 0, [], "b"))
        return workers[-1]

    broken = Contender(engine="b", precision="fp32", device="cpu", open=open_broken)
    report = run(tiny_bundle, [worker(clock, "w", 0.001, workers=workers), broken], clock, batches=(1, 4))
    assert len(workers) == 4 and all(each.closed for each in workers)
    assert [(row.engine, row.batch, row.reason) for row in report.not_run] == [
        ("b", 1, "it broke."),
        ("b", 4, "it broke."),
    ]


def test_an_interruption_keeps_what_was_measured(tiny_bundle: Path, clock: Clock) -> None:
    class Stopped(Worker):
        def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
            if self.batch == 4 and len(self.log) > 30:
                raise KeyboardInterrupt
            yield from super().run_ahead(batches)

    log: list[Any] = []
    rivals = [worker(clock, "w", 0.001, log=log)]
    rivals.append(replace(rivals[0], engine="torch-eager", open=lambda batch: Stopped(clock, batch, 1, 0, log, "s")))
    kept: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        run(tiny_bundle, rivals, clock, batches=(1, 4), measured=kept.append, turn_s=0.01)
    assert [(row.engine, row.batch) for row in kept[0].results] == [("w", 1), ("torch-eager", 1)]
    assert kept[-1].results[0] == kept[0].results[0] and len(kept) == 2


@pytest.mark.parametrize(
    ("stop_after", "turns"),
    [(4, {"a": 0}), (6, {"a": 0, "b": 0}), (10, {"a": 1, "b": 0, "c": 0}), (13, {"a": 1, "b": 2, "c": 1})],
)
def test_an_interruption_within_a_batch_size_keeps_every_contender_that_ran(
    tiny_bundle: Path, clock: Clock, stop_after: int, turns: dict[str, int]
) -> None:
    log: list[str] = []

    class Stopped(Worker):
        def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
            if len(log) >= stop_after:
                raise KeyboardInterrupt
            yield from super().run_ahead(batches)

    def open_named(name: str) -> Any:
        return lambda batch: Stopped(clock, batch, 0.1, 0, log, name)

    rivals = [Contender(engine=name, precision="fp32", device="cpu", open=open_named(name)) for name in "abc"]
    kept: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        run(tiny_bundle, rivals, clock, batches=(4, 1), measured=kept.append)
    assert {row.engine: row.turns for row in kept[-1].results} == turns
    assert all((row.batch, row.images_per_s) == (4, pytest.approx(10)) for row in kept[-1].results)


def test_after_the_time_limit_only_what_is_open_is_measured(tiny_bundle: Path, clock: Clock) -> None:
    report = run(tiny_bundle, [worker(clock, "w", 0.5)], clock, batches=(4, 1), time_limit_s=5, find_best=True)
    assert [(row.batch, row.turns) for row in report.results] == [(4, 1)]
    assert [(row.batch, row.reason) for row in report.not_run] == [(1, "the time limit of 5 s left no time for it")]


@pytest.mark.parametrize(
    ("limit_s", "turns"),
    [
        (1, {"a": 1}),  # the first is always measured
        (9, {"a": 1, "b": 1}),  # opened until 6 s, a round takes 2 s
        (11, {"a": 2, "b": 2}),
        (100, {"a": 5, "b": 5, "torch-compile": 5}),
    ],
)
def test_the_time_limit_holds_in_the_first_batch_size(
    tiny_bundle: Path, clock: Clock, limit_s: float, turns: dict[str, int]
) -> None:
    rivals = [worker(clock, name, 0.25) for name in ("a", "b")]
    rivals.append(replace(worker(clock, "torch-compile", 0.25), open_s=10.0))
    report = run(tiny_bundle, rivals, clock, batches=(4,), time_limit_s=limit_s)
    assert {row.engine: row.turns for row in report.results} == turns
    assert {row.engine for row in report.not_run} == {"a", "b", "torch-compile"} - turns.keys()
    assert clock.now <= max(limit_s, 4)


NO_DRIVER = Driver(version=None, cuda=None, gpus=(), problem="there is none")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engines": ["magic"]}, BadValueError, "There is no engine 'magic'"),
        ({"precisions": ["fp8"]}, BundleError, "The bundle has no fp8; it has fp32, fp16, int8."),
        ({"device": "tpu"}, BadValueError, "There is no device 'tpu'"),
        ({"device": "gpu", "driver": NO_DRIVER}, DeviceError, "A GPU is needed to measure with --device gpu and there"),
        ({"batches": ()}, BadValueError, "each must be at least 1"),
        ({"batches": (0,)}, BadValueError, "each must be at least 1"),
        ({"rounds": 0}, BadValueError, "at least 1 round"),
    ],
)
def test_impossible_arguments(tiny_bundle: Path, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        driver = options.pop("driver", None)
        benchmark(tiny_bundle, BenchOptions(**options), driver=driver)


def test_work_per_image() -> None:
    model = tiny_graph(num_classes=3, image_px=8, channels=1, latent_dim=16)
    # Gemm 16 -> 6x4x4, then a 3x3 convolution of 6 channels to 1 at 8x8; two operations per multiplication.
    assert flop_per_image(model) == 2 * (16 * 96 + 6 * 9 * 64)


def test_transposed_convolutions_and_transposed_products_are_counted() -> None:
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gemm", ["a", "b"], ["c"], transA=1),
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["N", 2, 4, 4])],
        [value("y", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [
            numpy_helper.from_array(np.zeros((5, 7), np.float32), "a"),
            numpy_helper.from_array(np.zeros((5, 11), np.float32), "b"),
            numpy_helper.from_array(np.zeros((2, 3, 2, 2), np.float32), "w"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert flop_per_image(model.SerializeToString()) == 2 * (5 * 7 * 11 + 2 * 4 * 4 * 3 * 2 * 2)
