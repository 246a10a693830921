"""Words of Philox for counters of any shape, from the in-place rounds of the product."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dim.runtime.sampling.philox import CHUNK, rounds_in_place, split_seed


def philox4x32(key: tuple[int, int], counter: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Map counters to random words with ten rounds of Philox4x32.

    Args:
        key: two 32-bit words.
        counter: uint32 [..., 4].

    Returns:
        uint32 [..., 4]: four independent uniform words for each counter.

    Source: Salmon et al. 2011, section 3.3.
    """
    counter = np.asarray(counter, np.uint32)
    flat = counter.reshape(-1, 4)
    words = np.empty_like(flat)
    lanes, scratch = np.empty((4, CHUNK), np.uint64), np.empty((2, CHUNK), np.uint64)
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        lanes[:, : len(part)] = part.T
        rounds_in_place(key, lanes[:, : len(part)], scratch[:, : len(part)])
        words[start : start + CHUNK] = lanes[:, : len(part)].T
    return words.reshape(counter.shape)


def stream_words(
    seed: int, stream: int, class_index: ArrayLike, index: ArrayLike, num_words: int
) -> NDArray[np.uint32]:
    """Read the first words of the random sequence of each (seed, stream, class, index).

    Args:
        seed: 0 to 2**64 - 1.
        stream: the second word of every counter.
        class_index: integers [N] or a scalar, 0 to 2**32 - 1.
        index: integers [N] or a scalar, 0 to 2**32 - 1.
        num_words: words per row, at least 0.

    Returns:
        uint32 [N, num_words]; word w comes from block w // 4.

    Raises:
        BadValueError: the seed is out of range.
    """
    class_words, index_words = np.broadcast_arrays(np.atleast_1d(class_index), np.atleast_1d(index))
    num_blocks = -(-num_words // 4)
    counter = np.empty((len(index_words), num_blocks, 4), np.uint32)
    counter[:, :, 0] = np.arange(num_blocks, dtype=np.uint32)
    counter[:, :, 1] = stream
    counter[:, :, 2] = class_words[:, None]
    counter[:, :, 3] = index_words[:, None]
    return philox4x32(split_seed(seed), counter).reshape(len(index_words), -1)[:, :num_words]
