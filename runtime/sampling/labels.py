"""Labels of classes, from names or numbers."""

import difflib
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dim.runtime.errors import BadValueError
from dim.runtime.sampling.latents import check_row

Labels: TypeAlias = ArrayLike | Sequence[str | int]
"""Labels of samples: integers, or names of classes."""
_MAX_NAMES = 12
_MAX_COMPARED = 4096


def find_label(chosen: str | int, classes: Sequence[str]) -> int:
    """Return the label of a class, 0..K-1.

    Args:
        chosen: the class's name or label.
        classes: the K names in the order of their labels.

    Raises:
        BadValueError: there is no such class.
    """
    if not isinstance(chosen, str):
        if isinstance(chosen, bool) or not 0 <= int(chosen) < len(classes):
            raise BadValueError(f"The bundle has no class {chosen!r}; labels go from 0 to {len(classes) - 1}.")
        return int(chosen)
    if chosen in classes:
        return classes.index(chosen)
    # Comparing letter by letter with 65,536 names takes half a minute.
    near = difflib.get_close_matches(chosen, classes, n=1) if len(classes) <= _MAX_COMPARED else []
    hint = f"; did you mean '{near[0]}'?" if near else "."
    more = f" and {len(classes) - _MAX_NAMES} more" if len(classes) > _MAX_NAMES else ""
    # As `--classes` and `--per-class` read them.
    names = ", ".join(f'"{name}"' if "," in name else name for name in classes[:_MAX_NAMES])
    raise BadValueError(f"The bundle has no class '{chosen}'{hint} Its classes are {names}{more}.")


def select_labels(chosen: str | Sequence[str | int] | None, classes: Sequence[str]) -> tuple[int, ...]:
    """Turn class names or labels into ascending labels; None stands for all.

    Raises:
        BadValueError: unknown, doubled, or none at all.
    """
    if chosen is None:
        return tuple(range(len(classes)))
    labels = [find_label(each, classes) for each in ([chosen] if isinstance(chosen, str) else chosen)]
    if not labels:
        raise BadValueError("No class was named; name at least one, or leave the choice out for all.")
    ordered = sorted(labels)
    for label, following in pairwise(ordered):
        if label == following:
            raise BadValueError(f"The class '{classes[label]}' is named twice; name each class once.")
    return tuple(ordered)


def resolve_labels(labels: Labels, classes: Sequence[str]) -> NDArray[np.int64]:
    """Turn names or labels of samples into labels, int64 [N], in the same order.

    Raises:
        BadValueError: there is no such class, or the labels are no row of integers.
    """
    if isinstance(labels, str):
        labels = [labels]
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "U":
        labels = labels.tolist()
    if isinstance(labels, list | tuple) and any(isinstance(label, str) for label in labels):
        labels = [find_label(label, classes) for label in labels]
    labels_N = check_row(labels, "labels")
    # A graph turns label K into no class without a word, so labels are checked before any engine sees them.
    if labels_N.size and int(labels_N.max()) >= len(classes):
        raise BadValueError(
            f"The label {int(labels_N.max())} is not one of this bundle's classes; labels go from 0 to "
            f"{len(classes) - 1}."
        )
    return labels_N


def count_within_classes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the samples of each class from 0, in their order; labels and numbers int64 [N]."""
    indices = np.empty_like(labels)
    for label in np.unique(labels):
        mine = labels == label
        indices[mine] = np.arange(mine.sum())
    return indices
