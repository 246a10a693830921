"""A picture of the generated images that are closest to training images."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.evaluation.files import write_file
from dim.runtime.inspection.preview import encode_png, make_grid

PAIRS = 12
PICTURE_PX = 900


def draw_pairs(
    generated: NDArray[np.uint8], training: NDArray[np.uint8], distances: NDArray[np.float64], path: Path
) -> None:
    """Draw the first twelve pairs as a PNG: generated images above the training image that is closest to each.

    Args:
        generated, training: uint8 `[N, H, W, C]`, pair by pair.
        distances: of every pair, in pixels, float64 `[N]`; must not decrease.
        path: the PNG file.

    Raises:
        OutputError: the disk refused.
    """
    assert (np.diff(distances) >= 0).all()
    grid = make_grid(np.stack([generated[:PAIRS], training[:PAIRS]]))
    write_file(path, encode_png(grid, max(1, PICTURE_PX // grid.shape[1])), f"The picture {path}")
