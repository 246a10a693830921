"""Writes measured accuracy into a bundle's manifest and card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dim.export.accuracy_table import replace_rows
from dim.export.card import render_card
from dim.export.record import read_record
from dim.runtime.bundle_format.files import load_manifest, update_bundle
from dim.runtime.bundle_format.manifest import Manifest

LEFT_OUT: dict[str, tuple[object, ...]] = {"archive": (None,), "real_percent": (0,), "generators": (0, 1)}
"""Fields of a row that a manifest does not hold where they have these values."""
NEVER_HELD = ("class_accuracies", "content_ids")


def record_accuracy(
    bundle_path: Path, rows: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any] | None = None
) -> Manifest:
    """Put what `dim eval` found into a bundle's manifest and its card.

    Args:
        bundle_path: the bundle's folder.
        rows: as `dim eval` writes them into `results.json`; each replaces the old one of the same protocol. Without
            rows, only the card is written anew.
        evaluation: what it found besides, `quality` or `privacy`; each replaces the old one.

    Returns:
        the new manifest.

    Raises:
        BundleError: the bundle is damaged.
        OutputError: the disk refused.
    """
    manifest = load_manifest(bundle_path)
    merged = replace_rows(manifest.accuracy, [_shorten(row) for row in rows])
    found = {**manifest.evaluation, **(evaluation or {})}
    card = render_card(replace(manifest, accuracy=merged, evaluation=found), read_record(bundle_path, manifest))
    return update_bundle(bundle_path, accuracy=merged, evaluation=found, readme=card)


def _shorten(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out what a manifest of bounded size does not need; `results.json` keeps it."""
    return {
        name: value for name, value in row.items() if name not in NEVER_HELD and value not in LEFT_OUT.get(name, ())
    }
