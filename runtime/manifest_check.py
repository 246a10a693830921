"""What a manifest may say: the format's names and limits, and the check of every field.

The limits bound the memory that a hostile bundle can make a reader spend; a file beyond them is refused first.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dim.runtime import strict_json
from dim.runtime.errors import BundleError
from dim.runtime.sampling import SAMPLING_VERSION

if TYPE_CHECKING:
    from dim.runtime.manifest import FileRecord, Manifest

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
CANONICAL_ONNX = "generator.fp32.onnx"
FIXED_LATENTS = "latents.npz"
TEACHER_ONNX = "teacher.onnx"
PRECISIONS = ("fp32", "fp16", "int8")

MAX_MANIFEST_BYTES = 8 * 2**20
MAX_FILES = 1024
MAX_FILE_BYTES = 4 * 2**30
MAX_PATH_CHARS = 240
MAX_CLASSES = 65_536
MAX_CLASS_NAME_CHARS = 200
MAX_TEXT_CHARS = 20_000
MAX_IMAGE_PX = 1024
MAX_LATENT_DIM = 4096

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def wrong(field: str, value: object, expected: str) -> BundleError:
    """Make the error of a field: what it is, what it must be."""
    return BundleError(f"The manifest's field {field} is {str(value)[:80]!r}; it must be {expected}.")


def check_keys(block: object, where: str, keys: str) -> None:
    """Check that a JSON object has exactly the given keys.

    Args:
        block: the object.
        where: its place in the manifest, as a prefix ("source.").
        keys: the names, separated by spaces.

    Raises:
        BundleError: not an object, a key missing, or one too many.
    """
    if not isinstance(block, dict):
        raise wrong(where.rstrip("."), block, "an object")
    expected = set(keys.split())
    for missing in sorted(expected - block.keys()):
        raise BundleError(f"The manifest lacks the field {where}{missing}.")
    for unknown in sorted(block.keys() - expected):
        raise BundleError(f"The manifest has the unknown field {where}{unknown[:80]}.")


def check_manifest(m: "Manifest") -> None:
    """Check every field of a manifest on its own, and the sizes that must agree.

    Raises:
        BundleError: a field has the wrong type or is out of range.
    """
    if m.format_version != FORMAT_VERSION or isinstance(m.format_version, bool):
        raise wrong("format_version", m.format_version, str(FORMAT_VERSION))
    if m.sampling_version != SAMPLING_VERSION or isinstance(m.sampling_version, bool):
        raise wrong("sampling.sampling_version", m.sampling_version, str(SAMPLING_VERSION))
    _check_text("name", m.name, MAX_CLASS_NAME_CHARS)
    for field, text in (
        ("created_by", m.created_by),
        ("licence", m.licence),
        ("source.name", m.source.name),
        ("source.licence", m.source.licence),
        ("source.note", m.source.note),
    ):
        _check_text(field, text, MAX_TEXT_CHARS, may_be_empty=True)
    _check_classes(m.classes)
    _check_int("image.height", m.height, 1, MAX_IMAGE_PX)
    _check_int("image.width", m.width, 1, MAX_IMAGE_PX)
    if m.channels not in (1, 3) or isinstance(m.channels, bool) or not isinstance(m.channels, int):
        raise wrong("image.channels", m.channels, "1 or 3")
    _check_int("sampling.latent_dim", m.latent_dim, 1, MAX_LATENT_DIM)
    _check_number("sampling.latent_std", m.latent_std, 1e-6, 1e3)
    if len(m.source.class_counts) != len(m.classes):
        raise wrong("source.class_counts", m.source.class_counts, f"one number for each of {len(m.classes)} classes")
    for count in m.source.class_counts:
        _check_int("source.class_counts", count, 0, 2**48)
    for field, values in (("source.mean", m.source.mean), ("source.std", m.source.std)):
        if len(values) != m.channels:
            raise wrong(field, values, f"one number for each of {m.channels} channels")
        for value in values:
            _check_number(field, value, 0.0, 1.0)
    if not isinstance(m.distill_config, dict):
        raise wrong("distill_config", m.distill_config, "an object")
    strict_json.check_plain(m.distill_config, "distill_config", depth=1)
    _check_letters("distill_config", m.distill_config)
    for row in m.accuracy:
        if not isinstance(row, dict):
            raise wrong("accuracy", row, "a list of objects")
        strict_json.check_plain(row, "accuracy", depth=2)
        _check_letters("accuracy", row)
    _check_files(m.files)
    _check_sha256("manifest_sha256", m.manifest_sha256)
    _check_sha256("content_id", m.content_id)


def _check_files(files: Mapping[str, "FileRecord"]) -> None:
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
        _check_sha256(f"files[{path!r}].sha256", record.sha256)
        _check_int(f"files[{path!r}].size_bytes", record.size_bytes, 0, MAX_FILE_BYTES)
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
        or path.casefold() == MANIFEST_NAME
    ):
        raise BundleError(
            f"The manifest lists the path {path[:80]!r}; it must be relative, with forward slashes, and stay inside "
            "the bundle."
        )


def _check_classes(classes: Sequence[str]) -> None:
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise BundleError(f"The manifest has {len(classes):,} classes; there must be 1 to {MAX_CLASSES:,}.")
    for name in classes:
        _check_text("classes", name, MAX_CLASS_NAME_CHARS)
        if unicodedata.normalize("NFC", name) != name:
            raise wrong("classes", name, "text in Unicode's composed form (NFC)")
    name, times = Counter(classes).most_common(1)[0]
    if times > 1:
        raise BundleError(f"The manifest lists the class {name!r} twice.")


def _check_text(field: str, value: object, max_chars: int, may_be_empty: bool = False) -> None:
    if not isinstance(value, str) or len(value) > max_chars or not (value.strip() or may_be_empty):
        raise wrong(field, value, f"text of {0 if may_be_empty else 1} to {max_chars:,} letters")
    allowed_control = "\n\t" if max_chars > MAX_CLASS_NAME_CHARS else ""
    # Control and format letters in a name would reach people's terminals and file systems.
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in allowed_control for letter in value):
        raise wrong(field, value, "text without control characters")


def _check_letters(field: str, value: object) -> None:
    """Check that no text in plain data holds control characters, which would act on a terminal."""
    if isinstance(value, str):
        if not value.isprintable() and any(
            unicodedata.category(letter) == "Cc" and letter not in "\n\t" for letter in value
        ):
            raise wrong(field, value, "without control characters in its text")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_letters(field, key)
            _check_letters(field, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_letters(field, item)


def _check_int(field: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise wrong(field, value, f"an integer from {low:,} to {high:,}")


def _check_number(field: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise wrong(field, value, f"a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise wrong(field, value, f"a number from {low:g} to {high:g}")


def _check_sha256(field: str, value: object) -> None:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise wrong(field, value, "64 lower-case hexadecimal digits")
