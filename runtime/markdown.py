"""Text of unknown origin inside Markdown, in code spans, and in the YAML on top of a card."""

import json
import re

_KEPT = "\t\n\r\u200c\u200d"
"""Blanks, and the invisible letters that some scripts and emoji need."""

_HUB_LICENCES = ("mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "bsd-3-clause", "odc-by")


def escape(value: object) -> str:
    """Return a value as text that is harmless inside Markdown: no markup, no HTML, no link, one line."""
    flat = " ".join(clean(str(value)).split())
    escaped = "".join("\\" + letter if letter in "\\`*_[]<>|#~$&@" else letter for letter in flat)
    return re.sub(r"(?i)\bwww\.", lambda found: found[0][:3] + "\\.", escaped.replace("://", "\\://"))


def quote_code(value: object) -> str:
    """Return a value as a code span of one line; what some reader might take for markup is escaped text instead."""
    flat = " ".join(clean(str(value)).split())
    return escape(flat) if re.search(r"[`|<>&\[\]]|://", flat) else f"`{flat}`"


def quote_yaml(value: str) -> str:
    """Return a text as a scalar of YAML in double quotes, without the letters of HTML."""
    quoted = json.dumps("".join(letter if letter < " " else clean(letter) for letter in value), ensure_ascii=False)
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", quoted)


def clean(text: str) -> str:
    """Return a text whose control letters, also those that turn the direction of reading, are question marks."""
    return "".join(letter if letter.isprintable() or letter in _KEPT else "?" for letter in text)


def list_licence_fields(licence: str) -> list[str]:
    """List the lines of a card's YAML that name a licence as the Hugging Face Hub knows it."""
    named = licence.strip()
    if named.casefold() in _HUB_LICENCES:
        return [f"license: {named.casefold()}"]
    return ["license: other", *([f"license_name: {quote_yaml(named)}"] if named else [])]
