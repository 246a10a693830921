"""Turns a reader's result into an `ImageSet`: checks, the test split, channels and size."""

import unicodedata
from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dim.data.image_set import Images, ImageSet, Labels, RawSet, Say, count_labels
from dim.data.images.sizes import check_set_bytes, choose_size, convert
from dim.data.limits import MAX_CLASS_NAME_BYTES
from dim.data.options import DataOptions
from dim.execution.large_images import select_images
from dim.runtime.bundle_format.folder_names import check_folder_names
from dim.runtime.bundle_format.schema import MAX_CLASSES
from dim.runtime.errors import BadValueError, DataError

TEST_FRACTION = 0.2
"""Part of every class that becomes the test split of a source without one."""


def make_image_set(raw: RawSet, options: DataOptions, say: Say) -> ImageSet:
    """Check classes and labels, cut a missing test split, convert channels and size.

    Args:
        raw: what a reader returned.
        options: size, channels and the seed of the split; the readers have seen to the rest.
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
        split_seed = options.seed
        train_rows, test_rows = _split_rows(train_labels, raw, options.seed)
        test_images, test_labels = select_images(train_images, test_rows), train_labels[test_rows]
        train_images, train_labels = select_images(train_images, train_rows), train_labels[train_rows]
        notes.append(
            f"the source has no test split: {len(test_rows)} of {len(raw.train_labels)} images "
            f"({TEST_FRACTION:.0%} of every class, seed {options.seed}) became one"
        )
        say(f"{raw.name}: {notes[-1]}")
    else:
        test_images, test_labels = raw.test_images, raw.test_labels
        _check_split(test_images, test_labels, raw, "test")
    shapes = Counter({_shape(train_images): len(train_images)})
    shapes[_shape(test_images)] += len(test_images)
    target, reason = choose_size(shapes, options.size)
    if reason:
        notes.append(reason)
        say(f"{raw.name}: {reason}")
    source_channels = train_images.shape[3]
    target_channels = options.channels or source_channels
    if type(raw.train_images) is np.ndarray:  # those on disk have their final form already
        check_set_bytes(len(train_images) + len(test_images), target, target_channels, raw.name)
    return ImageSet(
        name=raw.name,
        classes=raw.classes,
        train_images=convert(train_images, target, target_channels),
        train_labels=np.ascontiguousarray(train_labels, dtype=np.int64),
        test_images=convert(test_images, target, target_channels),
        test_labels=np.ascontiguousarray(test_labels, dtype=np.int64),
        licence=raw.licence,
        note="; ".join(notes),
        split_seed=split_seed,
        options=options,
    )


def _shape(images: Images) -> tuple[int, int]:
    return int(images.shape[1]), int(images.shape[2])


def _check_classes(classes: tuple[str, ...], name: str, say: Say) -> None:
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"{name}: {len(classes)} classes found, expected 1 to {MAX_CLASSES}.")
    if len(set(classes)) != len(classes):
        doubled = Counter(classes).most_common(1)[0][0]
        raise DataError(f"{name}: the class name '{doubled}' appears twice; every class needs a name of its own.")
    for text in classes:
        if not text.strip() or not text.isprintable() or "/" in text or "\\" in text or text in (".", ".."):
            raise DataError(f"{name}: {text!r} cannot be a class name: use printable text without slashes.")
        if len(text.encode()) > MAX_CLASS_NAME_BYTES:
            raise DataError(f"{name}: the class name '{text[:40]}...' is longer than {MAX_CLASS_NAME_BYTES} bytes.")
    try:
        check_folder_names(classes, [1] * len(classes))
    except BadValueError as error:
        say(f"{name}: {error}")


def _check_split(images: Images, labels: Labels, raw: RawSet, split: str) -> None:
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != np.uint8:
        raise DataError(
            f"{raw.name}: the {split} images are {images.dtype} of shape {list(images.shape)}, "
            "expected uint8 [N, H, W, C] with 1 or 3 channels."
        )
    if images.shape[1] < 1 or images.shape[2] < 1:
        raise DataError(f"{raw.name}: the {split} images have shape {list(images.shape)}, which holds no pixels.")
    if len(images) != len(labels):
        raise DataError(f"{raw.name}: {len(images)} {split} images but {len(labels)} labels; the counts must be equal.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(raw.classes):
        raise DataError(
            f"{raw.name}: {split} labels run from {labels.min()} to {labels.max()}, "
            f"expected 0 to {len(raw.classes) - 1} for {len(raw.classes)} classes."
        )
    empty = [raw.classes[k] for k, n in enumerate(count_labels(labels, len(raw.classes))) if n == 0]
    if empty:
        others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(f"{raw.name}: class '{empty[0]}'{others} has no {split} images; add some or remove the class.")


def _split_rows(labels: Labels, raw: RawSet, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # RandomState's streams are frozen by NumPy's policy; those of Generator may change between versions.
    random = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
    train_rows, test_rows = [], []
    for label, name in enumerate(raw.classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise DataError(
                f"{raw.name}: class '{name}' has {len(rows)} image and the source has no test split, "
                "which needs 2 images per class: add images, or a test folder."
            )
        num_test = min(len(rows) - 1, max(1, round(len(rows) * TEST_FRACTION)))
        shuffled = rows[random.permutation(len(rows))]
        test_rows.append(shuffled[:num_test])
        train_rows.append(shuffled[num_test:])
    return np.sort(np.concatenate(train_rows)), np.sort(np.concatenate(test_rows))
