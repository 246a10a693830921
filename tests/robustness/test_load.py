"""Load: many threads and processes on one bundle at once, and processes that want to write the same shard."""

import hashlib
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from set_tools import generate, tree

from dim.runtime.bundle import open_bundle
from dim.runtime.errors import OutputError
from dim.runtime.sampling.latents import order_slice

THREADS, PROCESSES, DRAWS = 32, 8, 4
COUNTS = (40, 40, 40)


def digests(path: Path, engine: str, threads: int) -> list[str]:
    """Draw from one open bundle in many threads, each `DRAWS` times from its own place; the hash of each thread's."""
    started = threading.Barrier(threads)
    with open_bundle(path, engine=engine, threads=1) as bundle:

        def draw(thread: int) -> str:
            digest = hashlib.sha256()
            started.wait(60)
            for turn in range(DRAWS):
                labels, indices = order_slice(COUNTS, thread % 4 * 20, thread % 4 * 20 + 7 + turn)
                digest.update(bundle.sample(labels, indices, seed=thread % 4).tobytes())
            return digest.hexdigest()

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(draw, range(threads)))


def _in_child(path: Path, started: Any, answers: Any) -> None:
    started.wait(120)
    answers.put(digests(path, "onnxruntime-cpu", 4))


@pytest.mark.slow
def test_32_threads_and_8_processes_share_a_bundle(tiny_bundle: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers, started = context.Queue(), context.Barrier(PROCESSES + 1)
    children = [context.Process(target=_in_child, args=(tiny_bundle, started, answers)) for _ in range(PROCESSES)]
    for child in children:
        child.start()
    started.wait(120)
    here = digests(tiny_bundle, "onnxruntime-cpu", THREADS)
    there = [answers.get(timeout=120) for _ in children]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    # One after the other, with nobody else at work.
    alone = [digests_of_one(tiny_bundle, place) for place in range(4)]
    assert here == alone * (THREADS // 4)
    assert there == [alone] * PROCESSES


def digests_of_one(path: Path, place: int) -> str:
    """What `digests` must give for a thread, drawn image by image."""
    digest = hashlib.sha256()
    with open_bundle(path, engine="onnxruntime-cpu", threads=1) as bundle:
        for turn in range(DRAWS):
            labels, indices = order_slice(COUNTS, place * 20, place * 20 + 7 + turn)
            rows = [bundle.sample([a], [b], seed=place) for a, b in zip(labels, indices, strict=True)]
            digest.update(np.concatenate(rows).tobytes())
    return digest.hexdigest()


def test_many_streams_at_once_do_not_mix(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, engine="fake") as bundle:

        def read(seed: int) -> bytes:
            stream = bundle.stream(ipc=5, batch_size=4, seed=seed, epochs=6)
            return b"".join(images.tobytes() + labels.tobytes() for images, labels in stream)

        alone = [read(seed) for seed in range(4)]
        with ThreadPoolExecutor(THREADS) as pool:
            assert list(pool.map(read, [seed % 4 for seed in range(THREADS)])) == alone * (THREADS // 4)


def _generate_in_child(path: str, out: str, shard: tuple[int, int], started: Any, go_on: Any, answers: Any) -> None:
    """Write a shard, and wait in the middle of it."""

    def wait(what: str, done: float, total: float | None, note: str) -> None:
        if done > 0:
            started.set()
            go_on.wait(120)

    try:
        summary = generate(open_bundle(path, engine="fake"), out, counts=(300, 300, 300), shard=shard, progress=wait)
        answers.put(("written", summary.images_drawn))
    except OutputError as error:
        answers.put(("refused", str(error)))


@pytest.mark.slow
def test_two_processes_want_the_same_shard(tiny_bundle: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, go_on, answers = context.Event(), context.Event(), context.Queue()
    out = tmp_path / "set"
    arguments = (str(tiny_bundle), str(out), (0, 1), started, go_on, answers)
    first = context.Process(target=_generate_in_child, args=arguments)
    first.start()
    assert started.wait(120)
    second = context.Process(target=_generate_in_child, args=arguments)
    second.start()
    assert answers.get(timeout=120) == (
        "refused",
        f"Shard 0/1 of {out} is being written by another process: wait for it, or stop it.",
    )
    go_on.set()
    assert answers.get(timeout=120) == ("written", 900)
    for child in (first, second):
        child.join(60)
        assert child.exitcode == 0
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        assert generate(bundle, out, counts=(300, 300, 300)).images_drawn == 0
        generate(bundle, tmp_path / "alone", counts=(300, 300, 300))
    assert tree(out) == tree(tmp_path / "alone")


def test_two_threads_want_the_same_shard(tiny_bundle: Path, tmp_path: Path) -> None:
    out, inside, go_on = tmp_path / "set", threading.Event(), threading.Event()

    def wait(what: str, done: float, total: float | None, note: str) -> None:
        if done > 0:
            inside.set()
            go_on.wait(60)

    with open_bundle(tiny_bundle, engine="fake") as bundle, ThreadPoolExecutor(1) as pool:
        first = pool.submit(generate, bundle, out, counts=COUNTS, progress=wait)
        assert inside.wait(60)
        with pytest.raises(OutputError, match="is being written by another process"):
            generate(bundle, out, counts=COUNTS)
        go_on.set()
        assert first.result(60).complete
