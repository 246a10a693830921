"""Holds out a part of the training split, on which choices are made."""

import numpy as np
from numpy.typing import NDArray

from dim.execution.device_data import seed_of


def holdout_mask(labels_N: NDArray[np.int64], num_classes: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose the same part of every class at random: at least one image, and never a class's last.

    Args:
        labels_N: 0 to num_classes - 1.
        num_classes: K.
        fraction: part of every class's images, above 0 and below 1.
        seed: of the choice.

    Returns:
        bool `[N]`, true where an image is held out.
    """
    rng = np.random.default_rng(seed_of("hold-out", seed))
    held = np.zeros(len(labels_N), dtype=bool)
    for label in range(num_classes):
        rows = rng.permutation(np.flatnonzero(labels_N == label))
        held[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    return held
