"""The driver is asked through ctypes; every way of having no GPU gets its own sentence."""

from pathlib import Path

import pytest
from fake_gpu import fake_driver

from dim.runtime.errors import DeviceError
from dim.runtime.gpu.driver import Driver, Gpu, find_driver, has_nvidia_hardware, reason_driver_too_old, require_gpu


def test_a_working_driver() -> None:
    driver = find_driver(fake_driver(gpus=2))
    assert driver.problem is None
    assert (driver.version, driver.cuda) == ("580.65.06", (13, 0))
    assert [gpu.index for gpu in driver.gpus] == [0, 1]
    assert require_gpu("test", driver) == Gpu(
        index=0, name="NVIDIA Fake 4090", compute_capability=(8, 9), memory_bytes=24 * 2**30
    )


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"missing": True}, "no NVIDIA driver is installed (libcuda.so.1 not found)"),
        ({"gpus": 0}, "the NVIDIA driver sees no GPU"),
        ({"init_code": 100}, "the NVIDIA driver sees no GPU"),
        (
            {"init_code": 3},
            "this process was forked after CUDA had started, and CUDA does not survive that (use spawn)",
        ),
        (
            {"init_code": 804},
            "the NVIDIA driver does not start (CUDA error 804: system has unsupported driver mismatch)",
        ),
    ],
)
def test_no_gpu(answers: dict[str, object], problem: str) -> None:
    driver = find_driver(fake_driver(**answers))  # type: ignore[arg-type]
    assert driver.problem == problem
    with pytest.raises(DeviceError) as refused:
        require_gpu("run TensorRT engines", driver)
    assert str(refused.value) == (
        f"A GPU is needed to run TensorRT engines and {problem}: use --device cpu, or install an NVIDIA driver "
        "(version 525.60.13 or newer) and check it with  nvidia-smi"
    )


def test_the_driver_that_is_needed_follows_from_the_library() -> None:
    driver = Driver(version=None, cuda=None, gpus=(), problem="there is none")
    with pytest.raises(DeviceError, match=r"\(version 580\.65\.06 or newer\)"):
        require_gpu("run", driver, cuda_major=13)
    with pytest.raises(DeviceError, match=r"\(version 525\.60\.13 or newer\)"):
        require_gpu("run", driver, cuda_major=99)


def test_this_machine_answers() -> None:
    driver = find_driver()
    assert (driver.problem is None) == bool(driver.gpus)


def test_a_driver_that_is_too_old() -> None:
    old = find_driver(fake_driver(cuda=(12, 4), version="550.54.14"))
    assert reason_driver_too_old(old, 12) is None
    assert reason_driver_too_old(old, None) is None
    assert (
        reason_driver_too_old(old, 13)
        == "driver 550.54.14 runs CUDA up to 12.4, CUDA 13 needs driver 580.65.06 or newer"
    )


@pytest.mark.parametrize(
    ("files", "built_in"),
    [
        ({}, False),
        ({"sys/bus/pci/devices/0/vendor": "0x10de\n", "sys/bus/pci/devices/0/class": "0x030200\n"}, True),
        ({"sys/bus/pci/devices/0/vendor": "0x10de\n", "sys/bus/pci/devices/0/class": "0x020000\n"}, False),
        ({"sys/bus/pci/devices/0/vendor": "0x8086\n", "sys/bus/pci/devices/0/class": "0x030000\n"}, False),
        ({"proc/device-tree/compatible": "nvidia,p3768\0nvidia,tegra234\0"}, True),
        ({"dev/dxg": ""}, True),
    ],
)
def test_a_gpu_is_seen_without_its_driver(tmp_path: Path, files: dict[str, str], built_in: bool) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert has_nvidia_hardware(tmp_path) is built_in
