"""PNG encoders in processes of their own, each behind two pipes.

Most of what Pillow does for a small image holds Python's lock, so encoding threads of one process wait for each other
and for whoever writes files. A process for each encoder avoids that. It runs `png_pixels.py`, not a copy of this
program, so neither the engine nor a caller's main module is loaded twice. It ends when its pipe closes, also if this
process is killed. If no process can be started, or one was killed, images are encoded here, with the same bytes.
"""

import contextlib
import fcntl
import logging
import queue
import struct
import subprocess
import sys
import threading
from itertools import accumulate
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dim.runtime.set_formats import png_pixels
from dim.runtime.set_formats.png import encode_png

_PIPE_BYTES = 2**20
"""Holds a batch of small images, so that it changes hands at once."""
_NO_PROCESS = (OSError, EOFError, ValueError)
"""What a pipe of a process raises that never started, or ended."""


class EncoderProcess:
    """One process; it starts at once and is asked for its version at first use.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        # Without -P the folder of the script would come first where modules are looked for. A session of its own keeps
        # the Ctrl-C of a terminal from it.
        self._process = subprocess.Popen(
            [sys.executable, "-P", png_pixels.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(AttributeError, OSError):  # not Linux, or no more is allowed
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._sending, self._reading = threading.Lock(), threading.Lock()
        self._greeted = False
        self._broken = False
        """Half a request or half a reply is in the pipes, and would be taken for the next one; for ever."""

    def encode_png(self, images_NHWC: NDArray[np.uint8]) -> list[bytes]:
        """As `dim.runtime.set_formats.png.encode_png`.

        Raises:
            OSError, EOFError, ValueError: the process ended, or encodes with another version of Pillow.
        """
        try:
            return self._exchange(images_NHWC)
        except BaseException:
            self._process.kill()
            raise

    def _exchange(self, images_NHWC: NDArray[np.uint8]) -> list[bytes]:
        with self._sending:
            if self._broken:
                raise EOFError
            try:
                self._requests.write(png_pixels.REQUEST.pack(*images_NHWC.shape))
                self._requests.write(np.ascontiguousarray(images_NHWC).data)
                self._requests.flush()
                # Held until the reply to the request before was read: one request is at work, one waits in the pipe.
                self._reading.acquire()
            except BaseException:
                self._broken = True
                raise
        try:
            if self._broken:
                raise EOFError
            if not self._greeted and self._replies.readline() != png_pixels.encoder_version().encode() + b"\n":
                raise EOFError
            self._greeted = True
            sizes = struct.unpack(f"<{len(images_NHWC)}I", self._read(4 * len(images_NHWC)))
            joined, ends = self._read(sum(sizes)), accumulate(sizes)
            return [joined[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        except BaseException:
            self._broken = True  # before another may read: what is left of a reply outlives a process that is killed
            raise
        finally:
            self._reading.release()

    def _read(self, size: int) -> bytes:
        data = self._replies.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def close(self) -> None:
        """End the process; it may be called twice, and in the middle of a request."""
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):  # what was not sent any more
                pipe.close()
        self._process.wait()


class EncoderProcesses:
    """Some encoder processes, shared by threads; a context manager that ends them.

    Args:
        count: how many; 0 encodes in the calling thread.
    """

    def __init__(self, count: int) -> None:
        self._idle: queue.SimpleQueue[EncoderProcess | None] = queue.SimpleQueue()
        self._all: list[EncoderProcess] = []
        # In a frozen program `sys.executable` is the program itself, not Python.
        if count and sys.executable and not getattr(sys, "frozen", False):
            with contextlib.suppress(OSError):
                for _ in range(count):
                    self._all.append(EncoderProcess())
        for process in 2 * self._all:  # a process finds its next request in the pipe
            self._idle.put(process)
        self.count = len(self._all)
        """Processes that were started."""

    def encode_png(self, images_NHWC: NDArray[np.uint8]) -> list[bytes]:
        """As `dim.runtime.set_formats.png.encode_png`, in the first process that is free."""
        if not self._all:
            return encode_png(images_NHWC)
        process = self._idle.get()
        files = None
        try:
            if process is not None:
                files = process.encode_png(images_NHWC)
        except _NO_PROCESS:
            logging.getLogger("dim.runtime").warning("An encoder process ended; its images are encoded by this one.")
        finally:
            self._idle.put(process if files is not None else None)
        return files if files is not None else encode_png(images_NHWC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._all:
            process.close()
