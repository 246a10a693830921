"""The bundle's manifest, `manifest.json`, format version 1: what it holds, how it is written, how it is checked.

Two hashes live in it. `manifest_sha256` covers the canonical form of everything else in the file. `content_id` covers
only what decides which images are drawn: the canonical ONNX file, the classes, the sampling block and `latents.npz`;
adding an engine, a precision or a measurement does not change it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dim.runtime.bundle_format.names import (
    CANONICAL_ONNX,
    FIXED_LATENTS,
    FORMAT_VERSION,
    MANIFEST_NAME,
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
    check_int,
    check_keys,
    check_letters,
    check_number,
    check_sha256,
    check_text,
    wrong,
)
from dim.runtime.errors import BundleError
from dim.runtime.sampling.philox import SAMPLING_VERSION
from dim.runtime.storage import strict_json


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """The dataset that a bundle was distilled from."""

    name: str
    class_counts: tuple[int, ...]
    """Training images per class, in the order of the bundle's classes."""
    mean: tuple[float, ...]
    """Per channel, of pixels scaled to 0..1, over the training split; for consumers."""
    std: tuple[float, ...]
    """As `mean`."""
    licence: str
    note: str
    """Where the images came from and what was done to them."""


@dataclass(frozen=True, kw_only=True)
class BundleDescription:
    """What a bundle says about itself beside its files; checked when a `Manifest` is made of it."""

    name: str
    created_by: str
    """The program that wrote the bundle, with its version."""
    classes: tuple[str, ...]
    """Class names in the order of their labels, 0..K-1."""
    height: int
    width: int
    channels: int
    """1 or 3."""
    latent_dim: int
    latent_std: float
    source: SourceInfo
    distill_config: Mapping[str, Any]
    """The run's resolved configuration."""
    licence: str
    accuracy: tuple[Mapping[str, Any], ...] = ()
    """Rows of `dim eval`, each with its protocol; empty when nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class Manifest(BundleDescription):
    """Everything that `manifest.json` says; checked on construction, so an instance is always valid.

    Raises:
        BundleError: a field has the wrong type, is out of range or contradicts another.
    """

    files: Mapping[str, FileRecord]
    """Relative path with forward slashes -> record; `manifest.json` itself is not listed."""
    content_id: str
    manifest_sha256: str
    format_version: int = FORMAT_VERSION
    sampling_version: int = SAMPLING_VERSION

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.content_id != compute_content_id(self.classes, self.latent_dim, self.latent_std, self.files):
            raise BundleError("The manifest's content_id does not match its classes, sampling block and files.")

    @property
    def description(self) -> BundleDescription:
        """The manifest without its files and hashes."""
        return BundleDescription(**{field.name: getattr(self, field.name) for field in fields(BundleDescription)})

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that have an ONNX file, canonical first."""
        return tuple(name for name in PRECISIONS if onnx_name(name) in self.files)


def _check_fields(m: Manifest) -> None:
    """Check every field of a manifest on its own, and the sizes that must agree.

    Raises:
        BundleError: a field has the wrong type or is out of range.
    """
    if m.format_version != FORMAT_VERSION or isinstance(m.format_version, bool):
        raise wrong("format_version", m.format_version, str(FORMAT_VERSION))
    if m.sampling_version != SAMPLING_VERSION or isinstance(m.sampling_version, bool):
        raise wrong("sampling.sampling_version", m.sampling_version, str(SAMPLING_VERSION))
    check_text("name", m.name, MAX_CLASS_NAME_CHARS)
    for field, text in (
        ("created_by", m.created_by),
        ("licence", m.licence),
        ("source.name", m.source.name),
        ("source.licence", m.source.licence),
        ("source.note", m.source.note),
    ):
        check_text(field, text, MAX_TEXT_CHARS, may_be_empty=True)
    check_classes(m.classes)
    check_int("image.height", m.height, 1, MAX_IMAGE_PX)
    check_int("image.width", m.width, 1, MAX_IMAGE_PX)
    if m.channels not in (1, 3) or isinstance(m.channels, bool) or not isinstance(m.channels, int):
        raise wrong("image.channels", m.channels, "1 or 3")
    check_int("sampling.latent_dim", m.latent_dim, 1, MAX_LATENT_DIM)
    check_number("sampling.latent_std", m.latent_std, 1e-6, 1e3)
    if len(m.source.class_counts) != len(m.classes):
        raise wrong("source.class_counts", m.source.class_counts, f"one number for each of {len(m.classes)} classes")
    for count in m.source.class_counts:
        check_int("source.class_counts", count, 0, 2**48)
    for field, values in (("source.mean", m.source.mean), ("source.std", m.source.std)):
        if len(values) != m.channels:
            raise wrong(field, values, f"one number for each of {m.channels} channels")
        for value in values:
            check_number(field, value, 0.0, 1.0)
    if not isinstance(m.distill_config, dict):
        raise wrong("distill_config", m.distill_config, "an object")
    strict_json.check_plain(m.distill_config, "distill_config", depth=1)
    check_letters("distill_config", m.distill_config)
    for row in m.accuracy:
        if not isinstance(row, dict):
            raise wrong("accuracy", row, "a list of objects")
        strict_json.check_plain(row, "accuracy", depth=2)
        check_letters("accuracy", row)
    check_files(m.files)
    check_sha256("manifest_sha256", m.manifest_sha256)
    check_sha256("content_id", m.content_id)


def onnx_name(precision: str) -> str:
    """Name the ONNX file of a precision: `generator.<precision>.onnx`."""
    return f"generator.{precision}.onnx"


def compute_content_id(
    classes: Sequence[str], latent_dim: int, latent_std: float, files: Mapping[str, FileRecord]
) -> str:
    """Hash what decides which images a bundle draws.

    Args:
        classes: class names in order.
        latent_dim: latents per image.
        latent_std: their standard deviation.
        files: the bundle's files; `generator.fp32.onnx` must be among them.

    Returns:
        64 hexadecimal digits.
    """
    latents = files.get(FIXED_LATENTS)
    identity = {
        "classes": list(classes),
        "generator": files[CANONICAL_ONNX].sha256,
        "latents": latents.sha256 if latents else None,
        "sampling": _sampling_block(latent_dim, latent_std),
    }
    return hashlib.sha256(strict_json.canonical(identity)).hexdigest()


def create_manifest(description: BundleDescription, files: Mapping[str, FileRecord]) -> Manifest:
    """Make a manifest with both of its hashes.

    Args:
        description: of the bundle.
        files: relative path -> record; `generator.fp32.onnx` must be among them.

    Returns:
        a checked manifest.

    Raises:
        BundleError: a field is invalid.
    """
    if CANONICAL_ONNX not in files:
        raise BundleError(f"A bundle needs the file {CANONICAL_ONNX}; only {sorted(files)} were given.")
    d = description
    own: dict[str, Any] = {
        "files": dict(files),
        "content_id": compute_content_id(d.classes, d.latent_dim, d.latent_std, files),
    }
    block = _to_block(vars(d) | own | {"format_version": FORMAT_VERSION, "sampling_version": SAMPLING_VERSION})
    strict_json.check_plain(block, "the manifest")
    return Manifest(**vars(d), **own, manifest_sha256=_own_hash(block))


def to_json(manifest: Manifest) -> bytes:
    """Write a manifest as indented JSON, ready for `manifest.json`."""
    return strict_json.indented(_to_block(vars(manifest)) | {"manifest_sha256": manifest.manifest_sha256})


def from_json(data: bytes) -> Manifest:
    """Read and check a manifest.

    Args:
        data: the bytes of `manifest.json`.

    Returns:
        the manifest.

    Raises:
        BundleError: it is malformed, altered, or of a newer format.
    """
    block = strict_json.parse(data, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    if not isinstance(block, dict) or "format_version" not in block:
        raise BundleError(f"{MANIFEST_NAME} is not a bundle's manifest: it has no format_version.")
    version = block["format_version"]
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT_VERSION:
        raise BundleError(
            f"The bundle has format version {version} and was made by a newer dim; this one reads version "
            f"{FORMAT_VERSION}: run  pip install --upgrade dim-distill"
        )
    check_keys(
        block,
        "",
        "format_version name created_by classes image sampling source distill_config accuracy licence files "
        "content_id manifest_sha256",
    )
    check_keys(block["image"], "image.", "height width channels")
    check_keys(block["sampling"], "sampling.", "sampling_version latent_dim latent_std")
    check_keys(block["source"], "source.", "name class_counts mean std licence note")
    source = block["source"]
    for value, what in (
        (block["classes"], "classes"),
        (block["accuracy"], "accuracy"),
        *((source[key], f"source.{key}") for key in ("class_counts", "mean", "std")),
    ):
        if not isinstance(value, list):
            raise wrong(what, value, "a list")
    if not isinstance(block["files"], dict):
        raise wrong("files", block["files"], "an object")
    for path, record in block["files"].items():
        check_keys(record, f"files[{path[:80]!r}].", "sha256 size_bytes")
    manifest = Manifest(
        format_version=version,
        name=block["name"],
        created_by=block["created_by"],
        classes=tuple(block["classes"]),
        **block["image"],
        **block["sampling"],
        source=SourceInfo(
            name=source["name"],
            class_counts=tuple(source["class_counts"]),
            mean=tuple(source["mean"]),
            std=tuple(source["std"]),
            licence=source["licence"],
            note=source["note"],
        ),
        distill_config=block["distill_config"],
        accuracy=tuple(block["accuracy"]),
        licence=block["licence"],
        files={path: FileRecord(**record) for path, record in block["files"].items()},
        content_id=block["content_id"],
        manifest_sha256=block["manifest_sha256"],
    )
    del block["manifest_sha256"]
    if _own_hash(block) != manifest.manifest_sha256:
        raise BundleError(f"{MANIFEST_NAME} was altered: its contents do not match its manifest_sha256.")
    return manifest


def _to_block(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Arrange a manifest's fields as the file has them, without the file's own hash."""
    source: SourceInfo = fields["source"]
    return {
        "format_version": fields["format_version"],
        "name": fields["name"],
        "created_by": fields["created_by"],
        "classes": list(fields["classes"]),
        "image": {key: fields[key] for key in ("height", "width", "channels")},
        "sampling": _sampling_block(fields["latent_dim"], fields["latent_std"]),
        "source": {key: list(value) if isinstance(value, tuple) else value for key, value in vars(source).items()},
        "distill_config": fields["distill_config"],
        "accuracy": list(fields["accuracy"]),
        "licence": fields["licence"],
        "files": {path: dict(vars(record)) for path, record in fields["files"].items()},
        "content_id": fields["content_id"],
    }


def _sampling_block(latent_dim: int, latent_std: float) -> dict[str, Any]:
    return {"sampling_version": SAMPLING_VERSION, "latent_dim": latent_dim, "latent_std": latent_std}


def _own_hash(block: Mapping[str, Any]) -> str:
    return hashlib.sha256(strict_json.canonical(block)).hexdigest()
