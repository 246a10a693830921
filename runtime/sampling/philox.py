"""Philox4x32-10, the counter-based random generator that every latent and every shuffle comes from.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); constants as in Random123.
A counter-based generator keeps no state: any worker computes any part of a set on its own.

Counter words, in order: (block, stream, class, index). Key words: the seed's low and high 32 bits.
"""

import numpy as np
from numpy.typing import NDArray

from dim.runtime.errors import BadValueError

STREAM_LATENTS, STREAM_ORDER = 0, 1
STREAM_PLACES = 32
"""The first of six streams that permute the accepted candidates of version 2."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT32 = np.uint64(32)
# Counters per pass. 8,192 drew 310,000 samples of 128 latents per second and core, 1,024 148,000, 16,384 no more.
CHUNK = 8192


def split_seed(seed: int) -> tuple[int, int]:
    """Split a seed into the two 32-bit key words.

    Args:
        seed: 0 to 2**64 - 1.

    Returns:
        (low 32 bits, high 32 bits).

    Raises:
        BadValueError: the seed is not an integer in that range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**64:
        raise BadValueError(f"The seed is {seed!r}; it must be an integer from 0 to 2**64 - 1.")
    return int(seed) & 0xFFFFFFFF, int(seed) >> 32


def rounds_in_place(key: tuple[int, int], lanes: NDArray[np.uint64], scratch: NDArray[np.uint64]) -> None:
    """Turn counters into random words, in place.

    Args:
        key: two 32-bit words.
        lanes: uint64 [4, n], each below 2**32: the counter words on entry, the random words on return.
        scratch: uint64 [2, n], overwritten.
    """
    # 64-bit lanes hold 32-bit words, so that one multiplication gives the high and the low half; nothing is allocated.
    c0, c1, c2, c3 = lanes
    p0, p1 = scratch
    k0, k1 = key
    for _ in range(_ROUNDS):
        np.multiply(c0, _MULTIPLIERS[0], out=p0)
        np.multiply(c2, _MULTIPLIERS[1], out=p1)
        np.right_shift(p1, _SHIFT32, out=c0)
        np.bitwise_xor(c0, c1, out=c0)
        np.bitwise_xor(c0, np.uint64(k0), out=c0)
        np.right_shift(p0, _SHIFT32, out=c2)
        np.bitwise_xor(c2, c3, out=c2)
        np.bitwise_xor(c2, np.uint64(k1), out=c2)
        np.bitwise_and(p1, _LOW32, out=c1)
        np.bitwise_and(p0, _LOW32, out=c3)
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF


PLAIN_SAMPLING, FILTERED_SAMPLING = 1, 2
"""Versions of the sampling contract: every index has latents of its own; samples are accepted candidates."""
