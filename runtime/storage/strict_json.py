"""Reads JSON from untrusted sources, and writes JSON whose bytes depend only on its content."""

import json
import math
from collections import Counter
from typing import Any, NoReturn

from dim.runtime.errors import BundleError

MAX_DEPTH = 16
MAX_VALUES = 2**20
# Beyond 64 bits other readers disagree about what a number is.
MAX_INTEGER = 2**64


def parse(data: bytes, what: str, max_bytes: int, max_values: int = MAX_VALUES) -> Any:
    """Parse UTF-8 JSON, refusing whatever two readers could understand differently.

    Args:
        data: the file's bytes.
        what: how to name the file in an error message.
        max_bytes: the longest input that is looked at.
        max_values: the most commas and brackets in it, each of which may cost about 100 bytes of memory.

    Returns:
        dicts, lists, strings, integers, finite floats, booleans and None.

    Raises:
        BundleError: too long, too many values, not UTF-8, not JSON, a key twice in one object, NaN or an infinity, an
            integer beyond 64 bits, a lone surrogate, or nested deeper than MAX_DEPTH.
    """
    if len(data) > max_bytes:
        raise BundleError(f"{what} has {len(data):,} bytes; at most {max_bytes:,} are read.")
    if (values := sum(map(data.count, (b",", b"[", b"{")))) > max_values:
        raise BundleError(f"{what} holds about {values:,} values; at most {max_values:,} are read.")

    def refuse_constant(name: str) -> NoReturn:
        raise BundleError(f"{what} holds the number {name}, which JSON does not have.")

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise BundleError(f"{what} holds the number {text[:40]}, which is too large.")
        return number

    def integer(text: str) -> int:
        if len(text) > 21 or abs(int(text)) > MAX_INTEGER:
            raise BundleError(f"{what} holds the integer {text[:40]}, which is beyond 64 bits.")
        return int(text)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        collected = dict(pairs)
        if len(collected) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise BundleError(f"{what} holds the key {twice[:80]!r} twice in one object.")
        return collected

    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=refuse_constant,
            parse_float=finite,
            parse_int=integer,
            object_pairs_hook=unique,
        )
    except RecursionError:
        raise BundleError(f"{what} is nested deeper than {MAX_DEPTH} levels.") from None
    except ValueError as error:
        raise BundleError(f"{what} is not UTF-8 JSON: {error}.") from None
    check_plain(value, what)
    return value


def check_plain(value: Any, what: str, depth: int = 0) -> None:
    """Check that a value is plain JSON data, all the way down.

    Args:
        value: anything.
        what: how to name it in an error message.
        depth: the levels already entered.

    Raises:
        BundleError: another type, a non-finite float, an integer beyond 64 bits, a key that is no string, a lone
            surrogate, or nested deeper than MAX_DEPTH.
    """
    if depth > MAX_DEPTH:
        raise BundleError(f"{what} is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise BundleError(f"{what} holds text with half a surrogate pair, which is not Unicode.")
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise BundleError(f"{what} holds an integer beyond 64 bits.")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BundleError(f"{what} holds the number {value}, which JSON does not have.")
    elif isinstance(value, list | tuple):
        for item in value:
            check_plain(item, what, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise BundleError(f"{what} has the key {key!r}; keys are text.")
            check_plain(key, what, depth + 1)
            check_plain(item, what, depth + 1)
    else:
        raise BundleError(f"{what} holds a {type(value).__name__}; only JSON's own types can be written.")


def write_canonical(value: Any) -> bytes:
    """Write JSON in its one canonical form, for hashing: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def write_indented(value: Any) -> bytes:
    """Write JSON for people: sorted keys, two spaces, UTF-8, a newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
