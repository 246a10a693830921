"""Compressed archives of real images: the alternative to a generator in as many bytes.

An archive is a stored zip of mosaics in class order and the number of images of every class. Mosaics share the headers
that every single image would have.
"""

import io
import json
import math
import zipfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.image_set import ImageSet
from dim.evaluation.images import shuffled_rows_by_class
from dim.runtime.errors import DataError

LOSSLESS = "webp-lossless"
CODECS = ("jpeg", "webp", "avif", LOSSLESS)
"""How the mosaics are coded."""
QUALITIES = (5, 8, 12, 20, 30, 45, 65, 90)
"""Of the lossy codecs, on Pillow's scale of 0 to 100."""
MOSAIC_PX = 4096
"""Longest side of a mosaic: bounds the memory of the encoders."""
_COUNTS = "counts.json"
_JPEG_BLOCK_PX = 8
_MAX_CANDIDATES = 4
_SHRINK = 0.985
"""An archive that does not fit loses this part of its images per class, again and again."""

Images = NDArray[np.uint8]
_NAMES = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Which real images are kept, and how they are coded."""

    codec: str
    """One of `CODECS`."""
    quality: int
    """0 to 100; 100 for lossless ones."""
    images_per_class: int
    """Most images per class; fewer where the file would be too large."""
    max_bytes: int
    """Largest size of the file."""

    def __str__(self) -> str:
        coded = "lossless WebP" if self.codec == LOSSLESS else f"{_NAMES[self.codec]} of quality {self.quality}"
        return f"{coded}, {self.images_per_class:,} images per class"


def list_codecs() -> list[str]:
    """List the codecs that this Pillow has."""
    from PIL import features

    modules = {"jpeg": "jpg", "webp": "webp", "avif": "avif", LOSSLESS: "webp"}
    supported = set(features.get_supported())
    return [codec for codec in CODECS if modules[codec] in supported]


def pack_archive(data: ImageSet, archive: Archive, seed: int) -> bytes:
    """Encode random images of the training split, so many that the file has at most `archive.max_bytes`.

    It has more where one image per class is more already.
    """
    per_class = archive.images_per_class
    while True:
        rows = [rows[:per_class] for rows in shuffled_rows_by_class(data, seed)]
        packed = encode_archive(data.train_images[np.concatenate(rows)], list(map(len, rows)), archive)
        if len(packed) <= archive.max_bytes or per_class == 1:
            return packed
        # The excess says how many are too many; the mosaics' borders ask for a little more.
        per_class = min(per_class, max(map(len, rows)))
        per_class = max(1, math.floor(per_class * min(archive.max_bytes / len(packed), 1.0) * _SHRINK))


def encode_archive(images: Images, counts: Sequence[int], archive: Archive) -> bytes:
    """Write images as a zip of mosaics.

    Args:
        images: uint8 `[M, H, W, C]`, in class order.
        counts: images of every class; their sum is M.
        archive: its codec and quality are used.
    """
    stream = io.BytesIO()
    tiles = max(1, MOSAIC_PX // max(images.shape[1:3])) ** 2
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file:
        # A date that is always the same: equal images give equal bytes.
        file.writestr(zipfile.ZipInfo(_COUNTS), json.dumps(list(counts), separators=(",", ":")))
        for number, start in enumerate(range(0, len(images), tiles)):
            coded = _encode_mosaic(_lay_out(images[start : start + tiles], archive.codec), archive)
            file.writestr(zipfile.ZipInfo(str(number)), coded)
    return stream.getvalue()


def decode_archive(packed: bytes, shape: Sequence[int]) -> tuple[Images, NDArray[np.int64]]:
    """Read the images of an archive.

    Args:
        packed: bytes of the file.
        shape: height, width and channels of an image.

    Returns:
        Images uint8 `[M, H, W, C]` and labels int64 `[M]`.

    Raises:
        DataError: it is no such archive.
    """
    from PIL import Image

    height, width, channels = shape
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as file:
            counts = json.loads(file.read(_COUNTS))
            left, parts = sum(counts), []
            for number in range(len(file.namelist()) - 1):
                with Image.open(io.BytesIO(file.read(str(number)))) as picture:
                    pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
                tile = [_padded(side, picture.format or "") for side in (height, width)]
                tiles = _cut(pixels.reshape(*pixels.shape[:2], channels), *tile)
                parts.append(tiles[:left, :height, :width])
                left -= len(parts[-1])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"The archive of real images cannot be read: {error}.") from error
    return np.concatenate(parts), np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _padded(side: int, codec: str) -> int:
    """JPEG's blocks must not lie across two images."""
    return -(-side // _JPEG_BLOCK_PX) * _JPEG_BLOCK_PX if codec.lower() == "jpeg" else side


def _lay_out(images: Images, codec: str) -> Images:
    """Lay images out in a square mosaic; the last one fills what is left."""
    height, width = images.shape[1:3]
    margins = (_padded(height, codec) - height, _padded(width, codec) - width)
    images = np.pad(images, ((0, 0), (0, margins[0]), (0, margins[1]), (0, 0)), mode="edge")
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    images = np.concatenate([images, np.repeat(images[-1:], rows * columns - len(images), axis=0)])
    count, height, width, channels = images.shape
    grid = images.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid.reshape(rows * height, columns * width, channels))


def _cut(pixels: Images, height: int, width: int) -> Images:
    """Cut a mosaic into tiles of this size."""
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    grid = pixels.reshape(rows, height, columns, width, pixels.shape[2]).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * columns, height, width, pixels.shape[2])


def _encode_mosaic(mosaic: Images, archive: Archive) -> bytes:
    from PIL import Image

    grey = mosaic.shape[2] == 1
    picture = Image.fromarray(mosaic[..., 0] if grey else mosaic)
    stream = io.BytesIO()
    options: dict[str, Any] = {"quality": archive.quality}
    if archive.codec == "jpeg":
        options |= {"optimize": True, "progressive": True}
    elif archive.codec == "avif":
        # Speed 8 takes a third of the time, and twice the squared error at equal bytes.
        options |= {"speed": 6, "subsampling": "4:0:0" if grey else "4:2:0"}
    elif archive.codec == LOSSLESS:
        options |= {"lossless": True}
    picture.save(stream, "webp" if archive.codec == LOSSLESS else archive.codec, **options)
    return stream.getvalue()


def find_candidates(data: ImageSet, max_bytes: int) -> list[Archive]:
    """List archives that fit into so many bytes: more images of less quality, and fewer of more.

    Every codec and quality is tried on a sample. Of two archives with equally many images the one with the smaller
    squared error is kept, of the rest those whose numbers of images lie evenly between the least and the most.

    Returns:
        At most four archives, most images first; one lossless archive of everything where that fits; none where not
        even one image per class does.
    """
    sample, counts = _draw_sample(data)
    firsts = np.cumsum([0, *counts[:-1]])
    found: list[tuple[float, Archive]] = []
    for codec in list_codecs():
        for quality in (100,) if codec == LOSSLESS else QUALITIES:
            archive = Archive(codec=codec, quality=quality, images_per_class=1, max_bytes=max_bytes)
            packed = encode_archive(sample, counts, archive)
            decoded, _ = decode_archive(packed, sample.shape[1:])
            error = float(np.mean((decoded.astype(np.float32) - sample) ** 2))
            # One image per class costs the headers as well; the others of the sample say what each of them adds.
            least = len(encode_archive(sample[firsts], [1] * len(counts), archive))
            if least > max_bytes:
                continue
            added = max(1.0, (len(packed) - least) / max(1, len(sample) - len(counts)))
            total = len(counts) + int((max_bytes - least) / added)
            found.append((error, replace(archive, images_per_class=images_that_fit(data.class_counts, total))))
    found.sort(key=lambda pair: (-pair[1].images_per_class, pair[0]))
    front: list[Archive] = []
    lowest = math.inf
    for error, archive in found:
        if error < lowest:
            lowest = error
            front.append(archive)
    return _thin_out(front)


def _draw_sample(data: ImageSet) -> tuple[Images, list[int]]:
    """Draw images of all classes for about half a million pixels, in class order, and count those of every class."""
    wanted = max(len(data.classes), 2**19 // (data.height * data.width))
    per_class = max(1, wanted // len(data.classes))
    rows = [rows[:per_class] for rows in shuffled_rows_by_class(data, seed=0)]
    return data.train_images[np.concatenate(rows)], list(map(len, rows))


def _thin_out(front: list[Archive]) -> list[Archive]:
    """Keep the first and the last, and those nearest to even steps of the logarithm between them."""
    if len(front) <= _MAX_CANDIDATES:
        return front
    logs = np.log([archive.images_per_class for archive in front])
    wanted = np.linspace(logs[0], logs[-1], _MAX_CANDIDATES)
    return [front[place] for place in sorted({int(np.abs(logs - log).argmin()) for log in wanted})]


def images_that_fit(class_counts: Sequence[int], total: int) -> int:
    """Return the most images per class, or all of a class that has fewer, of which no more than `total` are taken."""
    sizes = range(1, max(class_counts) + 1)
    return bisect_right(sizes, total, key=lambda size: sum(min(count, size) for count in class_counts))
