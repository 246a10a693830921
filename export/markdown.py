"""Text of unknown origin inside Markdown."""


def escape(value: object) -> str:
    """Return a value as text that is harmless inside Markdown: in tables, and as markup."""
    cleaned = " ".join(str(value).split())
    for letter in "\\`*_[]<>|#":
        cleaned = cleaned.replace(letter, "\\" + letter)
    return cleaned
