"""The doctor tries every engine on a tiny bundle with a known answer, and names the line that fixes what fails."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, fake_driver
from fake_trt import FakeContext, FakeTrt

from dim.runtime import cores
from dim.runtime.choose_engine import open_engine
from dim.runtime.engines.base import EngineOptions
from dim.runtime.gpu.driver import find_driver
from dim.runtime.inspection import doctor as doctor_module
from dim.runtime.inspection import self_test as selftest
from dim.runtime.inspection.doctor import DoctorReport, EngineState, _choose_command, examine_machine
from dim.runtime.trt import engine as engine_trt
from dim.runtime.trt import library as trt_library
from dim.runtime.trt import open as trt_open
from dim.runtime.trt.build import build_engines

ADA = find_driver(fake_driver())
NONE = find_driver(fake_driver(missing=True))
NOTHING: dict[str, str | None] = dict.fromkeys(doctor_module.PACKAGES)


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trt_open, "DEFAULT_BATCH", (1, 4, 8))
    yield monkeypatch
    trt_library.load_library.cache_clear()


def install(patch: pytest.MonkeyPatch, packages: dict[str, str], wheels: list[str] | None = None) -> None:
    """Pretend that these packages, and no others of the doctor's list, are installed."""
    patch.setattr(doctor_module, "_version", lambda name: packages.get(name))
    patch.setattr(doctor_module, "list_onnxruntime_wheels", lambda: wheels or [])
    for module, package in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")):
        if package not in packages:
            patch.setitem(sys.modules, module, None)
    trt_library.load_library.cache_clear()


def state(report: DoctorReport, engine: str) -> EngineState:
    return next(each for each in report.engines if each.engine == engine)


def test_the_known_answer_is_right() -> None:
    """The self test's network in NumPy: embedding, nearest resize, two convolutions, tanh, uint8."""
    embedding = np.array([[1, 0, -1, 0.5], [-0.5, 1, 0, -1]], np.float32)
    kernels = ((np.arange(18).reshape(2, 3, 3) - 8) / 16).astype(np.float32)
    small = (selftest.LATENTS + embedding[selftest.LABELS]).reshape(2, 2, 2)
    padded = np.pad(small.repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    hidden = np.maximum(np.einsum("nhwij,kij->nkhw", windows, kernels), 0)
    images = np.round(np.tanh(hidden[:, 0] - hidden[:, 1] / 2) * 127.5 + 127.5).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(images[..., None], selftest.read_expected_images())


def test_the_self_test_is_a_bundle_that_any_engine_takes() -> None:
    pytest.importorskip("tensorrt_rtx")
    with selftest.SelfTest() as test:
        assert test.run("onnxruntime-cpu", NONE).startswith("onnxruntime ")
        engine = open_engine(test.path, test.manifest, EngineOptions(engine="onnxruntime-cpu"))
        np.testing.assert_array_equal(engine.run(selftest.LATENTS, selftest.LABELS), selftest.read_expected_images())
        assert build_engines(test.path, format="rtx", into="cache", batch=(1, 2, 4))
        path = test.path
    assert not path.exists()


def test_this_machine(patch: pytest.MonkeyPatch) -> None:
    report = examine_machine()
    cpu = state(report, "onnxruntime-cpu")
    assert cpu.works and cpu.fix is None and cpu.reason.startswith("onnxruntime ")
    assert report.recommended is not None
    assert json.loads(json.dumps(report.to_dict()))["engines"][-1]["engine"] == "openvino-cpu"
    assert all(each.works or each.fix for each in report.engines)


@pytest.mark.parametrize(
    ("works", "hardware", "flags", "command"),
    [
        ((), False, "", "fix onnxruntime-cpu"),
        (("onnxruntime-cpu",), False, "avx512f", "dim generate --ipc 50 --out data/"),
        (("onnxruntime-cpu",), False, "avx512_bf16", "fix openvino-cpu"),
        (("onnxruntime-cpu", "openvino-cpu"), False, "amx_bf16", "dim generate --precision bf16 --ipc 50 --out data/"),
        (("onnxruntime-cpu",), True, "avx512_bf16", "fix tensorrt"),
        (("onnxruntime-cpu", "tensorrt"), True, "", "dim generate --device gpu --ipc 50 --out data/"),
    ],
)
def test_the_one_line_worth_typing(
    patch: pytest.MonkeyPatch, works: tuple[str, ...], hardware: bool, flags: str, command: str
) -> None:
    patch.setattr("dim.runtime.inspection.doctor.has_nvidia_hardware", lambda: hardware)
    patch.setattr("dim.runtime.inspection.doctor.find_bf16_instructions", lambda: "bf16" in flags or None)
    states = tuple(
        EngineState(engine=name, works=name in works, found={}, needed={}, reason="", fix=f"fix {name}")
        for name in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu", "openvino-cpu")
    )
    assert _choose_command(states) == command


def test_without_a_driver(patch: pytest.MonkeyPatch) -> None:
    install(patch, {"onnxruntime": "1.32.0", "onnx": "1.23.2"}, ["onnxruntime"])
    report = examine_machine(NONE)
    assert report.recommended == "onnxruntime-cpu" and report.problems == ()
    trt = state(report, "tensorrt")
    assert (trt.works, trt.reason) == (False, "no NVIDIA driver is installed (libcuda.so.1 not found)")
    assert trt.fix == (
        "install an NVIDIA driver, 525.60.13 or newer, and check it with  nvidia-smi, then  "
        "pip install 'dim-distill[trt]'"
    )
    assert state(report, "onnxruntime-cuda").fix == (
        "install an NVIDIA driver, 525.60.13 or newer, and check it with  nvidia-smi, then  "
        "pip uninstall -y onnxruntime && pip install 'dim-distill[gpu]'"
    )
    assert trt.found == {
        "driver": None,
        "cuda of the driver": None,
        "gpu": None,
        "tensorrt": None,
        "cuda-core": None,
        "cuda-bindings": None,
        "onnx": "1.23.2",
    }
    assert trt.found.keys() == trt.needed.keys()


def test_rtx_without_a_driver_still_builds(patch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    rtx = state(examine_machine(NONE), "tensorrt-rtx")
    assert rtx.reason.startswith("it builds engines here and cannot run them, because no NVIDIA driver is installed")
    assert rtx.needed["driver"] == "580.65.06 or newer"


@pytest.mark.parametrize("format", ["trt", "rtx"])
def test_an_engine_that_works_was_run(patch: pytest.MonkeyPatch, format: str) -> None:
    gpu = FakeGpu()
    module, version = {"trt": ("tensorrt", "10.9.0.34"), "rtx": ("tensorrt_rtx", "1.7.1.116")}[format]
    name = module.replace("_", "-")
    install(patch, {"onnxruntime": "1.32.0", "onnx": "1.23.2", name: version, "cuda-core": "1.2.2"}, ["onnxruntime"])
    patch.setitem(sys.modules, module, FakeTrt(gpu, format, version))
    patch.setattr(engine_trt, "import_cuda_core", lambda extra: gpu.core)
    patch.setattr(trt_library, "find_cuda_major", lambda format: 12)
    report = examine_machine(ADA)
    works = state(report, name)
    assert works.works and works.fix is None and works.reason.startswith(f"{name} {version} plan ")
    assert report.recommended == name
    assert report.problems == (
        (
            "there is a GPU, and the ONNX Runtime that is installed has no CUDAExecutionProvider",
            "pip uninstall -y onnxruntime && pip install 'dim-distill[gpu]'",
        ),
    )


def test_an_engine_that_draws_wrong_images_does_not_work(patch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    install(patch, {"tensorrt": "10.9.0.34", "cuda-core": "1.2.2", "cuda-bindings": "13.0.0", "onnx": "1.23.2"})
    patch.setitem(sys.modules, "tensorrt", FakeTrt(gpu))
    patch.setattr(engine_trt, "import_cuda_core", lambda extra: gpu.core)
    real = FakeContext.compute

    def wrong(self: FakeContext) -> None:
        real(self)
        self.at("images", np.uint8)[...] //= 2

    patch.setattr(FakeContext, "compute", wrong)
    trt = state(examine_machine(ADA), "tensorrt")
    assert not trt.works and "was built and is not published" in trt.reason
    assert trt.fix == "pip install --force-reinstall tensorrt cuda-core cuda-bindings onnx"


def test_a_driver_that_is_too_old(patch: pytest.MonkeyPatch) -> None:
    install(patch, {"tensorrt": "10.9.0.34", "cuda-core": "1.2.2", "cuda-bindings": "13.0.0", "onnx": "1.23.2"})
    patch.setitem(sys.modules, "tensorrt", FakeTrt(FakeGpu()))
    for module in (doctor_module, trt_library):
        patch.setattr(module, "find_cuda_major", lambda format: 13)
    trt = state(examine_machine(replace(ADA, cuda=(12, 4), version="550.54.14")), "tensorrt")
    assert "driver 550.54.14 runs CUDA up to 12.4, CUDA 13 needs driver 580.65.06 or newer" in trt.reason
    assert trt.fix == "update the NVIDIA driver to 580.65.06 or newer"
    assert trt.found["cuda of the driver"] == "12.4" and trt.needed["cuda of the driver"] == "13.0 or newer"


def test_the_placeholder_of_tensorrt(patch: pytest.MonkeyPatch) -> None:
    install(patch, {"tensorrt": "10.9.0.34", "cuda-core": "1.2.2", "cuda-bindings": "13.0.0", "onnx": "1.23.2"})
    patch.setitem(sys.modules, "tensorrt", None)
    trt = state(examine_machine(ADA), "tensorrt")
    assert trt.fix == (
        "pip install --force-reinstall tensorrt cuda-core cuda-bindings onnx  (its libraries come from NVIDIA's "
        "own index: docs/install.md)"
    )


def test_both_wheels_of_onnxruntime(patch: pytest.MonkeyPatch) -> None:
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1", "onnx": "1.23.2"}
    install(patch, both, ["onnxruntime", "onnxruntime-gpu"])
    report = examine_machine(ADA)
    assert report.problems == (
        (
            "onnxruntime and onnxruntime-gpu are both installed and both own the module onnxruntime: whichever came "
            "last overwrote the other",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'dim-distill[gpu]'",
        ),
    )
    cuda = state(report, "onnxruntime-cuda")
    assert cuda.found["onnxruntime-gpu"] == "1.31.1" and cuda.needed["cudnn"].startswith("9")
    assert cuda.fix == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'dim-distill[gpu]'"
    assert examine_machine(NONE).problems[0][1].endswith("pip install 'dim-distill[cpu]'")


def test_a_library_that_breaks_in_its_own_way_is_a_row(patch: pytest.MonkeyPatch) -> None:
    def burst(*args: Any, **options: Any) -> Any:
        raise ValueError("numpy.core.multiarray\nfailed to import")

    patch.setattr(selftest, "open_engine", burst)
    cpu = state(examine_machine(NONE), "onnxruntime-cpu")
    assert (cpu.works, cpu.reason) == (False, "ValueError: numpy.core.multiarray failed to import")
    assert cpu.fix == "pip install --force-reinstall onnxruntime onnx"


def test_nothing_at_all_is_installed(patch: pytest.MonkeyPatch) -> None:
    install(patch, {})
    patch.setitem(sys.modules, "onnxruntime", None)
    patch.setitem(sys.modules, "openvino", None)
    report = examine_machine(NONE)
    assert report.recommended is None
    assert state(report, "onnxruntime-cpu").fix == "pip install 'dim-distill[cpu]'"
    assert state(report, "openvino-cpu").fix == "pip install 'dim-distill[openvino]'"
    assert report.packages == NOTHING


def test_the_wheels_are_found_by_the_module_they_own() -> None:
    assert doctor_module.list_onnxruntime_wheels() == ["onnxruntime"]


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("amx_bf16 avx512_bf16 avx512_vnni", "bf16 (AMX-BF16)"),
        ("avx512_bf16 avx512_vnni", "bf16 (AVX512-BF16), or int8 (VNNI), faster still and further from fp32"),
        ("avx512f avx512_vnni", "int8 (VNNI)"),
        ("asimd asimddp", "int8 (dot products)"),
        ("sse2", "fp32"),
    ],
)
def test_the_precision_that_pays_is_named(patch: pytest.MonkeyPatch, flags: str, precision: str) -> None:
    patch.setattr(cores, "_read_cpuinfo", lambda field: flags if field == "flags" else "")
    patch.setattr(doctor_module, "find_spec", lambda name: name)
    assert doctor_module._name_fast_precision() == precision
    patch.setattr(doctor_module, "find_spec", lambda name: None)
    assert doctor_module._name_fast_precision() == precision.replace(
        "16)", "16) would be faster here; it needs the extra openvino"
    )
