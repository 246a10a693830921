"""Engine, encoders and disk at work at the same time, with a bounded number of images on the way.

One thread draws batches, a pool of threads encodes them, the caller's thread writes them in order. The queue between
them holds a fixed number of batches, so memory does not grow with the set; the first error stops all three. Of a set of
more than a few images the threads have the PNG files made by processes, and write what comes back in the meantime.

Parts of many small files need the disk to hold them before they get their final names. One flush then serves all parts
that were written since the last one, and the next comes no sooner than after ten times the time that it took.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.cores import usable_cores
from dim.runtime.errors import BadValueError
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
_STOP_CHECK_S = 0.05


class _StoppedError(Exception):
    """The writing side gave up; the drawing side follows."""


def check_encoders(encoders: int | None) -> None:
    """Check a wish for a number of PNG encoders.

    Raises:
        BadValueError: it is out of range.
    """
    if encoders is not None and not 1 <= encoders <= MAX_ENCODERS:
        raise BadValueError(f"encoders is {encoders}; it must lie between 1 and {MAX_ENCODERS}.")


def encoders_by_default() -> int:
    """Count the PNG encoders that a set is given: a core is left to drawing and writing, and memory stays in bounds."""
    return max(1, min(DEFAULT_MAX_ENCODERS, usable_cores() - 1))


def draw_size(batch: int | None, image_bytes: int, most: int = 256) -> int:
    """Choose how many images are drawn at once: the padded batch, or as many as fill 8 MiB, at most `most`."""
    return batch if batch is not None else max(1, min(most, 2**23 // image_bytes))


def run_pipeline(
    plan: Plan,
    parts: Sequence[int],
    draw: Draw,
    open_part: Callable[[int], PartWriter],
    finished: Callable[[PartRecord], None],
    written: Callable[[int, int, bool], None],
    flush: Callable[[], None],
    encoders: int | None = None,
) -> None:
    """Make the given parts of a set.

    Args:
        plan: the set's plan.
        parts: the numbers of the parts to make, in order.
        draw: labels int64 [N], indices int64 [N] -> images uint8 [N, H, W, C] and scores float16 [N, K] or None; called
            in one thread.
        open_part: begins or continues a part.
        finished: gets the record of every part, once its files have their final names.
        written: gets images, bytes written, and whether this run drew them, after every step.
        flush: waits until everything written so far is on the disk.
        encoders: PNG files made at once; None for one per core but one, at least 1 and at most `DEFAULT_MAX_ENCODERS`.

    Raises:
        whatever the first failing stage raised; KeyboardInterrupt leaves parts that can be continued.
    """
    encoders, raw = encoders or encoders_by_default(), plan.format in SINGLE_FILE_FORMATS
    apart = usable_cores() > 1 and not raw and plan.images_of(parts) >= PROCESS_IMAGES
    processes = EncoderProcesses(encoders if apart else 0)
    # More threads than processes, so that none waits while images are written.
    threads = processes.count + 2 if processes.count else encoders
    waiting: queue.Queue[Any] = queue.Queue(maxsize=threads + 2)
    stop = threading.Event()
    unfinished: list[PartWriter] = []
    ended: list[PartWriter] = []
    flush_due = 0.0
    step = draw_size(plan.engine.batch, plan.image_bytes)

    def finish() -> None:
        nonlocal flush_due
        if any(writer.unflushed for writer in ended):
            began = time.monotonic()
            flush()
            now = time.monotonic()
            flush_due = now + FLUSH_INTERVAL * (now - began)
        for writer in ended:
            record = writer.finish()
            unfinished.remove(writer)
            finished(record)
        ended.clear()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return waiting.put(item, timeout=_STOP_CHECK_S)
            except queue.Full:
                continue
        raise _StoppedError

    def produce(pool: ThreadPoolExecutor) -> None:
        nonlocal step
        try:
            for part in parts:
                writer = open_part(part)
                unfinished.append(writer)
                start, stop_at = plan.span(part)
                put((writer, writer.images_done))
                first = start + writer.images_done
                while first < stop_at:
                    began = time.monotonic()
                    labels, indices = plan.samples(first, min(first + step, stop_at))
                    images, scores = draw(labels, indices)
                    first += len(labels)
                    if raw and plan.engine.batch is None and time.monotonic() - began < QUICK_DRAW_S:
                        step = draw_size(None, plan.image_bytes, QUICK_DRAW_IMAGES)
                    pieces = len(labels) if raw else ENCODE_IMAGES
                    for at in range(0, len(labels), pieces):
                        piece = slice(at, at + pieces)
                        batch = Batch(
                            images=images[piece],
                            labels=labels[piece],
                            indices=indices[piece],
                            scores=scores[piece] if scores is not None else None,
                            encode_png=processes.encode_png,
                        )
                        put((writer, batch, pool.submit(writer.encode, batch)))
                put((writer, None))
            put(None)
        except _StoppedError:
            pass
        except BaseException as error:
            try:
                put(error)
            except _StoppedError:
                pass

    with processes, ThreadPoolExecutor(threads, thread_name_prefix="dim-encode") as pool:
        producer = threading.Thread(target=produce, args=(pool,), name="dim-draw", daemon=True)
        producer.start()
        try:
            while (item := waiting.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                writer: PartWriter = item[0]
                if len(item) == 3:
                    encoded: Future[Any] = item[2]
                    written(len(item[1].labels), writer.write(encoded.result()), True)
                elif item[1] is not None:
                    written(item[1], 0, False)
                else:
                    ended.append(writer)
                    waits = writer.unflushed and time.monotonic() < flush_due
                    if not waits or len(ended) * plan.part_images >= UNNAMED_IMAGES:
                        finish()
            finish()
        finally:
            stop.set()
            producer.join()
            pool.shutdown(wait=True, cancel_futures=True)
            with contextlib.ExitStack() as aborted:  # all of them, even where one fails
                for writer in unfinished:
                    aborted.callback(writer.abort)
