"""Joins several sets: classes with the same name become one class."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from dim.data.classes.layout import list_first
from dim.data.image_set import ImageSet, Labels, Say
from dim.data.limits import MAX_SET_BYTES
from dim.runtime.errors import DataError


def unite(sets: Sequence[ImageSet], say: Say) -> ImageSet:
    """Join sets in their order; classes are in the order in which they come first.

    Args:
        sets: two or more, of one size and channel count.
        say: is told which classes come from several sets.

    Raises:
        DataError: sizes or channel counts differ, or the sets are too large together.
    """
    first = sets[0]
    for other in sets[1:]:
        if (found := other.train_images.shape[1:]) != (shape := first.train_images.shape[1:]):
            options = [f"--size {shape[0]} or {found[0]}"] if found[0] != shape[0] else []
            options += ["--channels 1 or 3"] if found[2] != shape[2] else []
            raise DataError(
                f"{first.name} has images of {' x '.join(map(str, shape))} and {other.name} of "
                f"{' x '.join(map(str, found))}: say {' and '.join(options)} to bring both to one form."
            )
    if sum(s.train_images.nbytes + s.test_images.nbytes for s in sets) > MAX_SET_BYTES:
        raise DataError(
            f"{list_first(s.name for s in sets)}: together more than {MAX_SET_BYTES} bytes: use a smaller size."
        )
    classes = tuple(dict.fromkeys(name for s in sets for name in s.classes))
    shared = [name for name in classes if sum(name in s.classes for s in sets) > 1]
    if shared:
        say(
            f"{len(shared)} classes are in several sources and become one each: {list_first(shared)}; where they are "
            "not the same, rename them in one source"
        )
    for name, near in _find_near(classes):
        say(f"the classes '{name}' and '{near}' stay two; rename one where they are the same")
    notes = [f"{s.name}: {s.note}" for s in sets]
    return replace(
        first,
        name=join_names(s.name for s in sets),
        classes=classes,
        train_images=np.concatenate([s.train_images for s in sets]),
        train_labels=np.concatenate([_renumber(s.train_labels, s.classes, classes) for s in sets]),
        test_images=np.concatenate([s.test_images for s in sets]),
        test_labels=np.concatenate([_renumber(s.test_labels, s.classes, classes) for s in sets]),
        licence="; ".join(dict.fromkeys(s.licence for s in sets)),
        note="; ".join(notes),
        split_seed=next((s.split_seed for s in sets if s.split_seed is not None), None),
    )


def _find_near(classes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Find names that differ in case, spaces or marks alone."""
    plain: dict[str, str] = {}
    found = []
    for name in classes:
        first = plain.setdefault("".join(letter for letter in name.casefold() if letter.isalnum()) or name, name)
        if first != name:
            found.append((first, name))
    return found


def join_names(names: Iterable[str]) -> str:
    """Return what several sets are called together."""
    return "+".join(names)[:100]


def _renumber(labels: Labels, classes: tuple[str, ...], united: tuple[str, ...]) -> Labels:
    return np.array([united.index(name) for name in classes], dtype=np.int64)[labels]
