"""Takes over parts of the bundle that a new export replaces."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dim.export.record import ExportRecord, read_record
from dim.runtime.bundle_format.files import load_manifest, read_checked_file
from dim.runtime.bundle_format.manifest import Manifest, onnx_name
from dim.runtime.bundle_format.names import MANIFEST_NAME
from dim.runtime.bundle_format.schema import FileRecord
from dim.runtime.errors import BundleError
from dim.runtime.trt.store import MAX_ENGINE_BYTES


@dataclass(frozen=True, kw_only=True)
class ReusableParts:
    """The parts of an earlier bundle that stay true."""

    accuracy: tuple[Mapping[str, Any], ...] = ()
    """Rows of `dim eval`."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """What else `dim eval` found."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Further precisions and engines, by name."""
    record: ExportRecord = ExportRecord()


def read_reusable(
    destination: Path, content_id: str, new: Mapping[str, FileRecord], say: Callable[[str], None]
) -> ReusableParts:
    """Read what stays true of an earlier bundle: all that was measured or made from the same images.

    Args:
        destination: where the earlier bundle is, if there is one.
        content_id: of the new bundle; an earlier one that drew other images gives nothing.
        new: the files of the new bundle; an engine stays only if the ONNX file that it was built from does.
        say: gets a line when an earlier bundle gives nothing.

    Returns:
        measured accuracy, but not that of a precision whose file is another now; files that are made from the canonical
        file, and their record.
    """
    if not (destination / MANIFEST_NAME).is_file():
        return ReusableParts()
    try:
        manifest = load_manifest(destination)
        if manifest.content_id != content_id:
            say(f"{destination} drew other images: its accuracy rows and engines are not kept.")
            return ReusableParts()
        changed = {n for n, r in new.items() if n in manifest.files and manifest.files[n] != r}
        # generator.<precision>.onnx and what is built from it, generator.<precision>.<engine>.<target>.engine and .json
        names = [n for n in manifest.files if n.startswith("generator.") and onnx_name(n.split(".")[1]) not in changed]
        return ReusableParts(
            accuracy=select_valid_rows(manifest, changed),
            evaluation=select_valid_findings(manifest, changed),
            files={name: read_checked_file(destination, manifest, name, max_bytes=MAX_ENGINE_BYTES) for name in names},
            record=read_record(destination, manifest),
        )
    except BundleError as error:
        say(f"The bundle that is replaced is damaged, so nothing of it is kept: {error}")
        return ReusableParts()


def select_valid_rows(manifest: Manifest, changed: Collection[str]) -> tuple[Mapping[str, Any], ...]:
    """Return the accuracy rows of a bundle that were not measured with a file in `changed`."""
    return tuple(row for row in manifest.accuracy if onnx_name(str(row.get("engine_precision"))) not in changed)


def select_valid_findings(manifest: Manifest, changed: Collection[str]) -> Mapping[str, Any]:
    """Return what else was found of a bundle, but for what was measured with a file in `changed`."""
    return {
        name: found
        for name, found in manifest.evaluation.items()
        if not (isinstance(found, Mapping) and onnx_name(str(found.get("precision"))) in changed)
    }
