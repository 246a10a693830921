"""Numbers with units as people write them."""

import math


def format_units(count: float, unit: str) -> str:
    """Write a number of bytes or the like in three digits: `format_units(1_234_567, "B")` is "1.23 MB"."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(count) < 999.5 or prefix == "T":
            digits = 0 if not prefix else max(0, 2 - int(math.log10(max(abs(count), 1))))
            return f"{count:.{digits}f} {prefix}{unit}"
        count /= 1000
    raise AssertionError("unreachable")


def format_duration(seconds: float) -> str:
    """Write a duration as people say it: "4.2 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_whole(value: object) -> str:
    """Write a whole number out of a stranger's JSON: "1,234", and "?" for anything else."""
    return f"{value:,}" if isinstance(value, int) else "?"


def format_count(count: int, noun: str) -> str:
    """Write a number and what is counted: "1 core", "12 cores"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
