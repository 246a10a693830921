"""Sizes of sets: images per class, ratio, total, by class; rounding and refusals."""

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.runtime.errors import BadValueError, DimError
from dim.runtime.sampling.counts import resolve_counts


@dataclass(frozen=True)
class Source:
    class_counts: tuple[int, ...]


@dataclass(frozen=True)
class Info:
    classes: tuple[str, ...]
    source: Source


PETS = Info(("cat", "dog", "eel"), Source((100, 200, 700)))


def test_ipc_gives_every_class_the_same() -> None:
    assert resolve_counts(PETS, ipc=50) == (50, 50, 50)
    assert resolve_counts(PETS, ipc=5, classes=["eel", "cat"]) == (5, 0, 5)


def test_ratio_keeps_the_class_balance() -> None:
    assert resolve_counts(PETS, ratio=0.02) == (2, 4, 14)
    assert resolve_counts(PETS, ratio=0.07) == (7, 14, 49)
    assert resolve_counts(PETS, ratio=2.0) == (200, 400, 1400)
    assert resolve_counts(PETS, ratio=0.01, classes=["cat", "eel"]) == (1, 0, 7)


def test_every_class_gets_at_least_one() -> None:
    assert resolve_counts(PETS, ratio=1e-9) == (1, 1, 1)
    assert resolve_counts(PETS, ratio=0.004) == (1, 1, 2)
    assert resolve_counts(PETS, total=3) == (1, 1, 1)


def test_total_is_met_exactly() -> None:
    assert resolve_counts(PETS, total=10) == (1, 2, 7)
    assert resolve_counts(PETS, total=11) == (1, 2, 8)
    assert resolve_counts(PETS, total=10, classes=["cat", "dog"]) == (3, 7, 0)


def test_per_class() -> None:
    assert resolve_counts(PETS, per_class={"eel": 3, "cat": 1}) == (1, 0, 3)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.floats(1e-6, 10))
def test_rounding_is_within_one_of_the_quota_unless_lifted_to_one(source: list[int], ratio: float) -> None:
    info = Info(tuple(str(k) for k in range(len(source))), Source(tuple(source)))
    counts = resolve_counts(info, ratio=ratio)
    exact = Fraction(repr(ratio)) * sum(source)
    assert sum(counts) == max(len(source), math.floor(exact + Fraction(1, 2)))
    assert min(counts) >= 1
    quotas = [Fraction(repr(ratio)) * count for count in source]
    if min(quotas) >= 1:
        assert all(abs(count - quota) < 1 for count, quota in zip(counts, quotas, strict=True))


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.integers(0, 10**5))
def test_total_adds_up(source: list[int], extra: int) -> None:
    info = Info(tuple(str(k) for k in range(len(source))), Source(tuple(source)))
    counts = resolve_counts(info, total=len(source) + extra)
    assert sum(counts) == len(source) + extra and min(counts) >= 1


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "Say the size of the set by exactly one of `ipc`, `ratio`, `total` and `per_class`; none was given."),
        (
            {"ipc": 1, "ratio": 0.1},
            "Say the size of the set by exactly one of `ipc`, `ratio`, `total` and `per_class`; both `ipc` and "
            "`ratio` were given.",
        ),
        ({"per_class": {"cat": 1}, "classes": ["cat"]}, "`per_class` already names its classes; leave out `classes`."),
        ({"ipc": 0}, "`ipc` is 0; it must be a whole number from 1 to 2**32."),
        ({"ipc": -3}, "`ipc` is -3; it must be a whole number from 1 to 2**32."),
        ({"ipc": 2**32 + 1}, "`ipc` is 4294967297; it must be a whole number from 1 to 2**32."),
        ({"ipc": True}, "`ipc` is True; it must be a whole number from 1 to 2**32."),
        ({"ratio": 0.0}, "`ratio` is 0.0; it must be above 0, for example 0.02 for a fiftieth of the source."),
        ({"ratio": math.nan}, "`ratio` is nan; it must be above 0, for example 0.02 for a fiftieth of the source."),
        (
            {"ipc": 1, "total": 5, "per_class": {"cat": 1}},
            "Say the size of the set by exactly one of `ipc`, `ratio`, `total` and `per_class`; `ipc`, `total` "
            "and `per_class` were given.",
        ),
        ({"ratio": 1e12}, "That is more than 2**32 images of one class, which is all there are; ask for fewer."),
        ({"ratio": 1e300}, "That is more than 2**32 images of one class, which is all there are; ask for fewer."),
        (
            {"total": 2},
            "`total` is 2 and 3 classes are wanted; every class gets at least one image, "
            "so ask for more images or name fewer classes.",
        ),
        ({"total": 0}, "`total` is 0; it must be a whole number above 0."),
        (
            {"ipc": 1, "classes": ["dgo"]},
            "The bundle has no class 'dgo'; did you mean 'dog'? Its classes are cat, dog, eel.",
        ),
        ({"ipc": 1, "classes": ["../x"]}, "The bundle has no class '../x'. Its classes are cat, dog, eel."),
        ({"ipc": 1, "classes": ["cat", "cat"]}, "The class 'cat' is named twice; name each class once."),
        (
            {"ipc": 1, "classes": []},
            "No class was named; name at least one, or leave the choice out for all.",
        ),
        (
            {"per_class": {"cat": 0}},
            "The number of images for class 'cat' is 0; it must be a whole number from 1 to 2**32.",
        ),
        (
            {"ipc": 2**32, "start": 1},
            "`start` 1 and 4294967296 images of one class reach past index 2**32 - 1, the last one there is; "
            "ask for fewer.",
        ),
        ({"ipc": 1, "start": -1}, "`start` is -1; it must be a whole number from 0 to 2**32 - 1."),
    ],
)
def test_refusals_word_for_word(wish: dict[str, object], message: str) -> None:
    with pytest.raises(BadValueError) as caught:
        resolve_counts(PETS, **wish)  # type: ignore[arg-type]
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, DimError)


def test_ratio_needs_the_source_counts() -> None:
    with pytest.raises(BadValueError, match="does not say how many images of class 'dog'"):
        resolve_counts(Info(("cat", "dog"), Source((10, 0))), ratio=0.5)
