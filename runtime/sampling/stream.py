"""An endless or bounded sequence of fresh batches, drawn ahead in a background thread.

Epoch e holds indices e*ipc to (e+1)*ipc-1 of every class. Its images in index-major order are shuffled by
`permutation(seed, epoch, n)`. Shard (i, n) takes the positions p of the shuffled epoch with p % n == i, in order, and
cuts them into batches. The last, short one is kept. Nothing here depends on the batch size, the number of shards or the
time at which a batch is made.
"""

import atexit
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dim.runtime.errors import BadValueError, EngineError, describe_error
from dim.runtime.sampling.latents import MAX_INDEX, permutation
from dim.runtime.sampling.philox import split_seed

T = TypeVar("T")
_POLL_SECONDS = 0.2
_STOP_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """What a stream draws; checked on construction.

    Raises:
        BadValueError: a field is out of range.
    """

    labels: tuple[int, ...]
    """The classes that take part, in ascending order."""
    ipc: int
    """Images per class and epoch."""
    batch_size: int
    seed: int
    epochs: int | None
    """None for ever."""
    start_epoch: int = 0
    shard: tuple[int, int] = (0, 1)
    """(i, n): every n-th image of the shuffled epoch, from the i-th."""

    def __post_init__(self) -> None:
        for name, value, low in (
            ("ipc", self.ipc, 1),
            ("batch_size", self.batch_size, 1),
            ("start_epoch", self.start_epoch, 0),
            ("epochs", 0 if self.epochs is None else self.epochs, 0),
        ):
            _check_whole(name, value, low)
        split_seed(self.seed)
        pair = self.shard if isinstance(self.shard, tuple | list) and len(self.shard) == 2 else (None, None)
        if not all(_is_whole(number) for number in pair) or not 0 <= pair[0] < pair[1]:
            raise BadValueError(f"shard is {self.shard!r}; it must be (i, n), integers with 0 <= i < n.")
        if self.epochs is not None and (self.start_epoch + self.epochs) * self.ipc - 1 > MAX_INDEX:
            raise BadValueError(
                f"{self.start_epoch + self.epochs} epochs of {self.ipc} images per class need indices beyond 2**32."
            )

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """List the samples of every batch.

        Returns:
            labels int64 [B] and indices int64 [B], B at most `batch_size`.

        Raises:
            BadValueError: an endless stream ran out of indices, after 2**32 images of a class.
        """
        label_K = np.asarray(self.labels, np.int64)
        i, n = self.shard
        epochs = count(self.start_epoch)
        for epoch in epochs if self.epochs is None else range(self.start_epoch, self.start_epoch + self.epochs):
            if (epoch + 1) * self.ipc - 1 > MAX_INDEX:
                raise BadValueError(f"Epoch {epoch} of {self.ipc} images per class needs indices beyond 2**32.")
            positions = permutation(self.seed, epoch, len(label_K) * self.ipc)[i::n]
            for start in range(0, len(positions), self.batch_size):
                part = positions[start : start + self.batch_size]
                yield label_K[part % len(label_K)], epoch * self.ipc + part // len(label_K)

    def count_batches(self) -> int | None:
        """Count the batches of all epochs; None where they go on for ever."""
        if self.epochs is None:
            return None
        i, n = self.shard
        images = max(0, -(-(len(self.labels) * self.ipc - i) // n))
        return self.epochs * -(-images // self.batch_size)


class Stream(Generic[T]):
    """The batches of a plan, drawn ahead in a background thread; every loop over it draws them anew.

    `len()` counts the batches; an endless stream has none. A pickled stream goes on from its beginning in the other
    process.

    Args:
        plan: what is drawn.
        draw: turns labels int64 [B] and indices int64 [B] into images; must be picklable where the stream is to be.
        prefetch: batches drawn ahead; 0 for no thread.

    Raises:
        BadValueError: `prefetch` is no whole number.
    """

    def __init__(
        self, plan: StreamPlan, draw: Callable[[NDArray[np.int64], NDArray[np.int64]], T], prefetch: int
    ) -> None:
        _check_whole("prefetch", prefetch, 0)
        self.plan = plan
        self._draw = draw
        self._prefetch = int(prefetch)

    def __iter__(self) -> Iterator[tuple[T, NDArray[np.int64]]]:
        return iterate_ahead(self._batches, self._prefetch)

    def __len__(self) -> int:
        count = self.plan.count_batches()
        if count is None:
            raise TypeError("This stream has no length: it goes on for ever, because epochs is None.")
        return count

    def __bool__(self) -> bool:
        return self.plan.count_batches() != 0

    def __repr__(self) -> str:
        count, plan = self.plan.count_batches(), self.plan
        batches = "endless batches" if count is None else f"{count:,} batches"
        return f"<Stream: {batches} of {plan.batch_size}, ipc {plan.ipc}, {len(plan.labels)} classes, seed {plan.seed}>"

    def _batches(self) -> Iterator[tuple[T, NDArray[np.int64]]]:
        for labels, indices in self.plan.batches():
            yield self._draw(labels, indices), labels


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_whole(name: str, value: object, low: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
        raise BadValueError(f"{name} is {value!r}; it must be an integer, at least {low}.")


@dataclass(frozen=True)
class _Failure:
    error: BaseException


_END = object()

# Threads that draw ahead, and what stops each.
_running: dict[threading.Thread, threading.Event] = {}


@atexit.register
def _stop_all() -> None:
    """Let no thread outlive the interpreter: one that is inside an engine or PyTorch then would abort the process."""
    for stop in _running.values():
        stop.set()
    for thread in list(_running):
        thread.join(timeout=_STOP_SECONDS)


def iterate_ahead(make: Callable[[], Iterator[T]], depth: int) -> Generator[T, None, None]:
    """Run an iterator ahead in a background thread, at most `depth` items ahead.

    The thread ends when the iterator ends or fails, and when the consumer stops for any reason: a closed or collected
    generator, an exception, Ctrl-C.

    Args:
        make: makes the iterator, in the thread.
        depth: items that may wait; 0 for no thread at all.

    Returns:
        the same items in the same order.

    Raises:
        BadValueError: at once, if `depth` is no integer or below 0.
        EngineError: the iteration goes on in another process than the one that began it.
        anything that the iterator raises.
    """
    _check_whole("prefetch", depth, 0)
    return _iterate(make, int(depth))


def _iterate(make: Callable[[], Iterator[T]], depth: int) -> Generator[T, None, None]:
    if depth == 0:
        yield from make()
        return
    waiting: queue.Queue[object] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        iterator = make()
        try:
            for item in iterator:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:
            put(_Failure(error))
        finally:
            # Frees whatever the iterator holds in this thread, not at some later collection.
            if hasattr(iterator, "close"):
                iterator.close()
            _running.pop(threading.current_thread(), None)

    thread = threading.Thread(target=work, name="dim-prefetch", daemon=True)
    getpid = os.getpid  # the module may be gone when the interpreter ends
    process = getpid()
    try:
        _running[thread] = stop
        thread.start()
    except RuntimeError as error:
        del _running[thread]
        raise EngineError(
            f"No thread can be started to draw ahead ({describe_error(error)}): ask for fewer threads or encoders, or "
            "raise the limit of processes."
        ) from None
    try:
        while True:
            try:
                item = waiting.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if os.getpid() != process:
                    raise EngineError("A stream cannot be used in a forked process: call stream() there.") from None
                continue
            if item is _END:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        if getpid() == process:
            while thread.is_alive():
                try:
                    waiting.get_nowait()
                except queue.Empty:
                    thread.join(timeout=_POLL_SECONDS)
