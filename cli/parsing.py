"""Parses values on the command line: lists with commas, times, sizes in bytes, shards."""

import csv
import re
from fractions import Fraction
from pathlib import Path

from dim.runtime.errors import BadValueError


def parse_names(text: str) -> tuple[str, ...]:
    """Read names joined by commas."""
    return tuple(word.strip() for word in text.split(","))


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers joined by commas.

    Raises:
        BadValueError: something else.
    """
    words = parse_names(text)
    if not all(word.isascii() and word.isdigit() for word in words):
        raise BadValueError(f"{option} got {text!r}; it takes whole numbers joined by commas, as in 10,50,1.")
    return tuple(int(word) for word in words)


def parse_percents(option: str, text: str) -> tuple[float, ...]:
    """Read percentages joined by commas, with or without the sign.

    Raises:
        BadValueError: something else.
    """
    try:
        return tuple(float(word.removesuffix("%").strip()) for word in parse_names(text))
    except ValueError as error:
        raise BadValueError(f"{option} got {text!r}; it takes percentages joined by commas, as in 1,5,10.") from error


def parse_duration(text: str) -> float:
    """Read a time as people write it: `90`, `90s`, `9m`, `1h30m`, in seconds.

    Raises:
        BadValueError: another form, or no time at all.
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip().lower())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if total == 0:
        raise BadValueError(f"--time-limit got {text!r}; it takes a time such as 90s, 9m or 1h30m.")
    return float(total)


def parse_per_class(text: str) -> dict[str, int]:
    """Read `cat=100,dog=20`.

    Args:
        text: names and whole numbers, joined by `=` and `,`; a name with a comma stands in double quotes.

    Returns:
        images by class name, in the order given.

    Raises:
        BadValueError: an entry without a number, or a class that comes twice.
    """
    numbers: dict[str, int] = {}
    for entry in _split(text):
        name, equals, number = entry.rpartition("=")
        name, number = name.strip(), number.strip()
        if not equals or not name or not number.isascii() or not number.isdigit():
            raise BadValueError(
                f"'{entry.strip()}' is not of the form NAME=NUMBER; write for example  cat=100,dog=20  (whole numbers; "
                "a name with a comma stands in double quotes)."
            )
        if name in numbers:
            raise BadValueError(f"The class '{name}' is named twice; give each class one number.")
        numbers[name] = int(number)
    return numbers


def parse_classes(text: str) -> list[str]:
    """Read `cat,dog`: class names joined by commas, none of them empty; one with a comma stands in double quotes."""
    names = [name.strip() for name in _split(text)]
    if not all(names):
        raise BadValueError(f"'{text}' holds an empty class name; write for example  cat,dog.")
    return names


def _split(text: str) -> list[str]:
    """Split at commas as CSV does: those between double quotes stay, and a quote among them is written twice."""
    rows = list(csv.reader([text.replace("\r", " ").replace("\n", " ")], skipinitialspace=True))
    return rows[0] if rows and rows[0] else [""]


def read_device(name: str) -> str:
    """Return the device that a name stands for; `cuda` is another name of `gpu`."""
    return "gpu" if name == "cuda" else name


def expand_home(path: Path | None) -> Path | None:
    """Return a path whose `~` at the start is the user's home, as where a shell did not see it."""
    return None if path is None else path.expanduser()


def parse_shard(text: str) -> tuple[int, int]:
    """Read `i/n`: shard number i of n."""
    index, slash, count = text.partition("/")
    digits = (index + count).isascii() and index.strip().isdigit() and count.strip().isdigit()
    if not slash or not digits:
        raise BadValueError(f"'{text}' is not of the form I/N; write for example  0/4  for the first of four shards.")
    return int(index), int(count)


def parse_bytes(text: str) -> int:
    """Read a size in bytes such as `500000`, `64MB` (10**6) or `1GiB` (2**30).

    Raises:
        BadValueError: another form, or less than one byte.
    """
    powers = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    cleaned = text.strip().lower()
    number = cleaned.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = cleaned[len(number) :].strip()
    try:
        size = Fraction(number) * powers[unit]
    except (ValueError, KeyError, ZeroDivisionError):
        raise BadValueError(f"'{text}' is not a size; write for example  64MB  or  1GiB.") from None
    if size < 1:
        raise BadValueError(f"'{text}' is less than one byte; write for example  64MB  or  1GiB.")
    return int(size)
