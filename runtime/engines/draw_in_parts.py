"""Draws any number of images from an engine, in calls of bounded memory."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.engines.base import Engine, run_ahead

# Images per run of an engine without a batch of its own: at most 1,024, and about 2**18 pixels.
_PIXELS_PER_RUN = 2**18
MAX_ROWS_PER_RUN = 1024


def choose_rows_per_run(manifest: Manifest) -> int:
    """Choose how many images one run of an engine without a batch of its own draws, for bounded memory."""
    return max(1, min(MAX_ROWS_PER_RUN, _PIXELS_PER_RUN // (manifest.height * manifest.width)))


def draw_in_parts(
    engine: Engine,
    manifest: Manifest,
    labels: NDArray[np.int64],
    latents_of: Callable[[slice], NDArray[np.float32]],
) -> NDArray[np.uint8]:
    """Draw an image of every label.

    Args:
        engine: of the bundle.
        manifest: of the bundle.
        labels: int64 [N], 0..K-1; any N.
        latents_of: makes the latents of some rows, float32 [n, Z], when their turn comes.

    Returns:
        uint8 [N, H, W, C].
    """
    rows = engine.batch or choose_rows_per_run(manifest)
    images = np.empty((len(labels), manifest.height, manifest.width, manifest.channels), np.uint8)
    parts = [slice(start, start + rows) for start in range(0, len(labels), rows)]
    batches = ((latents_of(part), labels[part]) for part in parts)
    for part, drawn in zip(parts, run_ahead(engine, batches), strict=True):
        images[part] = drawn
    return images
