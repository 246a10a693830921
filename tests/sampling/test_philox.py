"""Philox4x32-10 against a slow reference; Random123's known answers are in test_specification.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.runtime.errors import BadValueError
from dim.runtime.sampling.philox import CHUNK, STREAM_LATENTS, STREAM_ORDER, STREAM_PLACES, split_seed
from tests.support.philox_words import philox4x32, stream_words

words = st.integers(0, 2**32 - 1)


def philox_reference(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Ten rounds on Python integers, as the paper writes them."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


@given(st.tuples(words, words), st.lists(st.tuples(words, words, words, words), min_size=1, max_size=5))
def test_equals_the_slow_reference(key: tuple[int, int], counters: list[tuple[int, int, int, int]]) -> None:
    result = philox4x32(key, np.array(counters, np.uint32))
    assert [tuple(row) for row in result.tolist()] == [philox_reference(key, counter) for counter in counters]


def test_chunks_do_not_show() -> None:
    counter = np.arange((2 * CHUNK + 3) * 4, dtype=np.uint32).reshape(-1, 4)
    whole = philox4x32((1, 2), counter)
    for row in (0, CHUNK - 1, CHUNK, 2 * CHUNK, 2 * CHUNK + 2):
        assert np.array_equal(whole[row], philox4x32((1, 2), counter[row]))


def test_stream_words_place_the_counter_words() -> None:
    rows = stream_words(2**32 * 7 + 5, 2, [3, 4], 9, 6)
    assert rows.shape == (2, 6) and rows.dtype == np.uint32
    for row, class_index in zip(rows.tolist(), (3, 4), strict=True):
        blocks = [philox_reference((5, 7), (block, 2, class_index, 9)) for block in (0, 1)]
        assert row == [*blocks[0], *blocks[1][:2]]


def test_streams_are_distinct() -> None:
    assert (STREAM_LATENTS, STREAM_ORDER, STREAM_PLACES) == (0, 1, 32)


def test_seed_splits_into_low_and_high() -> None:
    assert split_seed(0x0123456789ABCDEF) == (0x89ABCDEF, 0x01234567)
    assert split_seed(2**64 - 1) == (0xFFFFFFFF, 0xFFFFFFFF)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "3", None])
def test_other_seeds_are_refused(seed: object) -> None:
    with pytest.raises(BadValueError, match="must be an integer from 0 to 2\\*\\*64 - 1"):
        split_seed(seed)  # type: ignore[arg-type]
