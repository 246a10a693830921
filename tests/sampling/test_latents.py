"""The sampling contract: golden vectors, a slow reference, prefixes, order, shuffles."""

import hashlib
import json
import math
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.runtime.errors import BadValueError
from dim.runtime.sampling.latents import draw_latents, index_major_order, order_slice, permutation
from dim.runtime.sampling.philox import CHUNK
from tests.support.philox_words import stream_words

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "sampling.json").read_text())["1"]
seeds = st.integers(0, 2**64 - 1)
words = st.integers(0, 2**32 - 1)


def latents_reference(seed: int, label: int, index: int, latent_dim: int, latent_std: float) -> list[float]:
    """One sample, one latent at a time, as the design writes it."""
    drawn: list[float] = []
    (row,) = stream_words(seed, 0, label, index, 4 * (latent_dim // 4 + 1)).tolist()
    for word in range(0, len(row), 2):
        u0, u1 = (row[word] + 0.5) / 2**32, (row[word + 1] + 0.5) / 2**32
        radius = math.sqrt(-2.0 * math.log(u0))
        drawn += [radius * math.cos(2 * math.pi * u1) * latent_std, radius * math.sin(2 * math.pi * u1) * latent_std]
    return drawn[:latent_dim]


def order_reference(counts: list[int]) -> list[tuple[int, int]]:
    """Index 0 of every class that has one, then index 1, ..."""
    return [(label, i) for i in range(max(counts, default=0)) for label, count in enumerate(counts) if i < count]


def latents_hash() -> str:
    n = 2**14
    return hashlib.sha256(draw_latents(2026, np.arange(n) % 10, np.arange(n) // 10, 64, 1.0).tobytes()).hexdigest()


def test_a_million_latents_have_the_golden_hash() -> None:
    assert latents_hash() == GOLDEN["latents_sha256"]


def test_the_processor_does_not_show() -> None:
    """NumPy takes other code for logarithms, sines and cosines where the processor has no AVX-512 or AVX2."""
    code = "from tests.sampling.test_latents import latents_hash; print(latents_hash())"
    environment = os.environ | {
        "NPY_DISABLE_CPU_FEATURES": disabled_features(),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == GOLDEN["latents_sha256"], result.stderr


def disabled_features() -> str:
    """The features of this processor beyond the least that NumPy was built for."""
    from numpy._core._multiarray_umath import __cpu_baseline__, __cpu_dispatch__, __cpu_features__

    return " ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name) and name not in __cpu_baseline__)


@given(seeds, words, words, st.integers(1, 19), st.floats(0.25, 4.0))
def test_latents_equal_the_slow_reference(seed: int, label: int, index: int, latent_dim: int, std: float) -> None:
    drawn = draw_latents(seed, [label], [index], latent_dim, std)
    expected = np.array(latents_reference(seed, label, index, latent_dim, std))
    np.testing.assert_allclose(drawn[0], expected, rtol=1e-6, atol=1e-9)


@given(seeds, st.lists(st.tuples(words, words), max_size=20), st.integers(1, 40), st.integers(0, 20))
def test_a_row_depends_on_nothing_but_itself(
    seed: int, samples: list[tuple[int, int]], latent_dim: int, cut: int
) -> None:
    labels, indices = [label for label, _ in samples], [index for _, index in samples]
    whole = draw_latents(seed, labels, indices, latent_dim, 1.0)
    parts = [
        draw_latents(seed, labels[part], indices[part], latent_dim, 1.0) for part in (slice(cut), slice(cut, None))
    ]
    assert np.array_equal(whole, np.concatenate(parts))
    wider = draw_latents(seed, labels, indices, latent_dim + 3, 1.0)
    assert np.array_equal(whole, wider[:, :latent_dim])


def test_passes_over_the_chunk_do_not_show() -> None:
    n = 2 * CHUNK // 5 + 3
    labels, indices = np.arange(n) % 7, np.arange(n)
    whole = draw_latents(3, labels, indices, 17, 1.5)
    for row in (0, CHUNK // 5 - 1, CHUNK // 5, n - 1):
        assert np.array_equal(
            whole[row : row + 1], draw_latents(3, labels[row : row + 1], indices[row : row + 1], 17, 1.5)
        )


def test_latents_are_standard_normal() -> None:
    drawn = draw_latents(11, np.arange(20_000) % 10, np.arange(20_000) // 10, 16, 2.0).astype(np.float64)
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 2.0) < 0.02
    assert abs(((drawn / 2.0) ** 4).mean() - 3.0) < 0.1
    correlation = np.corrcoef(drawn.T) - np.eye(16)
    assert np.abs(correlation).max() < 0.04


@pytest.mark.parametrize(
    ("labels", "indices"), [([0, 1], [0]), ([-1], [0]), ([2**32], [0]), ([0], [2**32]), ([0.5], [0]), ([[0]], [[0]])]
)
def test_impossible_samples_are_refused(labels: list, indices: list) -> None:
    with pytest.raises(BadValueError):
        draw_latents(0, labels, indices, 4, 1.0)


@given(st.lists(st.integers(0, 9), max_size=8))
def test_order_is_index_major(counts: list[int]) -> None:
    labels, indices = index_major_order(counts)
    assert list(zip(labels.tolist(), indices.tolist(), strict=True)) == order_reference(counts)


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 80), st.integers(0, 80))
def test_a_slice_of_the_order_is_that_slice(counts: list[int], start: int, length: int) -> None:
    labels, indices = order_slice(counts, start, start + length)
    expected = list(islice(order_reference(counts), start, start + length))
    assert list(zip(labels.tolist(), indices.tolist(), strict=True)) == expected


def test_a_slice_of_a_vast_order_is_cheap() -> None:
    counts = [2**32 - 1 - label for label in range(1000)]
    start = sum(counts) - 5
    labels, indices = order_slice(counts, start, start + 10**6)
    top = 2**32 - 2
    assert list(zip(labels.tolist(), indices.tolist(), strict=True))[2:] == [(0, top - 1), (1, top - 1), (0, top)]
    assert len(labels) == 5


@pytest.mark.parametrize("bad", [([-1], 0, 1), ([2**32 + 1], 0, 1), ([3], -1, 1), ([3], 2, 1)])
def test_impossible_slices_are_refused(bad: tuple[list[int], int, int]) -> None:
    with pytest.raises(BadValueError):
        order_slice(*bad)


@given(seeds, seeds, st.integers(0, 300))
def test_a_permutation_holds_every_number_once(seed: int, epoch: int, n: int) -> None:
    shuffled = permutation(seed, epoch, n)
    assert shuffled.dtype == np.int64 and sorted(shuffled.tolist()) == list(range(n))


@given(seeds, st.integers(1, 40))
def test_a_permutation_sorts_the_words_of_stream_one(seed: int, n: int) -> None:
    row = stream_words(seed, 1, 3, 2, 2 * n)[0].tolist()
    keys = [low + (high << 32) for low, high in zip(row[0::2], row[1::2], strict=True)]
    assert permutation(seed, 3 + (2 << 32), n).tolist() == sorted(range(n), key=keys.__getitem__)


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = {tuple(permutation(seed, epoch, 50).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_long_permutations_pass_the_chunk() -> None:
    n = 2 * CHUNK + 11
    assert np.array_equal(np.sort(permutation(1, 2, n)), np.arange(n))


@pytest.mark.parametrize("bad", [(0, -1, 3), (0, 2**64, 3), (-1, 0, 3), (0, 0, -1)])
def test_impossible_permutations_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(BadValueError):
        permutation(*bad)
