"""The sampling contract, version 1: the latents of (seed, class, index), and the order of a set.

A sample is a pure function of (bundle, seed, class, index), so a smaller set is a prefix of a larger one, and batch
size, worker count, shards and interruptions change nothing.

Latents: Philox block b of the counter (b, STREAM_LATENTS, class, index) gives latents 4b to 4b+3 by Box-Muller: u =
(word + 0.5) / 2^32; the pairs (w0, w1) and (w2, w3) give r cos(2 pi u1) and r sin(2 pi u1) with r = sqrt(-2 ln u0), in
float64, times `latent_std`, rounded once to float32. Processors and libraries may differ in the last bit of a float64
logarithm: NumPy's AVX-512 code and its plain code do, yet none of 128,000,000 latents differed. Order: index-major, so
that every prefix of a set is balanced.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dim.runtime.errors import BadValueError
from dim.runtime.sampling.philox import CHUNK, STREAM_LATENTS, STREAM_ORDER, rounds_in_place, split_seed

MAX_INDEX = 2**32 - 1
_TWO_PI = 2.0 * math.pi


def check_row(values: ArrayLike, what: str) -> NDArray[np.int64]:
    """Check a row of labels or indices and return it as int64 [N].

    Args:
        values: integers, one-dimensional, 0 to 2**32 - 1.
        what: the name used in the error message.

    Raises:
        BadValueError: another shape, another kind of number, or out of range.
    """
    array = np.asarray(values)
    if array.ndim == 1 and array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise BadValueError(
            f"The {what} have shape {array.shape} and dtype {array.dtype}; they must be one row of integers."
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > MAX_INDEX:
        raise BadValueError(f"The {what} reach from {low} to {high}; they must lie between 0 and 2**32 - 1.")
    return array.astype(np.int64, copy=False)


def draw_latents(
    seed: int, labels: ArrayLike, indices: ArrayLike, latent_dim: int, latent_std: float
) -> NDArray[np.float32]:
    """Draw the latents of the given samples.

    Args:
        seed: 0 to 2**64 - 1.
        labels: int64 [N], class numbers, 0 to 2**32 - 1.
        indices: int64 [N], the number of each sample within its class, 0 to 2**32 - 1.
        latent_dim: Z, at least 1.
        latent_std: the standard deviation, positive.

    Returns:
        float32 [N, Z].

    Raises:
        BadValueError: an argument is out of range, or the rows differ in length.

    Source: the module's docstring; Box and Muller 1958.
    """
    key = split_seed(seed)
    labels_N, indices_N = check_row(labels, "labels"), check_row(indices, "indices")
    if len(labels_N) != len(indices_N):
        raise BadValueError(f"There are {len(labels_N)} labels and {len(indices_N)} indices; give one index per label.")
    if latent_dim < 1 or not latent_std > 0 or not math.isfinite(latent_std):
        raise BadValueError(f"latent_dim is {latent_dim} and latent_std {latent_std}; both must be positive.")
    num_blocks = -(-latent_dim // 4)
    rows = max(1, CHUNK // num_blocks)
    latents = np.empty((len(labels_N), num_blocks * 4), np.float32)
    lanes, scratch = np.empty((4, rows, num_blocks), np.uint64), np.empty((2, rows, num_blocks), np.uint64)
    uniform = np.empty((4, rows, num_blocks), np.float64)
    blocks = np.arange(num_blocks, dtype=np.uint64)
    for start in range(0, len(labels_N), rows):
        n = min(rows, len(labels_N) - start)
        words = lanes[:, :n]
        words[0] = blocks
        words[1] = STREAM_LATENTS
        words[2] = labels_N[start : start + n, None]
        words[3] = indices_N[start : start + n, None]
        rounds_in_place(key, words.reshape(4, -1), scratch[:, :n].reshape(2, -1))
        _box_muller(words, uniform[:, :n], latent_std, latents[start : start + n].reshape(n, num_blocks, 4))
    return latents if latents.shape[1] == latent_dim else np.ascontiguousarray(latents[:, :latent_dim])


def _box_muller(
    words: NDArray[np.uint64], uniform: NDArray[np.float64], latent_std: float, out: NDArray[np.float32]
) -> None:
    """Write normals made of words [4, n, blocks] into out [n, blocks, 4]; `uniform` [4, n, blocks] is overwritten."""
    np.add(words.view(np.int64), 0.5, out=uniform)
    uniform *= 2.0**-32
    for radius, angle, first in ((uniform[0], uniform[1], 0), (uniform[2], uniform[3], 2)):
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle *= _TWO_PI
        for offset, wave in ((0, np.cos), (1, np.sin)):
            normal = wave(angle)
            normal *= radius
            normal *= latent_std
            out[..., first + offset] = normal


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Shuffle 0..n-1 as a function of (seed, epoch) alone.

    The counter (b, STREAM_ORDER, epoch's low 32 bits, epoch's high 32 bits) gives the 64-bit keys of positions 2b and
    2b+1: w0 + 2^32 w1 and w2 + 2^32 w3. The permutation is the stable ascending argsort of the keys.

    Args:
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**64 - 1.
        n: 0 to 2**32.

    Returns:
        int64 [n].

    Raises:
        BadValueError: an argument is out of range.
    """
    if not 0 <= epoch < 2**64 or not 0 <= n <= 2**32:
        raise BadValueError(f"The epoch is {epoch} and the number of images {n}; they must be below 2**64 and 2**32.")
    key, num_blocks = split_seed(seed), -(-n // 2)
    keys = np.empty((num_blocks, 2), np.uint64)
    lanes, scratch = np.empty((4, CHUNK), np.uint64), np.empty((2, CHUNK), np.uint64)
    for start in range(0, num_blocks, CHUNK):
        stop = min(start + CHUNK, num_blocks)
        words = lanes[:, : stop - start]
        words[0] = np.arange(start, stop, dtype=np.uint64)
        words[1] = STREAM_ORDER
        words[2] = epoch & 0xFFFFFFFF
        words[3] = epoch >> 32
        rounds_in_place(key, words, scratch[:, : stop - start])
        words[1::2] <<= np.uint64(32)
        keys[start:stop] = (words[0::2] | words[1::2]).T
    return np.argsort(keys.reshape(-1)[:n], kind="stable").astype(np.int64, copy=False)


def index_major_order(counts: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List every sample of a set in its order: index 0 of every class that has one, then index 1, and so on.

    Args:
        counts: images per class, each 0 to 2**32.

    Returns:
        labels int64 [N] and indices int64 [N], N the sum of the counts.

    Raises:
        BadValueError: a count is out of range.
    """
    return order_slice(counts, 0, sum(int(count) for count in counts))


def order_slice(counts: Sequence[int], start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List the samples start..stop-1 of a set's order, in memory that grows with the classes and the slice only.

    Args:
        counts: images per class, each 0 to 2**32.
        start: first position, 0 or more.
        stop: end position, start or more; cut at the set's size.

    Returns:
        labels int64 [stop - start] and indices int64 [stop - start].

    Raises:
        BadValueError: a count or a position is out of range.
    """
    count_K = np.asarray(counts, dtype=np.int64)
    if count_K.ndim != 1 or (count_K.size and (count_K.min() < 0 or count_K.max() > MAX_INDEX + 1)):
        raise BadValueError("The numbers of images per class must be a row of integers from 0 to 2**32.")
    if not 0 <= start <= stop:
        raise BadValueError(
            f"The slice is {start} to {stop}; it must start at 0 or later and not end before it starts."
        )
    stop = min(stop, int(count_K.sum()))
    size = max(0, stop - start)
    labels, indices = np.empty(size, np.int64), np.empty(size, np.int64)
    active = np.flatnonzero(count_K)
    levels, classes_per_level = np.unique(count_K[active], return_counts=True)
    position, base, filled, num_active = 0, 0, 0, len(active)
    # Between two neighbouring distinct counts, `base` and `level`, the classes that still have images stay the same.
    for level, num_ending in zip(levels.tolist(), classes_per_level.tolist(), strict=True):
        end = position + (level - base) * num_active
        if end > start and filled < size:
            active = active[count_K[active] > base]
            offsets = np.arange(max(start, position), min(stop, end), dtype=np.int64) - position
            labels[filled : filled + len(offsets)] = active[offsets % num_active]
            indices[filled : filled + len(offsets)] = base + offsets // num_active
            filled += len(offsets)
        position, base, num_active = end, level, num_active - num_ending
    return labels, indices
