"""Sidecars: they come back as they were written, and they say in one clause why an engine does not fit."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.runtime.errors import EngineError
from dim.runtime.gpu.driver import Gpu
from dim.runtime.trt import sidecar as sidecar_module
from dim.runtime.trt.sidecar import Sidecar, parse_engine_name, parse_sidecar, reason_engine_does_not_fit

ADA = Gpu(index=0, name="NVIDIA RTX 4090", compute_capability=(8, 9), memory_bytes=24 * 2**30)
TURING = Gpu(index=0, name="NVIDIA T4", compute_capability=(7, 5), memory_bytes=16 * 2**30)
BUILT = Sidecar(
    format="trt",
    library_version="10.9.0.34",
    precision="fp16",
    onnx_sha256="a" * 64,
    engine_sha256="b" * 64,
    engine_bytes=1000,
    batch=(1, 256, 4096),
    hardware="gpu",
    compute_capabilities=((8, 9),),
    gpu="NVIDIA RTX 4090",
    version_compatible=False,
    machine=sidecar_module.host_machine(),
    created_by="dim 0.1.0",
    checked=True,
)


def why_not(sidecar: Sidecar, **here: Any) -> str | None:
    known: dict[str, Any] = {"gpu": ADA, "library_version": "10.9.0.34", "onnx_sha256": "a" * 64}
    return reason_engine_does_not_fit(sidecar, **{**known, **here})


def test_names() -> None:
    assert BUILT.file_name == "generator.fp16.trt.sm89.engine"
    assert parse_engine_name("generator.fp16.trt.sm89.engine") == ("fp16", "trt", "sm89")
    assert parse_engine_name("generator.int8.rtx.sm86-sm120.engine") == ("int8", "rtx", "sm86-sm120")
    for other in ("generator.fp16.onnx", "generator.bf16.trt.sm89.engine", "x/../generator.engine", "sm89.engine.json"):
        assert parse_engine_name(other) is None
    assert replace(BUILT, hardware="ampere_plus").target == "sm80plus"
    rtx = replace(BUILT, format="rtx", hardware="compute_capabilities", compute_capabilities=((12, 0), (8, 6)))
    assert rtx.target == "sm86-sm120"
    assert replace(rtx, compute_capabilities=()).file_name == "generator.fp16.rtx.sm80plus.engine"


@given(
    st.tuples(st.integers(1, 9), st.integers(10, 99), st.integers(100, 999)),
    st.lists(st.tuples(st.integers(5, 12), st.integers(0, 9)), max_size=4).map(tuple),
    st.sampled_from(sidecar_module.HARDWARE_MODES),
    st.none() | st.text(st.characters(exclude_categories=("C", "Z")), max_size=200),
    st.booleans(),
)
def test_reading_gives_back_what_was_written(
    batch: tuple[int, int, int], targets: tuple[tuple[int, int], ...], hardware: str, gpu: str | None, checked: bool
) -> None:
    written = replace(BUILT, batch=batch, compute_capabilities=targets, hardware=hardware, gpu=gpu, checked=checked)
    assert parse_sidecar(written.to_json(), "x") == written


def test_the_bytes_are_pinned() -> None:
    assert BUILT.to_json().decode().splitlines()[:6] == [
        "{",
        '  "batch": [',
        "    1,",
        "    256,",
        "    4096",
        "  ],",
    ]
    assert json.loads(BUILT.to_json())["format_version"] == 1


def sentence(field: str) -> str:
    """What is said about a wrong field: its name, what was found and expected, what to do."""
    return (
        rf"^The sidecar x\.json's field {field}(\[\d\])? is .{{1,82}}; it must be .+: build the engine again with  "
        "dim export$"
    )


def test_a_field_with_a_wrong_value_is_named() -> None:
    fits = {"gpu": (None, "", "other"), "version_compatible": (True,), "checked": (True,)}
    texts = ("library_version", "machine", "created_by")
    for field in [*asdict(BUILT), "format_version"]:
        for value in (None, -1, "", [1, 2], "other", True, {}, "a\x1b[2J", "x" * 201):
            if value in fits.get(field, ()) or (value == "other" and field in texts):
                continue
            payload = {**json.loads(BUILT.to_json()), field: value}
            with pytest.raises(EngineError, match=sentence(field)):
                parse_sidecar(json.dumps(payload).encode(), "x.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "The sidecar x is not UTF-8 JSON"),
        (b"[1]", "The sidecar x is [1]; it must be an object: build the engine again with  dim export"),
        (b'{"format_version": 2}', "The sidecar x has format version 2 and was made by a newer dim"),
        (b'{"format_version": NaN}', "holds the number NaN"),
        (b" " * 70_000, "at most 65,536 are read"),
        (b'{"format_version": 1, "extra": 0}', "The sidecar x lacks the field format: build the engine again"),
    ],
)
def test_bad_sidecars_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(EngineError) as refused:
        parse_sidecar(data, "x")
    assert message in str(refused.value)


def test_an_unknown_field_is_refused() -> None:
    payload = {**json.loads(BUILT.to_json()), "aaa": 1}
    with pytest.raises(
        EngineError, match=r"^The sidecar x has the unknown field aaa: build the engine again with  dim export$"
    ):
        parse_sidecar(json.dumps(payload).encode(), "x")


def test_what_fits() -> None:
    assert why_not(BUILT) is None
    assert why_not(BUILT, gpu=None, library_version=None, onnx_sha256=None) is None


def test_what_does_not_fit_is_told_in_one_clause() -> None:
    assert why_not(BUILT, onnx_sha256="c" * 64) == (
        "it was built from another ONNX file (hash aaaaaaaaaaaa, here it is cccccccccccc)"
    )
    assert (
        why_not(BUILT, library_version="10.10.0.1") == "it was built by TensorRT 10.9.0.34 and 10.10.0.1 is installed"
    )
    assert why_not(BUILT, gpu=TURING) == (
        "it was built for NVIDIA RTX 4090 (compute capability 8.9) and this GPU is NVIDIA T4 (compute capability 7.5)"
    )
    other = Gpu(index=0, name="NVIDIA L40", compute_capability=(8, 9), memory_bytes=1)
    assert why_not(BUILT, gpu=other) is not None
    assert why_not(replace(BUILT, machine="riscv64")) is not None


def test_hardware_compatible_engines() -> None:
    ampere = replace(BUILT, hardware="ampere_plus")
    assert why_not(ampere) is None
    assert why_not(ampere, gpu=TURING) == (
        "it was built for GPUs of compute capability 8.0 and newer and this GPU is NVIDIA T4 (compute capability 7.5)"
    )
    same = replace(BUILT, hardware="same_compute_capability", gpu="NVIDIA L40")
    assert why_not(same) is None
    assert why_not(same, gpu=TURING) is not None


def test_version_compatible_engines() -> None:
    forward = replace(BUILT, version_compatible=True)
    assert why_not(forward, library_version="10.14.1.48") is None
    assert why_not(forward, library_version="10.8.0.1") is not None
    assert why_not(forward, library_version="11.0.0.1") is not None


def test_engines_of_tensorrt_for_rtx() -> None:
    portable = replace(BUILT, format="rtx", hardware="compute_capabilities", compute_capabilities=(), gpu=None)
    assert why_not(portable) is None
    assert why_not(portable, gpu=TURING) is not None
    targeted = replace(portable, compute_capabilities=((8, 6), (12, 0)))
    assert why_not(targeted) == (
        "it was built for compute capability 8.6, 12.0 and this GPU is NVIDIA RTX 4090 (compute capability 8.9)"
    )
