"""Chooses the device and the precision of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from dim.execution.allocator import keep_freed_memory
from dim.execution.cuda_graphs import use_own_stream
from dim.execution.distributed import World
from dim.runtime.errors import BadValueError, DeviceError


def choose_device(name: str) -> torch.device:
    """The device that a name stands for.

    Args:
        name: `auto` (a GPU if there is one), `cpu` or `gpu`.

    Raises:
        BadValueError: another name.
        DeviceError: `gpu` where torch sees none.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise BadValueError(f"There is no device named {name!r}: choose auto, cpu or gpu.")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            "torch sees no CUDA GPU here: use --device cpu, or install a CUDA build of torch and a driver."
        )
    return torch.device("cuda", 0)


@contextmanager
def use_device(device: torch.device, world: World) -> Iterator[torch.device]:
    """Set torch up for training on a device of `choose_device`; yields that of this process among all."""
    if device.type == "cpu":
        keep_freed_memory()
        yield device
        return
    device = torch.device("cuda", world.local_rank)
    torch.backends.cudnn.benchmark = True
    with use_own_stream(device):
        yield device


def autocast_dtype(autocast: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast: bf16, or None for float32.

    Args:
        autocast: `bf16`, `off` or `auto`.
        device: `auto` means bf16 on GPUs, and on CPUs with bf16 matrix instructions (measured: 1.8 times as fast).
    """
    if autocast == "auto":
        # A CPU gains by it only where torch also uses its AVX-512 kernels.
        fast = cpu_multiplies_bf16() and "AVX512" in torch.backends.cpu.get_cpu_capability()
        return torch.bfloat16 if device.type == "cuda" or fast else None
    return torch.bfloat16 if autocast == "bf16" else None


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products of bf16 matrices."""
    # The function is newer than the oldest torch that we allow.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16", False))
