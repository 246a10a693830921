"""Running plans on a fake GPU that runs nothing before somebody waits and refuses wrong orders, shapes, pointers."""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_gpu
import fake_trt
import numpy as np
import onnxruntime
import pytest
from fake_gpu import FakeGpu, fake_driver
from fake_trt import FakeRuntimeCache, FakeTrt
from numpy.typing import NDArray

from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.errors import BadValueError, DeviceError, EngineError, MissingExtraError
from dim.runtime.gpu import memory as cuda_memory
from dim.runtime.gpu.driver import find_driver
from dim.runtime.trt import engine as engine_trt
from dim.runtime.trt import library as trt_library
from dim.runtime.trt.compile import BuildOptions, check_target, compile_plan
from dim.runtime.trt.engine import TrtEngine
from dim.runtime.trt.sidecar import Sidecar, host_machine

DRIVER = find_driver(fake_driver())
Open = Callable[..., TrtEngine]


class Machine:
    """A fake GPU with both fake libraries, and a way to open an engine on it."""

    def __init__(self, bundle: Path, patch: pytest.MonkeyPatch) -> None:
        self.gpu = FakeGpu()
        self.bundle, self.manifest = bundle, load_manifest(bundle)
        self.modules = {"trt": FakeTrt(self.gpu, "trt"), "rtx": FakeTrt(self.gpu, "rtx", "1.7.1.116")}
        patch.setitem(sys.modules, "tensorrt", self.modules["trt"])
        patch.setitem(sys.modules, "tensorrt_rtx", self.modules["rtx"])
        trt_library.load_library.cache_clear()
        patch.setattr(engine_trt, "import_cuda_core", lambda extra: self.gpu.core)
        self.said: list[str] = []

    def build(self, format: str = "trt", precision: str = "fp32", batch: tuple[int, int, int] = (1, 8, 16)) -> Any:
        library = trt_library.load_library(format)
        options = BuildOptions(batch=batch)
        gpu = check_target(library, options, DRIVER)
        model = (self.bundle / f"generator.{precision}.onnx").read_bytes()
        plan, _ = compile_plan(library, model, precision, options, gpu=gpu)
        sidecar = Sidecar(
            format=format,
            library_version=library.version,
            precision=precision,
            onnx_sha256="a" * 64,
            engine_sha256="b" * 64,
            engine_bytes=len(plan),
            batch=batch,
            hardware="gpu" if gpu else "compute_capabilities",
            compute_capabilities=(gpu.compute_capability,) if gpu else (),
            gpu=gpu.name if gpu else None,
            version_compatible=False,
            machine=host_machine(),
            created_by="dim test",
            checked=True,
        )
        return library, plan, sidecar

    def open(self, format: str = "trt", *, batch: int | None = None, **building: Any) -> TrtEngine:
        library, plan, sidecar = self.build(format, **building)
        return TrtEngine(library, plan, sidecar, self.manifest, batch=batch, driver=DRIVER, say=self.said.append)


@pytest.fixture
def machine(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    yield Machine(tiny_bundle, monkeypatch)
    trt_library.load_library.cache_clear()


def rows(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 16)).astype(np.float32), rng.integers(0, 3, count)


def expected(bundle: Path, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    session = onnxruntime.InferenceSession(bundle / "generator.fp32.onnx", providers=["CPUExecutionProvider"])
    images: NDArray[np.uint8] = session.run(["images"], {"latents": latents, "labels": labels})[0]
    return images


@pytest.mark.parametrize("format", ["trt", "rtx"])
@pytest.mark.parametrize("count", [0, 1, 8, 9, 45])
@pytest.mark.parametrize("others_first", [False, True])
def test_images_are_those_of_the_onnx_file(machine: Machine, format: str, count: int, others_first: bool) -> None:
    machine.gpu.others_first = others_first
    engine = machine.open(format)
    latents, labels = rows(count)
    images = engine.run(latents, labels)
    assert images.dtype == np.uint8 and images.shape == (count, 8, 8, 1)
    if count:
        np.testing.assert_array_equal(images, expected(machine.bundle, latents, labels))
    engine.close()
    engine.close()
    assert machine.gpu.buffers == {}


def test_what_an_engine_says_of_itself(machine: Machine) -> None:
    engine = machine.open("rtx")
    assert (engine.name, engine.device, engine.precision, engine.batch) == ("tensorrt-rtx", "gpu", "fp32", 8)
    assert engine.version == "tensorrt-rtx 1.7.1.116 plan bbbbbbbbbbbb"
    assert machine.said == []


def test_the_host_waits_once_per_batch(machine: Machine) -> None:
    engine = machine.open()
    machine.gpu.calls.clear()
    latents, labels = rows(40)
    engine.run(latents, labels)
    calls = machine.gpu.calls
    # Each wait hands over pixels; the slots' own waits find work that is long done. No stream is drained.
    assert calls.count("host waits") == 5
    assert not [call for call in calls if call.endswith("sync")]
    copies_out = [at for at, call in enumerate(calls) if "copy device to pinned" in call]
    assert len(copies_out) == 5
    launches = [at for at, call in enumerate(calls) if call.endswith("launch graph")]
    assert len(launches) == 5
    assert launches[1] < copies_out[1] and launches[2] > copies_out[0]
    assert not [call for call in calls if call.startswith("allocate")]


def test_the_second_batch_is_on_its_way_before_the_first_is_handed_out(machine: Machine) -> None:
    engine = machine.open()
    asked: list[int] = []

    def batches() -> Iterator[Any]:
        for turn in range(4):
            asked.append(turn)
            yield rows(8, turn)

    seen = []
    for turn, images in enumerate(engine.run_ahead(batches())):
        seen.append(len(asked))
        np.testing.assert_array_equal(images, expected(machine.bundle, *rows(8, turn)))
    assert seen == [3, 4, 4, 4]


def test_an_abandoned_iterator_gives_its_slots_back(machine: Machine) -> None:
    engine = machine.open()
    ahead = engine.run_ahead(rows(8, turn) for turn in range(4))
    next(ahead)
    ahead.close()
    machine.gpu.calls.clear()
    latents, labels = rows(40, 9)
    np.testing.assert_array_equal(engine.run(latents, labels), expected(machine.bundle, latents, labels))
    assert not [call for call in machine.gpu.calls if call.startswith("allocate")]


@pytest.mark.parametrize("others_first", [False, True])
def test_two_iterators_at_once_do_not_mix(machine: Machine, others_first: bool) -> None:
    machine.gpu.others_first = others_first
    engine = machine.open()
    one = engine.run_ahead(rows(8, turn) for turn in range(5))
    two = engine.run_ahead(rows(5, 100 + turn) for turn in range(5))
    for turn, (left, right) in enumerate(zip(one, two, strict=True)):
        np.testing.assert_array_equal(left, expected(machine.bundle, *rows(8, turn)))
        np.testing.assert_array_equal(right, expected(machine.bundle, *rows(5, 100 + turn)))


def test_runs_from_several_threads(machine: Machine) -> None:
    engine = machine.open()
    wrong: list[str] = []

    def work(seed: int) -> None:
        latents, labels = rows(20, seed)
        if not np.array_equal(engine.run(latents, labels), expected(machine.bundle, latents, labels)):
            wrong.append(f"seed {seed}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_graph_is_captured_once_and_replayed(machine: Machine) -> None:
    engine = machine.open()
    context = machine.modules["trt"].contexts[0]
    assert context.executed == 1  # the warm-up; all later batches replay the graph
    engine.run(*rows(40))
    assert context.executed == 1


def test_a_plan_that_cannot_be_captured_is_launched_every_time(machine: Machine) -> None:
    machine.modules["trt"].capturable = False
    engine = machine.open()
    latents, labels = rows(20)
    np.testing.assert_array_equal(engine.run(latents, labels), expected(machine.bundle, latents, labels))
    assert machine.modules["trt"].contexts[0].executed == 4


def test_padding_does_not_reach_the_images(machine: Machine) -> None:
    engine = machine.open()
    latents, labels = rows(8)
    full = engine.run(latents, labels)
    np.testing.assert_array_equal(engine.run(latents[:3], labels[:3]), full[:3])


def test_another_batch_than_the_optimum(machine: Machine) -> None:
    engine = machine.open(batch=16)
    assert engine.batch == 16
    latents, labels = rows(20)
    np.testing.assert_array_equal(engine.run(latents, labels), expected(machine.bundle, latents, labels))
    with pytest.raises(BadValueError) as refused:
        machine.open(batch=17)
    assert str(refused.value) == "The engine generator.fp32.trt.sm89.engine takes 1 to 16 images per call, not 17."


def test_rows_that_do_not_fit(machine: Machine) -> None:
    engine = machine.open()
    latents, labels = rows(8)
    with pytest.raises(BadValueError, match="up to 8 rows of 16 latents"):
        engine.run(latents[:, :4], labels)
    with pytest.raises(BadValueError, match="9 labels were given"):
        next(engine.run_ahead([rows(9)]))


@pytest.mark.parametrize("scratch", [64, 40_000])
def test_a_full_gpu_halves_the_batch_at_the_start(machine: Machine, scratch: int) -> None:
    machine.modules["trt"].scratch_per_image = scratch
    needed_for_4 = 4 * (16 * 4 + 8 + 3 * 64 + scratch)
    machine.gpu.capacity_bytes = needed_for_4 + 100
    engine = machine.open()
    assert engine.batch == 4
    assert machine.said == ["The GPU has no room for a batch of 8: going on with 4."]
    latents, labels = rows(11)
    np.testing.assert_array_equal(engine.run(latents, labels), expected(machine.bundle, latents, labels))
    engine.close()
    assert machine.gpu.buffers == {}


def test_a_batch_that_was_asked_for_is_never_halved(machine: Machine) -> None:
    machine.gpu.capacity_bytes = 1000
    with pytest.raises(DeviceError) as refused:
        machine.open(batch=8)
    assert str(refused.value).startswith(
        "The GPU has no room for a batch of 8: close other programs on it, or use --device cpu (There are not "
    )
    assert machine.said == []
    assert machine.gpu.buffers == {}


def test_a_gpu_without_room_for_one_image(machine: Machine) -> None:
    machine.gpu.capacity_bytes = 10
    with pytest.raises(DeviceError, match="no room for a batch of 1:"):
        machine.open()
    assert len(machine.said) == 3


def test_memory_that_the_library_lacks_halves_too(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fake_trt.FakeContext.execute_async_v3

    def refuse_large(self: fake_trt.FakeContext, stream_handle: int) -> bool:
        if self.shapes["labels"][0] > 2:
            library = trt_library.load_library("trt")
            library.logger.log("Severity.ERROR", "Requested amount of GPU memory could not be allocated: OutOfMemory")
            return False
        return real(self, stream_handle)

    monkeypatch.setattr(fake_trt.FakeContext, "execute_async_v3", refuse_large)
    assert machine.open().batch == 2


def test_a_plan_that_does_not_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_trt.FakeContext, "execute_async_v3", lambda self, stream_handle: False)
    with pytest.raises(EngineError, match="tensorrt cannot run the engine: TensorRT gives no reason"):
        machine.open()


def test_rtx_replays_its_launches_itself_and_goes_on_where_it_cannot(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.open("rtx")
    assert [context.graphs for context in machine.modules["rtx"].contexts] == ["WHOLE_GRAPH_CAPTURE"]
    real = fake_trt.FakeContext.execute_async_v3
    monkeypatch.setattr(
        fake_trt.FakeContext,
        "execute_async_v3",
        lambda self, stream_handle: self.graphs == "DISABLED" and real(self, stream_handle),
    )
    engine = machine.open("rtx")
    assert machine.said == [
        "tensorrt-rtx does not start with CUDA graphs and goes on without: tensorrt-rtx cannot run the engine: "
        "TensorRT for RTX gives no reason"
    ]
    latents, labels = rows(20)
    np.testing.assert_array_equal(engine.run(latents, labels), expected(machine.bundle, latents, labels))


def test_a_closed_engine_says_so(machine: Machine) -> None:
    engine = machine.open()
    ahead = engine.run_ahead(rows(8, turn) for turn in range(3))
    next(ahead)
    engine.close()
    for call in (lambda: engine.run(*rows(1)), lambda: engine.run_dlpack(*rows(1)), lambda: next(ahead)):
        with pytest.raises(EngineError, match="The engine was closed; open the bundle again"):
            call()


def test_dlpack_orders_the_consumers_stream_and_frees_on_it(machine: Machine) -> None:
    engine = machine.open()
    latents, labels = rows(5)
    machine.gpu.calls.clear()
    images = engine.run_dlpack(latents, labels)
    assert not [call for call in machine.gpu.calls if "sync" in call], "the host waited"
    assert images.shape == (5, 8, 8, 1) and len(images) == 5 and images.__dlpack_device__() == (2, 0)
    capsule = images.__dlpack__(stream=77)
    consumer = machine.gpu.streams[77]
    assert "foreign 77: wait" in machine.gpu.calls
    assert images._buffer.deallocation_stream is consumer
    assert "dltensor" in repr(capsule)
    consumer.sync()  # what a kernel of the consumer sees: all work it waits for is done
    np.testing.assert_array_equal(images._view.array, expected(machine.bundle, latents, labels))


@pytest.mark.parametrize(
    ("stream", "waits"), [(None, "legacy: wait"), (1, "legacy: wait"), (2, "per-thread: wait"), (-1, None)]
)
def test_dlpack_stream_numbers(machine: Machine, stream: int | None, waits: str | None) -> None:
    images = machine.open().run_dlpack(*rows(2))
    machine.gpu.calls.clear()
    images.__dlpack__(stream=stream, max_version=(1, 0))
    assert machine.gpu.calls == ([waits] if waits else [])
    with pytest.raises(BadValueError, match="The DLPack stream 0 is not a CUDA stream"):
        images.__dlpack__(stream=0)


@pytest.mark.parametrize("count", [0, 8, 9, 30])
def test_dlpack_of_any_number_of_images(machine: Machine, count: int) -> None:
    engine = machine.open()
    latents, labels = rows(count)
    images = engine.run_dlpack(latents, labels)
    images.__dlpack__(stream=9)
    machine.gpu.streams[9].sync()
    assert images._view.array.shape == (count, 8, 8, 1)
    if count:
        np.testing.assert_array_equal(images._view.array, expected(machine.bundle, latents, labels))


def test_dlpack_images_have_memory_of_their_own(machine: Machine) -> None:
    engine = machine.open()
    first = engine.run_dlpack(*rows(8, 1))
    kept = [engine.run_dlpack(*rows(8, turn)) for turn in range(2, 6)]
    for turn, images in enumerate([first, *kept], start=1):
        images.__dlpack__(stream=50)
        machine.gpu.streams[50].sync()
        np.testing.assert_array_equal(images._view.array, expected(machine.bundle, *rows(8, turn)))


def test_the_runtime_cache_is_kept_beside_the_engine(machine: Machine, tmp_path: Path) -> None:
    FakeRuntimeCache.loaded.clear()
    machine.open("rtx").close()
    kept = list((tmp_path / "cache" / "rtx-runtime").iterdir())
    assert [path.read_bytes() for path in kept] == [b"compiled kernels"]
    machine.open("rtx").close()
    assert FakeRuntimeCache.loaded == [b"compiled kernels"]
    kept[0].write_bytes(b"of another driver")
    machine.open("rtx").close()
    assert kept[0].read_bytes() == b"compiled kernels"


def test_an_engine_for_another_gpu(machine: Machine) -> None:
    library, plan, sidecar = machine.build()
    other = find_driver(fake_driver(name="NVIDIA T4", capability=(7, 5)))
    with pytest.raises(EngineError) as refused:
        TrtEngine(library, plan, sidecar, machine.manifest, driver=other)
    assert str(refused.value) == (
        "The engine generator.fp32.trt.sm89.engine cannot run here: it was built for NVIDIA Fake 4090 (compute "
        "capability 8.9) and this GPU is NVIDIA T4 (compute capability 7.5)."
    )


def test_an_engine_of_another_tensorrt(machine: Machine) -> None:
    library, plan, sidecar = machine.build()
    newer = replace(library, version="10.14.1.48")
    with pytest.raises(EngineError, match="it was built by TensorRT 10.9.0.34 and 10.14.1.48 is installed"):
        TrtEngine(newer, plan, sidecar, machine.manifest, driver=DRIVER)


def test_a_version_compatible_plan_may_run_the_runtime_inside_it(machine: Machine) -> None:
    library, plan, sidecar = machine.build()
    machine.modules["trt"].__version__ = "10.14.1.48"
    engine = TrtEngine(
        replace(library, version="10.14.1.48"),
        plan,
        replace(sidecar, version_compatible=True),
        machine.manifest,
        driver=DRIVER,
    )
    assert engine.batch == 8


def test_a_plan_that_tensorrt_cannot_read(machine: Machine) -> None:
    library, plan, sidecar = machine.build()
    with pytest.raises(EngineError) as refused:
        TrtEngine(library, b"\x00" + plan, sidecar, machine.manifest, driver=DRIVER)
    assert str(refused.value) == (
        "TensorRT 10.9.0.34 cannot load generator.fp32.trt.sm89.engine: Magic tag does not match"
    )


@pytest.mark.parametrize(
    ("bits", "told"),
    [
        (1, "another version of the library built it"),
        (2, "it was not built for this GPU"),
        (5, "another version of the library built it and the NVIDIA driver is too old"),
        (0, "it gives no reason"),
    ],
)
def test_the_verdict_of_tensorrt_for_rtx_is_told(machine: Machine, bits: int, told: str) -> None:
    machine.modules["rtx"].validity = ("INVALID", bits)
    with pytest.raises(EngineError) as refused:
        machine.open("rtx")
    assert str(refused.value) == f"TensorRT for RTX refuses the engine generator.fp32.rtx.sm80plus.engine: {told}."


def test_a_plan_that_is_suboptimal_runs(machine: Machine) -> None:
    machine.modules["rtx"].validity = ("SUBOPTIMAL", 0)
    assert machine.open("rtx").batch == 8


def test_an_engine_of_another_bundle(machine: Machine) -> None:
    library, plan, sidecar = machine.build()
    other = replace_size(machine.manifest)
    with pytest.raises(EngineError, match=r"generator.fp32.trt.sm89.engine is not of this bundle: it has images"):
        TrtEngine(library, plan, sidecar, other, driver=DRIVER)


def replace_size(manifest: Any) -> Any:
    class Wider:
        height, width, channels, latent_dim = manifest.height, manifest.width * 2, 1, manifest.latent_dim

    return Wider()


def test_a_sidecar_that_promises_other_batches(machine: Machine) -> None:
    library, plan, sidecar = machine.build()
    with pytest.raises(EngineError, match=r"says batches of \(1, 8, 99\) and the engine takes \(1, 8, 16\)"):
        TrtEngine(library, plan, replace(sidecar, batch=(1, 8, 99)), machine.manifest, driver=DRIVER)


def test_no_gpu_and_an_old_driver(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    library, plan, sidecar = machine.build()
    with pytest.raises(DeviceError, match="A GPU is needed to run TensorRT engines and no NVIDIA driver is installed"):
        TrtEngine(library, plan, sidecar, machine.manifest, driver=find_driver(fake_driver(missing=True)))
    monkeypatch.setattr(trt_library, "find_cuda_major", lambda format: 13)
    old = find_driver(fake_driver(cuda=(12, 4), version="550.54.14"))
    with pytest.raises(DeviceError, match=r"cannot run here: driver 550.54.14 runs CUDA up to 12.4"):
        TrtEngine(library, plan, sidecar, machine.manifest, driver=old)


def test_without_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(MissingExtraError, match="'cuda-core' is not installed"):
        cuda_memory.import_cuda_core("rtx")


SAME_AS_REAL: dict[type, tuple[str, str, list[Any]]] = {
    fake_gpu.FakeDevice: ("cuda.core", "Device", ["set_current", "create_stream", "create_event", "allocate"]),
    fake_gpu.FakePinnedResource: ("cuda.core", "LegacyPinnedMemoryResource", ["allocate"]),
    fake_gpu.FakeBuffer: ("cuda.core", "Buffer", ["copy_to", "set_deallocation_stream", "close"]),
    FakeGpu: ("cuda.core", "Buffer", [("part_of", "from_handle")]),
    fake_gpu.FakeEvent: ("cuda.core", "Event", ["sync"]),
    fake_gpu.FakeStream: ("cuda.core", "Stream", ["record", "wait", "sync", "close", "create_graph_builder"]),
    fake_gpu.FakeGraphBuilder: (
        "cuda.core.graph",
        "GraphBuilder",
        ["begin_building", "end_building", "complete", "close"],
    ),
    fake_gpu.FakeGraph: ("cuda.core.graph", "Graph", ["launch", "close"]),
    fake_gpu.FakeView: ("cuda.core.utils", "StridedMemoryView", ["from_buffer", "__dlpack__"]),
}


@pytest.mark.parametrize("fake", SAME_AS_REAL, ids=lambda fake: str(fake.__name__))
def test_the_fake_cuda_core_has_the_real_signatures(fake: type) -> None:
    module, name, methods = SAME_AS_REAL[fake]
    real = getattr(pytest.importorskip(module), name)
    for pair in methods:
        mine_name, method = pair if isinstance(pair, tuple) else (pair, pair)
        theirs, ours = inspect.signature(getattr(real, method)), inspect.signature(getattr(fake, mine_name))
        without_self = [each for each in theirs.parameters.values() if each.name not in ("self", "cls")]
        mine = [each for each in ours.parameters.values() if each.name not in ("self", "cls")]
        assert [(each.name, each.kind) for each in mine] == [(each.name, each.kind) for each in without_self], method


def test_the_fake_tensorrt_has_only_real_names() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    for fake, name in (
        (fake_trt.FakeContext, "IExecutionContext"),
        (fake_trt.FakePlan, "ICudaEngine"),
        (fake_trt.FakeRuntime, "Runtime"),
        (fake_trt.FakeRuntimeConfig, "IRuntimeConfig"),
        (fake_trt.FakeConfig, "IBuilderConfig"),
        (fake_trt.FakeBuilder, "Builder"),
    ):
        mine = {each for each in vars(fake) if not each.startswith("_")}
        inner = {"compute", "at", "strategy", "runtime_cache"}
        assert mine - inner <= set(dir(getattr(real, name))), name
    module = FakeTrt(FakeGpu(), "rtx")
    for name, value in vars(module).items():
        if isinstance(value, fake_gpu.FakeEnum):
            theirs = getattr(real, name).__members__
            assert set(value.__members__) - {"EXPLICIT_BATCH"} <= set(theirs), name
