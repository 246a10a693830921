"""Bounds the size of a part's files, so that a shard stays below the requested bytes."""

import json
from bisect import bisect_right
from collections.abc import Sequence

_NPY_HEAD = 128
"""Before the data of an NPY file; 64 would do for the shortest shapes, and no shape needs more."""
_TAR_BLOCK, _TAR_RECORD = 512, 10_240
ROW_GROUP_IMAGES, ROW_GROUP_BYTES = 1024, 2**25
"""Images, and bytes of pixels, of a Parquet row group at most; at least one image."""


def bound_image_bytes(format: str, image_hwc: tuple[int, int, int]) -> int:
    """Bound the bytes that one image takes in a shard: pixels that do not compress, and what wraps them."""
    height, width, channels = image_hwc
    pixels = height * width * channels
    if format in ("npz", "npy"):
        return pixels + 8
    # A PNG of noise: a filter byte per row, the stored blocks of deflate, 128 bytes of chunk headers and checksums.
    png = pixels + height + pixels // 1000 + 128
    return png + {"imagefolder": 0, "parquet": 128, "webdataset": 512 + 511 + 1024}[format]


def bound_file_bytes(
    format: str, images: int, image_hwc: tuple[int, int, int], classes: Sequence[str], soft_labels: bool
) -> int:
    """Bound the bytes of the largest file of a part.

    Args:
        format: "npz", "npy", "parquet" or "webdataset".
        images: images of the part, at least 1.
        image_hwc: height, width and channels.
        classes: all classes of the bundle, of which NPZ and Parquet keep the names in every file.
        soft_labels: whether logits, float16 [K], are written for every image.
    """
    pixels, image = image_hwc[0] * image_hwc[1] * image_hwc[2], bound_image_bytes(format, image_hwc)
    scores = 2 * len(classes) if soft_labels else 0
    logits = _NPY_HEAD + images * scores
    if format == "npz":
        return max(_bound_zip_bytes(classes) + images * image, logits)
    if format == "npy":
        return max(_NPY_HEAD + images * max(pixels, 8), logits)
    if format == "webdataset":
        if soft_labels:
            image += _TAR_BLOCK + round_up(_NPY_HEAD + scores, _TAR_BLOCK)
        return round_up(images * image + 2 * _TAR_BLOCK, _TAR_RECORD)
    rows = choose_row_group_images(pixels)
    # Levels of the nested logits take 3 bits beside the 16 of a number. A row group has a dictionary of its labels, and
    # for each of its four columns page headers and an entry in the footer.
    group = 2048 + 8 * min(rows, len(classes))
    return _bound_footer_bytes(classes) + images * (image + scores * 5 // 4) + -(-images // rows) * group


def fit_images(
    limit: int, most: int, format: str, image_hwc: tuple[int, int, int], classes: Sequence[str], soft_labels: bool
) -> int:
    """Say how many images, at most `most`, a part may have so that no file of it exceeds `limit` bytes; perhaps 0."""
    return bisect_right(
        range(1, most + 1),
        limit,
        key=lambda images: bound_file_bytes(format, images, image_hwc, classes, soft_labels),
    )


def choose_row_group_images(image_bytes: int) -> int:
    """Say how many images a Parquet row group has, from the bytes of one image's pixels."""
    return max(1, min(ROW_GROUP_IMAGES, ROW_GROUP_BYTES // image_bytes))


def _bound_zip_bytes(classes: Sequence[str]) -> int:
    """Bound what an NPZ file holds beside pixels and labels: three heads, names, checksums, the directory."""
    names = 4 * len(classes) * max(1, max(map(len, classes)))
    return 3 * (_NPY_HEAD + 200) + 100 + names


def _bound_footer_bytes(classes: Sequence[str]) -> int:
    """Bound a Parquet footer without its row groups: the class names as JSON, and again in Arrow's schema in base64."""
    names = len(json.dumps(list(classes), ensure_ascii=False).encode())
    return 4096 + 3 * names


def round_up(size: int, block: int) -> int:
    """Return the least multiple of `block` that is `size` or more."""
    return -(-size // block) * block
