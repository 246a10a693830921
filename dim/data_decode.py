"""Resizing and decoding of images with Pillow, in threads (Pillow releases the GIL for both)."""

from concurrent.futures import ThreadPoolExecutor
from os import sched_getaffinity

import numpy as np

from dim.data_set import Images

_BATCH = 512


def num_threads() -> int:
    """Decoding threads: the cores this process may use, at most 16."""
    return min(16, len(sched_getaffinity(0)))


def resize_batch(images: Images, size: int) -> Images:
    """Crop every image to its central square and resize it (bicubic, antialiased when shrinking).

    Args:
        images: uint8 `[N, H, W, C]`, C = 1 or 3.
        size: side of the result in pixels.

    Returns:
        uint8 `[N, size, size, C]`.
    """
    result = np.empty((len(images), size, size, images.shape[3]), dtype=np.uint8)

    def work(start: int) -> None:
        for row in range(start, min(start + _BATCH, len(images))):
            result[row] = _resize(images[row], size)

    with ThreadPoolExecutor(num_threads()) as pool:
        for _ in pool.map(work, range(0, len(images), _BATCH)):
            pass
    return result


def _resize(image: Images, size: int) -> Images:
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    box = central_square(picture.width, picture.height)
    resized = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, dtype=np.uint8).reshape(size, size, image.shape[2])


def central_square(width: int, height: int) -> tuple[float, float, float, float]:
    """The central square of an image as Pillow's box (left, top, right, bottom)."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return (left, top, left + side, top + side)
