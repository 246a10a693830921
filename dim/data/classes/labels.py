"""Turns labels (integers, text or one-hot rows) into int64 labels from 0 and class names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.classes.layout import list_first
from dim.data.image_set import Labels
from dim.runtime.bundle_format.schema import MAX_CLASSES
from dim.runtime.errors import DataError

NAMED_BY_LABELS = "classes are named by their labels"
Named = tuple[tuple[str, ...], Labels, Labels | None, tuple[str, ...]]
"""Class names, labels of the training and of the test split, and remarks."""


def name_labels(train: NDArray[Any], test: NDArray[Any] | None, classes: Sequence[str] | None, where: str) -> Named:
    """Make labels index into class names.

    Args:
        train: `[N]` or `[N, 1]` of integers, whole numbers, booleans or text, or `[N, K]` one-hot.
        test: the same for the test split, or None.
        classes: the names in the order of integer labels; None names classes by their labels.
        where: stands for the labels in messages.

    Returns:
        classes, int64 `[N]`, int64 `[M]` or None, and what the labels were, where they did not count from 0.

    Raises:
        DataError: labels of another kind, negative, or not among the classes.
    """
    flat_train = _flatten(train, where)
    flat_test = None if test is None else _flatten(test, where)
    both = flat_train if flat_test is None else np.concatenate([flat_train, flat_test])
    if (both.dtype.kind == "U") != (flat_train.dtype.kind == "U"):
        raise DataError(f"{where}: labels are text in one split and numbers in the other; write both alike.")
    if both.dtype.kind == "U":
        names, remarks = _names_of_text(both, classes, where)
    else:
        names, remarks = _names_of_numbers(both.astype(np.int64), classes, where)
    values = np.array(list(names), dtype=both.dtype)
    order = np.argsort(values, kind="stable")

    def number(labels: NDArray[Any]) -> Labels:
        places = order[np.searchsorted(values, labels, sorter=order).clip(max=len(values) - 1)]
        return np.asarray(places, dtype=np.int64)

    return tuple(names.values()), number(flat_train), None if flat_test is None else number(flat_test), remarks


def _flatten(labels: NDArray[Any], where: str) -> NDArray[Any]:
    """Bring labels to one dimension, of text or of integers."""
    shown = f"{labels.dtype} {list(labels.shape)}"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise DataError(f"{where}: labels are {shown} and not one-hot: each row needs one 1 and else zeros.")
        return np.asarray(labels.argmax(axis=1))
    if labels.ndim == 1 and labels.dtype.kind == "S":
        try:
            return np.array([bytes(text).decode() for text in labels], dtype=np.str_)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: a label is not text in UTF-8 ({error}); save labels as text.") from error
    if labels.ndim == 1 and labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == labels.round()).all():
        return labels.astype(np.int64)
    if labels.ndim == 1 and labels.dtype.kind == "u" and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where}: a label is {labels.max()}, more than a 64-bit integer holds; number them from 0.")
    if labels.ndim != 1 or labels.dtype.kind not in "biuU":
        raise DataError(f"{where}: labels are {shown}, expected whole numbers or text [N], or one-hot rows [N, K].")
    return labels.astype(np.int64) if labels.dtype.kind == "b" else labels


def _names_of_text(
    labels: NDArray[Any], classes: Sequence[str] | None, where: str
) -> tuple[dict[Any, str], tuple[str, ...]]:
    found = [str(text) for text in np.unique(labels)]
    if any(not text.strip() for text in found):
        raise DataError(f"{where}: {int((np.char.strip(labels) == '').sum())} images have an empty label; fill it in.")
    if classes is None:
        return {text: text for text in found}, ()
    if unknown := sorted(set(found) - set(classes)):
        raise DataError(f"{where}: labels ({list_first(unknown)}) are not among the class names; fix one or the other.")
    return {text: text for text in classes}, ()


def _names_of_numbers(
    labels: Labels, classes: Sequence[str] | None, where: str
) -> tuple[dict[Any, str], tuple[str, ...]]:
    found = [int(value) for value in np.unique(labels)]
    if found[0] < 0:
        count = int((labels < 0).sum())
        raise DataError(
            f"{where}: {count} labels are negative ({found[0]}), as of images without a class; leave those out."
        )
    if classes is None:
        if len(found) > MAX_CLASSES:
            raise DataError(f"{where}: {len(found)} different labels found, more than {MAX_CLASSES} classes.")
        names = {value: str(value) for value in found}
        if found == list(range(len(found))):
            return names, ()
        gaps = sorted(set(range(found[0], min(found[-1], found[0] + 2 * MAX_CLASSES))) - set(found))
        how = f"leave out {list_first(map(str, gaps))}" if gaps else f"count from {found[0]}"
        return names, (f"labels run from {found[0]} to {found[-1]} and {how}: {NAMED_BY_LABELS}",)
    if found[-1] == len(classes) and found[0] >= 1:
        return dict(enumerate(classes, start=1)), (f"labels count from 1 to {len(classes)}: 1 is '{classes[0]}'",)
    if found[-1] >= len(classes):
        raise DataError(
            f"{where}: labels run from {found[0]} to {found[-1]}, expected 0 to {len(classes) - 1} "
            f"for {len(classes)} class names; fix the labels, or name every class."
        )
    return dict(enumerate(classes)), ()
