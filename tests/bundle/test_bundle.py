"""The library's front door: sampling, classes, sharing between threads and processes."""

import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import build_tiny_bundle

import dim.runtime
from dim.runtime import bundle as bundle_module
from dim.runtime.bundle import Bundle, open_bundle, rows_per_run
from dim.runtime.bundle_format.files import update_bundle
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents
from dim.runtime.engines.fake import FakeEngine
from dim.runtime.errors import BadValueError, BundleError, DimError
from dim.runtime.sampling.latents import draw_latents, index_major_order

# `DIM_FLIPS=10000` for the long run.
FLIPS = int(os.environ.get("DIM_FLIPS", "300"))


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle, engine="onnxruntime-cpu", threads=1)


def test_the_public_names_are_pinned() -> None:
    assert dim.runtime.__all__ == [
        "BadValueError",
        "Bundle",
        "BundleError",
        "DataError",
        "DeviceError",
        "DimError",
        "DivergedError",
        "EngineError",
        "EngineOptions",
        "GraphError",
        "MissingExtraError",
        "OutputError",
        "ParityError",
        "RunError",
        "generate",
        "open_bundle",
    ]
    for name in dim.runtime.__all__:
        assert getattr(dim.runtime, name).__doc__
        assert name in dir(dim.runtime)
    with pytest.raises(AttributeError, match="has no attribute 'surprise'"):
        dim.runtime.surprise  # noqa: B018


def test_opening_and_drawing_imports_no_more_than_it_needs(tiny_bundle: Path) -> None:
    code = f"""
import sys
import dim.runtime
assert "numpy" not in sys.modules
with dim.runtime.open_bundle({str(tiny_bundle)!r}, device="cpu") as bundle:
    bundle.sample([0], [0])
    next(iter(bundle.stream(1, 2)))
    before = set(sys.modules)
with dim.runtime.open_bundle({str(tiny_bundle)!r}, engine="fake") as bundle:
    bundle.sample([0], [0])
heavy = {{"torch", "tensorrt", "rich", "typer", "PIL", "pyarrow", "fsspec"}} & before
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_sample_is_what_the_engine_draws_from_its_latents(opened: Bundle) -> None:
    labels, indices = index_major_order([4, 3, 2])
    latents = draw_latents(5, labels, indices, 16, 1.0)
    assert np.array_equal(opened.latents(labels, indices, seed=5), latents)
    assert np.array_equal(opened.sample(labels, indices, seed=5), opened.engine.run(latents, labels))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 40), st.integers(0, 40), st.sampled_from([1, 3, 1024]))
def test_a_smaller_set_is_a_prefix_of_a_larger_one(opened: Bundle, seed: int, ipc: int, more: int, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "_MAX_ROWS_PER_RUN", rows)
        small = opened.sample(*index_major_order([ipc] * 3), seed=seed)
    large = opened.sample(*index_major_order([ipc + more] * 3), seed=seed)
    assert np.array_equal(large[: len(small)], small)


def test_uses_differ_only_where_there_are_optimised_latents(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim")
    labels, indices = index_major_order([4] * 3)
    with open_bundle(path, engine="fake") as bundle:
        plain = bundle.latents(labels, indices, seed=1)
        assert np.array_equal(plain, bundle.latents(labels, indices, seed=1, use="stream"))
    optimised = np.random.default_rng(0).normal(size=(3, 2, 16)).astype(np.float32)
    update_bundle(path, add_files={"latents.npz": write_fixed_latents(optimised)})
    with open_bundle(path, engine="fake") as bundle, open_bundle(path, engine="fake", fixed_latents=False) as without:
        assert np.array_equal(without.latents(labels, indices, seed=1), plain)
        assert np.array_equal(bundle.latents(labels, indices, seed=1, use="stream"), plain)
        for seed in (1, 2):
            fixed = bundle.latents(labels, indices, seed)
            drawn = without.latents(labels, indices, seed)
            for row, (label, index) in enumerate(zip(labels, indices, strict=True)):
                assert np.array_equal(fixed[row], optimised[label, index] if index < 2 else drawn[row])


@pytest.mark.parametrize(
    ("labels", "indices", "options", "message"),
    [
        ([3], [0], {}, "The label 3 is not one of this bundle's classes; labels go from 0 to 2."),
        ([-1], [0], {}, "The labels reach from -1 to -1"),
        ([0], [2**32], {}, "must lie between 0 and"),
        ([0, 1], [0], {}, "2 labels and 1 indices"),
        ([0.0], [0], {}, "must be one row of integers"),
        ([0], [0], {"seed": -1}, "The seed is -1"),
        ([0], [0], {"use": "both"}, "There is no use 'both'; there are fixed and stream."),
    ],
)
def test_impossible_samples_never_reach_the_engine(
    tiny_bundle: Path, labels: Any, indices: Any, options: dict, message: str
) -> None:
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        bundle.engine.run = lambda *args: pytest.fail("the engine saw it")  # type: ignore[method-assign]
        with pytest.raises(BadValueError, match=message):
            bundle.sample(labels, indices, **options)


def test_nothing_drawn_is_an_empty_array(opened: Bundle) -> None:
    assert opened.sample([], []).shape == (0, 8, 8, 1)


def test_classes_are_chosen_by_name_or_label(opened: Bundle) -> None:
    assert opened.classes == ("zero", "one", "two")
    assert opened.select(None) == (0, 1, 2)
    assert opened.select(["two", 0]) == (0, 2)
    assert opened.select("one") == (1,)
    for wrong, message in (
        (["tow"], "There is no class 'tow' in tiny. Did you mean 'two'?"),
        ([3], "There is no class 3; labels go from 0 to 2."),
        ([-1], "There is no class -1"),
        ([True], "There is no class True"),
        ([], "name at least one, and each once"),
        (["one", 1], "name at least one, and each once"),
    ):
        with pytest.raises(BadValueError) as refused:
            opened.select(wrong)
        assert message in str(refused.value)


def test_a_closed_bundle_says_so(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle, engine="fake")
    with bundle:
        bundle.sample([0], [0])
    bundle.close()
    with pytest.raises(BundleError, match="was closed; open it again"):
        bundle.sample([0], [0])


def test_the_engine_starts_once_for_many_threads(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = bundle_module.open_engine, []

    def slow(*args: Any, **options: Any) -> Any:
        started.append(threading.get_ident())
        time.sleep(0.05)
        return real(*args, **options)

    monkeypatch.setattr(bundle_module, "open_engine", slow)
    labels, indices = index_major_order([10] * 3)
    with open_bundle(tiny_bundle, engine="onnxruntime-cpu", threads=1) as bundle, ThreadPoolExecutor(32) as pool:
        drawn = list(pool.map(lambda _: bundle.sample(labels, indices), range(64)))
    assert len(started) == 1
    assert all(np.array_equal(images, drawn[0]) for images in drawn)


def test_a_pickled_bundle_draws_the_same(opened: Bundle) -> None:
    again = pickle.loads(pickle.dumps(opened))
    assert np.array_equal(again.sample([0, 1], [5, 6]), opened.sample([0, 1], [5, 6]))


def test_a_pickled_bundle_must_still_be_the_same(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim")
    pickled = pickle.dumps(open_bundle(path, engine="fake"))
    update_bundle(path, readme="changed")
    with pytest.raises(BundleError, match="is no longer the bundle that was opened"):
        pickle.loads(pickled)


def _draw_in_child(bundle: Bundle, results: Any) -> None:
    results.put(bundle.sample([0, 1, 2], [0, 0, 0]).tobytes())


def test_spawned_processes_share_a_bundle(opened: Bundle) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_draw_in_child, args=(opened, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    drawn = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert drawn == [opened.sample([0, 1, 2], [0, 0, 0]).tobytes()] * 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_opens_its_own_engine(opened: Bundle) -> None:
    expected = opened.sample([0, 1, 2], [0, 0, 0]).tobytes()
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(sender, opened.sample([0, 1, 2], [0, 0, 0]).tobytes())
            status = 0
        finally:
            os._exit(status)
    os.close(sender)
    with os.fdopen(receiver, "rb") as stream:
        assert stream.read() == expected
    assert os.waitpid(child, 0)[1] == 0


def test_the_default_bundle_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_BUNDLE", str(tiny_bundle))
    said: list[str] = []
    assert open_bundle(engine="fake", say=said.append).path == tiny_bundle
    assert said == [f"Bundle: {tiny_bundle}, from $DIM_BUNDLE."]


def test_choices_reach_the_log_by_default(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="dim.runtime"), open_bundle(tiny_bundle, engine="fake") as bundle:
        bundle.sample([0], [0])
    assert caplog.messages == ["Engine: fake on the cpu, fp32, as asked."]


def test_any_flipped_bit_of_a_bundle_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """One bit at a time, drawn from the whole bundle; what is used to draw is refused, the rest draws the same."""
    latents = write_fixed_latents(np.random.default_rng(1).normal(size=(3, 2, 16)).astype(np.float32))
    path = build_tiny_bundle(tmp_path / "a.dim", precisions=("fp32", "int8"), extra_files={"latents.npz": latents})
    labels, indices = index_major_order([3] * 3)
    with open_bundle(path, engine="onnxruntime-cpu", threads=1) as bundle:
        expected = bundle.sample(labels, indices)
    files = sorted(file for file in path.iterdir())
    draw, refused = random.Random(0), 0
    for _ in range(FLIPS):
        file = draw.choices(files, [file.stat().st_size for file in files])[0]
        data = bytearray(file.read_bytes())
        bit = draw.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        whole = file.read_bytes()
        file.write_bytes(data)
        try:
            with open_bundle(path, engine="onnxruntime-cpu", threads=1) as bundle:
                assert np.array_equal(bundle.sample(labels, indices), expected)
        except DimError:
            refused += 1
        file.write_bytes(whole)
    print(f"{refused} of {FLIPS} flipped bits refused, the others drew identical pixels")
    assert refused > FLIPS // 4


def test_runs_are_bounded_by_pixels(opened: Bundle, tmp_path: Path) -> None:
    assert rows_per_run(opened.manifest) == 1024
    large = build_tiny_bundle(tmp_path / "a.dim", image_px=128, channels=3)
    assert rows_per_run(open_bundle(large).manifest) == 16


def test_an_engine_that_can_runs_ahead(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def run_ahead(self: FakeEngine, batches: Any) -> Any:
        for latents, labels in batches:
            sizes.append(len(labels))
            yield self.run(latents, labels)

    with open_bundle(tiny_bundle, engine="fake") as bundle:
        labels, indices = index_major_order((40, 40, 20))
        expected = bundle.sample(labels, indices)
        monkeypatch.setattr(FakeEngine, "run_ahead", run_ahead, raising=False)
        monkeypatch.setattr(bundle_module, "_MAX_ROWS_PER_RUN", 32)
        assert np.array_equal(bundle.sample(labels, indices), expected)
    assert sizes == [32, 32, 32, 4]


def test_a_bundle_describes_itself(opened: Bundle, tiny_bundle: Path) -> None:
    assert repr(opened) == f"Bundle('{tiny_bundle}', 3 classes, 8x8x1)"
