"""The sampling contract, version 2: samples are the accepted candidates of a bundle.

A bundle has its own key. Candidate number a of class c has the latents that version 1 gives sample a of that class
under this key. The bundle lists the accepted candidates: those that classifiers recognised with the highest confidence.
Sample i of a seed is one of the n accepted ones:

- i = round * n + position; the places 0..n-1 are permuted in every round, as a function of (seed, class, round);
- in round 0 it has the candidate's latents; in later rounds they are turned towards the latents that version 1 gives
  sample i of the seed: 24/25 of the candidate's and 7/25 of the fresh ones, which keeps their variance.

So prefixes, shards, batches and machines change nothing, as in version 1, and drawing rejects no sample.

The permutation is a Feistel network of six rounds on pairs (Black and Rogaway, "Ciphers with arbitrary finite domains",
CT-RSA 2002). With a the least integer whose square is at least n, and b = ceil(n / a), a place is the pair (left,
right) = (place // b, place % b). Rounds 0, 2 and 4 add word 0 of the counter (right, STREAM_PLACES + round of the
network, class, round) to left, modulo a; rounds 1, 3 and 5 add that of (left, ...) to right, modulo b. A result of n or
more goes through all six rounds again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dim.runtime.errors import BadValueError
from dim.runtime.sampling.latents import check_row, draw_latents
from dim.runtime.sampling.philox import CHUNK, STREAM_PLACES, rounds_in_place, split_seed

FEISTEL_ROUNDS = 6
KEPT, FRESH = 24 / 25, 7 / 25
"""Parts of the candidate's and of the fresh latents after the first round; their squares add up to 1."""
MAX_CANDIDATES = 2**24
"""Of all classes together: bounds the memory of the numbers."""


@dataclass(frozen=True, eq=False)
class AcceptedCandidates:
    """The candidates of a bundle that its samples are."""

    key: int
    """Seed of the candidates' latents, 0 to 2**64 - 1."""
    numbers: NDArray[np.uint32]
    """Of the accepted candidates, ascending within a class, class after class."""
    starts: NDArray[np.int64]
    """[K + 1]: the numbers of class c are `numbers[starts[c]:starts[c + 1]]`, one at least."""
    per_class: int
    """Candidates of every class, M, accepted or not."""

    @property
    def num_accepted(self) -> int:
        """Of all classes together."""
        return len(self.numbers)


def list_accepted(key: int, accepted_KM: NDArray[np.bool_]) -> AcceptedCandidates:
    """List which candidates were accepted.

    Args:
        key: seed of the candidates' latents.
        accepted_KM: bool [K, M].

    Raises:
        BadValueError: a class has no accepted candidate, or there are too many candidates.
    """
    split_seed(key)
    if accepted_KM.ndim != 2 or not 0 < accepted_KM.size <= MAX_CANDIDATES:
        raise BadValueError(
            f"There are {accepted_KM.shape} candidates; there must be a row for each class, {MAX_CANDIDATES:,} "
            "candidates at most."
        )
    counts_K = accepted_KM.sum(axis=1)
    if not counts_K.all():
        raise BadValueError(f"Class {int(counts_K.argmin())} has no accepted candidate; every class needs one.")
    starts = np.concatenate([[0], np.cumsum(counts_K)]).astype(np.int64)
    numbers = np.empty(int(starts[-1]), np.uint32)
    for label, row_M in enumerate(accepted_KM):
        numbers[starts[label] : starts[label + 1]] = np.flatnonzero(row_M)
    return AcceptedCandidates(key, numbers, starts, accepted_KM.shape[1])


def draw_accepted_latents(
    accepted: AcceptedCandidates,
    seed: int,
    labels: ArrayLike,
    indices: ArrayLike,
    latent_dim: int,
    latent_std: float,
) -> NDArray[np.float32]:
    """Draw the latents of the given samples; arguments, result and errors as `draw_latents`.

    Args:
        accepted: of the bundle; labels must be 0 to K - 1.
    """
    labels_N, indices_N = check_row(labels, "labels"), check_row(indices, "indices")
    if len(labels_N) != len(indices_N):
        raise BadValueError(f"There are {len(labels_N)} labels and {len(indices_N)} indices; give one index per label.")
    num_classes = len(accepted.starts) - 1
    if labels_N.size and int(labels_N.max()) >= num_classes:
        raise BadValueError(
            f"The labels reach to {int(labels_N.max())}; they must lie between 0 and {num_classes - 1}."
        )
    first_N = accepted.starts[labels_N]
    counts_N = accepted.starts[labels_N + 1] - first_N
    rounds_N, positions_N = np.divmod(indices_N, counts_N)
    places_N = permute_places(seed, labels_N, rounds_N, positions_N, counts_N)
    latents = draw_latents(accepted.key, labels_N, accepted.numbers[first_N + places_N], latent_dim, latent_std)
    again = np.flatnonzero(rounds_N)
    if again.size:
        fresh = draw_latents(seed, labels_N[again], indices_N[again], latent_dim, latent_std)
        latents[again] = latents[again].astype(np.float64) * KEPT + fresh.astype(np.float64) * FRESH
    return latents


def permute_places(
    seed: int,
    labels: NDArray[np.int64],
    rounds: NDArray[np.int64],
    positions: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Map positions to places, both 0..count-1: a permutation for each (seed, label, round).

    Args:
        seed: 0 to 2**64 - 1.
        labels: int64 [N], 0 to 2**32 - 1.
        rounds: int64 [N], 0 to 2**32 - 1.
        positions: int64 [N], each below its count.
        counts: int64 [N], 1 to 2**24.

    Returns:
        int64 [N].
    """
    key = split_seed(seed)
    if len(positions) > CHUNK:  # what a pass holds stays in the processor's cache
        parts = [slice(start, start + CHUNK) for start in range(0, len(positions), CHUNK)]
        return np.concatenate([permute_places(seed, labels[p], rounds[p], positions[p], counts[p]) for p in parts])
    # Squares of numbers below 2**12 are exact in float64, so the root of one is, and every other root is rounded up.
    left_sizes = np.ceil(np.sqrt(counts.astype(np.float64))).astype(np.int64)
    right_sizes = -(-counts // left_sizes)
    places, rows = positions.copy(), np.arange(len(positions))
    while rows.size:
        lanes, scratch = np.empty((4, len(rows)), np.uint64), np.empty((2, len(rows)), np.uint64)
        sizes = left_sizes[rows], right_sizes[rows]
        halves = list(np.divmod(places[rows], sizes[1]))
        for step in range(FEISTEL_ROUNDS):
            changed, fixed = step % 2, 1 - step % 2
            lanes[0], lanes[1], lanes[2], lanes[3] = halves[fixed], STREAM_PLACES + step, labels[rows], rounds[rows]
            rounds_in_place(key, lanes, scratch)
            halves[changed] = (halves[changed] + lanes[0].astype(np.int64)) % sizes[changed]
        places[rows] = halves[0] * sizes[1] + halves[1]
        rows = rows[places[rows] >= counts[rows]]
    return places
