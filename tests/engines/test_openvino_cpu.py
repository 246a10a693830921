"""OpenVINO on the CPU: close to ONNX Runtime in fp32 and bf16, the same pixels however many are asked for at once."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_bundle import build_tiny_bundle

from dim.runtime import choose_engine
from dim.runtime.bundle import open_bundle
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.choose_engine import open_engine, settle_precision
from dim.runtime.cores import find_bf16_instructions
from dim.runtime.engines import openvino_cpu
from dim.runtime.engines.base import Engine, EngineOptions
from dim.runtime.engines.image_checks import compare_precision
from dim.runtime.errors import BadValueError, EngineError, GraphError, MissingExtraError
from dim.runtime.sampling.latents import draw_latents
from dim.runtime.sets.generate import generate
from dim.runtime.sets.request import SetRequest

needs_bf16 = pytest.mark.skipif(find_bf16_instructions() is None, reason="this processor does not multiply bf16")
BOTH = ["fp32", pytest.param("bf16", marks=needs_bf16)]
REFUSED = (
    "This processor has neither AMX-BF16 nor AVX512-BF16, which bf16 needs: draw in fp32, or on a machine that has one "
    "of them."
)


def opened(path: Path, **options: Any) -> Engine:
    return open_engine(path, load_manifest(path), EngineOptions(**options), say=lambda line: None)


def samples(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    labels = np.arange(count) % 3
    return draw_latents(7, labels, np.arange(count) // 3, 16, 1.0), labels


@pytest.fixture
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (choose_engine, openvino_cpu):
        monkeypatch.setattr(module, "find_bf16_instructions", lambda: None)


@pytest.mark.parametrize("precision", BOTH)
def test_images_are_those_of_onnx_runtime_within_the_promise(tiny_bundle: Path, precision: str) -> None:
    latents, labels = samples(200)
    expected = opened(tiny_bundle, engine="onnxruntime-cpu").run(latents, labels)
    engine = opened(tiny_bundle, engine="openvino-cpu", precision=precision)
    assert (engine.device, engine.precision, engine.batch) == ("cpu", precision, None)
    assert engine.version.startswith("openvino 20") and ("BF16" in engine.version) == (precision == "bf16")
    images = engine.run(latents, labels)
    assert images.dtype == np.uint8 and images.shape == expected.shape
    close, found, _ = compare_precision(precision, images, expected)
    assert close, found
    assert precision == "fp32" or not np.array_equal(images, expected)


@pytest.mark.parametrize("precision", BOTH)
def test_neither_batch_size_nor_threads_show(tiny_bundle: Path, precision: str) -> None:
    latents, labels = samples(67)
    whole = opened(tiny_bundle, engine="openvino-cpu", precision=precision, threads=1).run(latents, labels)
    for threads in (1, 2):
        engine = opened(tiny_bundle, engine="openvino-cpu", precision=precision, threads=threads)
        for size in (1, 7, 15, 16, 17, 33, 67):
            parts = [engine.run(latents[i : i + size], labels[i : i + size]) for i in range(0, 67, size)]
            assert np.array_equal(np.concatenate(parts), whole)
        same = engine.run(latents[:1].repeat(40, axis=0), labels[:1].repeat(40))
        assert np.array_equal(same, whole[:1].repeat(40, axis=0))
        assert engine.run(latents[:0], labels[:0]).shape == (0, 8, 8, 1)
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="was closed"):
            engine.run(latents, labels)


@pytest.mark.slow
@pytest.mark.parametrize("precision", BOTH)
def test_the_shipped_bundle_at_every_batch_size(precision: str) -> None:
    with (
        open_bundle("mnist", engine="onnxruntime-cpu", threads=1) as reference,
        open_bundle("mnist", engine="openvino-cpu", precision=precision, threads=1) as bundle,
    ):
        labels = np.arange(80) % 10
        latents = bundle.latents(labels)
        whole = bundle.engine.run(latents, labels)
        close, found, _ = compare_precision(precision, whole, reference.engine.run(latents, labels))
        assert close, found
        for count in range(1, 80, 3):
            assert np.array_equal(bundle.engine.run(latents[:count], labels[:count]), whole[:count])


def test_threads_share_an_engine_and_open_engines_at_once(tiny_bundle: Path) -> None:
    latents, labels = samples(50)
    expected = opened(tiny_bundle, engine="openvino-cpu").run(latents, labels)
    barrier = threading.Barrier(4)

    def draw(_: int) -> NDArray[np.uint8]:
        barrier.wait()
        return opened(tiny_bundle, engine="openvino-cpu", threads=2).run(latents, labels)

    with ThreadPoolExecutor(8) as pool:
        for images in pool.map(draw, range(4)):
            assert np.array_equal(images, expected)
        engine = opened(tiny_bundle, engine="openvino-cpu", threads=2)
        for images in pool.map(lambda _: engine.run(latents, labels), range(16)):
            assert np.array_equal(images, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_its_own(tiny_bundle: Path) -> None:
    code = (
        "import multiprocessing, sys\n"
        "from dim.runtime.bundle import open_bundle\n"
        "def draw(images):\n"
        "    images.put(bundle.sample([0, 1, 2] * 20).tobytes())\n"
        "bundle = open_bundle(sys.argv[1], engine='openvino-cpu', threads=2)\n"
        "here = bundle.sample([0, 1, 2] * 20).tobytes()\n"
        "forks = multiprocessing.get_context('fork')\n"
        "images = forks.Queue()\n"
        "child = forks.Process(target=draw, args=(images,))\n"
        "child.start()\n"
        "assert images.get(timeout=60) == here\n"
        "child.join(60)\n"
        "assert child.exitcode == 0\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], check=True, timeout=150)


_SIGNAL_AFTER_CLOSING = """
import os, signal, sys
from dim.runtime.bundle import open_bundle
bundles = [open_bundle(sys.argv[1], engine="openvino-cpu", threads=1) for _ in range(3)]
for bundle in bundles:
    bundle.sample([0])
while bundles:
    bundles.pop(int(sys.argv[2])).close()
signal.signal(signal.SIGUSR1, lambda number, frame: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
print("went on")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs signals of POSIX")
@pytest.mark.parametrize("place", ["0", "-1"], ids=["first opened, first closed", "last opened, first closed"])
def test_signals_are_handled_after_engines_were_closed(tiny_bundle: Path, place: str) -> None:
    """OpenVINO's plugin gives the thread a signal stack; were it freed, a signal would end the process in silence."""
    program = [sys.executable, "-c", _SIGNAL_AFTER_CLOSING, str(tiny_bundle), place]
    done = subprocess.run(program, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout) == (0, "handled\nwent on\n"), done.stderr


def test_auto_takes_it_for_bf16_alone(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(tiny_bundle, device="cpu").name == "onnxruntime-cpu"
    real = choose_engine._open

    def open_but_one(name: str, request: Any) -> Engine:
        if name == "onnxruntime-cpu":
            raise MissingExtraError("onnxruntime", "cpu", "run ONNX files on the CPU")
        return real(name, request)

    with monkeypatch.context() as patch:
        patch.setattr(choose_engine, "_open", open_but_one)
        assert opened(tiny_bundle, device="cpu").name == "openvino-cpu"
    if find_bf16_instructions() is not None:
        engine = opened(tiny_bundle, precision="bf16")
        assert (engine.name, engine.precision) == ("openvino-cpu", "bf16")


def test_a_processor_without_bf16_refuses_in_one_sentence(tiny_bundle: Path, no_bf16: None) -> None:
    for engine in ("auto", "openvino-cpu"):
        with pytest.raises(EngineError) as refused:
            opened(tiny_bundle, engine=engine, precision="bf16")
        assert str(refused.value) == REFUSED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16", "device": "gpu"}, "bf16 is drawn by openvino-cpu alone, on the CPU, not on a GPU."),
        (
            {"precision": "bf16", "engine": "tensorrt"},
            "bf16 is drawn by openvino-cpu alone, on the CPU, not by tensorrt.",
        ),
        (
            {"precision": "int8", "engine": "openvino-cpu"},
            "The engine openvino-cpu draws in fp32 or bf16, not in int8.",
        ),
    ],
)
def test_precisions_that_an_engine_has_not_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadValueError) as refused:
        EngineOptions(**options)
    assert str(refused.value) == message


def test_the_precision_auto_is_bf16_where_this_machine_has_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = EngineOptions(device="cpu", precision="auto")
    monkeypatch.setattr(choose_engine, "find_bf16_instructions", lambda: "AMX-BF16")
    assert settle_precision(auto).precision == "bf16"
    assert settle_precision(EngineOptions(engine="onnxruntime-cpu", precision="auto")).precision is None
    assert settle_precision(EngineOptions(precision="int8")).precision == "int8"
    monkeypatch.setattr(choose_engine, "find_bf16_instructions", lambda: None)
    assert settle_precision(auto).precision is None
    assert opened(tiny_bundle, device="cpu", precision="auto").precision == "fp32"


def test_a_set_takes_no_auto(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        open_bundle(tiny_bundle, precision="auto") as bundle,
        pytest.raises(
            BadValueError, match="The precision auto differs between machines, so a set needs a fixed one: fp32"
        ),
    ):
        generate(bundle, SetRequest(ipc=2), tmp_path / "set")


@needs_bf16
def test_the_plan_names_bf16_and_another_machine_refuses(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SetRequest(ipc=40, format="npz", shard_images=20)
    with open_bundle(tiny_bundle, precision="bf16") as bundle:
        generate(bundle, request, tmp_path / "set", shard=(0, 2))
    text = (tmp_path / "set" / "dataset.json").read_text()
    assert '"openvino-cpu"' in text and '"bf16"' in text
    monkeypatch.setattr(openvino_cpu, "find_bf16_instructions", lambda: None)
    with open_bundle(tiny_bundle) as bundle, pytest.raises(EngineError) as refused:
        generate(bundle, request, tmp_path / "set", shard=(1, 2))
    assert str(refused.value) == REFUSED


def test_a_graph_outside_the_contract_never_reaches_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim")
    monkeypatch.setattr(openvino_cpu, "read_checked_onnx", lambda request: (_ for _ in ()).throw(GraphError("no")))
    monkeypatch.setattr(openvino_cpu, "import_engine_library", lambda *args: pytest.fail("the library was asked"))
    with pytest.raises(GraphError):
        opened(path, engine="openvino-cpu")


def test_a_missing_library_names_the_install_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError) as missing:
        opened(tiny_bundle, engine="openvino-cpu")
    assert str(missing.value) == (
        "The package 'openvino' is not installed and is needed to draw in fp32 with OpenVINO: "
        "run  pip install 'dim-distill[openvino]'"
    )


def test_what_fails_while_drawing_is_told(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(tiny_bundle, engine="openvino-cpu")

    def fail(*arrays: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(openvino_cpu._Piece, "draw", fail)
    with pytest.raises(EngineError, match=r"openvino-cpu failed while drawing 64 images \(out of memory\): free some"):
        engine.run(*samples(64))


@pytest.mark.parametrize("engine", ["openvino-cpu", "onnxruntime-cpu"])
def test_nothing_is_written_outside_the_private_cache_and_no_usage_data(
    tiny_bundle: Path, tmp_path: Path, engine: str
) -> None:
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    code = (
        "import sys\n"
        "from dim.runtime.bundle import open_bundle\n"
        f"with open_bundle({str(tiny_bundle)!r}, engine={engine!r}) as bundle:\n"
        "    bundle.sample([0, 1, 2])\n"
        "assert not [name for name, module in sys.modules.items() if module and 'openvino_telemetry' in name]\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    environment = clean | {"HOME": str(home), "DIM_CACHE": str(cache), "TMPDIR": str(home)}
    subprocess.run([sys.executable, "-B", "-c", code], env=environment, check=True, timeout=120, cwd=home)
    assert list(home.rglob("*")) == []
