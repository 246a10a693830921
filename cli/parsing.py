"""Lists that users write with commas, and times."""

import re

from dim.runtime.errors import BadValueError


def parse_words(text: str) -> tuple[str, ...]:
    """Read names joined by commas."""
    return tuple(word.strip() for word in text.split(","))


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers joined by commas.

    Raises:
        BadValueError: something else.
    """
    words = parse_words(text)
    if not all(word.isascii() and word.isdigit() for word in words):
        raise BadValueError(f"{option} got {text!r}; it takes whole numbers joined by commas, as in 10,50,1.")
    return tuple(int(word) for word in words)


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
