"""The measurements of an export, kept in the bundle as `export.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dim.runtime.bundle_format.files import read_checked_file
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import PRECISIONS
from dim.runtime.errors import BundleError
from dim.runtime.storage import strict_json
from dim.runtime.storage.records import from_plain, to_plain

RECORD_NAME = "export.json"
MAX_RECORD_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the images of one ONNX file lie from those of a reference."""

    precision: str
    reference: str
    """What it was compared with: `torch` or `fp32`."""
    images: int
    max_levels: int
    """Largest difference of any pixel, in levels of 0 to 255."""
    psnr_db: float | None
    """Over all pixels, in dB; None where every pixel is equal."""
    changed_share: float
    """Share of pixel values that differ at all, 0 to 1."""

    def __str__(self) -> str:
        psnr = "" if self.psnr_db is None else f", PSNR {self.psnr_db:.1f} dB"
        return (
            f"{self.precision} against {self.reference}: at most {self.max_levels} of 255 levels apart, "
            f"{100 * self.changed_share:.2g} % of pixels differ{psnr} ({self.images} images)"
        )


@dataclass(frozen=True, kw_only=True)
class ClassAgreement:
    """How often the run's classifiers give an int8 image the class of the fp32 image from the same latents."""

    pairs: int
    same_class: float
    """Share of pairs with the same class, 0 to 1; mean over the classifiers."""
    by_classifier: Mapping[str, float]
    """The share of each architecture."""


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """The content of `export.json`."""

    agreements: tuple[Agreement, ...] = ()
    """One for each precision, fp32 first."""
    int8_acceptance: ClassAgreement | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of dim, onnx, onnxruntime and torch at the export."""
    changes: tuple[str, ...] = ()
    """What was changed in the bundle after its export, in words."""

    def merge(self, earlier: ExportRecord) -> ExportRecord:
        """This record, with what an earlier one says of the precisions that this one lacks."""
        written = {agreement.precision for agreement in self.agreements}
        agreements = [*self.agreements, *(a for a in earlier.agreements if a.precision not in written)]
        order = {precision: place for place, precision in enumerate(PRECISIONS)}
        return ExportRecord(
            agreements=tuple(sorted(agreements, key=lambda a: order.get(a.precision, len(order)))),
            int8_acceptance=self.int8_acceptance or earlier.int8_acceptance,
            versions=self.versions or earlier.versions,
            changes=self.changes or earlier.changes,
        )

    def to_json(self) -> bytes:
        """The bytes of `export.json`, without the fields that are empty."""
        return strict_json.write_indented({key: value for key, value in to_plain(self).items() if value})


def read_record(bundle_path: Path, manifest: Manifest) -> ExportRecord:
    """Read the `export.json` of a bundle.

    Args:
        bundle_path: the bundle's folder.
        manifest: its manifest.

    Returns:
        the record; an empty one where the bundle has none, or one that no export wrote.

    Raises:
        BundleError: the file was altered or is not strict JSON.
    """
    if RECORD_NAME not in manifest.files:
        return ExportRecord()
    data = read_checked_file(bundle_path, manifest, RECORD_NAME, max_bytes=MAX_RECORD_BYTES)
    block = strict_json.parse(data, RECORD_NAME, MAX_RECORD_BYTES)
    try:
        return from_plain(ExportRecord, block, RECORD_NAME, defaults=True)
    except BundleError:
        return ExportRecord()
