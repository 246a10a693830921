"""The format's limits, and the checks of a manifest's fields.

The limits bound the memory that a hostile bundle can make a reader spend; a file beyond them is refused first.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dim.runtime.bundle_format.names import CANONICAL_ONNX, MANIFEST_NAME
from dim.runtime.errors import BundleError
from dim.runtime.storage.records import FieldError

MAX_FILES = 1024
MAX_FILE_BYTES = 4 * 2**30
MAX_BUNDLE_BYTES = 8 * 2**30
MAX_PATH_CHARS = 240
MAX_CLASSES = 65_536
MAX_CLASS_NAME_CHARS = 200
MAX_TEXT_CHARS = 20_000
MAX_IMAGE_PX = 1024
MAX_LATENT_DIM = 4096

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of a bundle."""

    sha256: str
    """64 lower-case hexadecimal digits over the file's bytes."""
    size_bytes: int


def check_files(files: Mapping[str, FileRecord]) -> None:
    if len(files) > MAX_FILES:
        raise BundleError(f"The manifest lists {len(files):,} files; at most {MAX_FILES:,} are read.")
    if CANONICAL_ONNX not in files:
        raise BundleError(f"The manifest does not list {CANONICAL_ONNX}, which every bundle has.")
    folded: dict[str, str] = {}
    for path, record in files.items():
        check_path(path)
        other = folded.setdefault(path.casefold(), path)
        if other != path:
            raise BundleError(f"The manifest lists {other!r} and {path!r}, which are one file on some file systems.")
        check_sha256(f"files[{path!r}].sha256", record.sha256)
        check_range(f"files[{path!r}].size_bytes", record.size_bytes, 0, MAX_FILE_BYTES)
    if (total := sum(record.size_bytes for record in files.values())) > MAX_BUNDLE_BYTES:
        raise BundleError(f"The manifest lists {total:,} bytes of files; at most {MAX_BUNDLE_BYTES:,} are read.")
    for path in files:
        parents = path.casefold().split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            if "/".join(parents[:depth]) in folded:
                raise BundleError(f"The manifest lists {path!r} and also its folder as a file.")


def check_path(path: str) -> None:
    """Check that a file's path stays inside its bundle on every file system.

    Args:
        path: as a manifest lists it.

    Raises:
        BundleError: it is absolute, climbs, or uses letters that file systems disagree about.
    """
    parts = path.split("/")
    if (
        not 0 < len(path) <= MAX_PATH_CHARS
        or any(not part or part != part.strip(" .") for part in parts)
        or any(letter in '\\:*?"<>|' or not letter.isprintable() for letter in path)
        or unicodedata.normalize("NFC", path) != path
        or any(_WINDOWS_DEVICES.fullmatch(part) for part in parts)
        or parts[0].casefold() == MANIFEST_NAME
    ):
        raise BundleError(
            f"The manifest lists the path {path[:80]!r}; it must be relative, with forward slashes, and stay inside "
            "the bundle."
        )


def check_classes(classes: Sequence[str]) -> None:
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise BundleError(f"The manifest has {len(classes):,} classes; there must be 1 to {MAX_CLASSES:,}.")
    for name in classes:
        check_text("classes", name, MAX_CLASS_NAME_CHARS)
        if unicodedata.normalize("NFC", name) != name:
            raise FieldError("classes", name, "text in Unicode's composed form (NFC)")
    name, times = Counter(classes).most_common(1)[0]
    if times > 1:
        raise BundleError(f"The manifest lists the class {name!r} twice.")


def check_text(field: str, value: str, max_chars: int, may_be_empty: bool = False) -> None:
    if len(value) > max_chars or not (value.strip() or may_be_empty):
        raise FieldError(field, value, f"text of {0 if may_be_empty else 1} to {max_chars:,} letters")
    allowed_control = "\n\t" if max_chars > MAX_CLASS_NAME_CHARS else ""
    # Control and format letters in a name would reach people's terminals and file systems.
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in allowed_control for letter in value):
        raise FieldError(field, value, "text without control characters")


def check_printable(field: str, value: object) -> None:
    """Check that no text in plain data holds control characters, which would act on a terminal."""
    if isinstance(value, str):
        if not value.isprintable() and any(
            unicodedata.category(letter) == "Cc" and letter not in "\n\t" for letter in value
        ):
            raise FieldError(field, value, "without control characters in its text")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_printable(field, key)
            check_printable(field, item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_printable(field, item)


def check_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        kind = "an integer" if isinstance(low, int) else "a number"
        raise FieldError(field, value, f"{kind} from {_write_limit(low)} to {_write_limit(high)}")


def _write_limit(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


def check_sha256(field: str, value: str) -> None:
    if not _SHA256.fullmatch(value):
        raise FieldError(field, value, "64 lower-case hexadecimal digits")
