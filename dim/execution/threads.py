"""How many CPU threads torch uses while dim distils."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dim.runtime.cores import check_threads, usable_cores


def default_threads() -> int:
    """`OMP_NUM_THREADS` where it is set (torchrun sets it), else every core that this process may use.

    In a container or under taskset these are fewer than the machine has.
    """
    return torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else usable_cores()


@contextmanager
def use_cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads inside the block.

    Args:
        count: at least 1, at most the machine's cores; None changes nothing.

    Raises:
        BadValueError: another number.
    """
    check_threads(count)
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
