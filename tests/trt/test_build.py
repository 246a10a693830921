"""Building: really, with TensorRT for RTX, which needs no GPU; and TensorRT through a strict fake."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import FakeGpu, fake_driver
from fake_trt import FakeTrt

from dim.runtime.errors import BadValueError, DeviceError, EngineError, MissingExtraError
from dim.runtime.gpu.driver import find_driver
from dim.runtime.trt import compile as build_trt
from dim.runtime.trt import library as trt_library
from dim.runtime.trt.compile import BuildOptions, check_target, compile_plan, parse_compute_capabilities
from dim.runtime.trt.library import TrtLibrary, load_library

pytest.importorskip("tensorrt_rtx")
SMALL = BuildOptions(batch=(1, 4, 8))


@pytest.fixture
def library() -> TrtLibrary:
    return load_library("rtx")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[FakeTrt, TrtLibrary]]:
    """Install a fake `tensorrt` or `tensorrt_rtx` and load it."""

    def install(format: str = "trt", **settings: Any) -> tuple[FakeTrt, TrtLibrary]:
        module = FakeTrt(FakeGpu(), format, **settings)
        monkeypatch.setitem(sys.modules, {"trt": "tensorrt", "rtx": "tensorrt_rtx"}[format], module)
        trt_library.load_library.cache_clear()
        return module, load_library(format)

    yield install  # type: ignore[misc]
    trt_library.load_library.cache_clear()


def onnx_file(bundle: Path, precision: str = "fp32") -> bytes:
    return (bundle / f"generator.{precision}.onnx").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_builds_without_a_gpu(library: TrtLibrary, tiny_bundle: Path, precision: str) -> None:
    shares: list[float] = []
    plan, timing = compile_plan(
        library,
        onnx_file(tiny_bundle, precision),
        precision,
        SMALL,
        gpu=check_target(library, SMALL),
        progress=lambda what, part, whole, note: shares.append(part),
    )
    assert len(plan) > 1000
    assert timing == b""  # TensorRT for RTX has no timing cache
    assert shares == sorted(shares) and 0 < shares[0] and shares[-1] <= 1 and len(shares) > 10


def test_targets(library: TrtLibrary, tiny_bundle: Path) -> None:
    options = BuildOptions(batch=(1, 2, 4), compute_capabilities=((8, 6), (12, 0)))
    plan, _ = compile_plan(library, onnx_file(tiny_bundle), "fp32", options, gpu=check_target(library, options))
    assert len(plan) > 1000
    unknown = BuildOptions(compute_capabilities=((9, 0),))
    with pytest.raises(BadValueError) as refused:
        check_target(library, unknown)
    assert str(refused.value) == (
        f"TensorRT for RTX {library.version} has no target sm90; it has sm75, sm80, sm86, sm89, sm120, sm121."
    )


def test_what_the_library_cannot_build_is_told_in_its_words(library: TrtLibrary, tiny_bundle: Path) -> None:
    options = BuildOptions(batch=(1, 2, 4), compute_capabilities=((7, 5),))
    with pytest.raises(EngineError) as refused:
        compile_plan(library, onnx_file(tiny_bundle), "fp32", options, gpu=None)
    assert str(refused.value).startswith(f"TensorRT for RTX {library.version} cannot build the fp32 engine: ")
    assert "Turing" in str(refused.value)


def test_bytes_that_are_no_onnx_file(library: TrtLibrary) -> None:
    with pytest.raises(EngineError, match="cannot read the fp32 ONNX file: .*Failed to parse the ONNX model"):
        compile_plan(library, b"no protobuf at all", "fp32", SMALL, gpu=None)


def test_control_c_during_a_build_stops_it(library: TrtLibrary, tiny_bundle: Path) -> None:
    def interrupt(what: str, part: float, whole: float | None, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_plan(library, onnx_file(tiny_bundle), "fp32", SMALL, gpu=None, progress=interrupt)


def test_modes_that_only_tensorrt_has(library: TrtLibrary) -> None:
    for options, name in (
        (BuildOptions(hardware_compatible=True), "--hardware-compatible"),
        (BuildOptions(version_compatible=True), "--version-compatible"),
    ):
        with pytest.raises(BadValueError) as refused:
            check_target(library, options)
        assert str(refused.value) == (
            f"{name} is a mode of TensorRT; TensorRT for RTX has none: its engines cover several GPUs as they are, "
            "and only the version that built them."
        )


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 4), (1, 8, 4), (1, 2, 100_000), (1, 2)])
def test_profiles_out_of_order(batch: tuple[int, ...]) -> None:
    with pytest.raises(BadValueError, match="--batch got .*least:optimum:most"):
        BuildOptions(batch=batch)  # type: ignore[arg-type]


def test_compute_capabilities_as_users_write_them() -> None:
    assert parse_compute_capabilities(["8.9", "sm86", "SM_120", "8.9"]) == ((8, 6), (8, 9), (12, 0))
    for text in ("", "ampere", "8.9.1", "-8.9", "900"):
        if text == "900":
            assert parse_compute_capabilities([text]) == ((90, 0),)
            continue
        with pytest.raises(BadValueError, match="write it as 8.9 or sm89"):
            parse_compute_capabilities([text])


@pytest.mark.parametrize("version", ["10.3.0.26", "10.9.0.34", "11.2.0.1"])
def test_tensorrt_is_asked_for_the_same(
    fake: Callable[..., tuple[FakeTrt, TrtLibrary]], tiny_bundle: Path, version: str
) -> None:
    module, library = fake("trt", version=version)
    if version.startswith("10.3"):
        del module.PreviewFeature
    if version.startswith("11"):
        del module.NetworkDefinitionCreationFlag["STRONGLY_TYPED"]
        module.Builder = lambda logger: LooselyChecked(module, logger)
    driver = find_driver(fake_driver())
    options = BuildOptions(batch=(1, 4, 8), hardware_compatible=True, version_compatible=True)
    gpu = check_target(library, options, driver)
    shares: list[float] = []
    plan, timing = compile_plan(
        library,
        onnx_file(tiny_bundle),
        "fp32",
        options,
        gpu=gpu,
        timing_cache=b"kept",
        progress=lambda what, part, whole, note: shares.append(part),
    )
    config = module.configs[0]
    assert config.flags == {"VERSION_COMPATIBLE"}  # and TF32 is off
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert config.previews == (set() if version.startswith("10.3") else {"RUNTIME_ACTIVATION_RESIZE_10_10"})
    assert config.profile is not None and config.profile.shapes["latents"] == [(1, 16), (4, 16), (8, 16)]
    assert timing == b"kept+timed"
    assert shares == [0.125, 0.25, 0.375, 0.5, 0.5, 0.625, 0.75, 0.875, 1.0, 1.0]
    assert plan.endswith(onnx_file(tiny_bundle))


class LooselyChecked:
    """A builder of TensorRT 11, whose networks are always strongly typed."""

    def __new__(cls, module: FakeTrt, logger: Any) -> Any:
        from fake_trt import FakeBuilder, FakeNetwork

        builder = FakeBuilder(module, logger)
        builder.create_network = lambda flags=0: FakeNetwork()  # type: ignore[method-assign]
        return builder


def test_only_fp32_forbids_tf32(fake: Callable[..., tuple[FakeTrt, TrtLibrary]], tiny_bundle: Path) -> None:
    module, library = fake()
    gpu = check_target(library, SMALL, find_driver(fake_driver()))
    compile_plan(library, onnx_file(tiny_bundle, "fp16"), "fp16", SMALL, gpu=gpu)
    assert module.configs[0].flags == {"TF32"}


def test_a_damaged_timing_cache_is_replaced(fake: Callable[..., tuple[FakeTrt, TrtLibrary]], tiny_bundle: Path) -> None:
    _, library = fake()
    gpu = check_target(library, SMALL, find_driver(fake_driver()))
    _, timing = compile_plan(library, onnx_file(tiny_bundle), "fp32", SMALL, gpu=gpu, timing_cache=b"damaged")
    assert timing == b"+timed"


def test_a_failed_build_is_told_by_its_first_error(
    fake: Callable[..., tuple[FakeTrt, TrtLibrary]], tiny_bundle: Path
) -> None:
    module, library = fake()
    module.refuse_plan = "Error Code 10: Internal Error (Could not find any implementation)"
    with pytest.raises(EngineError) as refused:
        compile_plan(library, onnx_file(tiny_bundle), "fp32", SMALL, gpu=None)
    assert str(refused.value) == (
        "TensorRT 10.9.0.34 cannot build the fp32 engine: Error Code 10: Internal Error (Could not find any "
        "implementation)"
    )


def test_tensorrt_needs_a_gpu_and_says_what_does_not(fake: Callable[..., tuple[FakeTrt, TrtLibrary]]) -> None:
    _, library = fake()
    with pytest.raises(DeviceError) as refused:
        check_target(library, SMALL, find_driver(fake_driver(missing=True)))
    assert str(refused.value) == (
        "A GPU is needed to build TensorRT engines (TensorRT for RTX builds without one: --format rtx) and no NVIDIA "
        "driver is installed (libcuda.so.1 not found): use --device cpu, or install an NVIDIA driver (version "
        "525.60.13 or newer) and check it with  nvidia-smi"
    )


def test_tensorrt_takes_no_targets(fake: Callable[..., tuple[FakeTrt, TrtLibrary]]) -> None:
    _, library = fake()
    with pytest.raises(BadValueError, match="chosen with --format rtx"):
        check_target(library, BuildOptions(compute_capabilities=((8, 9),)), find_driver(fake_driver()))


def test_tensorrt_on_an_old_driver(
    fake: Callable[..., tuple[FakeTrt, TrtLibrary]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, library = fake()
    monkeypatch.setattr(trt_library, "find_cuda_major", lambda format: 13)
    with pytest.raises(DeviceError) as refused:
        check_target(library, SMALL, find_driver(fake_driver(cuda=(12, 4), version="550.54.14")))
    assert str(refused.value) == (
        "TensorRT 10.9.0.34 cannot build here: driver 550.54.14 runs CUDA up to 12.4, CUDA 13 needs driver 580.65.06 "
        "or newer; update the NVIDIA driver."
    )


def test_on_turing_hardware_compatible_means_the_same_compute_capability() -> None:
    turing = find_driver(fake_driver(capability=(7, 5))).gpus[0]
    assert build_trt.hardware_mode(BuildOptions(hardware_compatible=True), turing) == "same_compute_capability"


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    trt_library.load_library.cache_clear()
    with pytest.raises(MissingExtraError) as refused:
        load_library("trt")
    assert "pip install 'dim-distill[trt]'" in str(refused.value)


@pytest.mark.parametrize("version", ["10.2.1", "8.6.1", ""])
def test_a_library_that_is_too_old(fake: Callable[..., tuple[FakeTrt, TrtLibrary]], version: str) -> None:
    with pytest.raises(EngineError, match="10.3 or newer is needed: run  pip install --upgrade tensorrt cuda-core"):
        fake("trt", version=version)


def test_unknown_names(library: TrtLibrary) -> None:
    with pytest.raises(BadValueError, match="'onnx' is unknown"):
        load_library("onnx")
    with pytest.raises(BadValueError, match="'bf16' is unknown"):
        compile_plan(library, b"", "bf16", SMALL, gpu=None)


def test_what_the_package_says_of_cuda() -> None:
    assert trt_library.find_cuda_major("rtx") == 13


def test_the_logger_of_a_module_lives_for_ever() -> None:
    first = load_library("rtx")
    trt_library.load_library.cache_clear()
    again = load_library("rtx")
    assert again.logger is first.logger and again.messages is first.messages
