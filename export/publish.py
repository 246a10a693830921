"""Build a bundle where nobody looks, check it, and give it its name in one step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dim.export.card import RECORD_NAME, model_card, read_record
from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.files import load_manifest, read_checked_file, update_bundle
from dim.runtime.bundle_format.manifest import Manifest, onnx_name
from dim.runtime.bundle_format.names import MANIFEST_NAME
from dim.runtime.bundle_format.schema import FileRecord
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import BundleError, OutputError, ParityError
from dim.runtime.inspection.preview import draw_rows, encode_png, make_grid
from dim.runtime.inspection.verify import verify
from dim.runtime.storage import strict_json
from dim.runtime.storage.atomic import replace_folder, temporary_sibling
from dim.runtime.trt.store import MAX_ENGINE_BYTES

PREVIEW_PX = 750
"""Small previews are enlarged by a whole factor to at most this width."""

Say = Callable[[str], None]


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Refuse a destination that holds something else than a bundle, or a bundle that may not be replaced.

    Args:
        destination: where a bundle is to be.
        overwrite: whether a bundle that is there may be replaced.

    Raises:
        OutputError: with the reason.
    """
    if destination.is_symlink():
        raise OutputError(f"{destination} is a link, so it is not replaced: choose another --out.")
    if not destination.exists():
        return
    if not (destination / MANIFEST_NAME).is_file():
        raise OutputError(f"{destination} exists and is not a bundle, so it is not replaced: choose another --out.")
    if not overwrite:
        raise OutputError(f"{destination} exists already: choose another --out or pass --overwrite.")


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """A path for a new bundle beside its destination, whose name it takes when all went well, replacing a bundle there.

    Args:
        destination: the bundle's folder.

    Raises:
        OutputError: the disk refused; what was at the destination is as it was.
    """
    destination = destination.absolute()
    folder = temporary_sibling(destination)
    path = folder / destination.name
    try:
        yield path
        check_destination(destination, overwrite=True)
        replace_folder(path, destination)
    except OutputError as error:
        raise OutputError(str(error).replace(str(path), str(destination))) from error
    except OSError as error:
        raise OutputError(f"{destination} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(path: Path, record: Mapping[str, Any]) -> Manifest:
    """Add the preview, the record and the card to a bundle, then verify all of it.

    Args:
        path: a bundle that is not published yet.
        record: what goes into `export.json`.

    Returns:
        its last manifest.

    Raises:
        ParityError: verification failed; the message says where.
    """
    # Drawn by the exported file itself, so that the picture shows what users will get.
    with Bundle(path, EngineOptions(engine="onnxruntime-cpu", precision="fp32")) as bundle:
        picture = make_grid(draw_rows(bundle))
    scale = max(1, PREVIEW_PX // picture.shape[1])
    extra = {"preview.png": encode_png(picture, scale), RECORD_NAME: strict_json.indented(dict(record))}
    manifest = update_bundle(path, add_files=extra)
    manifest = update_bundle(path, readme=model_card(manifest, record))
    failed = [row for row in verify(path).rows if not row.ok]
    if failed:
        row = failed[0]
        allowed = f", {row.allowed} is allowed" if row.allowed else ""
        raise ParityError(
            f"The new bundle fails its verification, so it was not published: {row.subject}, {row.check}: "
            f"{row.found.rstrip('.')}{allowed}."
        )
    return manifest


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a new export takes over from the bundle that it replaces."""

    accuracy: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Further precisions and engines, by name."""
    record: Mapping[str, Any] = field(default_factory=dict)


def kept_from(destination: Path, content_id: str, new: Mapping[str, FileRecord], say: Say) -> Kept:
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
        return Kept()
    try:
        manifest = load_manifest(destination)
        if manifest.content_id != content_id:
            say(f"{destination} drew other images: its accuracy rows and engines are not kept.")
            return Kept()
        changed = {n for n, r in new.items() if n in manifest.files and manifest.files[n] != r}
        # generator.<precision>.onnx and what is built from it, generator.<precision>.<engine>.<target>.engine and .json
        names = [n for n in manifest.files if n.startswith("generator.") and onnx_name(n.split(".")[1]) not in changed]
        files = {name: read_checked_file(destination, manifest, name, max_bytes=MAX_ENGINE_BYTES) for name in names}
        return Kept(accuracy=still_measured(manifest, changed), files=files, record=read_record(destination, manifest))
    except BundleError as error:
        say(f"The bundle that is replaced is damaged, so nothing of it is kept: {error}")
        return Kept()


def still_measured(manifest: Manifest, changed: Collection[str]) -> tuple[Mapping[str, Any], ...]:
    """Return the accuracy rows of a bundle that speak of no file in `changed`."""
    return tuple(row for row in manifest.accuracy if onnx_name(str(row.get("engine_precision"))) not in changed)


def merged_record(new: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an export, with what an earlier one measured of the precisions that it did not write."""
    written = {agreement["precision"] for agreement in new["agreements"]}
    others = [a for a in kept.get("agreements", []) if isinstance(a, dict) and a.get("precision") not in written]
    order = {"fp32": 0, "fp16": 1, "int8": 2}
    agreements = sorted([*new["agreements"], *others], key=lambda a: order.get(a.get("precision"), 3))
    return {**kept, **new, "agreements": agreements}
