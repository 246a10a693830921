"""SVHN, "format 2: cropped digits" (ufldl.stanford.edu/housenumbers), from its two MATLAB files."""

from pathlib import Path

import numpy as np

from dim.data.decode import Images
from dim.data.image_set import Labels
from dim.data.limits import MAX_LABELS, MAX_SET_BYTES
from dim.data.matlab import read_matlab
from dim.runtime.errors import DataError


def load_svhn_file(path: Path) -> tuple[Images, Labels]:
    """Images and labels of one file; the published label 10 is the digit 0.

    Returns:
        uint8 `[N, 32, 32, 3]` and int64 `[N]`.

    Raises:
        DataError: damaged, or not the arrays that SVHN publishes.
    """
    arrays = read_matlab(path, {"X": MAX_SET_BYTES, "y": 8 * MAX_LABELS})
    images, labels = arrays["X"], arrays["y"].reshape(-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X is {images.dtype} {list(images.shape)}, expected uint8 [32, 32, 3, N]")
    whole = np.nan_to_num(labels.astype(np.float64), nan=-1.0).astype(np.int64)
    if len(labels) != images.shape[3] or not np.array_equal(whole, labels) or whole.min() < 1 or whole.max() > 10:
        raise DataError(f"{path}: y does not hold {images.shape[3]} labels from 1 to 10; fetch the official file again")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), whole % 10
