"""What an engine is, and what an opener of one gets to work with."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.gpu.driver import Driver

DEVICES = ("auto", "cpu", "gpu")


class Engine(Protocol):
    """Something that turns latents and labels into images; `run` may be called from several threads at once."""

    reason: str
    """Why this engine was chosen, one clause."""

    @property
    def name(self) -> str:
        """One of ENGINES."""

    @property
    def device(self) -> str:
        """ "cpu" or "gpu"."""

    @property
    def precision(self) -> str:
        """ "fp32", "fp16" or "int8"."""

    @property
    def batch(self) -> int | None:
        """The constant batch that every run is padded to, or None where pixels do not depend on the batch size."""

    @property
    def version(self) -> str:
        """The library and its version."""

    def run(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw images.

        Args:
            latents: float32 [N, Z].
            labels: int64 [N], already checked to lie in 0..K-1; N at most `batch` where that is set.

        Returns:
            uint8 [N, H, W, C].
        """

    def close(self) -> None:
        """Give back memory and device; harmless when called twice."""


def run_ahead(
    engine: Engine, batches: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]
) -> Iterator[NDArray[np.uint8]]:
    """Draw batch after batch, each as `Engine.run`; a GPU computes the next ones while one is handed out."""
    ahead = getattr(engine, "run_ahead", None)
    if ahead is not None:
        yield from ahead(batches)
        return
    for latents, labels in batches:
        yield engine.run(latents, labels)


class BundleLike(Protocol):
    """The part of a bundle that an engine needs."""

    @property
    def path(self) -> Path:
        """The bundle's folder."""

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What an opener gets to work with."""

    bundle: BundleLike
    precision: str
    """The precision asked for, fp32 where none was."""
    any_precision: bool
    """None was asked for: a prebuilt engine of another precision will do."""
    trust: frozenset[str]
    """SHA-256 hashes of plans that the user vouches for."""
    threads: int | None
    """Threads of a CPU engine; None for every core this process may use."""
    batch: int | None
    """The padded batch of a GPU engine; None for the engine's own, halved at the start where the GPU is full."""
    driver: Driver
    say: Callable[[str], None] = field(repr=False)
