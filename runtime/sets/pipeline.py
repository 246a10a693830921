"""Runs engine, encoders and disk at the same time, with a bounded number of images in memory.

One thread draws batches, a pool of threads encodes them, the caller's thread writes them in order. The number of
batches in memory is fixed, so memory does not grow with the set. The first error stops all three. For sets of more than
a few images, the threads let separate processes encode PNG.

Parts of many small files need the disk to hold them before they get their final names. One flush then serves all parts
that were written since the last one, and the next comes no sooner than after ten times the time that it took.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.cores import usable_cores
from dim.runtime.errors import BadValueError
from dim.runtime.sampling.stream import iterate_ahead
from dim.runtime.set_formats.part import Batch, PartRecord, PartWriter
from dim.runtime.set_formats.plan import SINGLE_FILE_FORMATS, Plan
from dim.runtime.set_formats.png_processes import EncoderProcesses

Draw = Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[NDArray[np.uint8], NDArray[np.float16] | None]]
ENCODE_IMAGES = 256
MAX_ENCODERS = 64
DEFAULT_MAX_ENCODERS = 2
"""Unless the caller asks for more: each process takes 15 MiB, and large sets may take 50 MiB more than small ones."""
PROCESS_IMAGES = 4096
"""Images from which on encoder processes are worth their start, about 0.1 s of a core each."""
QUICK_DRAW_S, QUICK_DRAW_IMAGES = 0.01, 1024
"""An engine that takes less for a draw is given more images at once where pixels are written as they are: the threads
then wait less for each other (NPZ with the fake engine 1.6 times as fast)."""
FLUSH_INTERVAL = 10
"""Times what a flush takes, so that flushing costs a tenth at most."""
UNNAMED_IMAGES = 16_384
"""Written and without their final names, at most; a part may be larger."""


def check_encoders(encoders: int | None) -> None:
    """Check a number of PNG encoders that was asked for.

    Raises:
        BadValueError: it is out of range.
    """
    if encoders is not None and not 1 <= encoders <= MAX_ENCODERS:
        raise BadValueError(f"`encoders` is {encoders}; it must lie between 1 and {MAX_ENCODERS}.")


def choose_encoders() -> int:
    """Count the PNG encoders that a set is given: a core is left to drawing and writing, and memory stays in bounds."""
    return max(1, min(DEFAULT_MAX_ENCODERS, usable_cores() - 1))


def choose_draw_images(batch: int | None, image_bytes: int, most: int = 256) -> int:
    """Choose how many images are drawn at once: the padded batch, or as many as fill 8 MiB, at most `most`."""
    return batch if batch is not None else max(1, min(most, 2**23 // image_bytes))


@dataclass(frozen=True)
class _Step:
    """Images that were drawn and are being encoded, or the end of a part."""

    writer: PartWriter
    images: int
    encoded: Future[Any] | None
    """None at the end of the part."""


def run_pipeline(
    plan: Plan,
    parts: Sequence[int],
    draw: Draw,
    open_part: Callable[[int], PartWriter],
    finished: Callable[[PartRecord], None],
    written: Callable[[int, int], None],
    flush: Callable[[], None],
    encoders: int | None = None,
) -> None:
    """Make the given parts of a set.

    Args:
        plan: the set's plan.
        parts: the numbers of the parts to make, in order.
        draw: labels int64 [N], indices int64 [N] -> images uint8 [N, H, W, C] and scores float16 [N, K] or None; called
            in one thread.
        open_part: begins a part.
        finished: gets the record of every part, once its files have their final names.
        written: gets the images and the bytes of every step.
        flush: waits until everything written so far is on the disk.
        encoders: PNG files made at once; None for one per core but one, at least 1 and at most `DEFAULT_MAX_ENCODERS`.

    Raises:
        whatever the first failing stage raised.
    """
    encoders = encoders or choose_encoders()
    worthwhile = plan.images_of(parts) >= PROCESS_IMAGES and plan.format not in SINGLE_FILE_FORMATS
    with contextlib.ExitStack() as held:
        processes = held.enter_context(EncoderProcesses(encoders if worthwhile and usable_cores() > 1 else 0))
        open_parts = _OpenParts(plan, flush, finished)
        held.callback(open_parts.abort)
        # More threads than processes, so that none waits while images are written.
        threads = processes.count + 2 if processes.count else encoders
        pool = ThreadPoolExecutor(threads, thread_name_prefix="dim-encode")
        held.callback(pool.shutdown, wait=True, cancel_futures=True)

        def draw_parts() -> Iterator[_Step]:
            for part in parts:
                writer = open_part(part)
                open_parts.add(writer)
                for batch in _draw_part(plan, part, draw, processes):
                    yield _Step(writer, len(batch.labels), pool.submit(writer.encode, batch))
                yield _Step(writer, 0, None)

        steps = held.enter_context(contextlib.closing(iterate_ahead(draw_parts, threads + 2)))
        for step in steps:
            if step.encoded is not None:
                written(step.images, step.writer.write(step.encoded.result()))
            else:
                open_parts.end(step.writer)
        open_parts.finish()


def _draw_part(plan: Plan, part: int, draw: Draw, processes: EncoderProcesses) -> Iterator[Batch]:
    """Draw the images of a part, and cut what was drawn at once into pieces that are encoded at once."""
    raw = plan.format in SINGLE_FILE_FORMATS
    most = choose_draw_images(plan.engine.batch, plan.image_bytes)
    first, stop = plan.span(part)
    while first < stop:
        began = time.monotonic()
        labels, indices = plan.samples(first, min(first + most, stop))
        images, scores = draw(labels, indices)
        first += len(labels)
        if raw and plan.engine.batch is None and time.monotonic() - began < QUICK_DRAW_S:
            most = choose_draw_images(None, plan.image_bytes, QUICK_DRAW_IMAGES)
        size = len(labels) if raw else ENCODE_IMAGES
        for at in range(0, len(labels), size):
            piece = slice(at, at + size)
            yield Batch(
                images=images[piece],
                labels=labels[piece],
                indices=indices[piece],
                scores=scores[piece] if scores is not None else None,
                encode_png=processes.encode_png,
            )


class _OpenParts:
    """The parts that were begun and have no final names yet; the drawing thread adds them, the writing one ends them.

    Args:
        plan: the set's plan.
        flush: waits until everything written so far is on the disk.
        finished: gets the record of every part that was finished.
    """

    def __init__(self, plan: Plan, flush: Callable[[], None], finished: Callable[[PartRecord], None]) -> None:
        self._part_images, self._flush, self._finished = plan.part_images, flush, finished
        self._begun: list[PartWriter] = []
        self._ended: list[PartWriter] = []
        """Those of the parts that were begun of which every image is written."""
        self._flush_due = 0.0

    def add(self, writer: PartWriter) -> None:
        """Take a part that was begun."""
        self._begun.append(writer)

    def end(self, writer: PartWriter) -> None:
        """Finish a part of which every image is written, now or together with later ones."""
        self._ended.append(writer)
        waits = writer.unflushed and time.monotonic() < self._flush_due
        if not waits or len(self._ended) * self._part_images >= UNNAMED_IMAGES:
            self.finish()

    def finish(self) -> None:
        """Finish all parts that have ended; one flush serves all."""
        if any(writer.unflushed for writer in self._ended):
            began = time.monotonic()
            self._flush()
            now = time.monotonic()
            self._flush_due = now + FLUSH_INTERVAL * (now - began)
        for writer in self._ended:
            record = writer.finish()
            self._begun.remove(writer)
            self._finished(record)
        self._ended.clear()

    def abort(self) -> None:
        """Let go of every part that is not finished, even where one fails."""
        with contextlib.ExitStack() as aborted:
            for writer in self._begun:
                aborted.callback(writer.abort)
