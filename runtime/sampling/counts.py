"""Counts the images of each class in a set, from images per class, a ratio, a total or a list by class."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

from dim.runtime.errors import BadValueError
from dim.runtime.sampling.labels import find_label, select_labels

MAX_PER_CLASS = 2**32


class SourceLike(Protocol):
    """What is needed of the source dataset: `dim.runtime.bundle_format.manifest.SourceInfo` has it."""

    @property
    def class_counts(self) -> tuple[int, ...]: ...


class ManifestLike(Protocol):
    """What is needed of a manifest: `dim.runtime.bundle_format.manifest.Manifest` has it."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def source(self) -> SourceLike: ...


def resolve_counts(
    info: ManifestLike,
    ipc: int | None = None,
    ratio: float | None = None,
    total: int | None = None,
    per_class: Mapping[str, int] | Sequence[int] | None = None,
    classes: str | Sequence[str | int] | None = None,
    start: int = 0,
) -> tuple[int, ...]:
    """Turn the size of a set into images per class.

    Args:
        info: the bundle's manifest.
        ipc: images per class, 1 to 2**32.
        ratio: size relative to the source set, above 0; keeps the source's class balance.
        total: number of images, at least one per class; keeps the source's class balance.
        per_class: images by class name, others get none; or one number for each class, in the bundle's order.
        classes: names or labels of the classes wanted; all when absent. Does not go with `per_class`.
        start: the first index of every class, 0 or more.

    Returns:
        one number per class of the bundle, 0 for classes not wanted. `ratio` and `total` are rounded by largest
        remainder, with at least 1 per class.

    Raises:
        BadValueError: no size or two sizes, a class that is unknown or doubled, a size out of range.
    """
    check_size(ipc, ratio, total, per_class, classes, start)
    counts = [0] * len(info.classes)
    if isinstance(per_class, Mapping):
        select_labels(list(per_class), info.classes)
        for name, count in per_class.items():
            k = find_label(name, info.classes)
            counts[k] = _whole(count, f"The number of images for class '{info.classes[k]}'")
    elif per_class is not None:
        counts = _check_counts(per_class, len(info.classes))
    else:
        selected = select_labels(classes, info.classes)
        shares = _share(info, selected, ratio, total) if ipc is None else [_whole(ipc, "`ipc`")] * len(selected)
        for k, count in zip(selected, shares, strict=True):
            counts[k] = count
    largest = max(counts)
    if start + largest > MAX_PER_CLASS:
        raise BadValueError(
            f"`start` {start} and {largest} images of one class reach past index 2**32 - 1, the last one there is; "
            "ask for fewer."
        )
    return tuple(counts)


def check_size(
    ipc: int | None,
    ratio: float | None,
    total: int | None,
    per_class: Mapping[str, int] | Sequence[int] | None,
    classes: str | Sequence[str | int] | None,
    start: int,
) -> None:
    """Check what can be told of the arguments of `resolve_counts` without a bundle.

    Raises:
        BadValueError: no size or two sizes, classes named twice over, or a start that is no index.
    """
    sizes = {"ipc": ipc, "ratio": ratio, "total": total, "per_class": per_class}
    given = [f"`{name}`" for name, value in sizes.items() if value is not None]
    if len(given) != 1:
        joined = f"{', '.join(given[:-1])} and {given[-1]}" if given else ""
        found = f"{'both ' if len(given) == 2 else ''}{joined} were given" if given else "none was given"
        raise BadValueError(
            f"Say the size of the set by exactly one of `ipc`, `ratio`, `total` and `per_class`; {found}."
        )
    if per_class is not None and classes is not None:
        raise BadValueError("`per_class` already names its classes; leave out `classes`.")
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < MAX_PER_CLASS:
        raise BadValueError(f"`start` is {start}; it must be a whole number from 0 to 2**32 - 1.")


def _check_counts(counts: Sequence[int], num_classes: int) -> list[int]:
    """Check one number for each class."""
    if len(counts) != num_classes or not any(counts):
        raise BadValueError(
            f"`per_class` has {len(counts)} numbers, the largest {max(counts, default=0)}; give one number for each of "
            f"{num_classes} classes, at least one of them above 0."
        )
    if min(counts) < 0:
        raise BadValueError(f"`per_class` has the number {min(counts)}; images are counted from 0.")
    return [int(count) for count in counts]


def _whole(value: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PER_CLASS:
        raise BadValueError(f"{what} is {value}; it must be a whole number from 1 to 2**32.")
    return value


def _share(info: ManifestLike, selected: Sequence[int], ratio: float | None, total: int | None) -> list[int]:
    """Split a ratio or a total among the selected classes in proportion to the source's class counts."""
    source = [info.source.class_counts[k] if k < len(info.source.class_counts) else 0 for k in selected]
    if min(source) < 1:
        name = info.classes[selected[source.index(min(source))]]
        raise BadValueError(
            f"The bundle does not say how many images of class '{name}' its source had; give `ipc` or `per_class`."
        )
    if ratio is not None:
        if isinstance(ratio, bool) or not math.isfinite(ratio) or ratio <= 0:
            raise BadValueError(
                f"`ratio` is {ratio}; it must be above 0, for example 0.02 for a fiftieth of the source."
            )
        # A float's shortest decimal form is what the user wrote: 0.07 of 100 images is 7, not 7.000000000000001.
        scale = Fraction(repr(float(ratio)))
        size = max(len(source), math.floor(scale * sum(source) + Fraction(1, 2)))
    else:
        size = total if total is not None else 0
        if isinstance(total, bool) or not isinstance(total, int) or total < 1:
            raise BadValueError(f"`total` is {total}; it must be a whole number above 0.")
        if total < len(source):
            raise BadValueError(
                f"`total` is {total} and {len(source)} classes are wanted; every class gets at least one image, "
                "so ask for more images or name fewer classes."
            )
        scale = Fraction(size, sum(source))
    quotas = [scale * count for count in source]
    if max(quotas) > MAX_PER_CLASS:
        # A number of 300 digits would say no more.
        raise BadValueError("That is more than 2**32 images of one class, which is all there are; ask for fewer.")
    return _largest_remainder(quotas, size)


def _largest_remainder(quotas: list[Fraction], size: int) -> list[int]:
    """Round quotas to whole numbers of at least 1 that add up to size; ties go to the lower class number."""
    counts = [max(1, math.floor(quota)) for quota in quotas]
    while (missing := size - sum(counts)) != 0:
        order = sorted(range(len(quotas)), key=lambda k: (counts[k] - quotas[k], k))
        if missing > 0:
            for k in order[:missing]:
                counts[k] += 1
        else:
            for k in [k for k in reversed(order) if counts[k] > 1][:-missing]:
                counts[k] -= 1
    return counts
