"""Samples of sampling version 2: permutations, prefixes, later rounds; the vectors are in test_specification.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.runtime.errors import BadValueError
from dim.runtime.sampling.accepted import (
    MAX_CANDIDATES,
    AcceptedCandidates,
    draw_accepted_latents,
    list_accepted,
    permute_places,
)
from dim.runtime.sampling.latents import draw_latents, index_major_order

KEY = 2**40 + 5
RNG = np.random.default_rng(3)
ACCEPTED = RNG.random((3, 64)) < np.array([[0.2], [0.5], [0.9]])


def places(seed: int, count: int, label: int = 0, number: int = 0) -> np.ndarray:
    same = [np.full(count, value) for value in (label, number, count)]
    return permute_places(seed, same[0], same[1], np.arange(count), same[2])


@given(st.integers(0, 2**64 - 1), st.integers(1, 700), st.integers(0, 2**16), st.integers(0, 2**32 - 1))
def test_places_are_a_permutation_of_any_number(seed: int, count: int, label: int, number: int) -> None:
    assert np.array_equal(np.sort(places(seed, count, label, number)), np.arange(count))


def test_every_place_and_every_pair_of_places_is_as_likely() -> None:
    """Chi-squared over 4,000 seeds; the bounds are five standard deviations above what is expected."""
    count, seeds = 12, 4000
    drawn = np.stack([places(seed, count) for seed in range(seeds)])
    singles = np.stack([np.bincount(drawn[:, position], minlength=count) for position in range(count)])
    expected = seeds / count
    assert ((singles - expected) ** 2 / expected).sum() < 11 * 11 + 5 * np.sqrt(2 * 121)
    pairs = np.bincount(drawn[:, 0] * count + drawn[:, 1], minlength=count * count).reshape(count, count)
    off = pairs[~np.eye(count, dtype=bool)]
    expected = seeds / len(off)
    assert ((off - expected) ** 2 / expected).sum() < len(off) + 5 * np.sqrt(2 * len(off))


def test_seeds_classes_and_rounds_are_shuffled_apart() -> None:
    shuffled = [places(*each) for each in ((1, 50), (2, 50), (1, 50, 1), (1, 50, 0, 1), (2**32, 50))]
    assert len({each.tobytes() for each in shuffled}) == 5


def test_the_largest_count_is_permuted() -> None:
    positions = np.array([0, 1, MAX_CANDIDATES - 1])
    same = [np.full(3, value) for value in (0, 0, MAX_CANDIDATES)]
    found = permute_places(9, same[0], same[1], positions, same[2])
    assert len(set(found.tolist())) == 3 and found.max() < MAX_CANDIDATES


def test_the_first_round_holds_every_accepted_candidate_once() -> None:
    accepted = list_accepted(KEY, ACCEPTED)
    for label, row in enumerate(ACCEPTED):
        count = int(row.sum())
        drawn = draw_accepted_latents(accepted, 77, np.full(count, label), np.arange(count), 8, 1.3)
        candidates = draw_latents(KEY, np.full(count, label), np.flatnonzero(row), 8, 1.3)
        assert {z.tobytes() for z in drawn} == {z.tobytes() for z in candidates}


@given(st.integers(0, 2**64 - 1), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2**32 - 1)), max_size=40))
def test_a_sample_does_not_depend_on_its_neighbours(seed: int, samples: list[tuple[int, int]]) -> None:
    accepted = list_accepted(KEY, ACCEPTED)
    labels, indices = [label for label, _ in samples], [index for _, index in samples]
    together = draw_accepted_latents(accepted, seed, labels, indices, 6, 1.0)
    for row, (label, index) in enumerate(samples):
        assert np.array_equal(together[row], draw_accepted_latents(accepted, seed, [label], [index], 6, 1.0)[0])


def test_later_rounds_are_near_their_candidates_and_keep_the_variance() -> None:
    wide = list_accepted(KEY, np.ones((1, 512), bool))
    labels, indices = index_major_order([512 * 40])
    drawn = draw_accepted_latents(wide, 4, labels, indices, 16, 1.5).astype(np.float64)
    later = drawn[512:]
    assert later.std() == pytest.approx(drawn[:512].std(), rel=0.02) and abs(later.mean()) < 0.02
    assert len({row.tobytes() for row in later}) == len(later)  # nothing is drawn twice
    candidates = draw_latents(KEY, np.zeros(512, int), np.arange(512), 16, 1.5).astype(np.float64)
    for row in later[:3]:
        cosines = candidates @ row / np.linalg.norm(candidates, axis=1) / np.linalg.norm(row)
        assert cosines.max() > 0.9 and np.sort(cosines)[-2] < 0.9


def test_wrong_candidates_are_refused() -> None:
    with pytest.raises(BadValueError, match="Class 1 has no accepted candidate; every class needs one"):
        list_accepted(0, np.array([[True], [False]]))
    with pytest.raises(BadValueError, match="16,777,216 candidates at most"):
        list_accepted(0, np.broadcast_to(np.True_, (2, 2**24)))
    accepted: AcceptedCandidates = list_accepted(0, ACCEPTED)
    with pytest.raises(BadValueError, match="The labels reach to 3; they must lie between 0 and 2"):
        draw_accepted_latents(accepted, 0, [3], [0], 4, 1.0)
    with pytest.raises(BadValueError, match="There are 2 labels and 1 indices"):
        draw_accepted_latents(accepted, 0, [0, 1], [0], 4, 1.0)
