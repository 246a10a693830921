"""Streams: the same images whatever the batch size, the shards or the start; threads that always end."""

import gc
import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.runtime import open_bundle
from dim.runtime.bundle import Bundle
from dim.runtime.errors import BadValueError, EngineError
from dim.runtime.sampling.latents import permutation
from dim.runtime.sampling.stream import StreamPlan, iterate_ahead


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle, engine="fake")


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dim-prefetch"]


def gone(deadline_s: float = 5.0) -> bool:
    end = time.monotonic() + deadline_s
    while prefetch_threads() and time.monotonic() < end:
        time.sleep(0.01)
    return not prefetch_threads()


def joined(stream: Iterator[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    batches = list(stream)
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


def samples(**fields: Any) -> list[tuple[int, int]]:
    plan = StreamPlan(**({"labels": (0, 1, 2), "ipc": 4, "batch_size": 5, "seed": 1, "epochs": 3} | fields))
    return [pair for labels, indices in plan.batches() for pair in zip(labels.tolist(), indices.tolist(), strict=True)]


def reference(labels: tuple[int, ...], ipc: int, seed: int, epoch: int) -> list[tuple[int, int]]:
    """One epoch as the module's docstring says it."""
    order = [(label, epoch * ipc + i) for i in range(ipc) for label in labels]
    return [order[position] for position in permutation(seed, epoch, len(order))]


@given(
    labels=st.sets(st.integers(0, 20), min_size=1, max_size=5).map(lambda chosen: tuple(sorted(chosen))),
    ipc=st.integers(1, 6),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**64 - 1),
    epochs=st.integers(0, 3),
    start_epoch=st.integers(0, 10**6),
    shards=st.integers(1, 5),
)
def test_epochs_batches_and_shards_are_as_documented(
    labels: tuple[int, ...], ipc: int, batch_size: int, seed: int, epochs: int, start_epoch: int, shards: int
) -> None:
    for shard in range(shards):
        plan = StreamPlan(
            labels=labels,
            ipc=ipc,
            batch_size=batch_size,
            seed=seed,
            epochs=epochs,
            start_epoch=start_epoch,
            shard=(shard, shards),
        )
        expected, sizes = [], []
        for epoch in range(start_epoch, start_epoch + epochs):
            part = reference(labels, ipc, seed, epoch)[shard::shards]
            expected += part
            sizes += [min(batch_size, len(part) - start) for start in range(0, len(part), batch_size)]
        batches = list(plan.batches())
        assert [len(batch) for batch, _ in batches] == sizes
        assert [pair for batch in batches for pair in zip(*(half.tolist() for half in batch), strict=True)] == expected


def test_every_image_is_drawn_once() -> None:
    drawn = samples()
    assert sorted(drawn) == [(label, index) for label in range(3) for index in range(12)]


def test_an_epoch_holds_its_own_indices() -> None:
    assert sorted(samples(epochs=1, start_epoch=7)) == [(label, index) for label in range(3) for index in range(28, 32)]


def test_shards_interleave_to_the_whole() -> None:
    whole, parts = samples(epochs=1), [samples(epochs=1, shard=(i, 5)) for i in range(5)]
    assert [parts[p % 5][p // 5] for p in range(len(whole))] == whole


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(0, 3), st.integers(0, 4))
def test_batch_size_and_prefetch_do_not_show(bundle: Bundle, batch_size: int, start: int, prefetch: int) -> None:
    expected = joined(bundle.stream(4, 64, seed=9, epochs=4, prefetch=0))
    options = {"seed": 9, "start_epoch": start, "epochs": 4 - start}
    images, labels = joined(bundle.stream(4, batch_size, prefetch=prefetch, **options))
    assert np.array_equal(images, expected[0][start * 12 :])
    assert np.array_equal(labels, expected[1][start * 12 :])


def test_images_belong_to_their_labels_and_indices(bundle: Bundle) -> None:
    plan = StreamPlan(labels=(0, 2), ipc=3, batch_size=4, seed=5, epochs=2)
    stream = bundle.stream(3, 4, seed=5, epochs=2, classes=["two", "zero"])
    for (images, labels), (expected_labels, indices) in zip(stream, plan.batches(), strict=True):
        assert np.array_equal(labels, expected_labels)
        assert np.array_equal(images, bundle.sample(labels, indices, seed=5, use="stream"))


def test_a_stream_without_epochs_goes_on(bundle: Bundle) -> None:
    stream = iter(bundle.stream(1, 3))
    first = [next(stream)[0] for _ in range(50)]
    assert len({images.tobytes() for images in first}) == 50
    stream.close()
    assert gone()


def test_dlpack_of_a_cpu_engine_is_numpy(bundle: Bundle) -> None:
    images, _ = next(iter(bundle.stream(1, 2, output="dlpack", epochs=1)))
    assert np.array_equal(np.from_dlpack(images), images)
    assert images.flags.writeable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ipc": 0}, "ipc is 0; it must be an integer, at least 1."),
        ({"ipc": 1.5}, "ipc is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"start_epoch": -1}, "start_epoch is -1"),
        ({"shard": (1, 1)}, "shard is (1, 1); it must be (i, n), integers with 0 <= i < n."),
        ({"shard": (0.5, 2)}, "shard is (0.5, 2); it must be (i, n), integers with 0 <= i < n."),
        ({"shard": (False, 2)}, "shard is (False, 2); it must be"),
        ({"shard": None}, "shard is None; it must be (i, n)"),
        ({"shard": "01"}, "shard is '01'; it must be (i, n)"),
        ({"shard": (0, 1, 2)}, "shard is (0, 1, 2); it must be (i, n)"),
        ({"prefetch": "a"}, "prefetch is 'a'; it must be an integer, at least 0."),
        ({"prefetch": -1}, "prefetch is -1; it must be an integer, at least 0."),
        ({"prefetch": None}, "prefetch is None; it must be an integer, at least 0."),
        ({"shard": (-1, 2)}, "shard is (-1, 2)"),
        ({"ipc": 2**31, "epochs": 3}, "need indices beyond 2**32"),
        ({"output": "torch"}, "There is no output 'torch'; there are numpy and dlpack."),
        ({"classes": ["nine"]}, "The bundle has no class 'nine'"),
        ({"seed": 2**64}, "The seed is"),
        ({"seed": "1"}, "The seed is"),
    ],
)
def test_impossible_streams_are_refused_at_once(bundle: Bundle, options: dict, message: str) -> None:
    with pytest.raises(BadValueError) as refused:
        bundle.stream(**({"ipc": 1} | options))
    assert message in str(refused.value)
    assert not prefetch_threads()


def test_an_endless_stream_ends_where_indices_do() -> None:
    plan = StreamPlan(labels=(0,), ipc=2**10, batch_size=2**10, seed=0, epochs=None, start_epoch=2**22 - 1)
    batches = plan.batches()
    assert int(next(batches)[1].max()) == 2**32 - 1
    with pytest.raises(BadValueError, match="needs indices beyond"):
        next(batches)


def test_the_thread_works_ahead_and_no_further() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    stream = iterate_ahead(make, 3)
    assert next(stream) == 0
    time.sleep(0.1)
    # One taken, three waiting, one in the thread's hands.
    assert len(made) == 5
    stream.close()  # type: ignore[attr-defined]
    assert gone()


def test_nothing_starts_before_the_first_item() -> None:
    iterate_ahead(lambda: iter([1]), 2)
    assert not prefetch_threads()


@pytest.mark.parametrize("how", ["end", "close", "forget", "error inside", "error outside", "interrupt"])
def test_the_thread_always_ends(how: str) -> None:
    closed = threading.Event()

    def make() -> Iterator[int]:
        try:
            yield from range(5 if how == "end" else 10**9)
        finally:
            closed.set()

    def broken() -> Iterator[int]:
        yield from make()

    stream = iterate_ahead(make, 2)
    if how == "end":
        assert list(stream) == [0, 1, 2, 3, 4]
    elif how == "close":
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    elif how == "forget":
        next(stream)
        del stream
        gc.collect()
    elif how == "error inside":

        def failing() -> Iterator[int]:
            try:
                yield 1
                raise ValueError("inside")
            finally:
                closed.set()

        stream = iterate_ahead(failing, 2)
        assert next(stream) == 1
        with pytest.raises(ValueError, match="inside"):
            next(stream)
    else:
        error = RuntimeError if how == "error outside" else KeyboardInterrupt
        with pytest.raises(error):
            for _ in stream:
                raise error
        del stream
        gc.collect()
    assert gone()
    assert closed.wait(5)


def _go_on(stream: Any, results: Any) -> None:
    try:
        for _ in range(10):
            next(stream)
    except EngineError as error:
        results.put(str(error))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_is_told_instead_of_hanging() -> None:
    context = multiprocessing.get_context("fork")
    stream = iterate_ahead(lambda: iter(range(10**9)), 1)
    next(stream)
    results = context.Queue()
    child = context.Process(target=_go_on, args=(stream, results))
    child.start()
    assert results.get(timeout=30) == "A stream cannot be used in a forked process: call stream() there."
    child.join(30)
    assert child.exitcode == 0
    stream.close()  # type: ignore[attr-defined]
    assert gone()
