"""The library's front door: sampling, classes, sharing between threads and processes."""

import base64
import html
import multiprocessing
import os
import pickle
import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import dim as dim_command
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import build_tiny_bundle

import dim.runtime
from dim.runtime import bundle as bundle_module
from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.accepted_file import write_accepted
from dim.runtime.bundle_format.files import update_bundle
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents
from dim.runtime.engines import draw_in_parts
from dim.runtime.engines.draw_in_parts import choose_rows_per_run
from dim.runtime.engines.fake import FakeEngine
from dim.runtime.errors import BadValueError, BundleError, DimError
from dim.runtime.sampling.accepted import draw_accepted_latents, list_accepted
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
        "SetRequest",
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
        patch.setattr(draw_in_parts, "MAX_ROWS_PER_RUN", rows)
        small = opened.sample(*index_major_order([ipc] * 3), seed=seed)
    large = opened.sample(*index_major_order([ipc + more] * 3), seed=seed)
    assert np.array_equal(large[: len(small)], small)


def test_a_filtered_bundle_draws_accepted_candidates_in_every_use(tmp_path: Path) -> None:
    accepted = np.random.default_rng(1).random((3, 16)) < 0.5
    optimised = np.full((3, 2, 16), 0.5, np.float32)
    extra = {"accepted.bin": write_accepted(8, accepted), "latents.npz": write_fixed_latents(optimised)}
    path = build_tiny_bundle(tmp_path / "a.dim", extra_files=extra)
    labels, indices = index_major_order([20] * 3)
    with open_bundle(path, engine="fake") as bundle:
        latents = bundle.latents(labels, indices, seed=5, use="stream")
        assert np.array_equal(latents, draw_accepted_latents(list_accepted(8, accepted), 5, labels, indices, 16, 1.0))
        fixed = bundle.latents(labels, indices, seed=5)
        assert np.array_equal(fixed[indices >= 2], latents[indices >= 2]) and (fixed[indices < 2] == 0.5).all()
        whole = bundle.arrays(ipc=20, seed=5)[0]
        assert np.array_equal(bundle.arrays(ipc=7, seed=5)[0], whole[:21])
        assert np.array_equal(bundle.arrays(ipc=13, seed=5, start=7)[0], whole[21:])
        parts = [list(bundle.stream(4, 5, seed=5, epochs=3, shard=(i, 2))) for i in range(2)]
        drawn = sorted(image.tobytes() for part in parts for images, _ in part for image in images)
        everything = bundle.sample(labels[:36], indices[:36], 5, "stream")
        assert drawn == sorted(image.tobytes() for image in everything)
        again = pickle.loads(pickle.dumps(bundle))
        assert np.array_equal(again.latents(labels, indices, 5), fixed)
    path = build_tiny_bundle(tmp_path / "b.dim", extra_files={"accepted.bin": write_accepted(8, accepted)[:-1]})
    with open_bundle(path, engine="fake") as bundle, pytest.raises(BundleError, match="that does not fit"):
        bundle.sample([0])


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
        (["tow"], "The bundle has no class 'tow'; did you mean 'two'? Its classes are zero, one, two."),
        (["nine"], "The bundle has no class 'nine'. Its classes are zero, one, two."),
        ([3], "The bundle has no class 3; labels go from 0 to 2."),
        ([-1], "The bundle has no class -1"),
        ([True], "The bundle has no class True"),
        ([], "No class was named; name at least one, or leave the choice out for all."),
        (["one", 1], "The class 'one' is named twice; name each class once."),
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


@pytest.mark.slow
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
    with caplog.at_level("INFO", logger="dim"), open_bundle(tiny_bundle, engine="fake") as bundle:
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
    assert choose_rows_per_run(opened.manifest) == 1024
    large = build_tiny_bundle(tmp_path / "a.dim", image_px=128, channels=3)
    assert choose_rows_per_run(open_bundle(large).manifest) == 16


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
        monkeypatch.setattr(draw_in_parts, "MAX_ROWS_PER_RUN", 32)
        assert np.array_equal(bundle.sample(labels, indices), expected)
    assert sizes == [32, 32, 32, 4]


def test_samples_are_named_by_class(opened: Bundle) -> None:
    expected = opened.sample([2, 0, 2], [0, 0, 1], seed=3)
    for labels in (["two", "zero", "two"], ("two", 0, "two"), np.array(["two", "zero", "two"]), [2, 0, 2]):
        assert np.array_equal(opened.sample(labels, seed=3), expected)
        assert np.array_equal(opened.sample(labels, [0, 0, 1], seed=3), expected)
    assert np.array_equal(opened.sample("two", [1], seed=3), expected[2:])
    assert np.array_equal(opened.latents(["two", "zero"]), opened.latents([2, 0], [0, 0]))
    with pytest.raises(BadValueError, match="The bundle has no class 'tow'; did you mean 'two'?"):
        opened.sample(["tow"], [0])


def test_images_of_one_class(opened: Bundle) -> None:
    expected = opened.sample([1] * 5, range(5), seed=3)
    assert np.array_equal(opened.draw("one", 5, seed=3), expected)
    assert np.array_equal(opened.draw(1, 3, seed=3, start=2), expected[2:])
    assert opened.draw("one", 0).shape == (0, 8, 8, 1)
    for arguments, message in (
        (("tow", 1), "The bundle has no class 'tow'"),
        ((3, 1), "The bundle has no class 3"),
        (("one", -1), "count is -1; it must be a whole number, 0 or more."),
        (("one", 1.5), "count is 1.5"),
        (("one", True), "count is True"),
    ):
        with pytest.raises(BadValueError, match=message):
            opened.draw(*arguments)


@pytest.mark.parametrize(
    "size",
    [{"ipc": 5}, {"ratio": 0.5}, {"total": 7}, {"per_class": {"two": 3, "one": 1}}, {"ipc": 2, "classes": ["two"]}],
    ids=str,
)
def test_arrays_are_what_generate_writes(opened: Bundle, tmp_path: Path, size: dict[str, Any]) -> None:
    arguments = [word for name, value in size.items() for word in (f"--{name.replace('_', '-')}", _as_option(value))]
    command = ["generate", "--bundle", opened.path, "--out", tmp_path / "set", "--format", "npz", "--seed", 9]
    assert dim_command(*command, "--start", 3, "--threads", 1, *arguments).code == 0
    (file,) = (tmp_path / "set").glob("*.npz")
    images, labels = opened.arrays(**size, seed=9, start=3)
    with np.load(file) as written:
        assert np.array_equal(images, written["images"]) and images.dtype == np.uint8
        assert np.array_equal(labels, written["labels"]) and labels.dtype == np.int64


def _as_option(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={count}" for name, count in value.items())
    return ",".join(value) if isinstance(value, list) else str(value)


def test_arrays_hold_the_optimised_latents_and_take_labels(tmp_path: Path) -> None:
    optimised = np.random.default_rng(0).normal(size=(3, 2, 16)).astype(np.float32)
    path = build_tiny_bundle(tmp_path / "a.dim", extra_files={"latents.npz": write_fixed_latents(optimised)})
    with open_bundle(path, engine="fake") as bundle, open_bundle(path, engine="fake", fixed_latents=False) as without:
        images, labels = bundle.arrays(ipc=3, classes=[2, "zero"])
        assert labels.tolist() == [0, 2] * 3
        assert np.array_equal(images, bundle.sample(labels, [0, 0, 1, 1, 2, 2]))
        plain, _ = without.arrays(ipc=3, classes=[2, "zero"])
        assert not np.array_equal(images[:4], plain[:4]) and np.array_equal(images[4:], plain[4:])
    with pytest.raises(BadValueError, match="exactly one of `ipc`, `ratio`, `total` and `per_class`; none was given"):
        bundle.arrays()


def test_a_stream_has_a_length_and_can_be_read_again(opened: Bundle) -> None:
    for options in ({}, {"batch_size": 7}, {"batch_size": 7, "shard": (1, 4)}, {"classes": ["one"]}, {"epochs": 0}):
        stream = opened.stream(**({"ipc": 5, "epochs": 3} | options))
        first, again = list(stream), list(stream)
        assert len(stream) == len(first) == len(again) and bool(stream) == bool(first)
        for (images, labels), (same, as_before) in zip(first, again, strict=True):
            assert np.array_equal(images, same) and np.array_equal(labels, as_before)
    assert repr(opened.stream(5, epochs=3)) == "<Stream: 3 batches of 64, ipc 5, 3 classes, seed 0>"
    endless = opened.stream(5)
    with pytest.raises(TypeError, match="no length: it goes on for ever"):
        len(endless)
    assert endless and repr(endless) == "<Stream: endless batches of 64, ipc 5, 3 classes, seed 0>"


def test_a_pickled_stream_draws_the_same(opened: Bundle) -> None:
    stream = opened.stream(4, 5, seed=2, epochs=2)
    for (images, labels), (same, as_before) in zip(stream, pickle.loads(pickle.dumps(stream)), strict=True):
        assert np.array_equal(images, same) and np.array_equal(labels, as_before)


def test_a_bundle_describes_itself(opened: Bundle, tiny_bundle: Path) -> None:
    assert re.fullmatch(
        rf"<Bundle tiny: 3 classes, 8x8x1, fp32 fp16 int8, \d\.\d MB, {re.escape(str(tiny_bundle))}>", repr(opened)
    )


def test_a_notebook_shows_the_preview_and_the_facts() -> None:
    with open_bundle("mnist") as bundle:
        shown = bundle._repr_html_()
        preview = base64.b64encode((bundle.path / "preview.png").read_bytes()).decode()
    assert f'<img src="data:image/png;base64,{preview}" alt="' in shown
    assert "<strong>mnist</strong>" in shown and "<td>10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9</td>" in shown


def test_a_notebook_runs_nothing_that_a_bundle_says(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    preview = b'<svg onload="alert(1)">'
    path = build_tiny_bundle(
        tmp_path / "<b>.dim", classes=(evil, 'b" onclick="x', "c&"), extra_files={"preview.png": preview}
    )
    shown = Bundle(path)._repr_html_()
    assert "<script" not in shown and 'onclick="' not in shown and "<img" not in shown and "<b>" not in shown
    assert html.escape(evil) in shown


def test_an_altered_preview_is_not_shown(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim", extra_files={"preview.png": b"\x89PNG\r\n\x1a\nxx"})
    assert "<img" in Bundle(path)._repr_html_()
    (path / "preview.png").write_bytes(b"\x89PNG\r\n\x1a\nyy")
    assert "<img" not in Bundle(path)._repr_html_()
    (path / "preview.png").unlink()
    assert "<img" not in Bundle(path)._repr_html_()
