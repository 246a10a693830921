"""Shares one engine among all threads of a process; a forked process opens its own."""

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from dim.runtime.engines.base import Engine
from dim.runtime.errors import BundleError


class SharedEngine:
    """An engine that is opened on first use, once for all threads; a forked process opens its own.

    Args:
        path: the bundle's folder, for what errors say.
        open: opens the engine.
    """

    def __init__(self, path: Path, open: Callable[[], Engine]) -> None:
        self._path = path
        self._open = open
        self._engine: Engine | None = None
        self._closed = False
        self._lock = threading.RLock()
        _shared.add(self)

    def get(self) -> Engine:
        """Return the engine, opened if need be.

        Raises:
            BundleError: it was closed; and what `open` raises.
        """
        engine = self._engine
        if engine is not None:
            return engine
        with self._lock:
            if self._closed:
                raise BundleError(f"The bundle {self._path} was closed; open it again.")
            if self._engine is None:
                self._engine = self._open()
            return self._engine

    @property
    def opened(self) -> Engine | None:
        """The engine if it was opened, else None."""
        return self._engine

    def put(self, engine: Engine) -> None:
        """Take this engine instead of opening one.

        Raises:
            BundleError: it was closed, or there is one already.
        """
        with self._lock:
            if self._closed or self._engine is not None:
                raise BundleError(f"The bundle {self._path} was closed, or draws with another engine; open it again.")
            self._engine = engine

    def close(self) -> None:
        """Give back the engine; harmless when called twice."""
        with self._lock:
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def forget(self) -> None:
        """In a forked child, while it has one thread: drop what does not survive a fork, without destroying it."""
        _leaked_after_fork.append(self._engine)
        self._engine = None
        self._lock = threading.RLock()


_shared: "weakref.WeakSet[SharedEngine]" = weakref.WeakSet()
# A session that was inherited by fork has lost its threads; destroying it would wait for them for ever.
_leaked_after_fork: list[object] = []


def _forget_engines() -> None:
    for shared in list(_shared):
        shared.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_engines)
