"""Image files and arrays to square uint8 images, with Pillow (which releases the GIL while it decodes and resizes).

The central square is taken and resized with Pillow's bicubic filter, antialiased when it shrinks. EXIF orientation is
honoured wherever a file keeps it, transparency is composited on white, an animation gives its first frame. 16-bit
values keep the upper eight of the bits that the set uses. The format is told by the file's first bytes, and only the
formats below are opened: no PostScript.
"""

import io
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from os import sched_getaffinity
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dim.data.image_set import Images
from dim.data.limits import LARGE_IMAGE_PIXELS, MAX_IMAGE_PIXELS, MAX_JPEG_SCANS, MAX_QUEUED_BYTES
from dim.runtime.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

BYTE_BITS, WORD_BITS = 8, 16
USED_BITS = (8, 10, 12, 14, 16)
"""How many bits of 16 cameras and scanners use."""

_BATCH = 512
_FILES_PER_TASK = 64
_large_image = threading.Lock()  # one at a time over all calls of the process: each needs up to 1.5 GiB


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says before it is decoded."""

    height: int
    width: int
    is_grey: bool
    has_alpha: bool
    is_animated: bool = False
    """Whether the file holds several pictures."""
    bits: int = BYTE_BITS
    """Of one channel of one pixel: 8 or 16."""


def count_threads() -> int:
    """Count the threads for decoding: the cores this process may use, at most 16."""
    return min(16, len(sched_getaffinity(0)))


def resize_batch(images: Images, size: int) -> Images:
    """Crop every image to its central square and resize it.

    Args:
        images: uint8 `[N, H, W, C]`, C = 1 or 3.
        size: side of the result in pixels.

    Returns:
        uint8 `[N, size, size, C]`.
    """
    from PIL import Image

    result = np.empty((len(images), size, size, images.shape[3]), dtype=np.uint8)

    def work(start: int) -> None:
        for row in range(start, min(start + _BATCH, len(images))):
            image = images[row]
            picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image))
            result[row] = np.asarray(_to_square(picture, size)).reshape(size, size, -1)

    with ThreadPoolExecutor(count_threads()) as pool:
        for _ in pool.map(work, range(0, len(images), _BATCH)):
            pass
    return result


def read_header(data: bytes, name: str) -> ImageHeader:
    """Read size and kind of an image file, within `MAX_IMAGE_PIXELS`.

    Raises:
        DataError: empty, not an image of a known format, damaged, or too large; `name` is in the message.
    """
    try:
        with _open(data, name) as picture:
            return ImageHeader(
                height=picture.height,
                width=picture.width,
                is_grey=_is_grey(picture),
                has_alpha=_has_alpha(picture),
                is_animated=bool(getattr(picture, "is_animated", False)),
                bits=WORD_BITS if picture.mode.startswith("I") or _is_deep_colour(picture) else BYTE_BITS,
            )
    except DataError:
        raise
    except Exception as error:  # a decoder's answer to damage is not limited to any list of exceptions
        raise DataError(_describe_failure(name, error)) from error


def choose_bits(largest: int, asked: int | None, name: str) -> int:
    """Choose the smallest of `USED_BITS` that holds the largest value of a set of 16-bit images.

    Args:
        largest: of all values of both splits, 0..65535.
        asked: the user's own choice, or None.
        name: stands for the set in messages.

    Raises:
        DataError: the choice asked for does not hold the largest value.
    """
    needed = next(bits for bits in USED_BITS if largest < 2**bits)
    if asked is not None and largest >= 2**asked:
        raise DataError(f"{name}: values up to {largest} found, which {asked} bits do not hold; say --bits {needed}.")
    return needed if asked is None else asked


def find_largest_value(data: bytes, name: str) -> int:
    """Return the largest value of a 16-bit image; arguments and errors as `decode_image`."""
    try:
        with _open(data, name) as picture, _large_image if _is_large(picture) else nullcontext():
            if not _is_deep_colour(picture):
                return int(_read_sixteen(picture).max())
            values = _read_deep_colour(picture, data)
            return int(values[..., : _count_colours(values)].max())  # without alpha, which uses all bits
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(_describe_failure(name, error)) from error


def decode_image(data: bytes, name: str, *, size: int, channels: int, bits: int = WORD_BITS) -> Images:
    """Decode one image file.

    Args:
        data: the file's bytes.
        name: stands for it in messages.
        size: side of the result in pixels.
        channels: 1 (grey, ITU-R 601 luma) or 3.
        bits: that a 16-bit image uses; the upper eight of them are kept.

    Returns:
        uint8 `[size, size, channels]`.

    Raises:
        DataError: as `read_header`, or truncated.
    """
    try:
        with _open(data, name) as picture, _large_image if _is_large(picture) else nullcontext():
            if bits < WORD_BITS and _is_deep_colour(picture):
                _narrow_colour(picture, data, bits)
            return _decode(picture, size, channels, bits)
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(_describe_failure(name, error)) from error


def decode_files(
    files: Iterable[tuple[int, str, bytes]], decode: Callable[[int, str, bytes], None], count: Callable[[int], None]
) -> None:
    """Hand files to `decode(row, name, data)` in threads, keeping at most `MAX_QUEUED_BYTES` of them waiting.

    Args:
        files: (row, name, bytes), drawn by the calling thread.
        decode: runs in a thread; the first exception is raised here, after which nothing more is drawn.
        count: is told the number of files of every finished task.
    """

    def work(task: list[tuple[int, str, bytes]]) -> int:
        for row, name, data in task:
            decode(row, name, data)
        return len(task)

    waiting: list[tuple[Future[int], int]] = []
    task: list[tuple[int, str, bytes]] = []
    task_bytes = 0
    threads = count_threads()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for file in files:
                task.append(file)
                task_bytes += len(file[2])
                if len(task) < _FILES_PER_TASK and task_bytes < MAX_QUEUED_BYTES // (4 * threads):
                    continue
                waiting.append((pool.submit(work, task), task_bytes))
                task, task_bytes = [], 0
                while len(waiting) > 4 * threads or sum(size for _, size in waiting) > MAX_QUEUED_BYTES // 2:
                    count(waiting.pop(0)[0].result())
            waiting.append((pool.submit(work, task), task_bytes))
            for future, _ in waiting:
                count(future.result())
        finally:
            for future, _ in waiting:
                future.cancel()


def _open(data: bytes, name: str) -> "Picture":
    # Not Image.open: it tries every format and guards sizes by a limit that is global to the process.
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, TiffImagePlugin
    from PIL.WebPImagePlugin import WebPImageFile

    if not data:
        raise DataError(f"{name}: an empty file, expected an image.")
    file = io.BytesIO(data)
    picture: Picture
    if data.startswith(b"\xff\xd8\xff"):
        scans = data.count(b"\xff\xda")
        if scans > MAX_JPEG_SCANS:
            raise DataError(f"{name}: a JPEG of {scans} scans, more than the limit of {MAX_JPEG_SCANS}.")
        picture = JpegImagePlugin.JpegImageFile(file)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        picture = PngImagePlugin.PngImageFile(file)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        picture = WebPImageFile(file)
    elif data.startswith(b"GIF8"):
        picture = GifImagePlugin.GifImageFile(file)
    elif data.startswith(b"BM"):
        picture = BmpImagePlugin.BmpImageFile(file)
    elif data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        picture = TiffImagePlugin.TiffImageFile(file)
    elif data[:1] == b"P" and data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6"):
        picture = PpmImagePlugin.PpmImageFile(file)
    else:
        raise DataError(f"{name}: not a readable image: expected PNG, JPEG, WebP, GIF, BMP, TIFF or PPM.")
    if not 0 < picture.width * picture.height <= MAX_IMAGE_PIXELS:
        raise DataError(
            f"{name}: an image of {picture.width} x {picture.height} pixels, more than the limit of {MAX_IMAGE_PIXELS}."
        )
    return picture


def _describe_failure(name: str, error: Exception) -> str:
    return f"{name}: the image cannot be read ({str(error).strip() or type(error).__name__}): fix or remove it."


def _is_grey(picture: "Picture") -> bool:
    if picture.mode == "P":
        palette = np.asarray(picture.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return picture.mode in ("1", "L", "LA", "La") or picture.mode.startswith("I")


def _has_alpha(picture: "Picture") -> bool:
    return picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info


def _is_large(picture: "Picture") -> bool:
    return picture.width * picture.height > LARGE_IMAGE_PIXELS


def _decode(picture: "Picture", size: int, channels: int, bits: int) -> Images:
    from PIL import Image, ImageOps

    if picture.format == "JPEG":
        picture.draft(None, (2 * size, 2 * size))  # large photographs: decode at a fraction, still above the target
    picture = ImageOps.exif_transpose(picture)  # knows EXIF, PNG's text chunks, XMP and TIFF
    if picture.mode.startswith("I"):
        picture = _to_bytes(picture, bits)
    elif picture.mode == "F":
        raise ValueError("it holds floating-point values; save it with 8 or 16 bits")
    mode = "RGBA" if _has_alpha(picture) else "L" if _is_grey(picture) else "RGB"
    if picture.mode != mode:
        # Grey by way of RGB, because a palette's own index is not its grey.
        picture = picture.convert("RGB").convert("L") if mode == "L" and picture.mode == "P" else picture.convert(mode)
    picture = _to_square(picture, size)
    if mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture).convert("RGB")
    if channels == 1 and picture.mode != "L":
        picture = picture.convert("L")
    image = np.asarray(picture, dtype=np.uint8)
    return np.repeat(image[..., None], channels, axis=2) if picture.mode == "L" else image


def _to_bytes(picture: "Picture", bits: int) -> "Picture":
    """Bring a 16-bit image to 8 bits; the grey value that its file calls transparent becomes transparency."""
    from PIL import Image

    values = _read_sixteen(picture)
    grey = Image.fromarray((values >> (bits - BYTE_BITS)).clip(0, 255).astype(np.uint8))
    clear = picture.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def _is_deep_colour(picture: "Picture") -> bool:
    """Whether it is a PNG or TIFF with 16 bits a channel in colour or with alpha; Pillow gives the upper eight."""
    tiles = getattr(picture, "tile", ())
    return picture.format in ("PNG", "TIFF") and any(_raw_mode(tile) in _LOW_BYTES for tile in tiles)


_SWAPPED = "B" if sys.byteorder == "little" else "L"
_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGB;16N": f"RGB;16{_SWAPPED}",  # of compressed TIFFs, in this machine's order
    "RGBA;16N": f"RGBA;16{_SWAPPED}",
    "LA;16B": "RGBA",  # all bytes of its two channels
}
"""Pillow's raw modes with 16 bits a channel, and those that read the low bytes of the same file."""


def _raw_mode(tile: Any) -> str:
    """The raw mode of a tile: all of its arguments in a PNG, the first of them in a TIFF."""
    return str(tile.args if isinstance(tile.args, str) else tile.args[0])


def _read_deep_colour(picture: "Picture", data: bytes) -> NDArray[Any]:
    """Read all 16 bits of such an image: `[H, W, C]`, C 2, 3 or 4."""
    from PIL import Image

    is_grey = any(_raw_mode(tile) == "LA;16B" for tile in picture.tile)  # type: ignore[attr-defined]
    low: Any = Image.open(io.BytesIO(data), formats=[str(picture.format)])
    for number, tile in enumerate(low.tile):
        mode = _LOW_BYTES[_raw_mode(tile)]
        args = mode if isinstance(tile.args, str) else (mode, *tile.args[1:])
        low.tile[number] = tile._replace(args=args)
    values = np.asarray(low).astype(np.uint16)
    if is_grey:
        return values[..., ::2] * np.uint16(256) + values[..., 1::2]
    values += np.multiply(np.asarray(picture), 256, dtype=np.uint16)
    return values


def _narrow_colour(picture: "Picture", data: bytes, bits: int) -> None:
    """Give such an image the upper eight of the bits that it uses; alpha uses all 16."""
    from PIL import Image

    values = _read_deep_colour(picture, data)
    count = _count_colours(values)
    colours = (values[..., :count] >> (bits - BYTE_BITS)).clip(0, 255)
    colours = np.repeat(colours, 3, axis=2) if count == 1 else colours
    picture.paste(Image.fromarray(np.dstack([colours, values[..., count:] >> BYTE_BITS]).astype(np.uint8)))
    if isinstance(clear := picture.info.get("transparency"), tuple):
        picture.info["transparency"] = tuple(min(value >> (bits - BYTE_BITS), 255) for value in clear)


def _count_colours(values: NDArray[Any]) -> int:
    """Count the channels that are no alpha."""
    return 1 if values.shape[2] == 2 else 3


def _read_sixteen(picture: "Picture") -> NDArray[Any]:
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"grey values from {values.min()} to {values.max()}, expected 0 to 65535")
    return values


def _to_square(picture: "Picture", size: int) -> "Picture":
    from PIL import Image

    side = min(picture.width, picture.height)
    if picture.width != picture.height:
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    return picture if side == size else picture.resize((size, size), Image.Resampling.BICUBIC)
