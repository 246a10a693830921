"""Reads and checks the query of a page's request."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.errors import BadValueError
from dim.runtime.sampling.latents import MAX_INDEX

MAX_IMAGES = 2000
"""Images of one answer."""
MAX_SET_IMAGES = 100_000
"""Images of one set that a page saves, for which it waits."""
MAX_ANSWER_BYTES = 2**26
"""Pixels of one answer."""
MAX_STD = 10.0


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Images of some classes, as the page shows them."""

    labels: tuple[int, ...]
    count: int
    """Images per class."""
    start: int
    """First index of every class."""
    seed: int
    std: float
    """Standard deviation of the latents."""
    fixed: bool
    """Whether the bundle's fixed latents are used."""


def read_wish(query: Mapping[str, str], manifest: Manifest, *, for_set: bool = False) -> Wish:
    """Read a wish from the fields of a query; each may be left out.

    Args:
        query: `labels` (joined by commas), `count`, `start`, `seed`, `std`, `fixed` (0 or 1).
        manifest: of the bundle.
        for_set: the images are not shown but saved, so that there may be more of them.

    Raises:
        BadValueError: a field is no number or out of range, or the images are too many.
    """
    num_classes = manifest.num_classes
    chosen = query.get("labels", "")
    labels = (
        [read_whole("labels", text, num_classes - 1) for text in chosen.split(",")] if chosen else range(num_classes)
    )
    pixels = manifest.height * manifest.width * manifest.channels
    limit = MAX_SET_IMAGES if for_set else max(1, min(MAX_IMAGES, MAX_ANSWER_BYTES // pixels))
    if len(labels) > limit:
        raise BadValueError(f"{len(labels):,} classes are more than one page takes; choose at most {limit:,}.")
    most = limit // len(labels)
    count = read_whole("count", query.get("count", "12"), most, 1)
    start = read_whole("start", query.get("start", "0"), MAX_INDEX - count)
    return Wish(
        labels=tuple(labels),
        count=count,
        start=start,
        seed=read_whole("seed", query.get("seed", "0"), 2**64 - 1),
        std=_read_std(query.get("std", ""), manifest.latent_std),
        fixed=query.get("fixed", "1") == "1",
    )


def read_whole(name: str, text: str, most: int, least: int = 0) -> int:
    """Read the whole number of a field of a query.

    Raises:
        BadValueError: it is missing, no number or out of range.
    """
    words = {"start": "first index", "end": "last index", "count": "number of images per class", "labels": "class"}
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and least <= int(text) <= most):
        raise BadValueError(
            f"The {words.get(name, name)} is {text[:40]!r}; it must be a whole number from {least} to {most}."
        )
    return int(text)


def _read_std(text: str, usual: float) -> float:
    try:
        std = float(text) if text.strip() else usual
    except ValueError:
        std = math.nan
    if not 0 < std <= MAX_STD:
        raise BadValueError(f"The latent std is {text[:40]!r}; it must be a number above 0 and at most {MAX_STD:g}.")
    return std
