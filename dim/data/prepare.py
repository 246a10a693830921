"""From what a reader found to an `ImageSet`: checks, the test split, channels and size."""

import unicodedata
from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dim.data.decode import Images, resize_batch
from dim.data.image_set import ImageSet, Labels, RawSet, Say, count_labels
from dim.data.limits import MAX_CLASS_NAME_BYTES, MAX_IMAGE_PX, MAX_SET_BYTES, MIN_IMAGE_PX
from dim.runtime.bundle_format.folder_names import check_folder_names
from dim.runtime.bundle_format.schema import MAX_CLASSES
from dim.runtime.errors import BadValueError, DataError

TEST_FRACTION = 0.2
"""Part of every class that becomes the test split of a source without one."""

DEFAULT_MAX_PX = 64
"""The largest side chosen for a source whose images are not all of one square size in range."""


def make_image_set(raw: RawSet, *, size: int | None, channels: int | None, seed: int, say: Say) -> ImageSet:
    """Check classes and labels, cut a missing test split, convert channels and size.

    Args:
        raw: what a reader returned.
        size: side in pixels, 8..128, or None for the native one.
        channels: 1, 3 or None for the source's own.
        seed: fixes the split of a source without a test split.
        say: receives one sentence for every change that the caller did not ask for.

    Raises:
        DataError: labels do not match the images or the classes, or a class has too few images.
    """
    notes = list(raw.notes)
    # macOS writes decomposed letters into archives; the same name must be the same class everywhere.
    raw = replace(raw, classes=tuple(unicodedata.normalize("NFC", text) for text in raw.classes))
    _check_classes(raw.classes, raw.name, say)
    _check_split(raw.train_images, raw.train_labels, raw, "training")
    train_images, train_labels = raw.train_images, raw.train_labels
    split_seed = None
    if raw.test_images is None or raw.test_labels is None:
        split_seed = seed
        train_rows, test_rows = _split_rows(train_labels, raw, seed)
        test_images, test_labels = train_images[test_rows], train_labels[test_rows]
        train_images, train_labels = train_images[train_rows], train_labels[train_rows]
        notes.append(
            f"the source has no test split: {len(test_rows)} of {len(raw.train_labels)} images "
            f"({TEST_FRACTION:.0%} of every class, seed {seed}) became one"
        )
        say(f"{raw.name}: {notes[-1]}")
    else:
        test_images, test_labels = raw.test_images, raw.test_labels
        _check_split(test_images, test_labels, raw, "test")
    shapes = Counter({_shape(train_images): len(train_images)})
    shapes[_shape(test_images)] += len(test_images)
    target, reason = choose_size(shapes, size)
    if reason:
        notes.append(reason)
        say(f"{raw.name}: {reason}")
    source_channels = train_images.shape[3]
    target_channels = channels if channels is not None else source_channels
    check_set_bytes(len(train_images) + len(test_images), target, target_channels, raw.name)
    return ImageSet(
        name=raw.name,
        classes=raw.classes,
        train_images=_convert(train_images, target, target_channels),
        train_labels=np.ascontiguousarray(train_labels, dtype=np.int64),
        test_images=_convert(test_images, target, target_channels),
        test_labels=np.ascontiguousarray(test_labels, dtype=np.int64),
        licence=raw.licence,
        note="; ".join(notes),
        split_seed=split_seed,
    )


def check_options(size: int | None, channels: int | None, seed: int, bits: int | None = None) -> None:
    """Refuse a size, channel count, seed or number of bits that no reader could honour (`BadValueError`)."""
    if size is not None and (isinstance(size, bool) or not MIN_IMAGE_PX <= size <= MAX_IMAGE_PX):
        raise BadValueError(f"size is {size!r}: it must be between {MIN_IMAGE_PX} and {MAX_IMAGE_PX} pixels")
    if channels not in (None, 1, 3):
        raise BadValueError(f"channels is {channels!r}: it must be 1 (grey) or 3 (colour)")
    if isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise BadValueError(f"seed is {seed!r}: it must be between 0 and 2**64 - 1")
    if bits is not None and (isinstance(bits, bool) or not 8 <= bits <= 16):
        raise BadValueError(f"bits is {bits!r}: it must be between 8 and 16")


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


def check_set_bytes(count: int, size: int, channels: int, name: str) -> None:
    """Refuse a set whose images would not fit into `MAX_SET_BYTES`."""
    wanted = count * size * size * channels
    if wanted > MAX_SET_BYTES:
        raise DataError(
            f"{name}: {count} images of {size} x {size} x {channels} need {wanted} bytes, more than the limit of "
            f"{MAX_SET_BYTES}: use a smaller size or fewer images"
        )


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _shape(images: Images) -> tuple[int, int]:
    return int(images.shape[1]), int(images.shape[2])


def _check_classes(classes: tuple[str, ...], name: str, say: Say) -> None:
    if len(classes) == 1:
        raise DataError(f"{name}: one class alone found, '{classes[0]}'; classifiers need two or more, so add another")
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"{name}: {len(classes)} classes found, expected 2 to {MAX_CLASSES}")
    if len(set(classes)) != len(classes):
        doubled = Counter(classes).most_common(1)[0][0]
        raise DataError(f"{name}: the class name '{doubled}' appears twice; every class needs a name of its own")
    for text in classes:
        if not text.strip() or not text.isprintable() or "/" in text or "\\" in text or text in (".", ".."):
            raise DataError(f"{name}: {text!r} cannot be a class name: use printable text without slashes")
        if len(text.encode()) > MAX_CLASS_NAME_BYTES:
            raise DataError(f"{name}: the class name '{text[:40]}...' is longer than {MAX_CLASS_NAME_BYTES} bytes")
    try:
        check_folder_names(classes, [1] * len(classes))
    except BadValueError as error:
        say(f"{name}: {error}")


def _check_split(images: Images, labels: Labels, raw: RawSet, split: str) -> None:
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != np.uint8:
        raise DataError(
            f"{raw.name}: the {split} images are {images.dtype} of shape {list(images.shape)}, "
            "expected uint8 [N, H, W, C] with 1 or 3 channels"
        )
    if images.shape[1] < 1 or images.shape[2] < 1:
        raise DataError(f"{raw.name}: the {split} images have shape {list(images.shape)}, which holds no pixels")
    if len(images) != len(labels):
        raise DataError(f"{raw.name}: {len(images)} {split} images but {len(labels)} labels; the counts must be equal")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(raw.classes):
        raise DataError(
            f"{raw.name}: {split} labels run from {labels.min()} to {labels.max()}, "
            f"expected 0 to {len(raw.classes) - 1} for {len(raw.classes)} classes"
        )
    empty = [raw.classes[k] for k, n in enumerate(count_labels(labels, len(raw.classes))) if n == 0]
    if empty:
        others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(f"{raw.name}: class '{empty[0]}'{others} has no {split} images; add some or remove the class")


def _split_rows(labels: Labels, raw: RawSet, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # RandomState's streams are frozen by NumPy's policy; those of Generator may change between versions.
    random = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
    train_rows, test_rows = [], []
    for label, name in enumerate(raw.classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise DataError(
                f"{raw.name}: class '{name}' has {len(rows)} image and the source has no test split, "
                "which needs 2 images per class: add images, or a test folder"
            )
        num_test = min(len(rows) - 1, max(1, round(len(rows) * TEST_FRACTION)))
        shuffled = rows[random.permutation(len(rows))]
        test_rows.append(shuffled[:num_test])
        train_rows.append(shuffled[num_test:])
    return np.sort(np.concatenate(train_rows)), np.sort(np.concatenate(test_rows))


def _convert(images: Images, size: int, channels: int) -> Images:
    if channels == 1 and images.shape[3] == 3:
        images = _to_grey(images)
    if images.shape[1:3] != (size, size):
        images = resize_batch(images, size)
    if channels == 3 and images.shape[3] == 1:
        images = np.repeat(images, 3, axis=3)
    return np.ascontiguousarray(images)


def _to_grey(images: Images) -> Images:
    """ITU-R 601 luma in the fixed-point form that Pillow uses."""
    grey = np.empty((*images.shape[:3], 1), dtype=np.uint8)
    for start in range(0, len(images), 4096):
        chunk = images[start : start + 4096].astype(np.uint32)
        luma = (chunk[..., 0] * 19595 + chunk[..., 1] * 38470 + chunk[..., 2] * 7471 + 0x8000) >> 16
        grey[start : start + 4096, ..., 0] = luma
    return grey
