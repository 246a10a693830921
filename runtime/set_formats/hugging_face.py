"""A set as a dataset of the library `datasets`, drawn into its cache a batch at a time."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.errors import MissingExtraError
from dim.runtime.sampling.latents import order_slice
from dim.runtime.set_formats.png import encode_png, encoder_version

Draw = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.uint8]]


def make_dataset(
    draw: Draw,
    classes: Sequence[str],
    counts: Sequence[int],
    start: int,
    rows: int,
    identity: str,
    cache_dir: str | Path | None,
) -> Any:
    """Make a `datasets.Dataset` with the features Image and ClassLabel, which lies in the library's cache.

    Args:
        draw: turns labels int64 [N] and indices int64 [N] into images uint8 [N, H, W, C]; must be picklable, because
            the library finds a set that it has by it and the other arguments.
        classes: all names, in the order of their labels.
        counts: images per class.
        start: the first index of every class.
        rows: images drawn at once.
        identity: what else decides the pixels.
        cache_dir: where the library keeps the set; None for its own folder.

    Raises:
        MissingExtraError: the library is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "hf", "make a Hugging Face dataset") from None
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})
    arguments = {"draw": draw, "counts": tuple(counts), "start": start, "rows": rows}
    return datasets.Dataset.from_generator(
        _draw_rows,
        features=features,
        cache_dir=None if cache_dir is None else str(cache_dir),
        gen_kwargs=arguments | {"identity": f"{identity}, {encoder_version()}"},
    )


def _draw_rows(draw: Draw, counts: Sequence[int], start: int, rows: int, identity: str) -> Iterator[dict[str, Any]]:
    for position in range(0, sum(counts), rows):
        labels, indices = order_slice(counts, position, position + rows)
        for png, label in zip(encode_png(draw(labels, indices + start)), labels.tolist(), strict=True):
            yield {"image": {"bytes": png, "path": None}, "label": label}
