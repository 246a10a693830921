"""Makes a layout from images that each have a label and a split, in a table or in a file beside them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dim.data.classes.labels import name_labels
from dim.data.classes.layout import Layout, find_asked_splits, list_first, split_role
from dim.runtime.errors import DataError

_MAX_NUMBER = 2**63
_TEST_ROLES = ("test", "validation")


@dataclass(frozen=True)
class Labelled:
    """One image and what is said of it."""

    key: str
    label: Any
    """A number, text or a list of numbers; anything else is refused."""
    split: str = ""
    """Its name, or "" where nothing says."""


def arrange_labelled(
    images: Iterable[Labelled],
    classes: tuple[str, ...] | None,
    where: str,
    remarks: list[str],
    asked: str | None = None,
) -> Layout:
    """Make a layout of images whose labels are known.

    Args:
        images: each with its own key.
        classes: names of integer labels in order; None takes names from the labels.
        where: stands for the source in messages.
        remarks: about the source, passed on.
        asked: the splits to read, one name or two joined by a comma; None for those with usual names.

    Raises:
        DataError: no such split, or as `name_labels`.
    """
    images = list(images)
    for image in images:
        if not _is_label(image.label):
            shown = f"{str(image.label)[:60]}, expected text or a whole number of 64 bits"
            raise DataError(f"{where}: the label of {image.key} is {shown}; write one label for each image.")
    _check_kinds(images, where)
    if asked is None:
        train, test, more = _choose_by_role(images)
    else:
        wanted = find_asked_splits(sorted({image.split for image in images} - {""}), asked, where)
        train, test = ([image for image in images if image.split in part] for part in (wanted[:1], wanted[1:]))
        left_out = len(images) - len(train) - len(test)
        more = [f"{left_out} images of other splits were passed over"] if left_out else []
    remarks = [*remarks, *more]
    try:
        numbers = [np.array([image.label for image in part]) if part else None for part in (train, test)]
    except ValueError as error:
        raise DataError(
            f"{where}: labels are lists of different lengths, or lists beside single labels; write one label for each "
            "image."
        ) from error
    if numbers[0] is None:
        raise DataError(f"{where}: no labelled image found.")
    names, train_labels, test_labels, renamed = name_labels(numbers[0], numbers[1], classes, where)
    splits: list[dict[str, list[str]]] = [{name: [] for name in names} for _ in range(2)]
    for split, part, labels in zip(splits, (train, test), (train_labels, test_labels), strict=True):
        for image, label in zip(part, [] if labels is None else labels.tolist(), strict=True):
            split[names[label]].append(image.key)
    return Layout(splits[0], splits[1] if test else {}, (*remarks, *renamed, *_doubt_numbers(names)))


def _doubt_numbers(names: Iterable[str]) -> tuple[str, ...]:
    """Return a caution where classes are one number, written in two ways as 7 and 007, or 0 and 0.0."""
    first: dict[float, str] = {}
    twice = []
    for name in names:
        if re.fullmatch(r"[0-9]{1,15}([.][0-9]{1,15})?", name) and first.setdefault(float(name), name) != name:
            twice.append(f"'{first[float(name)]}' and '{name}'")
    if not twice:
        return ()
    return (f"caution: {list_first(twice)} are one number written in two ways, and two classes; write them alike",)


def _is_label(label: Any) -> bool:
    """Whether a label is text, a list, or a whole number, possibly as a float; not infinity, a date or an object."""
    if isinstance(label, float):
        return label.is_integer() and abs(label) < _MAX_NUMBER
    if isinstance(label, int):
        return abs(label) < _MAX_NUMBER
    return isinstance(label, str | bytes | list | tuple | np.generic | np.ndarray)


def _check_kinds(images: list[Labelled], where: str) -> None:
    """Refuse labels that are text for some images and numbers for others: all would become text."""
    texts = [image for image in images if isinstance(image.label, str)]
    if 0 < len(texts) < len(images):
        number = next(image for image in images if not isinstance(image.label, str))
        raise DataError(
            f"{where}: {len(texts)} labels are text ({texts[0].key}: '{texts[0].label}') and "
            f"{len(images) - len(texts)} are numbers ({number.key}: {number.label}); write all alike."
        )


def read_numbers(images: list[Labelled]) -> list[Labelled]:
    """Turn text labels into numbers where all are whole and no two are one number, as 7 and 007 are."""
    texts = {image.label for image in images if isinstance(image.label, str)}
    if not all(map(is_whole, texts)) or len({int(text) for text in texts}) < len(texts):
        return images
    return [replace(image, label=int(image.label)) if isinstance(image.label, str) else image for image in images]


def _choose_by_role(images: list[Labelled]) -> tuple[list[Labelled], list[Labelled], list[str]]:
    """Return the training images, the test images and remarks, by splits with usual names."""
    by_image = [split_role(image.split) for image in images]
    roles = set(by_image)
    held = next((role for role in _TEST_ROLES if role in roles and roles - {role, *_TEST_ROLES}), None)
    if held is None:
        return images, [], []
    train = [image for image, role in zip(images, by_image, strict=True) if role not in _TEST_ROLES]
    test = [image for image, role in zip(images, by_image, strict=True) if role == held]
    remarks = ["the validation split serves as test split"] if held == "validation" else []
    if left_out := len(images) - len(train) - len(test):
        remarks.append(f"{left_out} images of the validation split were passed over")
    return train, test, remarks


def is_whole(text: str) -> bool:
    """Whether text is a whole number."""
    return text.strip().isascii() and text.strip().isdigit() and len(text) < 18


def name_split(words: Iterable[str], asked: str | None) -> str:
    """Return the first word that is a split asked for, or named like one; "" where none is."""
    wanted = [name.strip() for name in asked.split(",")] if asked else []
    return next((word for word in words if word in wanted or split_role(word)), "")
