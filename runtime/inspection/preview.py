"""Pictures of what a bundle draws: a grid, a PNG file, and the same in a terminal."""

import io
import os
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle import Bundle
from dim.runtime.errors import BadValueError
from dim.runtime.storage.below import replace_file

_GAP_PX = 2
_PAPER = 255
_MAX_ROWS, _MAX_COLUMNS = 20, 12
_RESET = "\x1b[0m"
_MAX_BYTES = 2**27
"""Of the images in one picture: fewer columns are drawn of images that are too large."""


def draw_rows(bundle: Bundle) -> NDArray[np.uint8]:
    """Draw the first images of the first classes, one row per class; at most 12 of at most 20.

    Args:
        bundle: an opened bundle.

    Returns:
        uint8 [rows, columns, H, W, C], ready for `make_grid`.
    """
    rows, manifest = min(len(bundle.classes), _MAX_ROWS), bundle.manifest
    columns = max(1, min(_MAX_COLUMNS, _MAX_BYTES // (rows * manifest.height * manifest.width * manifest.channels)))
    labels = np.repeat(np.arange(rows), columns)
    images = bundle.sample(labels, np.tile(np.arange(columns), rows))
    return images.reshape(rows, columns, *images.shape[1:])


def make_grid(images: NDArray[np.uint8], gap_px: int = _GAP_PX) -> NDArray[np.uint8]:
    """Lay images out on white paper, in rows and columns.

    Args:
        images: uint8 [rows, columns, H, W, C], C 1 or 3.
        gap_px: white pixels between and around the images.

    Returns:
        uint8 [rows * (H + gap) + gap, columns * (W + gap) + gap, 3].

    Raises:
        BadValueError: another shape or dtype.
    """
    if images.ndim != 5 or images.dtype != np.uint8 or images.shape[4] not in (1, 3) or 0 in images.shape:
        raise BadValueError(
            f"The images are {images.dtype} {images.shape}; they must be uint8 [rows, columns, height, width, 1 or 3]."
        )
    rows, columns, height, width, _ = images.shape
    paper = np.full((rows * (height + gap_px) + gap_px, columns * (width + gap_px) + gap_px, 3), _PAPER, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = gap_px + row * (height + gap_px), gap_px + column * (width + gap_px)
            paper[top : top + height, left : left + width] = images[row, column]
    return paper


def encode_png(image: NDArray[np.uint8], scale: int = 1) -> bytes:
    """Encode an image as PNG.

    Args:
        image: uint8 [H, W, 3], or 4 with opacity.
        scale: each pixel becomes a square of this side.
    """
    from PIL import Image

    stream = io.BytesIO()
    enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(np.ascontiguousarray(enlarged)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image, as `encode_png` takes it, as a PNG file that appears whole or not at all."""
    replace_file(path.parent, path.name, encode_png(image))


def can_show_pictures(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that may be sent colours: no file, no pipe, no `NO_COLOR`, not `dumb`."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def render_ansi(image: NDArray[np.uint8], max_columns: int = 80) -> str:
    """Render an image as half blocks in 24-bit colour: each letter shows two pixels, one above the other.

    Args:
        image: uint8 [H, W, 3].
        max_columns: letters per line; a wider image is shrunk by averaging whole squares of pixels.

    Returns:
        lines of text, each ending with the colours reset.

    Raises:
        BadValueError: another shape or dtype, or no column at all.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or max_columns < 1:
        raise BadValueError(
            f"The image is {image.dtype} {image.shape} for {max_columns} columns; it must be uint8 [H, W, 3]."
        )
    factor = -(-image.shape[1] // max_columns)
    if factor > 1:
        height, width = (-(-side // factor) * factor for side in image.shape[:2])
        padded = np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")
        squares = padded.reshape(height // factor, factor, width // factor, factor, 3)
        image = squares.mean(axis=(1, 3)).round().astype(np.uint8)
    if image.shape[0] % 2:
        image = np.concatenate([image, image[-1:]])
    lines = []
    for upper, lower in zip(image[0::2].tolist(), image[1::2].tolist(), strict=True):
        line, last = [], None
        for (r, g, b), (r2, g2, b2) in zip(upper, lower, strict=True):
            colours = f"\x1b[38;2;{r};{g};{b};48;2;{r2};{g2};{b2}m"
            line.append("▀" if colours == last else colours + "▀")
            last = colours
        lines.append("".join(line) + _RESET)
    return "\n".join(lines)
