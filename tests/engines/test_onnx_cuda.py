"""ONNX Runtime on CUDA: a CPU session dressed up as a CUDA one shows what is bound, padded, placed and refused."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_gpu import fake_driver
from numpy.typing import NDArray

from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.choose_engine import open_engine
from dim.runtime.engines import onnx_cuda as engine_cuda
from dim.runtime.engines.base import Engine, EngineOptions
from dim.runtime.engines.onnx_cuda import CudaEngine
from dim.runtime.errors import BadValueError, DeviceError, EngineError
from dim.runtime.gpu.driver import Driver, find_driver

DRIVER = find_driver(fake_driver())
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@dataclass(frozen=True)
class Opened:
    path: Path
    manifest: Manifest


class CpuBinding:
    """An IO binding that takes CUDA memory and uses the CPU's."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.rows: dict[str, int] = {}

    def bind_cpu_input(self, name: str, array: NDArray[Any]) -> None:
        self.rows[name] = len(array)
        self.real.bind_cpu_input(name, array)

    def bind_output(self, name: str, device: str, index: int, dtype: Any, shape: Any, pointer: int) -> None:
        assert device in ("cpu", "cuda") and index == 0 and dtype is np.uint8
        self.real.bind_output(name, "cpu", 0, dtype, shape, pointer)


class FakeCuda:
    """The module `onnxruntime` of a CUDA wheel, running on the CPU."""

    __version__ = "1.99.0"
    cuda_version = "12.8"
    SessionOptions = onnxruntime.SessionOptions

    def __init__(self) -> None:
        self.available = [CUDA, CPU]
        self.takes = CUDA
        self.cpu_nodes: list[str] = []
        self.open_error: str | None = None
        self.room_for = 10_000
        self.options: Any = None
        self.providers: Any = None
        self.batches: list[int] = []
        self.preloaded = 0
        self.levels: list[int] = []
        self.__file__ = "/nowhere/onnxruntime/__init__.py"
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self._device_value)

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        print("Failed to load libcublas.so.12")
        self.preloaded += 1

    def set_default_logger_severity(self, level: int) -> None:
        self.levels.append(level)

    def _device_value(self, shape: Any, dtype: Any, device: str, index: int) -> Any:
        assert device == "cuda" and index == 0
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cpu", 0)

    def InferenceSession(self, model: bytes, options: Any, providers: Any, enable_fallback: int) -> Any:
        assert not enable_fallback
        assert self.preloaded, "the CUDA libraries come first"
        self.options, self.providers = options, providers
        if self.open_error:
            raise RuntimeError(self.open_error)
        real = onnxruntime.InferenceSession(model, providers=[CPU])
        nodes = [SimpleNamespace(op_type=name) for name in ("Gather", "Conv", "Cast")]
        placed = [SimpleNamespace(ep_name=CUDA, get_nodes=lambda: nodes)]
        if self.cpu_nodes:
            on_cpu = [SimpleNamespace(op_type=name) for name in self.cpu_nodes]
            placed.append(SimpleNamespace(ep_name=CPU, get_nodes=lambda: on_cpu))

        def run_with_iobinding(binding: Any) -> None:
            rows = binding.rows["labels"]
            self.batches.append(rows)
            assert binding.rows["latents"] == rows
            if rows > self.room_for:
                raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer")
            real.run_with_iobinding(binding.real)

        return SimpleNamespace(
            get_providers=lambda: [self.takes, CPU],
            disable_fallback=lambda: None,
            io_binding=lambda: CpuBinding(real.io_binding()),
            run_with_iobinding=run_with_iobinding,
            get_provider_graph_assignment_info=lambda: placed,
        )


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(engine_cuda, "import_onnxruntime", lambda extra: fake)
    return fake


@pytest.fixture
def bundle(tiny_bundle: Path) -> Opened:
    return Opened(tiny_bundle, load_manifest(tiny_bundle))


def opened(bundle: Opened, **options: Any) -> Engine:
    others = {name: options.pop(name) for name in ("batch", "driver", "say") if name in options}
    wanted = EngineOptions(**{"engine": "onnxruntime-cuda", **options})
    return open_engine(bundle.path, bundle.manifest, wanted, **{"driver": DRIVER, **others})


def rows(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((count, 16)).astype(np.float32), rng.integers(0, 3, count)


def expected(bundle: Opened, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    return open_engine(bundle.path, bundle.manifest, EngineOptions(engine="onnxruntime-cpu")).run(latents, labels)


@pytest.mark.parametrize("count", [0, 1, 8, 21])
def test_images_are_those_of_the_onnx_file(bundle: Opened, cuda: FakeCuda, count: int) -> None:
    engine = opened(bundle, batch=8)
    latents, labels = rows(count)
    images = engine.run(latents, labels)
    assert images.shape == (count, 8, 8, 1) and images.dtype == np.uint8
    if count:
        np.testing.assert_array_equal(images, expected(bundle, latents, labels))
    assert set(cuda.batches) == {8}, "a batch was not padded"


def test_what_it_says_of_itself_and_asks_of_the_library(bundle: Opened, cuda: FakeCuda) -> None:
    said: list[str] = []
    engine = opened(bundle, say=said.append, precision="fp16")
    assert (engine.name, engine.device, engine.precision, engine.batch) == ("onnxruntime-cuda", "gpu", "fp16", 256)
    assert engine.version == "onnxruntime 1.99.0"
    assert said == ["Engine: onnxruntime-cuda on the gpu, fp16, batch 256, as asked."]
    assert cuda.providers == [(CUDA, {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"})]
    entries = ("session.disable_cpu_ep_fallback", "session.record_ep_graph_assignment_info")
    assert [cuda.options.get_session_config_entry(entry) for entry in entries] == ["1", "1"]
    assert cuda.options.use_deterministic_compute


def test_images_stay_on_the_gpu_for_dlpack(bundle: Opened, cuda: FakeCuda) -> None:
    engine = opened(bundle, batch=8)
    latents, labels = rows(5)
    first = engine.run_dlpack(latents, labels)  # type: ignore[attr-defined]
    second = engine.run_dlpack(latents[::-1].copy(), labels[::-1].copy())  # type: ignore[attr-defined]
    many = engine.run_dlpack(*rows(21))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.from_dlpack(many), expected(bundle, *rows(21)))
    assert np.from_dlpack(engine.run_dlpack(*rows(0))).shape == (0, 8, 8, 1)  # type: ignore[attr-defined]
    assert first.shape == (5, 8, 8, 1) and len(first) == 5
    np.testing.assert_array_equal(np.from_dlpack(first), expected(bundle, latents, labels))
    np.testing.assert_array_equal(np.from_dlpack(second), np.from_dlpack(first)[::-1])
    with pytest.raises(BadValueError, match="up to 8 rows of 16 latents"):
        engine.run(latents[:, :3], labels)
    np.testing.assert_array_equal(engine.run(latents, labels), expected(bundle, latents, labels))


def test_a_version_that_knows_no_dlpack(bundle: Opened, cuda: FakeCuda) -> None:
    engine = opened(bundle, batch=8)
    cuda.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=lambda *args: object())
    with pytest.raises(EngineError, match="onnxruntime 1.99.0 cannot hand images on by DLPack: run  pip install"):
        engine.run_dlpack(*rows(1))  # type: ignore[attr-defined]


def test_a_full_gpu_halves_the_batch_at_the_start(bundle: Opened, cuda: FakeCuda) -> None:
    cuda.room_for = 100
    said: list[str] = []
    engine = opened(bundle, say=said.append)
    assert engine.batch == 64
    assert said[:2] == [
        "The GPU has no room for a batch of 256: going on with 128.",
        "The GPU has no room for a batch of 128: going on with 64.",
    ]
    with pytest.raises(DeviceError, match="no room for a batch of 128: close other programs on it"):
        opened(bundle, batch=128)


def broken(**changes: Any) -> Callable[[FakeCuda], None]:
    def change(fake: FakeCuda) -> None:
        for name, value in changes.items():
            setattr(fake, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            broken(available=[CPU]),
            "The onnxruntime that is installed has no CUDA provider: run  pip uninstall onnxruntime  and then  "
            "pip install 'dim-distill[gpu]'",
        ),
        (broken(takes=CPU), f"ONNX Runtime took {CPU} although {CUDA} was asked for: run  dim doctor"),
        (
            broken(cpu_nodes=["Resize", "Gather"]),
            "ONNX Runtime put 2 of 5 nodes on the CPU (Gather, Resize), so this is no GPU engine: run  dim doctor",
        ),
        (
            broken(open_error="CUDNN_STATUS_NOT_INITIALIZED\nmore"),
            "ONNX Runtime cannot use CUDA here: CUDNN_STATUS_NOT_INITIALIZED; run  dim doctor",
        ),
        (
            broken(cuda_version="13.0", driver=True),
            "ONNX Runtime cannot use CUDA here: driver 550.54.14 runs CUDA up to 12.4, CUDA 13 needs driver 580.65.06 "
            "or newer; update the NVIDIA driver.",
        ),
    ],
)
def test_nothing_falls_back_in_silence(
    bundle: Opened, cuda: FakeCuda, change: Callable[[FakeCuda], None], message: str
) -> None:
    change(cuda)
    old: Driver = replace(DRIVER, cuda=(12, 4), version="550.54.14")
    with pytest.raises(DeviceError) as refused:
        opened(bundle, driver=old)
    assert str(refused.value) == message


def test_a_missing_cuda_library_is_named(
    bundle: Opened,
    cuda: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cuda.open_error = "This session contains graph nodes that are assigned to the default CPU EP"

    library = tmp_path / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir(parents=True)
    library.touch()
    cuda.__file__ = str(tmp_path / "onnxruntime" / "__init__.py")

    def fail(path: str) -> Any:
        assert path == str(library)
        raise OSError("libcublasLt.so.13: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(engine_cuda.ctypes, "CDLL", fail)
    with pytest.raises(DeviceError) as refused:
        opened(bundle)
    assert str(refused.value) == (
        "ONNX Runtime cannot use CUDA here, because libcublasLt.so.13 is not found: run  pip install 'dim-distill[gpu]'"
    )
    assert capsys.readouterr().out == "" and cuda.levels == [4, 2]


def test_no_driver_is_said_before_anything_is_opened(bundle: Opened, cuda: FakeCuda) -> None:
    with pytest.raises(DeviceError, match="A GPU is needed to run ONNX Runtime on CUDA and no NVIDIA driver"):
        opened(bundle, driver=find_driver(fake_driver(missing=True)))
    assert cuda.providers is None


def test_a_closed_engine_says_so(bundle: Opened, cuda: FakeCuda) -> None:
    engine = opened(bundle, batch=4)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="The engine was closed; open the bundle again"):
        engine.run(*rows(1))


def test_a_session_of_an_older_version_is_not_asked_for_placement(bundle: Opened) -> None:
    engine_cuda.check_placement(object())
    with pytest.raises(DeviceError, match="nothing was placed"):
        engine_cuda.check_placement(SimpleNamespace(get_provider_graph_assignment_info=list))


def test_the_real_session_has_what_is_asked_of_it(tiny_bundle: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    model = (tiny_bundle / "generator.fp32.onnx").read_bytes()
    session = onnxruntime.InferenceSession(model, options, providers=[CPU])
    with pytest.raises(DeviceError, match=r"ONNX Runtime put (\d+) of \1 nodes on the CPU \(Add, "):
        engine_cuda.check_placement(session)
    assert isinstance(CudaEngine, type)
