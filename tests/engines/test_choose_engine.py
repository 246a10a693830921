"""Which engine is taken, why, and what is said: on machines with and without a GPU, libraries and trusted engines."""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_trt
import numpy as np
import pytest
from fake_machine import ADA, NONE, TURING, Machine
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle_format.files import load_manifest, read_checked_file, update_bundle
from dim.runtime.choose_engine import open_engine
from dim.runtime.errors import BadValueError, BundleError, DeviceError, EngineError, ParityError
from dim.runtime.gpu.driver import Driver
from dim.runtime.trt import build as build_engines_module
from dim.runtime.trt import library as trt_library
from dim.runtime.trt.build import build_engines
from dim.runtime.trt.sidecar import parse_sidecar
from dim.runtime.trt.store import list_bundle_engines, list_cached_engines


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    yield Machine(tmp_path, monkeypatch)
    trt_library.load_library.cache_clear()


def pixels(engine: Any) -> Any:
    rng = np.random.default_rng(0)
    return engine.run(rng.standard_normal((6, 16)).astype(np.float32), np.arange(6) % 3)


def test_without_a_gpu_the_cpu_is_taken_and_no_driver_is_spoken_of(machine: Machine) -> None:
    machine.patch.setattr("dim.runtime.choose_engine.has_nvidia_hardware", lambda: False)
    assert machine.open(driver=NONE).name == "onnxruntime-cpu"
    assert machine.said == ["Engine: onnxruntime-cpu on the cpu, fp32, chosen automatically."]


def test_a_gpu_without_a_driver_is_passed_over_and_the_reason_told(machine: Machine) -> None:
    machine.patch.setattr("dim.runtime.choose_engine.has_nvidia_hardware", lambda: True)
    engine = machine.open(driver=NONE)
    assert engine.name == "onnxruntime-cpu"
    assert engine.reason == "no GPU engine, because no NVIDIA driver is installed (libcuda.so.1 not found)"
    assert machine.said == [f"Engine: onnxruntime-cpu on the cpu, fp32, {engine.reason}."]


def test_without_a_gpu_the_gpu_is_refused(machine: Machine) -> None:
    machine.install("trt")
    with pytest.raises(DeviceError, match="A GPU is needed to run with --device gpu and no NVIDIA driver is installed"):
        machine.open(driver=NONE, device="gpu")
    assert machine.said == []


def test_the_cpu_as_asked_asks_no_driver(machine: Machine) -> None:
    def refuse() -> Driver:
        raise AssertionError("the driver was asked")

    machine.patch.setattr("dim.runtime.choose_engine.find_driver", refuse)
    assert machine.open(device="cpu", driver=None).name == "onnxruntime-cpu"
    assert machine.said == ["Engine: onnxruntime-cpu on the cpu, fp32, chosen automatically."]


def test_a_gpu_without_any_library_falls_to_the_cpu_with_every_reason(machine: Machine) -> None:
    engine = machine.open()
    assert engine.name == "onnxruntime-cpu"
    for extra in ("trt", "rtx", "gpu"):
        assert f"pip install 'dim-distill[{extra}]'" in engine.reason
    with pytest.raises(DeviceError, match="No engine works on the GPU. tensorrt: The package 'tensorrt' is not"):
        machine.open(device="gpu")


def test_an_engine_is_built_into_the_cache_and_found_there_the_next_time(machine: Machine) -> None:
    machine.install("trt")
    first = machine.open()
    assert (first.name, first.batch) == ("tensorrt", 16)
    assert machine.said[0] == (
        "Building a TensorRT fp32 engine for NVIDIA Fake 4090 (compute capability 8.9), for the cache."
    )
    assert machine.said[1].startswith("Built generator.fp32.trt.sm89.engine (0.0 MB); against fp32 ONNX: 0 levels at ")
    assert machine.said[2] == (
        "Engine: tensorrt on the gpu, fp32, batch 16, chosen automatically; built into the cache just now."
    )
    second = machine.open()
    assert len(machine.said) == 1 and "from the cache" in machine.said[0]
    assert second.version == first.version
    np.testing.assert_array_equal(pixels(second), pixels(machine.open(engine="onnxruntime-cpu")))


def test_tensorrt_goes_before_tensorrt_for_rtx(machine: Machine) -> None:
    machine.install("rtx")
    assert machine.open().name == "tensorrt-rtx"
    machine.install("trt")
    assert machine.open().name == "tensorrt"
    assert machine.open(engine="tensorrt-rtx").reason.endswith("from the cache")


def test_an_engine_of_the_bundle_that_this_user_built_is_used(machine: Machine) -> None:
    machine.install("trt")
    machine.build(precisions=["fp32"])
    engine = machine.open()
    assert engine.reason == "chosen automatically; generator.fp32.trt.sm89.engine from the bundle"
    assert engine.batch == 4


def test_a_prebuilt_engine_of_another_precision_is_used_unless_one_was_asked_for(machine: Machine) -> None:
    machine.install("trt")
    machine.build(precisions=["fp16"])
    assert machine.open().precision == "fp16"
    assert machine.open(precision="fp32").reason == "chosen automatically; built into the cache just now"
    assert machine.open().precision == "fp32"


def test_a_strangers_engine_is_code_and_is_built_again(machine: Machine) -> None:
    machine.install("trt")
    (path,) = machine.build(precisions=["fp32"])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    machine.forget()
    engine = machine.open()
    assert engine.reason.endswith("built into the cache just now")
    assert machine.said[0] == (
        "The bundle's engine generator.fp32.trt.sm89.engine is not used: it is code that somebody else compiled "
        f"(--trust sha256:{sha256} would load it all the same)."
    )
    machine.forget()
    assert machine.open(trust=[f"sha256:{sha256}"]).reason.endswith("from the bundle")
    with pytest.raises(BadValueError, match="--trust got 'yes'"):
        machine.open(trust=["yes"])


def test_a_strangers_engine_never_reaches_the_library(machine: Machine) -> None:
    module = machine.install("trt")
    machine.build(precisions=["fp32"])
    machine.forget()
    loaded: list[bytes] = []
    real = fake_trt.FakeRuntime.deserialize_cuda_engine

    def watch(self: fake_trt.FakeRuntime, plan: bytes) -> Any:
        loaded.append(plan)
        return real(self, plan)

    machine.patch.setattr(fake_trt.FakeRuntime, "deserialize_cuda_engine", watch)
    stranger = (machine.path / "generator.fp32.trt.sm89.engine").read_bytes()
    machine.open()
    assert loaded and stranger not in loaded and module.contexts


@pytest.mark.parametrize(
    ("driver", "version", "told"),
    [
        (TURING, None, "it was built for NVIDIA Fake 4090 (compute capability 8.9) and this GPU is NVIDIA T4"),
        (ADA, "10.14.1.48", "it was built by TensorRT 10.9.0.34 and 10.14.1.48 is installed"),
    ],
)
def test_an_engine_that_does_not_fit_is_built_again(
    machine: Machine, driver: Driver, version: str | None, told: str
) -> None:
    machine.install("trt")
    machine.build(precisions=["fp32"])
    machine.install("trt", version)
    machine.driver = driver
    engine = machine.open()
    assert engine.reason.endswith("built into the cache just now")
    assert told in machine.said[0]


def test_an_engine_of_another_onnx_file_is_built_again(machine: Machine) -> None:
    machine.install("trt")
    machine.build(precisions=["fp32"])
    other = build_tiny_bundle(machine.path.parent / "other.dim", seed=5)
    update_bundle(machine.path, add_files={"generator.fp32.onnx": other / "generator.fp32.onnx"})
    assert machine.open().reason.endswith("built into the cache just now")
    assert "it was built from another ONNX file" in machine.said[0]


@pytest.mark.parametrize("damage", ["truncated", "altered", "gone"])
def test_a_damaged_engine_of_the_cache_is_built_again(machine: Machine, damage: str) -> None:
    machine.install("trt")
    machine.open()
    (file,) = list_cached_engines(load_manifest(machine.path).files["generator.fp32.onnx"].sha256)
    content = file.path.read_bytes()
    if damage == "gone":
        file.path.unlink()
    else:
        file.path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + b"!")
    engine = machine.open()
    assert engine.reason.endswith("built into the cache just now")
    assert machine.said[0].endswith("It is built again.")
    assert machine.open().reason.endswith("from the cache")


def test_an_altered_engine_of_the_bundle_is_an_error(machine: Machine) -> None:
    machine.install("trt")
    (path,) = machine.build(precisions=["fp32"])
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(BundleError, match="generator.fp32.trt.sm89.engine was altered: its SHA-256"):
        machine.open()
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match="generator.fp32.trt.sm89.engine was altered: it has"):
        machine.open()


def test_a_bundle_whose_sidecar_is_of_another_engine(machine: Machine) -> None:
    machine.install("trt")
    (path,) = machine.build(precisions=["fp32"])
    sidecar = parse_sidecar((machine.path / f"{path.name}.json").read_bytes(), "x")
    update_bundle(machine.path, add_files={f"{path.name}.json": replace(sidecar, precision="fp16").to_json()})
    machine.open()
    assert machine.said[0] == (
        "The sidecar generator.fp32.trt.sm89.engine.json is that of generator.fp16.trt.sm89.engine."
    )


def test_a_sidecar_that_lies_about_the_plan(machine: Machine) -> None:
    machine.install("trt")
    (path,) = machine.build(precisions=["fp32"])
    sidecar = parse_sidecar((machine.path / f"{path.name}.json").read_bytes(), "x")
    lie = replace(sidecar, engine_bytes=sidecar.engine_bytes + 1)
    update_bundle(machine.path, add_files={f"{path.name}.json": lie.to_json()})
    with pytest.raises(EngineError, match="is truncated or altered: it has"):
        machine.open(engine="tensorrt")


def test_when_the_best_engine_cannot_be_built_the_next_is_taken(machine: Machine) -> None:
    machine.install("trt").refuse_plan = "Could not find any implementation"
    machine.install("rtx")
    engine = machine.open()
    assert engine.name == "tensorrt-rtx"
    assert engine.reason.startswith(
        "tensorrt: TensorRT 10.9.0.34 cannot build the fp32 engine: Could not find any implementation"
    )
    with pytest.raises(EngineError, match="Could not find any implementation"):
        machine.open(engine="tensorrt")


@pytest.mark.parametrize("fault", ["other pixels", "identical rows"])
def test_an_engine_that_draws_something_else_is_not_published(machine: Machine, fault: str) -> None:
    machine.install("trt")
    real = fake_trt.FakeContext.compute

    def wrong(self: fake_trt.FakeContext) -> None:
        real(self)
        images = self.at("images", np.uint8)
        if fault == "other pixels":
            images[...] = 255 - images
        else:
            images[-1, 0, 0, 0] ^= 1

    machine.patch.setattr(fake_trt.FakeContext, "compute", wrong)
    files = set(load_manifest(machine.path).files)
    with pytest.raises(ParityError, match="was built and is not published: at batch"):
        machine.build(batch=(1, 100, 200))
    assert set(load_manifest(machine.path).files) == files
    engine = machine.open()
    assert engine.name == "onnxruntime-cpu" and "is not published" in engine.reason


def test_a_batch_beyond_the_profile_is_built_for(machine: Machine) -> None:
    machine.install("trt")
    machine.build(precisions=["fp32"])
    assert machine.open(batch=6).reason.endswith("from the bundle")
    engine = machine.open(batch=500)
    assert engine.batch == 500
    assert "it takes 1 to 8 images per call and 500 are wanted" in machine.said[0]
    with pytest.raises(BadValueError, match="The batch is 0; it must be at least 1"):
        machine.open(batch=0)


def test_a_full_gpu_is_told_and_the_engine_stays(machine: Machine) -> None:
    machine.install("trt")
    machine.build(precisions=["fp32"])
    machine.gpu.capacity_bytes = 1000
    engine = machine.open()
    assert engine.batch == 2
    assert machine.said == [
        "The GPU has no room for a batch of 4: going on with 2.",
        "Engine: tensorrt on the gpu, fp32, batch 2, chosen automatically; generator.fp32.trt.sm89.engine from the "
        "bundle.",
    ]


def test_a_driver_that_is_too_old_is_told(machine: Machine) -> None:
    machine.install("trt")
    machine.patch.setattr(trt_library, "find_cuda_major", lambda format: 13)
    old = replace(ADA, cuda=(12, 4), version="550.54.14")
    with pytest.raises(DeviceError, match="cannot run here: driver 550.54.14 runs CUDA up to 12.4"):
        machine.open(engine="tensorrt", driver=old)


def test_workers_that_start_together_build_once(machine: Machine) -> None:
    module = machine.install("trt")
    engines: list[Any] = []

    def start() -> None:
        manifest = load_manifest(machine.path)
        engines.append(open_engine(machine.path, manifest, driver=ADA, say=lambda message: None))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({engine.version for engine in engines}) == 1 and len(engines) == 3
    assert len(module.configs) == 1


def test_building_into_a_bundle(machine: Machine) -> None:
    machine.install("trt")
    before = load_manifest(machine.path)
    shares: list[tuple[str, float]] = []
    paths = machine.build(progress=lambda what, part, whole, note: shares.append((what, part)))
    manifest = load_manifest(machine.path)
    assert [path.name for path in paths] == ["generator.fp32.trt.sm89.engine", "generator.fp16.trt.sm89.engine"]
    assert manifest.content_id == before.content_id
    found, problems = list_bundle_engines(machine.path, manifest)
    assert problems == [] and len(found) == 2 and all(file.sidecar.checked for file in found)
    for file in found:
        assert read_checked_file(machine.path, manifest, file.path.name) == file.read(machine.path, manifest)
        onnx = manifest.files[f"generator.{file.sidecar.precision}.onnx"]
        assert file.sidecar.onnx_sha256 == onnx.sha256
    assert {what for what, _ in shares} == {"building TensorRT fp32", "building TensorRT fp16"}
    assert machine.said[0].startswith("Built generator.fp32.trt.sm89.engine (0.0 MB); against fp32 ONNX: 0 levels at")


def test_a_timing_cache_is_kept_for_the_next_build(machine: Machine) -> None:
    machine.install("trt")
    machine.build()
    (kept,) = (machine.cache / "timing").iterdir()
    assert kept.read_bytes() == b"+timed+timed"


def test_building_for_rtx_without_a_gpu(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    trt_library.load_library.cache_clear()
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build_engines_module, "find_driver", lambda: NONE)
    path = tmp_path / "copy.dim"
    shutil.copytree(tiny_bundle, path)
    said: list[str] = []
    built = build_engines(path, format="rtx", batch=(1, 4, 8), compute_capabilities=["8.9", "sm120"], say=said.append)
    assert [file.name for file in built] == [
        f"generator.{precision}.rtx.sm89-sm120.engine" for precision in ("fp32", "fp16", "int8")
    ]
    assert said[0].endswith("; not checked, because no NVIDIA driver is installed (libcuda.so.1 not found).")
    found, _ = list_bundle_engines(path, load_manifest(path))
    assert {file.sidecar.compute_capabilities for file in found} == {((8, 9), (12, 0))}
    assert not any(file.sidecar.checked for file in found)
    assert build_engines(path, format="rtx", precisions=["fp32"], into="cache", batch=(1, 4, 8))[0].parent.is_dir()


def test_a_gpu_that_rtx_does_not_take_can_build_for_others(machine: Machine) -> None:
    machine.install("rtx").validity = ("INVALID", 2)
    machine.build("rtx", precisions=["fp32"])
    refusal = "TensorRT for RTX refuses the engine generator.fp32.rtx.sm80plus.engine: it was not built for this GPU"
    assert machine.said == [f"Built generator.fp32.rtx.sm80plus.engine (0.0 MB); not checked, because {refusal}."]
    found, _ = list_bundle_engines(machine.path, load_manifest(machine.path))
    assert not found[0].sidecar.checked
    engine = machine.open()
    assert engine.name == "onnxruntime-cpu" and f"tensorrt-rtx: {refusal}" in engine.reason


def test_what_cannot_be_built_is_refused(machine: Machine) -> None:
    machine.install("trt")
    for options, error, message in (
        ({"into": "moon"}, BadValueError, "into the bundle or the cache, not 'moon'"),
        ({"precisions": ["bf16"]}, BadValueError, "There is no precision 'bf16': choose from fp32, fp16, int8."),
        ({"precisions": ["int8"]}, BundleError, "has no generator.int8.onnx; it has fp32, fp16: export the run again"),
        ({"batch": (4, 2, 1)}, BadValueError, "--batch got 4:2:1"),
        ({"compute_capabilities": ["new"]}, BadValueError, "'new' is not understood"),
        ({"format": "onnx"}, BadValueError, "The engine format 'onnx' is unknown"),
    ):
        with pytest.raises(error, match=message):
            machine.build(**options)
    machine.driver = NONE
    with pytest.raises(DeviceError, match="TensorRT for RTX builds without one: --format rtx"):
        machine.build()
