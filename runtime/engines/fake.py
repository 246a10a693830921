"""An engine without a network: cheap, deterministic NumPy pictures that depend on latents and labels alone.

For tests and for measuring everything around an engine.
"""

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.manifest import Manifest


class FakeEngine:
    """Draw stripes whose offset and step come from a hash of each row's latents and label."""

    name = "fake"
    device = "cpu"
    precision = "fp32"
    batch: int | None = None
    version = "fake 1"
    reason = ""

    def __init__(self, manifest: Manifest) -> None:
        self._shape = (manifest.height, manifest.width, manifest.channels)
        self._ramp = (np.arange(np.prod(self._shape)) % 251).astype(np.uint8)
        self._weights = (np.arange(manifest.latent_dim, dtype=np.uint32) * 2 + 1) * np.uint32(2654435761)

    def run(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw images; see `Engine.run`."""
        bits = np.ascontiguousarray(latents, np.float32).view(np.uint32)
        mixed = (bits * self._weights).sum(axis=1, dtype=np.uint32) ^ (labels.astype(np.uint32) * np.uint32(40503))
        step = ((mixed >> np.uint32(8)) & np.uint32(7)).astype(np.uint8) * np.uint8(2) + np.uint8(1)
        offset = (mixed >> np.uint32(16)).astype(np.uint8)
        images: NDArray[np.uint8] = (self._ramp * step[:, None] + offset[:, None]).reshape(-1, *self._shape)
        return images

    def close(self) -> None:
        """Nothing to give back."""
