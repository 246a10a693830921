"""Lists that users write with commas."""

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
