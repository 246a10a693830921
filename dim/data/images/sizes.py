"""Chooses the size and the channels of a set's images, and converts images to them."""

from collections import Counter

import numpy as np

from dim.data.image_set import Images
from dim.data.images.decode import resize_batch
from dim.data.limits import MAX_IMAGE_PX, MAX_SET_BYTES, MIN_IMAGE_PX
from dim.runtime.errors import DataError

DEFAULT_MAX_PX = 64
"""The largest side chosen for a source whose images are not all of one square size in range."""


def choose_size(shapes: Counter[tuple[int, int]], size: int | None) -> tuple[int, str]:
    """Choose the side in pixels, and say in a sentence how images are changed to reach it ("" where they are not).

    One square size within 8..128 stays as it is. Otherwise, with no size asked for, the median of the shorter sides,
    at most 64 and a multiple of 8, is taken. Images that are not square are cropped to their centre.

    Args:
        shapes: how many images have which (height, width).
        size: the side asked for, or None.
    """
    found = sorted(shapes)
    if len(found) == 1 and found[0][0] == found[0][1]:
        native = found[0][0]
        if MIN_IMAGE_PX <= native <= MAX_IMAGE_PX and size in (None, native):
            return native, ""
    if size is None:
        sides = sorted((min(shape), count) for shape, count in shapes.items())
        below = np.cumsum([count for _, count in sides])
        median = sides[int(np.searchsorted(below, shapes.total() / 2))][0]
        size = max(MIN_IMAGE_PX, min(DEFAULT_MAX_PX, median) // 8 * 8)
    crop = "" if all(height == width for height, width in found) else ", cropped to the central square"
    widths, heights = sorted({width for _, width in found}), sorted({height for height, _ in found})
    return size, f"images of {_span(widths)} x {_span(heights)} pixels were resized to {size} x {size}{crop}"


def check_set_bytes(count: int, size: int, channels: int, name: str, advice: str = "") -> None:
    """Refuse a set whose images would not fit into `MAX_SET_BYTES`; `advice` says what else there is to do."""
    wanted = count * size * size * channels
    if wanted > MAX_SET_BYTES:
        raise DataError(
            f"{name}: {count} images of {size} x {size} x {channels} need {wanted} bytes, more than the limit of "
            f"{MAX_SET_BYTES}: use a smaller size or fewer images{advice}."
        )


def convert(images: Images, size: int, channels: int) -> Images:
    """Bring images to a side in pixels and a number of channels."""
    if channels == 1 and images.shape[3] == 3:
        images = _to_grey(images)
    if images.shape[1:3] != (size, size):
        images = resize_batch(images, size)
    if channels == 3 and images.shape[3] == 1:
        images = np.repeat(images, 3, axis=3)
    return np.ascontiguousarray(images) if type(images) is np.ndarray else images


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _to_grey(images: Images) -> Images:
    """ITU-R 601 luma in the fixed-point form that Pillow uses."""
    grey = np.empty((*images.shape[:3], 1), dtype=np.uint8)
    for start in range(0, len(images), 4096):
        chunk = images[start : start + 4096].astype(np.uint32)
        luma = (chunk[..., 0] * 19595 + chunk[..., 1] * 38470 + chunk[..., 2] * 7471 + 0x8000) >> 16
        grey[start : start + 4096, ..., 0] = luma
    return grey
