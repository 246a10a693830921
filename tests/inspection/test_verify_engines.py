"""`dim verify` on compiled engines: what fails, what is run, and what is told as not run."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_trt
import numpy as np
import pytest
from fake_machine import ADA, NONE, TURING, Machine
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle_format.files import load_manifest, update_bundle
from dim.runtime.errors import BadValueError
from dim.runtime.gpu.driver import Driver
from dim.runtime.inspection.verify import verify, verify_engines
from dim.runtime.trt import library as trt_library
from dim.runtime.trt.sidecar import parse_sidecar

NAME = "generator.fp32.trt.sm89.engine"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(tmp_path, monkeypatch)
    machine.install("trt")
    machine.build(precisions=["fp32"])
    yield machine
    trt_library.load_library.cache_clear()


def checked(machine: Machine, driver: Driver = ADA, **options: Any) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    verify_engines(machine.path, load_manifest(machine.path), lambda *row: rows.append(row), driver=driver, **options)
    return rows


def test_an_engine_is_run_at_every_batch_of_its_profile(machine: Machine) -> None:
    assert checked(machine) == [
        (NAME, "batch 1, against fp32", True, "0 levels", "at most 1 level"),
        (NAME, "batch 4, against fp32", True, "0 levels", "at most 1 level"),
        (NAME, "batch 4, identical rows", True, "0 levels", "0"),
        (NAME, "batch 8, against fp32", True, "0 levels", "at most 1 level"),
        (NAME, "batch 8, identical rows", True, "0 levels", "0"),
    ]


def test_rows_that_differ_within_a_batch_fail(machine: Machine) -> None:
    real = fake_trt.FakeContext.compute

    def wrong(self: fake_trt.FakeContext) -> None:
        real(self)
        self.at("images", np.uint8)[-1, 0, 0, 0] ^= 1

    machine.patch.setattr(fake_trt.FakeContext, "compute", wrong)
    failed = [row for row in checked(machine) if not row[2]]
    assert [row[1] for row in failed] == ["batch 4, identical rows", "batch 8, identical rows"]


def test_a_batch_without_room_is_told(machine: Machine) -> None:
    machine.gpu.capacity_bytes = 1500
    assert checked(machine)[-1] == (NAME, "batch 8, not run", True, "no room on the GPU", "")


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        (NONE, "not run here: no NVIDIA driver is installed (libcuda.so.1 not found)"),
        (TURING, "not run here: it was built for NVIDIA Fake 4090 (compute capability 8.9) and this GPU is NVIDIA T4"),
    ],
)
def test_an_engine_for_another_machine_is_no_failure(machine: Machine, driver: Driver, told: str) -> None:
    ((name, check, ok, found, _),) = checked(machine, driver)
    assert (name, check, ok) == (NAME, "runs", True) and found.startswith(told)


def test_a_strangers_engine_is_not_run_unless_it_is_pinned(machine: Machine) -> None:
    sha256 = load_manifest(machine.path).files[NAME].sha256
    machine.forget()
    ((_, _, ok, found, _),) = checked(machine)
    assert ok and found.startswith("not run here: it is code that somebody else compiled")
    assert len(checked(machine, trust=[f"sha256:{sha256}"])) == 5
    with pytest.raises(BadValueError, match="--trust got"):
        checked(machine, trust=["everything"])


def test_a_missing_library_is_told(machine: Machine) -> None:
    machine.patch.setitem(sys.modules, "tensorrt", None)
    trt_library.load_library.cache_clear()
    assert "pip install 'dim-distill[trt]'" in checked(machine)[0][3]


def test_what_the_library_says_of_a_plan(machine: Machine) -> None:
    module = machine.install("rtx")
    machine.build("rtx", precisions=["fp32"])
    for reasons, ok, told in (
        (2, True, "not run here: TensorRT for RTX refuses the engine generator.fp32.rtx.sm80plus.engine: it was not"),
        (3, False, "TensorRT for RTX refuses the engine generator.fp32.rtx.sm80plus.engine: another version of"),
    ):
        module.validity = ("INVALID", reasons)
        (row,) = [row for row in checked(machine) if "rtx" in row[0]]
        assert row[2] is ok and row[3].startswith(told)


def test_a_stale_engine_fails(machine: Machine) -> None:
    other = build_tiny_bundle(machine.path.parent / "other.dim", seed=5)
    update_bundle(machine.path, add_files={"generator.fp32.onnx": other / "generator.fp32.onnx"})
    ((name, check, ok, found, allowed),) = checked(machine)
    assert (name, check, ok) == (NAME, "built from", False)
    assert found.startswith("hash ") and allowed.startswith("hash ") and found != allowed


def test_a_sidecar_that_lies_fails(machine: Machine) -> None:
    sidecar = parse_sidecar((machine.path / f"{NAME}.json").read_bytes(), "x")
    lie = replace(sidecar, engine_bytes=1)
    update_bundle(machine.path, add_files={f"{NAME}.json": lie.to_json()})
    ((_, check, ok, found, _),) = checked(machine)
    assert (check, ok) == ("plan", False) and "is truncated or altered" in found
    update_bundle(machine.path, add_files={f"{NAME}.json": b"{}"})
    ((subject, check, ok, found, _),) = checked(machine)
    assert (subject, check, ok) == ("engines", "sidecar", False) and "lacks the field format_version: build" in found


def test_verify_includes_the_engines(machine: Machine) -> None:
    report = verify(machine.path)
    assert report.ok
    (found,) = [row.found for row in report.rows if row.subject == NAME and row.check == "runs"]
    assert found.startswith("not run here: ")  # the fake GPU is not this machine's
