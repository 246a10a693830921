"""Pictures for pages: sheets of images that a page cuts up, and PNG files inside HTML."""

import base64

import numpy as np
from numpy.typing import NDArray

from dim.runtime.set_formats.png_pixels import encode_pixels

COLUMNS = 32
"""Images in a line of a sheet; the page's script has the same number."""


def encode_sheet(images: NDArray[np.uint8]) -> bytes:
    """Lay images out without gaps, at most `COLUMNS` in a line, and encode the sheet as PNG.

    Args:
        images: uint8 [N, H, W, C], N at least 1.
    """
    count, height, width, channels = images.shape
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = images
    laid_out = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    pixels = np.ascontiguousarray(laid_out)
    return encode_pixels(pixels.data.cast("B"), rows * height, columns * width, channels)[0]


def to_data_address(png: bytes) -> str:
    """Return the `data:` address of a PNG file, which loads nothing from elsewhere."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
