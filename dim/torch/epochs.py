"""Counts the passes over a dataset, in memory that all loader workers share.

A worker learns of a new pass only when it is asked for an iterator; the loader's own process is not told. So every
worker has its own 64-bit word, with the number of passes that it has begun and the loader that it served. A worker that
begins a pass reads its number from the words of the workers that began it before. Each word has one writer, so no lock
is needed, and a worker that was stopped before it began does not disturb the others.
"""

import torch
from torch.utils.data import get_worker_info

from dim.runtime.errors import BadValueError

MAX_WORKERS = 1024
MAX_EPOCH = 2**32 - 2
_COUNT_BITS = 32
_TAGS = 2**31 - 1


class Epochs:
    """The number of the next pass, the same in every process that has this object."""

    def __init__(self) -> None:
        # The upper bits hold the loader's tag, the lower ones how many passes were begun. Shared by fork and by spawn.
        self._words = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def next(self) -> int:
        """The number of the next pass."""
        return int((self._words.numpy() % 2**_COUNT_BITS).max())

    def set(self, epoch: int) -> None:
        """Set the number of the next pass.

        Raises:
            BadValueError: it is no integer from 0 to `MAX_EPOCH`.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch <= MAX_EPOCH:
            raise BadValueError(f"epoch is {epoch!r}; it must be an integer from 0 to {MAX_EPOCH:,}.")
        self._words.fill_(epoch)

    def begin(self) -> int:
        """Begin a pass, or join the one that other workers of the same loader have begun; returns its number.

        Raises:
            BadValueError: there are more workers than words.
        """
        worker, tag, slot = get_worker_info(), 0, 0
        if worker is not None:
            if worker.num_workers > MAX_WORKERS:
                raise BadValueError(f"There are {worker.num_workers:,} loader workers; at most {MAX_WORKERS:,} share.")
            slot = worker.id
            # Equal in all workers of one loader, and drawn anew with every loader that starts workers.
            tag = (worker.seed - worker.id) % _TAGS + 1
        words = self._words.numpy()
        counts, tags = words % 2**_COUNT_BITS, words >> _COUNT_BITS
        begun = counts[(tags == tag) & (counts > counts[slot])] if tag else counts[:0]
        epoch = int(begun.max()) - 1 if len(begun) else int(counts.max())
        words[slot] = tag << _COUNT_BITS | epoch + 1
        return epoch
