"""Build a bundle under a temporary name, verify it, and give it its name in one step."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dim.export.card import render_card
from dim.export.record import RECORD_NAME, ExportRecord
from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.files import check_writable, update_bundle
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import MANIFEST_NAME, PREVIEW
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import OutputError, ParityError
from dim.runtime.inspection.labelled_grid import draw_labelled_grid
from dim.runtime.inspection.preview import draw_rows, encode_png
from dim.runtime.inspection.verify import verify
from dim.runtime.storage.atomic import name_temporary_sibling, replace_folder


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Check that a bundle may be written to a place.

    Args:
        destination: the bundle's folder to be.
        overwrite: whether a bundle that is there may be replaced.

    Raises:
        OutputError: something else than a bundle is there, a bundle that may not be replaced, or a read-only folder.
    """
    check_writable(destination)
    if destination.is_symlink():
        raise OutputError(f"{destination} is a link, so it is not replaced: choose another --out.")
    if not destination.exists():
        return
    if not (destination / MANIFEST_NAME).is_file():
        raise OutputError(f"{destination} exists and is not a bundle, so it is not replaced: choose another --out.")
    if not overwrite:
        raise OutputError(f"{destination} exists already: choose another --out or pass --overwrite.")


@contextmanager
def stage_bundle(destination: Path) -> Iterator[Path]:
    """Give a path beside a destination, for a new bundle that takes the destination's name when all went well.

    Args:
        destination: the bundle's folder; a bundle that is there is replaced.

    Raises:
        OutputError: the disk refused; what was at the destination is as it was.
    """
    destination = destination.absolute()
    folder = name_temporary_sibling(destination)
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


def complete_bundle(path: Path, record: ExportRecord) -> Manifest:
    """Add the preview, the record and the card to a bundle, then verify all of it.

    Args:
        path: a bundle that is not published yet.
        record: what the export measured.

    Returns:
        its last manifest.

    Raises:
        ParityError: verification failed; the message says where.
    """
    # Drawn by the exported file itself, so that the picture shows what users will get.
    with Bundle(path, EngineOptions(engine="onnxruntime-cpu", precision="fp32")) as bundle:
        images = draw_rows(bundle)
        picture = draw_labelled_grid(images, bundle.classes[: len(images)])
    manifest = update_bundle(path, add_files={PREVIEW: encode_png(picture), RECORD_NAME: record.to_json()})
    manifest = update_bundle(path, readme=render_card(manifest, record))
    failed = [row for row in verify(path, progress=False).rows if not row.ok]
    if failed:
        row = failed[0]
        allowed = f", {row.allowed} is allowed" if row.allowed else ""
        raise ParityError(
            f"The new bundle fails its verification, so it was not published: {row.subject}, {row.check}: "
            f"{row.found.rstrip('.')}{allowed}."
        )
    return manifest
