"""Finds this machine's NVIDIA driver and GPUs, through the driver itself by ctypes; no package is needed.

Every GPU engine checks the driver here first. Without a driver the engine libraries give misleading errors: TensorRT
for RTX calls every plan invalid, good or damaged.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dim.runtime.errors import DeviceError

# CUDA major version -> the oldest Linux driver that runs it (CUDA Toolkit release notes, minor version compatibility).
OLDEST_DRIVER = {12: "525.60.13", 13: "580.65.06"}

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NOT_INITIALIZED, _NO_DEVICE = 3, 100  # CUDA_ERROR_NOT_INITIALIZED, CUDA_ERROR_NO_DEVICE

Load = Callable[[str], Any]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU that this process may use."""

    index: int
    """Ordinal after CUDA_VISIBLE_DEVICES."""
    name: str
    """As the driver calls it, "NVIDIA H200"."""
    compute_capability: tuple[int, int]
    """(9, 0) for Hopper."""
    memory_bytes: int
    """Total device memory."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What the NVIDIA driver says of itself; `problem` is None when at least one GPU can be used."""

    version: str | None
    """"580.159.03", None where it cannot be read."""
    cuda: tuple[int, int] | None
    """Newest CUDA version that the driver runs."""
    gpus: tuple[Gpu, ...]
    problem: str | None
    """One clause, lower case, for the middle of a sentence."""


def has_nvidia_hardware(root: Path = Path("/")) -> bool:
    """Tell whether an NVIDIA GPU is built in, whatever of its software is missing.

    Args:
        root: where `sys`, `proc` and `dev` lie; tests hand in a folder.

    Returns:
        whether a display or accelerator of vendor 10de is on the PCI bus, the board is a Tegra, or WSL offers a GPU.
    """
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        with suppress(OSError):
            kind = (vendor.parent / "class").read_text().strip()
            if vendor.read_text().strip() == "0x10de" and kind.startswith(("0x03", "0x12")):
                return True
    with suppress(OSError):
        if b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes():
            return True
    return any((root / "dev" / name).exists() for name in ("nvidiactl", "dxg"))


def find_driver(load: Load = ctypes.CDLL) -> Driver:
    """Ask the driver for its version and its GPUs.

    Args:
        load: opens a shared library by name; tests hand in a recorded driver.

    Returns:
        the driver; never raises, a missing or broken driver is told in `problem`.
    """
    version = _find_driver_version(load)
    try:
        cuda = load("libcuda.so.1")
    except OSError:
        return Driver(
            version=version, cuda=None, gpus=(), problem="no NVIDIA driver is installed (libcuda.so.1 not found)"
        )
    code = cuda.cuInit(0)
    newest = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(newest))
    cuda_version = (newest.value // 1000, newest.value % 1000 // 10) if newest.value else None
    if code == _NO_DEVICE:
        return Driver(version=version, cuda=cuda_version, gpus=(), problem="the NVIDIA driver sees no GPU")
    if code == _NOT_INITIALIZED:
        problem = "this process was forked after CUDA had started, and CUDA does not survive that (use spawn)"
        return Driver(version=version, cuda=cuda_version, gpus=(), problem=problem)
    if code:
        problem = f"the NVIDIA driver does not start ({_describe_cuda_error(cuda, code)})"
        return Driver(version=version, cuda=cuda_version, gpus=(), problem=problem)
    gpus = _list_gpus(cuda)
    problem_or_none = None if gpus else "the NVIDIA driver sees no GPU"
    return Driver(version=version, cuda=cuda_version, gpus=gpus, problem=problem_or_none)


def require_gpu(purpose: str, driver: Driver | None = None, cuda_major: int | None = None) -> Gpu:
    """Return the first GPU.

    Args:
        purpose: what it is needed for, as a phrase ("run TensorRT engines").
        driver: an answer of `find_driver`, asked anew when None.
        cuda_major: the CUDA version that the library was built for; None where it is not known.

    Raises:
        DeviceError: no driver or no GPU.
    """
    found = driver or find_driver()
    if found.problem is not None:
        raise DeviceError(
            f"A GPU is needed to {purpose} and {found.problem}: use --device cpu, or install an NVIDIA driver "
            f"(version {OLDEST_DRIVER.get(cuda_major or 12, OLDEST_DRIVER[12])} or newer) and check it with  nvidia-smi"
        )
    return found.gpus[0]


def check_driver(driver: Driver, cuda_major: int | None, cannot: str) -> None:
    """Check that the driver runs the CUDA version that a library was built for.

    Args:
        driver: an answer of `find_driver`.
        cuda_major: the library's CUDA major version; None where it is not known.
        cannot: what does not work otherwise, as the start of a sentence ("TensorRT 10.9 cannot run here").

    Raises:
        DeviceError: the driver is too old.
    """
    too_old = reason_driver_too_old(driver, cuda_major)
    if too_old is not None:
        raise DeviceError(f"{cannot}: {too_old}; update the NVIDIA driver.")


def reason_driver_too_old(driver: Driver, cuda_major: int | None) -> str | None:
    """Say in one clause why a library built for a CUDA major version cannot run on this driver, or None if it can."""
    if cuda_major is None or driver.cuda is None or driver.cuda[0] >= cuda_major:
        return None
    needed = OLDEST_DRIVER.get(cuda_major)
    newer = f"driver {needed} or newer" if needed else "a newer driver"
    have = f"driver {driver.version}" if driver.version else "the driver"
    return f"{have} runs CUDA up to {driver.cuda[0]}.{driver.cuda[1]}, CUDA {cuda_major} needs {newer}"


def _list_gpus(cuda: Any) -> tuple[Gpu, ...]:
    count = ctypes.c_int(0)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = []
    for index in range(count.value):
        device = ctypes.c_int(0)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        name = ctypes.create_string_buffer(256)
        cuda.cuDeviceGetName(name, len(name), device)
        major, minor = ctypes.c_int(0), ctypes.c_int(0)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        memory = ctypes.c_size_t(0)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        gpus.append(
            Gpu(
                index=index,
                name=name.value.decode(errors="replace"),
                compute_capability=(major.value, minor.value),
                memory_bytes=memory.value,
            )
        )
    return tuple(gpus)


def _describe_cuda_error(cuda: Any, code: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    return f"CUDA error {code}: {text.value.decode(errors='replace') if text.value else 'unknown'}"


def _find_driver_version(load: Load) -> str | None:
    try:
        nvml = load("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(96)
    failed = nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlShutdown()
    return None if failed else text.value.decode(errors="replace")
