"""How many CPU threads torch uses while dim distils."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dim.runtime.cores import check_threads, usable_cores

MEASURED_S, LEAST_SHARE = 10.0, 0.5
"""Seconds over which the share of the processor is measured; below which part of its threads' time advice is given."""


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


class CpuMeter:
    """Finds out whether a process gets much less of the processor than its threads could use.

    Args:
        threads: of torch.
    """

    def __init__(self, threads: int) -> None:
        self._threads, self._is_done = threads, threads == 1
        self._began_s, self._used_s = time.monotonic(), time.process_time()

    def advise(self) -> str | None:
        """Return a sentence for the user, once, where fewer threads may be faster; to be called after every step."""
        elapsed_s = time.monotonic() - self._began_s
        if self._is_done or elapsed_s < MEASURED_S:
            return None
        self._is_done = True
        cores = (time.process_time() - self._used_s) / elapsed_s
        if cores >= LEAST_SHARE * self._threads:
            return None
        return (
            f"{self._threads} threads got the time of {cores:.1f} cores over {elapsed_s:.0f} s: on a processor that "
            f"others use too, fewer may be faster: --threads {max(1, round(cores))}."
        )
