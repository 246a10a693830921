"""The sections of a card that say how close images are to real ones, and whether they are copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dim.runtime.inspection.quality_summary import QUALITY_COLUMNS, list_quality
from dim.runtime.markdown import escape
from dim.runtime.units import format_whole


def render_quality(evaluation: Mapping[str, Any]) -> str:
    """Write the sections as Markdown; nothing where nothing was measured."""
    sections = []
    if isinstance(quality := evaluation.get("quality"), Mapping):
        sections.append(_render_numbers(quality))
    if isinstance(privacy := evaluation.get("privacy"), Mapping):
        sections.append(f"## Copies\n\n{escape(privacy.get('verdict', '?'))}")
    return "\n\n".join(sections)


def _render_numbers(quality: Mapping[str, Any]) -> str:
    lines = [
        f"|{'|'.join(f' {name} ' if name else ' ' for name in QUALITY_COLUMNS)}|",
        "|---" * len(QUALITY_COLUMNS) + "|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in list_quality(quality, by_class=False)]
    head = (
        f"## Quality\n\n{format_whole(quality.get('images'))} images against as many test images, in "
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
