"""How many CPU threads torch uses while dim distils."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dim.runtime.engine_onnx import usable_cores
from dim.runtime.errors import BadValueError


@contextmanager
def cpu_threads(count: int | None) -> Iterator[int]:
    """Let torch use `count` threads inside the block.

    Args:
        count: at least 1; None for `OMP_NUM_THREADS` where it is set (torchrun sets it), else for every core that this
            process may use, which in a container or under taskset are fewer than the machine has.

    Raises:
        BadValueError: no positive number.
    """
    if count is not None and count < 1:
        raise BadValueError(f"threads is {count}; it must be at least 1.")
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    elif not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(usable_cores())
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
