"""The engines that the benchmark measures; PyTorch is in `dim.torch_engine.rivals`."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Latents float32 `[N, latent_dim]` and labels int64 `[N]`."""
ContenderKey = tuple[str, str, str]
"""Engine, precision, device."""


class Runner(Protocol):
    """A contender opened at one batch size."""

    def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
        """Draw batch after batch into host memory, uint8 `[N, H, W, C]`, as far ahead as it can."""

    def close(self) -> None:
        """Free memory and device."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something whose speed is measured."""

    engine: str
    """An engine's name, or "torch-eager", "torch-channels-last", "torch-compile"."""
    precision: str
    device: str
    """ "cpu" or "gpu"."""
    open: Callable[[int], Runner]
    """Takes the batch size; raises a DimError where it cannot run."""
    open_s: float = 0.0
    """Seconds that opening takes at least; it is not opened where the time limit leaves fewer."""

    @property
    def key(self) -> ContenderKey:
        """Engine, precision and device."""
        return (self.engine, self.precision, self.device)
