"""The bundle's manifest, `manifest.json`, format version 1: its fields, how it is written and checked.

Two hashes live in it. `manifest_sha256` covers the canonical form of everything else in the file. `content_id` covers
only what decides which images are drawn: the canonical ONNX file, the classes, the sampling block, `latents.npz` and
`accepted.bin`; adding an engine, a precision or a measurement does not change it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dim.runtime.bundle_format.accuracy_rows import pack_rows, unpack_rows, write_rows_on_lines
from dim.runtime.bundle_format.names import (
    ACCEPTED,
    CANONICAL_ONNX,
    FIXED_LATENTS,
    FORMAT_VERSION,
    MAX_MANIFEST_BYTES,
    PRECISIONS,
)
from dim.runtime.bundle_format.schema import (
    MAX_CLASS_NAME_CHARS,
    MAX_IMAGE_PX,
    MAX_LATENT_DIM,
    MAX_TEXT_CHARS,
    FileRecord,
    check_classes,
    check_files,
    check_printable,
    check_range,
    check_sha256,
    check_text,
)
from dim.runtime.errors import BadValueError, BundleError
from dim.runtime.sampling.philox import FILTERED_SAMPLING, PLAIN_SAMPLING
from dim.runtime.storage import strict_json
from dim.runtime.storage.records import FieldError, from_plain, parse_versioned, refuse_newer, to_plain


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """The shape of every image that a bundle draws."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    channels: int
    """1 (grey) or 3 (RGB)."""


@dataclass(frozen=True, kw_only=True)
class SamplingInfo:
    """How latents are drawn."""

    latent_dim: int
    """Latents per image."""
    latent_std: float
    """Their standard deviation."""
    sampling_version: int = PLAIN_SAMPLING
    """Version of the sampling contract: 1, or 2 for samples that are accepted candidates (`accepted.bin`)."""


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """The dataset that a bundle was distilled from."""

    name: str
    """The dataset's name."""
    class_counts: tuple[int, ...]
    """Training images per class, in the order of the bundle's classes."""
    mean: tuple[float, ...]
    """Per channel, of pixels scaled to 0..1, over the training split; for consumers."""
    std: tuple[float, ...]
    """As `mean`."""
    licence: str
    """Licence of the images, as their authors state it."""
    note: str
    """Where the images came from and what was done to them."""


@dataclass(frozen=True, kw_only=True)
class BundleDescription:
    """What the maker of a bundle says about it; checked when a manifest is made of it."""

    name: str
    """The bundle's name."""
    created_by: str
    """The program that wrote the bundle, with its version."""
    classes: tuple[str, ...]
    """Class names in the order of their labels, 0..K-1."""
    image: ImageShape
    """The shape of every image."""
    sampling: SamplingInfo
    """How latents are drawn."""
    source: SourceInfo
    """The dataset that the bundle was distilled from."""
    distill_config: Mapping[str, Any]
    """The run's resolved configuration."""
    accuracy: tuple[Mapping[str, Any], ...] = ()
    """Rows of `dim eval`, each with its protocol; empty when nothing was measured."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """What else `dim eval` found: `quality` and `privacy`; left out of the file where it is empty."""
    licence: str
    """The bundle's licence."""


@dataclass(frozen=True, kw_only=True)
class Manifest(BundleDescription):
    """Everything that `manifest.json` says; checked on construction, so an instance is always valid.

    Raises:
        FieldError: a field is out of range or contradicts another.
        BundleError: the files or the classes break a rule, or the content id is another one.
    """

    files: Mapping[str, FileRecord]
    """Relative path with forward slashes -> record; `manifest.json` itself is not listed."""
    content_id: str
    """Hash of what decides which images are drawn."""
    manifest_sha256: str
    """Hash of the manifest without this field, and so of every file."""

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check_source(self)
        check_files(self.files)
        if (self.sampling.sampling_version == FILTERED_SAMPLING) != (ACCEPTED in self.files):
            raise BundleError(f"The manifest's sampling version 2 and the file {ACCEPTED} belong together.")
        check_sha256("manifest_sha256", self.manifest_sha256)
        check_sha256("content_id", self.content_id)
        if self.content_id != compute_content_id(self.classes, self.sampling, self.files):
            raise BundleError(
                "The manifest's content_id does not match its classes, sampling block and files; fetch it again."
            )

    @property
    def description(self) -> BundleDescription:
        """What the maker says, without the files and hashes."""
        return BundleDescription(**{each.name: getattr(self, each.name) for each in fields(BundleDescription)})

    @property
    def height(self) -> int:
        """Of an image, in pixels."""
        return self.image.height

    @property
    def width(self) -> int:
        """Of an image, in pixels."""
        return self.image.width

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.image.channels

    @property
    def latent_dim(self) -> int:
        """Latents per image."""
        return self.sampling.latent_dim

    @property
    def latent_std(self) -> float:
        """Standard deviation of the latents."""
        return self.sampling.latent_std

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that have an ONNX file, canonical first."""
        return tuple(name for name in PRECISIONS if onnx_name(name) in self.files)

    def to_json(self) -> bytes:
        """Write the manifest as indented JSON, ready for `manifest.json`."""
        return write_rows_on_lines({"format_version": FORMAT_VERSION, **_describe(self)})


def _describe(m: BundleDescription) -> dict[str, Any]:
    """Plain JSON data as the file holds it: accuracy as tables, and no evaluation where there is none."""
    plain = to_plain(m) | {"accuracy": pack_rows(m.accuracy)}
    return {name: value for name, value in plain.items() if value or name != "evaluation"}


def _read_block(block: Mapping[str, Any], advice: str = "") -> Manifest:
    """The manifest of what its file holds; `advice` as in `from_plain`."""
    values = {"evaluation": {}} | dict(block)
    if "accuracy" in values:
        values["accuracy"] = unpack_rows(values["accuracy"], "The manifest")
    return from_plain(Manifest, values, "The manifest", advice=advice)


def _check_ranges(m: BundleDescription) -> None:
    """Check every field on its own, but for the source."""
    if m.sampling.sampling_version not in (PLAIN_SAMPLING, FILTERED_SAMPLING):
        raise FieldError("sampling.sampling_version", m.sampling.sampling_version, "1 or 2")
    check_text("name", m.name, MAX_CLASS_NAME_CHARS)
    check_text("created_by", m.created_by, MAX_TEXT_CHARS, may_be_empty=True)
    check_text("licence", m.licence, MAX_TEXT_CHARS, may_be_empty=True)
    check_classes(m.classes)
    check_range("image.height", m.image.height, 1, MAX_IMAGE_PX)
    check_range("image.width", m.image.width, 1, MAX_IMAGE_PX)
    if m.image.channels not in (1, 3):
        raise FieldError("image.channels", m.image.channels, "1 or 3")
    check_range("sampling.latent_dim", m.sampling.latent_dim, 1, MAX_LATENT_DIM)
    check_range("sampling.latent_std", m.sampling.latent_std, 1e-6, 1e3)
    check_printable("distill_config", m.distill_config)
    check_printable("accuracy", m.accuracy)
    check_printable("evaluation", m.evaluation)


def _check_source(m: BundleDescription) -> None:
    """Check what is said of the source dataset, and its sizes against the classes and channels."""
    source = m.source
    for name, text in (("name", source.name), ("licence", source.licence), ("note", source.note)):
        check_text(f"source.{name}", text, MAX_TEXT_CHARS, may_be_empty=True)
    if len(source.class_counts) != len(m.classes):
        expected = f"one number for each of {len(m.classes)} classes"
        raise FieldError("source.class_counts", source.class_counts, expected)
    for count in source.class_counts:
        check_range("source.class_counts", count, 0, 2**48)
    for name, values in (("source.mean", source.mean), ("source.std", source.std)):
        if len(values) != m.image.channels:
            raise FieldError(name, values, f"one number for each of {m.image.channels} channels")
        for value in values:
            check_range(name, value, 0.0, 1.0)


def onnx_name(precision: str) -> str:
    """Name the ONNX file of a precision: `generator.<precision>.onnx`; bf16 is drawn from the canonical one."""
    return CANONICAL_ONNX if precision == "bf16" else f"generator.{precision}.onnx"


def check_precisions(precisions: Sequence[str]) -> None:
    """Check that there are such precisions.

    Raises:
        BadValueError: an unknown one.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise BadValueError(f"There is no precision {precision!r}: choose from {', '.join(PRECISIONS)}.")


def compute_content_id(classes: tuple[str, ...], sampling: SamplingInfo, files: Mapping[str, FileRecord]) -> str:
    """Hash what decides which images a bundle draws.

    Args:
        classes: class names in order.
        sampling: how latents are drawn.
        files: the bundle's files; `generator.fp32.onnx` must be among them.

    Returns:
        64 hexadecimal digits.
    """
    latents = files.get(FIXED_LATENTS)
    identity: dict[str, Any] = {
        "classes": list(classes),
        "generator": files[CANONICAL_ONNX].sha256,
        "latents": latents.sha256 if latents else None,
        "sampling": to_plain(sampling),
    }
    if (accepted := files.get(ACCEPTED)) is not None:
        identity["accepted"] = accepted.sha256
    return hashlib.sha256(strict_json.write_canonical(identity)).hexdigest()


def create_manifest(description: BundleDescription, files: Mapping[str, FileRecord]) -> Manifest:
    """Make a manifest with both of its hashes.

    Args:
        description: of the bundle.
        files: relative path -> record.

    Returns:
        a checked manifest.

    Raises:
        BundleError: a field is invalid.
    """
    if CANONICAL_ONNX not in files:
        raise BundleError(f"A bundle needs the file {CANONICAL_ONNX}; only {sorted(files)} were given.")
    # An integer would be hashed as other bytes than the float that it equals.
    sampling = replace(description.sampling, latent_std=float(description.sampling.latent_std))
    block = _describe(replace(description, sampling=sampling))
    block["files"] = {path: to_plain(record) for path, record in files.items()}
    block["content_id"] = compute_content_id(description.classes, sampling, files)
    strict_json.check_plain(block, "The manifest")
    block["manifest_sha256"] = _hash_block(block)
    return _read_block(block)


def parse_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest.

    Args:
        data: the bytes of `manifest.json`.

    Returns:
        the manifest.

    Raises:
        BundleError: it is malformed, altered, or of a newer format.
    """
    advice = "fetch the bundle again, or export it anew."
    block = parse_versioned(data, "The manifest", version=FORMAT_VERSION, max_bytes=MAX_MANIFEST_BYTES, advice=advice)
    if isinstance(sampling := block.get("sampling"), dict):
        found, maker = sampling.get("sampling_version"), block.get("created_by")
        refuse_newer(found, "The manifest", version=FILTERED_SAMPLING, what="sampling version", maker=maker)
    manifest = _read_block(block, advice)
    del block["manifest_sha256"]
    if _hash_block(block) != manifest.manifest_sha256:
        raise BundleError(
            "The manifest was altered: its contents do not match its manifest_sha256; fetch the bundle again."
        )
    return manifest


def _hash_block(block: Mapping[str, Any]) -> str:
    """Hash a manifest's JSON without its version and its own hash."""
    return hashlib.sha256(strict_json.write_canonical({"format_version": FORMAT_VERSION, **block})).hexdigest()
