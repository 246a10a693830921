"""Source datasets by name or by path, as uint8 arrays in memory: everything behind `--data`.

Names: `digits` (scikit-learn's real 8x8 digits), `mnist`, `fashion-mnist`, `svhn`, `cifar10`, `cifar100` (the official
files). The limits under which files are read stand in `dim.data_limits`.
"""

import os
from pathlib import Path

from dim.data_known import KNOWN, load_known
from dim.data_set import ImageSet, Say, check_request, finish
from dim.runtime.errors import DataError

__all__ = ["ImageSet", "load_data"]


def _silent(message: str) -> None:
    """Say nothing."""


def load_data(
    name_or_path: str,
    *,
    data_dir: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    channels: int | None = None,
    say: Say = _silent,
) -> ImageSet:
    """Load a labelled image set into memory.

    Args:
        name_or_path: a known name, or a path.
        data_dir: where the official files of a known name lie; default `$DIM_DATA`.
        size: side of the images in pixels, 8..128; None keeps square images of one size in that range.
        seed: fixes the test split of a source that has none, 0..2**64-1.
        skip_unreadable: leave out images that cannot be read (counted in the note) instead of stopping at the first.
        channels: 1 turns colour into grey, 3 repeats grey; None keeps the source's own.
        say: receives sentences about choices made on the way.

    Raises:
        BadValueError: size, channels or seed out of range.
        DataError: the source is unknown, missing, damaged, inconsistent or beyond the limits.

    Example:
        >>> digits = load_data("digits")
        >>> digits.train_images.shape[1:], len(digits.classes)
        ((8, 8, 1), 10)
    """
    check_request(size, channels, seed)
    if name_or_path in KNOWN:
        folder = data_dir if data_dir is not None else os.environ.get("DIM_DATA") or None
        raw = load_known(name_or_path, None if folder is None else Path(folder), say)
        return finish(raw, size=size, channels=channels, seed=seed, say=say)
    raise DataError(f"'{name_or_path}' is neither a known dataset ({', '.join(sorted(KNOWN))}) nor an existing path")
