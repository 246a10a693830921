"""A summary of the measured properties of a bundle's images: close to real ones, varied, copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Found = Mapping[str, Any]
"""Plain JSON data, as `dim eval --quality --privacy` finds it; a stranger may have written it."""

NUMBERS = {
    "precision": ("precision", 2),
    "recall": ("recall", 2),
    "density": ("density", 2),
    "coverage": ("coverage", 2),
    "fd": ("FD", 2),
    "kid": ("KID", 4),
}
"""Fields of `quality`, their names in tables, and how many decimals are shown."""
KINDS = {"generated": "generated", "real": "real training images"}
QUALITY_COLUMNS = ("", *(name for name, _ in NUMBERS.values()))
COPIES_COLUMNS = ("compared in", "near duplicates", "expected", "AUC", "distance", "held-out")
_SPACES = ("pixels", "features")


def describe_images(evaluation: Found) -> dict[str, str]:
    """Put what was found into a line each, `quality` and `copies`; those that were not measured are left out."""
    lines = {}
    quality, privacy = (evaluation.get(part) for part in ("quality", "privacy"))
    if isinstance(quality, Mapping):
        generated, real = (_block(quality, kind) for kind in KINDS)
        lines["quality"] = (
            f"precision {_percent(generated, 'precision')} % (real images against each other: "
            f"{_percent(real, 'precision')}), coverage {_percent(generated, 'coverage')} % "
            f"({_percent(real, 'coverage')})"
        )
    if isinstance(privacy, Mapping):
        # The first clause of the verdict; the rest are numbers.
        clause = str(privacy.get("verdict", "?")).partition(": ")[0].partition(". ")[0].rstrip(".")
        lines["copies"] = clause if privacy.get("copies") else f"{clause}; this is no proof of privacy"
    return lines


def list_quality(quality: Found, *, by_class: bool) -> list[tuple[str, ...]]:
    """List the rows of the table of quality, by `QUALITY_COLUMNS`.

    Args:
        quality: what was found.
        by_class: whether every class has a row.
    """
    blocks = {words: _block(quality, kind) for kind, words in KINDS.items()}
    per_class = _block(quality, "per_class")
    if by_class:
        blocks |= {f"generated, {name}": _block(per_class, name) for name in per_class}
    return [
        (words, *(_number(found.get(field), decimals) for field, (_, decimals) in NUMBERS.items()))
        for words, found in blocks.items()
        if found
    ]


def list_copies(privacy: Found) -> list[tuple[str, ...]]:
    """List the rows of the table of copies, by `COPIES_COLUMNS`, in pixels and in features.

    Distances are medians to the closest training image: of generated images, and of held-out ones.
    """
    rows = []
    for space in _SPACES:
        if found := _block(privacy, space):
            shares = (_percent(found, field, 1) for field in ("near_duplicates", "expected_duplicates"))
            distances = (_number(found.get(field), 2) for field in ("generated_distance", "held_out_distance"))
            rows.append(
                (space, *(f"{share} %" for share in shares), _number(found.get("membership_auc"), 2), *distances)
            )
    return rows


def _block(found: Found, name: str) -> Found:
    value = found.get(name)
    return value if isinstance(value, Mapping) else {}


def _percent(found: Found, field: str, decimals: int = 0) -> str:
    value = found.get(field)
    return _number(100 * value if isinstance(value, int | float) else None, decimals)


def _number(value: object, decimals: int) -> str:
    return f"{value:.{decimals}f}" if isinstance(value, int | float) else ""
