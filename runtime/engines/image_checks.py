"""Compare images that two engines drew of the same latents, and find blank images and collapsed classes.

The limits are the promise to users: fp32 at most 1 level of 255 apart, fp16 and bf16 at least 45 dB, int8 at
least 30 dB.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dim.runtime.units import format_count

MAX_FP32_LEVELS = 1
MIN_PSNR_DB = {"fp16": 45.0, "bf16": 45.0, "int8": 30.0}
MIN_STD_LEVELS = 1.0
"""Of `measure_std_levels`: below it a class draws one image again and again."""

_PIECE = 2**22
"""Values that are compared at a time, so that memory does not grow with the images."""


def max_levels(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> int:
    """Return the largest difference between two sets of images of one shape, in levels of 0 to 255; 0 for none."""
    pieces = _pieces(images, others)
    return max((int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max()) for a, b in pieces), default=0)


def psnr_db(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio over all pixels of two sets, in dB; infinity where they are equal.

    Source: 10 log10(255^2 / mean squared difference).
    """
    total = sum(int(np.square(a.astype(np.int64) - b.astype(np.int64)).sum()) for a, b in _pieces(images, others))
    return math.inf if total == 0 else 10 * math.log10(255**2 * images.size / total)


def compare_precision(precision: str, images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> tuple[bool, str, str]:
    """Judge a precision's images against those of fp32.

    Args:
        precision: "fp32", "fp16", "bf16" or "int8".
        images: uint8 [N, H, W, C].
        reference: uint8 [N, H, W, C], drawn in fp32 from the same latents and labels.

    Returns:
        whether they agree; what was found: the largest difference, PSNR and how many pixels differ; what is allowed.
    """
    levels, psnr = max_levels(images, reference), psnr_db(images, reference)
    found = format_count(levels, "level")
    if levels:
        found += f", {psnr:.1f} dB, {changed_fraction(images, reference):.2%} of pixels differ"
    if precision == "fp32":
        return levels <= MAX_FP32_LEVELS, found, f"at most {MAX_FP32_LEVELS} level"
    return psnr >= MIN_PSNR_DB[precision], found, f"at least {MIN_PSNR_DB[precision]:g} dB"


def changed_fraction(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Return the fraction of pixel values that differ at all, 0 to 1."""
    return sum(int(np.count_nonzero(a != b)) for a, b in _pieces(images, others)) / max(1, images.size)


def blank_fraction(images: NDArray[np.uint8]) -> float:
    """Return the fraction of images [N, H, W, C] of one single colour, as a stuck or NaN network draws them."""
    if len(images) == 0:
        return 0.0
    one_colour_NC = images.min(axis=(1, 2)) == images.max(axis=(1, 2))
    return float(one_colour_NC.all(axis=1).mean())


def measure_std_levels(images: NDArray[np.uint8]) -> float:
    """Return the standard deviation over one class's images [N, H, W, C], averaged over the pixels, in levels.

    Images are aligned with the first one by `align_flip`: a generator that draws one image and its horizontal flip
    again and again has a deviation of 0.
    """
    if images.size == 0:
        return 0.0
    flat = np.stack([align_flip(image, images[0]) for image in images]).reshape(len(images), -1)
    step = max(1, _PIECE // len(images))
    columns = (flat[:, start : start + step].astype(np.float64) for start in range(0, flat.shape[1], step))
    return float(sum(part.std(axis=0).sum() for part in columns) / flat.shape[1])


def align_flip(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image [H, W, C], or its horizontal flip where that is nearer to the reference by mean difference."""
    target, flipped = reference.astype(np.int16), image[:, ::-1]
    off = [int(np.abs(other.astype(np.int16) - target).sum(dtype=np.int64)) for other in (image, flipped)]
    return image if off[0] <= off[1] else flipped


def _pieces(
    images: NDArray[np.uint8], others: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    first, second = images.reshape(-1), others.reshape(-1)
    for start in range(0, first.size, _PIECE):
        yield first[start : start + _PIECE], second[start : start + _PIECE]
