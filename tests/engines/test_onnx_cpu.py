"""Engines: what they draw, how one is chosen, and that nothing falls back in silence."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.manifest import ImageShape, Manifest
from dim.runtime.choose_engine import open_engine
from dim.runtime.engines import onnx_cpu as cpu_sessions
from dim.runtime.engines import onnx_session as engine_onnx
from dim.runtime.engines.base import Engine, EngineOptions
from dim.runtime.engines.names import ENGINES
from dim.runtime.engines.onnx_session import open_cpu_session
from dim.runtime.errors import BadValueError, BundleError, EngineError, GraphError, MissingExtraError
from dim.runtime.sampling.latents import draw_latents


@dataclass(frozen=True)
class Opened:
    path: Path
    manifest: Manifest


@pytest.fixture
def bundle(tiny_bundle: Path) -> Opened:
    return Opened(tiny_bundle, load_manifest(tiny_bundle))


def opened(bundle: Opened, say: Callable[[str], None] = lambda line: None, **options: Any) -> Engine:
    return open_engine(bundle.path, bundle.manifest, EngineOptions(**options), say=say)


def samples(n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 3
    return draw_latents(7, labels, np.arange(n) // 3, 16, 1.0), labels


@pytest.mark.parametrize(
    "options",
    [{"engine": "fake"}, {}, {"precision": "fp16"}, {"precision": "int8"}, {"threads": 1}, {"threads": 2}],
    ids=str,
)
def test_every_row_depends_on_itself_alone(bundle: Opened, options: dict[str, Any]) -> None:
    engine = opened(bundle, **({"engine": "onnxruntime-cpu"} | options))
    latents, labels = samples(40)
    whole = engine.run(latents, labels)
    assert whole.shape == (40, 8, 8, 1) and whole.dtype == np.uint8
    for size in (1, 7, 16):
        parts = [engine.run(latents[i : i + size], labels[i : i + size]) for i in range(0, 40, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    same = engine.run(latents[:1].repeat(16, axis=0), labels[:1].repeat(16))
    assert np.array_equal(same, whole[:1].repeat(16, axis=0))
    assert len(np.unique(whole.reshape(40, -1), axis=0)) == 40
    assert engine.run(latents[:0], labels[:0]).shape == (0, 8, 8, 1)
    engine.close()
    engine.close()


def test_threads_do_not_show(bundle: Opened) -> None:
    latents, labels = samples(33)
    counts = range(1, min(4, os.cpu_count() or 1) + 1)
    drawn = [opened(bundle, engine="onnxruntime-cpu", threads=n).run(latents, labels) for n in counts]
    assert len(drawn) > 1 and all(np.array_equal(drawn[0], other) for other in drawn)


def test_many_images_are_spread_over_the_threads_in_pieces(bundle: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, labels = samples(150)
    expected = opened(bundle, engine="onnxruntime-cpu", threads=1).run(latents, labels)
    sessions: list[tuple[int, list[int]]] = []

    def watched(model: bytes, threads: int | None = None) -> Any:
        session = open_cpu_session(model, threads)
        sizes: list[int] = []
        sessions.append((threads or 0, sizes))
        run = lambda names, feeds: sizes.append(len(feeds["labels"])) or session.run(names, feeds)  # noqa: E731
        return SimpleNamespace(run=run)

    monkeypatch.setattr(cpu_sessions, "open_cpu_session", watched)
    engine = opened(bundle, engine="onnxruntime-cpu", threads=2)
    assert np.array_equal(engine.run(latents[:31], labels[:31]), expected[:31])
    assert sessions == [(2, [31])]
    for _ in range(2):
        assert np.array_equal(engine.run(latents, labels), expected)
    assert [threads for threads, _ in sessions] == [2, 1]
    assert sorted(sessions[1][1]) == sorted([19] * 14 + [17] * 2)  # an eighth of 150, rounded up


def test_what_fails_in_a_piece_fails_the_run(bundle: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession([], lambda feeds: (_ for _ in ()).throw(RuntimeError("out of memory")))
    monkeypatch.setattr(cpu_sessions, "open_cpu_session", lambda model, threads: session)
    with pytest.raises(
        EngineError, match=r"onnxruntime-cpu failed while drawing 64 images \(out of memory\): free some"
    ):
        opened(bundle, engine="onnxruntime-cpu", threads=2).run(*samples(64))


def test_an_engine_says_what_it_is(bundle: Opened) -> None:
    said: list[str] = []
    engine = opened(bundle, engine="onnxruntime-cpu", precision="int8", say=said.append)
    assert (engine.name, engine.device, engine.precision, engine.batch) == ("onnxruntime-cpu", "cpu", "int8", None)
    assert engine.version == f"onnxruntime {onnxruntime.__version__}"
    assert said == ["Engine: onnxruntime-cpu on the cpu, int8, as asked."]


def test_the_cpu_is_chosen_and_said(bundle: Opened) -> None:
    said: list[str] = []
    assert opened(bundle, device="cpu", say=said.append).name == "onnxruntime-cpu"
    assert len(said) == 1 and "onnxruntime-cpu" in said[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "magic"}, "There is no engine 'magic'; there are auto, "),
        ({"device": "tpu"}, "There is no device 'tpu'; there are auto, cpu, gpu."),
        ({"engine": "onnxruntime-cpu", "device": "gpu"}, "runs on the cpu, not on the gpu"),
        ({"engine": "fake", "device": "gpu"}, "runs on the cpu, not on the gpu"),
        ({"precision": "fp8"}, "There is no precision 'fp8'; there are fp32, fp16, int8, bf16."),
        ({"threads": 0}, "number of threads is 0"),
    ],
)
def test_impossible_choices_are_refused(bundle: Opened, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadValueError, match=message):
        opened(bundle, **options)


def test_a_missing_precision_says_which_there_are(tmp_path: Path) -> None:
    from tiny_bundle import build_tiny_bundle

    path = build_tiny_bundle(tmp_path / "a.dim")
    with pytest.raises(BundleError, match=r"has no generator.fp16.onnx; it has fp32\."):
        opened(Opened(path, load_manifest(path)), device="cpu", precision="fp16")


def test_a_missing_library_names_the_install_line(bundle: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as missing:
        opened(bundle, engine="onnxruntime-cpu")
    assert str(missing.value) == (
        "The package 'onnxruntime' is not installed and is needed to run ONNX files on the CPU: "
        "run  pip install 'dim-distill[cpu]'"
    )


class FakeSession:
    """A session that answers what the test wants."""

    def __init__(self, providers: list[str], answer: Callable[[dict[str, Any]], np.ndarray]) -> None:
        self.providers, self.answer = providers, answer

    def get_providers(self) -> list[str]:
        return self.providers

    def disable_fallback(self) -> None:
        pass

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[np.ndarray]:
        return [self.answer(feeds)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda feeds: np.zeros((2, 8, 8, 1), np.float32), r"draws what it should not \(float32"),
        (
            lambda feeds: np.zeros((2, 8, 9, 1), np.uint8),
            r"not \(uint8 \(2, 8, 9, 1\), not uint8 \(2, 8, 8, 1\)\): dim verify",
        ),
        (
            lambda feeds: (_ for _ in ()).throw(RuntimeError("out of memory\nat line 3")),
            r"drawing 2 images \(out of memory\): free some memory",
        ),
    ],
)
def test_a_wrong_answer_is_an_error(
    bundle: Opened, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any], message: str
) -> None:
    session = FakeSession(["CPUExecutionProvider"], answer)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **options: session)
    with pytest.raises(EngineError, match=message):
        opened(bundle, engine="onnxruntime-cpu").run(*samples(2))


def test_a_closed_engine_says_so(bundle: Opened) -> None:
    engine = opened(bundle, engine="onnxruntime-cpu")
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.run(*samples(1))


def test_a_graph_outside_the_contract_never_reaches_the_engine(
    tiny_bundle: Path, bundle: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Opened(tiny_bundle, replace(bundle.manifest, image=ImageShape(height=9, width=8, channels=1)))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **options: pytest.fail("the engine saw it"))
    with pytest.raises(GraphError, match="images of the ONNX file is UINT8"):
        opened(other, engine="onnxruntime-cpu")


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= engine_onnx.usable_cores() <= len(os.sched_getaffinity(0))


def test_the_table_of_engines_is_pinned() -> None:
    assert {"onnxruntime-cuda", "onnxruntime-cpu", "openvino-cpu", "fake"} <= set(ENGINES)
