"""The sections of a card that say how close images are to real ones, and whether they are copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dim.runtime.markdown import escape

NUMBERS = {
    "precision": ("precision", 2),
    "recall": ("recall", 2),
    "density": ("density", 2),
    "coverage": ("coverage", 2),
    "fd": ("FD", 2),
    "kid": ("KID", 4),
}
"""Fields of `quality`, their names in the card, and how many decimals are shown."""
KINDS = {"generated": "generated", "real": "real training images"}


def render_quality(evaluation: Mapping[str, Any]) -> str:
    """Write the sections as Markdown; nothing where nothing was measured."""
    sections = []
    if isinstance(quality := evaluation.get("quality"), Mapping):
        sections.append(_render_numbers(quality))
    if isinstance(privacy := evaluation.get("privacy"), Mapping):
        sections.append(f"## Copies\n\n{escape(privacy.get('verdict', '?'))}")
    return "\n\n".join(sections)


def _render_numbers(quality: Mapping[str, Any]) -> str:
    names = [name for name, _ in NUMBERS.values()]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for kind, words in KINDS.items():
        found = quality.get(kind)
        if isinstance(found, Mapping):
            numbers = [_render(found.get(field), decimals) for field, (_, decimals) in NUMBERS.items()]
            lines.append(f"| {words} | {' | '.join(numbers)} |")
    images = quality.get("images")
    head = (
        f"## Quality\n\n{f'{images:,}' if isinstance(images, int) else '?'} images against as many test images, in "
        f"{escape(quality.get('compared_by', '?'))}. Real training images show what "
        "equal distributions give."
    )
    return "\n".join([head, "", *lines, *_render_classes(quality)])


def _render_classes(quality: Mapping[str, Any]) -> list[str]:
    """The class whose images cover the least of the real ones, where there are several."""
    per_class = quality.get("per_class")
    if not isinstance(per_class, Mapping) or len(per_class) < 2:
        return []
    coverage = {str(name): found.get("coverage") for name, found in per_class.items() if isinstance(found, Mapping)}
    shown = {name: value for name, value in coverage.items() if isinstance(value, int | float)}
    if not shown:
        return []
    least, most = min(shown, key=lambda name: shown[name]), max(shown, key=lambda name: shown[name])
    return [
        "",
        f"Class by class, the coverage lies between {shown[least]:.2f} ({escape(least)}) and {shown[most]:.2f} "
        f"({escape(most)}).",
    ]


def _render(value: object, decimals: int) -> str:
    return f"{value:.{decimals}f}" if isinstance(value, int | float) else "?"
