"""Read and write frozen dataclasses as JSON data, checked against their type hints.

A hint may be `str`, `int`, `float`, `bool`, `None`, `Literal[...]`, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`,
a dataclass, a union of these, or `Any` for plain data. Ranges and fields that must agree are checked by the
dataclass's own `__post_init__`, which raises `FieldError`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dim.runtime.errors import BundleError, DimError, printable
from dim.runtime.storage import strict_json
from dim.version import __version__

Record = TypeVar("Record")
_MAX_VERSION = 1000
_RELEASE = re.compile(r"(?:dim )?(\d[\w.]{0,30})")


class FieldError(ValueError):
    """A field of a record is out of range or contradicts another one; for `__post_init__`.

    Args:
        field: the field's name, or a path inside it ("batch[1]").
        found: its value.
        expected: what it must be, as the end of a sentence ("an integer from 1 to 1,024").
    """

    def __init__(self, field: str, found: object, expected: str) -> None:
        super().__init__(field, found, expected)
        self.field, self.found, self.expected = field, found, expected

    def __str__(self) -> str:
        return f"The field {self.field} is {show_value(self.found)}; it must be {self.expected}."


class _MalformedError(Exception):
    """What is wrong, as a clause that follows the record's name."""


def parse_versioned(
    data: bytes,
    where: str,
    *,
    version: int,
    max_bytes: int,
    max_values: int = strict_json.MAX_VALUES,
    error: type[DimError] = BundleError,
    advice: str = "",
) -> dict[str, Any]:
    """Parse a JSON object that begins with the `format_version` this release reads.

    Args:
        data: the file's bytes.
        where: the file's name at the start of a sentence ("The manifest").
        version: the only version that is read.
        max_bytes: the longest file that is read.
        max_values: the most values in it.
        error: the kind of error to raise.
        advice: what to do about a malformed file, as the end of a sentence.

    Returns:
        the object without its `format_version`.

    Raises:
        error: it is not strict JSON, not an object, or of another version; a newer one is named as such.
    """
    try:
        block = strict_json.parse(data, where, max_bytes, max_values)
    except BundleError as problem:
        raise error(_end_sentence(str(problem).rstrip("."), advice)) from None
    if not isinstance(block, dict):
        raise error(_end_sentence(f"{where} is {show_value(block)}; it must be an object", advice))
    if "format_version" not in block:
        raise error(_end_sentence(f"{where} lacks the field format_version", advice))
    found = block.pop("format_version")
    refuse_newer(found, where, version=version, maker=block.get("created_by") or block.get("dim_version"), error=error)
    if type(found) is not int or found != version:
        clause = f"{where}'s field format_version is {show_value(found)}; it must be {version}"
        raise error(_end_sentence(clause, advice))
    return block


def refuse_newer(
    found: object,
    where: str,
    *,
    version: int,
    what: str = "format version",
    maker: object = None,
    error: type[DimError] = BundleError,
) -> None:
    """Refuse what a newer release wrote, in a sentence that names the release.

    Args:
        found: the version in the file; what is no integer, or no version that we shall ever reach, is left to other
            checks.
        where: the file's name at the start of a sentence.
        version: the newest that this release reads.
        what: kind of version.
        maker: what the file says about its maker, "dim 0.3.0" or "0.3.0".
        error: the kind of error to raise.

    Raises:
        error: `found` is newer.
    """
    if type(found) is int and version < found <= _MAX_VERSION:
        named = _RELEASE.fullmatch(maker) if isinstance(maker, str) else None
        newer = f"a newer dim ({named[1]})" if named and _is_newer(named[1]) else "a newer dim"
        raise error(
            f"{where} has {what} {found} and was made by {newer}; this one reads version {version}: "
            "run  pip install --upgrade dim-distill"
        )


def _is_newer(release: str) -> bool:
    """Say whether a release came after this one, by its first numbers."""
    theirs, ours = (re.findall(r"\d+", each)[:3] for each in (release, __version__))
    return [int(number) for number in theirs] > [int(number) for number in ours]


def from_plain(
    kind: type[Record],
    value: object,
    where: str,
    *,
    error: type[DimError] = BundleError,
    advice: str = "",
    defaults: bool = False,
) -> Record:
    """Build a dataclass from plain JSON data.

    Args:
        kind: the dataclass.
        value: the data, as `strict_json.parse` or `to_plain` returns it; lists become tuples.
        where: the record's name at the start of a sentence ("The manifest").
        error: the kind of error to raise.
        advice: what to do about it, as the end of a sentence; by default the sentence just ends.
        defaults: whether fields that have a default may be missing, here and in nested records.

    Returns:
        the record. An integer stays one where a float is expected.

    Raises:
        error: a field is missing, unknown, of another type, or refused by a `__post_init__` with `FieldError` or
            another ValueError. Errors of a `__post_init__` that are of this kind or no ValueError pass unchanged.
    """
    try:
        record: Record = _read_record(kind, value, "", defaults, error)
    except _MalformedError as problem:
        raise error(_end_sentence(f"{where}{problem}", advice)) from None
    return record


def to_plain(record: object) -> dict[str, Any]:
    """Return a dataclass as plain JSON data in the order of its fields; tuples become lists."""
    if not dataclasses.is_dataclass(record):
        raise TypeError(f"{type(record).__name__} is not a dataclass.")
    return {field.name: _write_value(getattr(record, field.name)) for field in dataclasses.fields(record) if field.init}


def show_value(value: object) -> str:
    """Return a stranger's value for a message: at most about 80 letters, none that acts on a terminal."""
    return repr(value[:80]) if isinstance(value, str) else printable(repr(value)[:80])


def _end_sentence(clause: str, advice: str) -> str:
    return f"{clause}: {advice}" if advice else f"{clause}."


@cache
def _list_fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Map the names of a dataclass's fields to their type and to whether they have a default."""
    hints = get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is not missing or field.default_factory is not missing)
        for field in dataclasses.fields(kind)
        if field.init
    }


def _read_record(kind: Any, value: object, path: str, defaults: bool, error: type[DimError]) -> Any:
    if not isinstance(value, dict):
        raise _wrong_value(path, value, "an object")
    known = _list_fields(kind)
    prefix = f"{path}." if path else ""
    for name, (_, has_default) in known.items():
        if name not in value and not (defaults and has_default):
            raise _MalformedError(f" lacks the field {prefix}{name}")
    for name in value:
        if name not in known:
            raise _MalformedError(f" has the unknown field {prefix}{printable(str(name)[:80])}")
    given = {
        name: _read_value(known[name][0], item, f"{prefix}{name}", defaults, error) for name, item in value.items()
    }
    try:
        return kind(**given)
    except FieldError as problem:
        raise _wrong_value(f"{prefix}{problem.field}", problem.found, problem.expected) from None
    except ValueError as problem:
        if isinstance(problem, error):
            raise
        raise _MalformedError(f"{f': {path}' if path else ''}: {str(problem).rstrip('.')}") from None


def _read_value(hint: Any, value: Any, path: str, defaults: bool, error: type[DimError]) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    hint = next((option for option in options if _fits(option, value)), None)
    if hint is None:
        raise _wrong_value(path, value, " or ".join(map(_describe_type, options)))
    if dataclasses.is_dataclass(hint):
        return _read_record(hint, value, path, defaults, error)
    origin, of = get_origin(hint), get_args(hint)
    if origin is tuple:
        kinds = [of[0]] * len(value) if of[-1] is ... else of
        items = zip(kinds, value, strict=True)
        return tuple(_read_value(each, item, f"{path}[{i}]", defaults, error) for i, (each, item) in enumerate(items))
    if origin in (Mapping, dict):
        places = {key: f"{path}[{show_value(key)}]" for key in value}
        return {key: _read_value(of[1], item, places[key], defaults, error) for key, item in value.items()}
    return value


def _fits(hint: Any, value: object) -> bool:
    """Say whether a value is of a type; what lists, mappings and records hold is not looked at."""
    if hint is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    if hint in (str, int, bool, NoneType):
        return type(value) is hint
    if hint is Any:
        return True
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    origin, of = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in of)
    if origin is tuple:
        return isinstance(value, list | tuple) and (of[-1] is ... or len(value) == len(of))
    if origin in (Mapping, dict) and of[0] is str:
        return isinstance(value, dict) and all(type(key) is str for key in value)
    raise TypeError(f"A record cannot hold the type {hint}.")


def _describe_type(hint: Any) -> str:
    """Say what is expected, as the end of a sentence."""
    words = {str: "text", int: "an integer", float: "a number", bool: "true or false", NoneType: "null"}
    of = get_args(hint)
    if get_origin(hint) is Literal:
        return ("one of " if len(of) > 1 else "") + ", ".join(map(repr, of))
    if get_origin(hint) is tuple:
        return "a list" if of[-1] is ... else f"a list of {len(of)}"
    return words.get(hint, "an object")


def _wrong_value(path: str, found: object, expected: str) -> _MalformedError:
    field = f"'s field {path}" if path else ""
    return _MalformedError(f"{field} is {show_value(found)}; it must be {expected}")


def _write_value(value: object) -> Any:
    if isinstance(value, list | tuple):
        return [_write_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _write_value(item) for key, item in value.items()}
    return to_plain(value) if dataclasses.is_dataclass(value) else value
