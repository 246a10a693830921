"""Draws an enlarged grid of images, with class names beside the rows, on a transparent background."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dim.runtime.errors import printable
from dim.runtime.inspection.preview import make_grid

INK = (125, 133, 144)
"""Between black and white, so that it reads on a light page and on a dark one."""
_MAX_NAME = 18
_FONT_PX = 15
_MARGIN_PX = 10


def draw_labelled_grid(
    images: NDArray[np.uint8], names: Sequence[str], *, min_image_px: int = 40, title: str = ""
) -> NDArray[np.uint8]:
    """Lay images out in rows with a name each, enlarged by whole pixels until they can be seen.

    Args:
        images: uint8 [rows, columns, H, W, C], C 1 or 3.
        names: one per row; foreign text is cleaned, and shortened to 18 letters.
        min_image_px: height of an image in the picture at least.
        title: a line above the grid, or nothing.

    Returns:
        uint8 [height, width, 4], red, green, blue and opacity.

    Raises:
        BadValueError: another shape or dtype, as `make_grid`.
    """
    from PIL import Image, ImageDraw, ImageFont

    scale = max(1, -(-min_image_px // images.shape[2])) if images.ndim == 5 and images.shape[2] else 1
    large = images.repeat(scale, axis=2).repeat(scale, axis=3)
    gap = max(2, scale)
    paper = make_grid(large, gap)
    font = ImageFont.load_default(_FONT_PX)
    texts = [shorten(printable(name)) for name in names]
    left = max((round(font.getlength(text)) for text in texts), default=0) + 2 * _MARGIN_PX
    top = 2 * _MARGIN_PX + _FONT_PX if title else 0
    canvas = np.zeros((top + paper.shape[0], left + paper.shape[1], 4), np.uint8)
    canvas[top:, left:, :3] = paper
    canvas[top:, left:, 3] = 255 * _mark_images(large, gap)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((left, _MARGIN_PX), printable(title), (*INK, 255), font)
    row_px = large.shape[2] + gap
    for row, text in enumerate(texts):
        middle = top + gap + row * row_px + large.shape[2] // 2
        draw.text((left - _MARGIN_PX, middle), text, (*INK, 255), font, anchor="rm")
    return np.asarray(picture)


def shorten(name: str) -> str:
    """Shorten a name to what fits beside a row."""
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 3] + "..."


def _mark_images(images: NDArray[np.uint8], gap_px: int) -> NDArray[np.bool_]:
    """True where `make_grid` puts an image, false in the gaps."""
    marks = make_grid(np.ones_like(images[..., :1]), gap_px)[..., 0] == 1
    return np.asarray(marks)
