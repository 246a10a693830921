"""The processes of a data-parallel run under `torchrun`; in a plain run there is one."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

GROUP_TIMEOUT = timedelta(hours=6)
"""How long processes wait for one that works alone; torch's default of ten minutes is shorter than training a pool."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all of them."""

    rank: int = 0
    """0 to size - 1; only rank 0 writes files."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process on its machine: its GPU."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def slice(self, values: Tensor) -> Tensor:
        """This process's equal share of `values` along the first axis: every rank draws all, and keeps its part."""
        share = values.shape[0] // self.size
        return values[self.rank * share : (self.rank + 1) * share]

    def any_true(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is true in any process; every process gets the same answer."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)], device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over processes."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.size

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


_left: list[object] = []
"""The group that this process left last. The reducer of DistributedDataParallel holds the group as well, and is freed
with the interpreter's lock held: were it the last to let go, gloo's threads would be waited for while they wait for the
lock to free a tensor, for ever (torch 2.13, seen at the end of a run). A group let go from here gives the lock up."""


@atexit.register
def _let_go() -> None:
    """Let the last group go while its threads can still take the interpreter's lock: later they would abort it."""
    gc.collect()  # a reducer in a cycle would hold the group longer
    _left.clear()


@contextmanager
def join_process_group(device: str) -> Iterator[World]:
    """Join the group that `torchrun` announces in the environment, and leave it at the end.

    Args:
        device: `cpu` (gloo) or `cuda` (nccl).
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not dist.is_available():
        yield World()
        return
    world = World(rank=int(os.environ["RANK"]), size=size, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if device == "cuda" else "gloo"
    _left.clear()
    dist.init_process_group(backend, rank=world.rank, world_size=size, timeout=GROUP_TIMEOUT)
    _left.append(dist.group.WORLD)
    try:
        yield world
    finally:
        dist.destroy_process_group()
