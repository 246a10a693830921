"""The errors that users can see.

DimError                    anything the command line reports in one line with exit code 1
├── BadValueError           an argument that parses and cannot be right; also a ValueError
├── MissingExtraError       an optional package is not installed; names the install line
├── DataError               a source dataset that cannot be read
├── RunError                a run directory that cannot be resumed or exported
├── DivergedError           distillation that stopped learning (NaN, collapse)
├── BundleError             a bundle that is missing, altered, malformed or too new
├── GraphError              an ONNX file that breaks the graph contract
├── ParityError             files of one bundle that disagree in what they draw
├── EngineError             an engine that cannot be built, loaded or run
│   └── DeviceError         the device asked for is not to be had
└── OutputError             a training set that cannot be written, resumed or replaced
"""

import re

from dim.runtime.install import install_extra


def printable(text: str) -> str:
    """Return a stranger's text on one line, for a message or a console.

    Line breaks and tabs become blanks; other letters that would act on a terminal, such as escapes and those that turn
    the direction of writing, become question marks.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text)


_USER_IN_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/'\"]*@")
_QUERY_OF_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?#'\"]*[?#])[^\s'\"]+")


_TOKEN_OF_HUB = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bapi_org_[A-Za-z0-9]{20,}")


def hide_secrets(text: str) -> str:
    """Return a text without tokens of the Hugging Face Hub, and without what may be secret in its URLs.

    These are user and password, and the query with its signature.
    """
    text = _TOKEN_OF_HUB.sub("hf_***", text)
    if "://" not in text:
        return text
    return _QUERY_OF_URL.sub(r"\1***", _USER_IN_URL.sub(r"\1***@", text))


def describe_error(error: BaseException) -> str:
    """Return what another library's exception says, for the middle of a sentence.

    Args:
        error: any exception.

    Returns:
        the first line of its text, two where it announces the next, without the operating system's number and the last
        full stop, printable, at most 300 letters; the exception's class where it has no text.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first, *rest = (text.strip() or type(error).__name__).splitlines()
    line = f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first
    return printable(re.sub(r"^\[Errno -?\d+\] ", "", line).rstrip(".")[:300])


class DimError(Exception):
    """Base of all errors that are the world's fault or the user's; the message is one sentence and says what to do.

    Args:
        message: the sentence; what may be secret in its URLs is hidden.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(hide_secrets(message))


class BadValueError(DimError, ValueError):
    """An argument is well formed and out of range, unknown, doubled or contradicts another."""


class MissingExtraError(DimError):
    """An optional package is missing.

    Args:
        package: the module that could not be imported.
        extra: the extra of `dim-distill` that brings it.
        purpose: what it is needed for, as a phrase ("run ONNX files on the CPU").
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"The package '{package}' is not installed and is needed to {purpose}: run  {install_extra(extra)}"
        )
        self.package = package
        """The module that could not be imported."""
        self.extra = extra
        """The extra of `dim-distill` that brings it."""
        self.purpose = purpose
        """What it is needed for, as a phrase."""

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str, str]]:
        """Travel between processes with all three arguments."""
        return MissingExtraError, (self.package, self.extra, self.purpose)


class DataError(DimError):
    """A source dataset is missing, unreadable or inconsistent."""


class RunError(DimError):
    """A run directory is missing, incomplete or belongs to another configuration."""


class DivergedError(DimError):
    """Distillation diverged; the last good checkpoint is kept."""


class BundleError(DimError):
    """A bundle is missing, altered, malformed or of a newer format."""


class GraphError(DimError):
    """An ONNX file does not keep the graph contract."""


class ParityError(DimError):
    """Two files of one bundle draw different images."""


class EngineError(DimError):
    """An engine cannot be built, loaded or run."""


class DeviceError(EngineError):
    """The device that was asked for is not available to the engine."""


class OutputError(DimError):
    """A training set cannot be written, resumed or replaced."""
