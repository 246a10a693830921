"""TensorRT and TensorRT for RTX behind one handle: the same API in two Python modules.

Both keep the first logger of a process and ignore later ones. So one logger is made per module and kept. After building
or loading an engine, `TrtLibrary.take_messages` returns what was logged.
"""

import re
import threading
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

from dim.runtime.engines.libraries import import_engine_library
from dim.runtime.errors import BadValueError, EngineError, MissingExtraError
from dim.runtime.install import reinstall_extra
from dim.runtime.trt.sidecar import FORMATS, library_title

_MODULES = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}
_OLDEST = {"trt": (10, 3), "rtx": (1, 2)}
_KEPT_MESSAGES = 200


@dataclass(frozen=True, kw_only=True)
class TrtLibrary:
    """One installed TensorRT library."""

    format: str
    """`trt` or `rtx`."""
    module: Any
    """The imported Python module."""
    version: str
    logger: Any
    """The process's logger of that module; what it logged is in `messages`."""
    messages: deque[tuple[str, str]] = field(repr=False)
    """(severity, text), oldest first, at most the last 200."""

    @property
    def engine_name(self) -> str:
        """The engine's name in plans and reports: `tensorrt` or `tensorrt-rtx`."""
        return "tensorrt" if self.format == "trt" else "tensorrt-rtx"

    @property
    def cuda_major(self) -> int | None:
        """The CUDA major version that the library was built for, None where its package does not say."""
        return find_cuda_major(self.format)

    def take_messages(self) -> list[str]:
        """Take the errors and warnings logged since the last call, errors first."""
        taken = []
        while self.messages:
            taken.append(self.messages.popleft())
        errors = [text for severity, text in taken if "ERROR" in severity]
        return errors + [text for severity, text in taken if "WARNING" in severity]

    def take_first_error(self) -> str:
        """Take what was logged since the last call and return its first error in one line, for the end of a message."""
        logged = self.take_messages()
        if not logged:
            return f"{library_title(self.format)} gives no reason"
        line = " ".join(logged[0].split())
        return line if len(line) <= 400 else line[:397] + "..."


@cache
def load_library(format: str) -> TrtLibrary:
    """Import the library of an engine format.

    Args:
        format: `trt` or `rtx`.

    Raises:
        BadValueError: another format.
        MissingExtraError: the package is not installed.
        EngineError: it is installed and does not load, or is too old.
    """
    if format not in FORMATS:
        raise BadValueError(f"The engine format {format!r} is unknown; choose one of {', '.join(FORMATS)}.")
    name = _MODULES[format]
    try:
        module = import_engine_library(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(name, format, f"build and run {library_title(format)} engines") from error
    except (ImportError, OSError) as error:
        raise EngineError(
            f"{library_title(format)} is installed and does not load ({error}): reinstall it with  "
            f"{reinstall_extra(format)}"
        ) from error
    version = str(getattr(module, "__version__", ""))
    found, oldest = tuple(int(part) for part in re.findall(r"\d+", version)[:2]), _OLDEST[format]
    if not hasattr(module, "Builder") or found < oldest:
        raise EngineError(
            f"{library_title(format)} {version or 'of unknown version'} is installed and "
            f"{oldest[0]}.{oldest[1]} or newer is needed: run  {reinstall_extra(format, '--upgrade')}"
        )
    logger, messages = _find_logger(module)
    return TrtLibrary(format=format, module=module, version=version, logger=logger, messages=messages)


def find_cuda_major(format: str) -> int | None:
    """Read the CUDA major version off the name of the library's package, `tensorrt_rtx_cu13_libs`; None if untold."""
    for major in (13, 12):
        for suffix in ("_libs", "_bindings", ""):
            try:
                metadata.version(f"{_MODULES[format]}_cu{major}{suffix}")
            except metadata.PackageNotFoundError:
                continue
            return major
    return None


# Module -> its logger and what was logged. The library keeps a bare pointer to its first logger.
_loggers: list[tuple[Any, Any, deque[tuple[str, str]]]] = []


def _find_logger(module: Any) -> tuple[Any, deque[tuple[str, str]]]:
    for known, logger, messages in _loggers:
        if known is module:
            return logger, messages
    new: deque[tuple[str, str]] = deque(maxlen=_KEPT_MESSAGES)
    _loggers.append((module, _make_logger(module, new), new))
    return _loggers[-1][1], new


def _make_logger(module: Any, messages: deque[tuple[str, str]]) -> Any:
    lock = threading.Lock()

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            name = str(severity)
            if "ERROR" in name or "WARNING" in name:
                with lock:
                    messages.append((name, text))

    return Logger()
