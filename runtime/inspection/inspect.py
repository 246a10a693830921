"""What a bundle holds, read from its manifest without an engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.latents import BundleLatents
from dim.runtime.bundle_format.locate import find_bundle
from dim.runtime.bundle_format.manifest import ImageShape, SourceInfo
from dim.runtime.bundle_format.names import FORMAT_VERSION, TEACHER_ONNX


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """One file of a bundle."""

    path: str
    """Relative, with forward slashes."""
    sha256: str
    """In hex, of its bytes."""
    size_bytes: int
    """Its size."""


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """What a bundle holds."""

    path: str
    """The bundle's folder."""
    name: str
    """The bundle's name."""
    content_id: str
    """Hash of what decides which images are drawn."""
    manifest_sha256: str
    """Hash of the manifest, and so of every file; what `sha256` pins."""
    format_version: int
    """Version of the bundle's format."""
    sampling_version: int
    """Version of the sampling contract."""
    created_by: str
    """The program that wrote the bundle, with its version."""
    licence: str
    """The bundle's licence."""
    classes: tuple[str, ...]
    """Class names in the order of their labels."""
    image: ImageShape
    """The shape of every image."""
    latent_dim: int
    """Latents per image."""
    latent_std: float
    """Their standard deviation."""
    source: SourceInfo
    """The dataset that the bundle was distilled from."""
    precisions: tuple[str, ...]
    """Those that have an ONNX file."""
    engines: tuple[str, ...]
    """Names of compiled plans."""
    teacher: bool
    """Whether soft labels can be made."""
    fixed_latents: int
    """Images per class with optimised latents; 0 for none."""
    candidates: int
    """Candidates per class of which the surest ones were accepted; 0 where every index has latents of its own."""
    accepted: int
    """Candidates accepted, over all classes."""
    files: tuple[FileFacts, ...]
    """Every file, by path."""
    size_bytes: int
    """Of all files."""
    accuracy: tuple[Mapping[str, Any], ...]
    """Rows of `dim eval`."""
    evaluation: Mapping[str, Any]
    """What `dim eval` found about the images themselves, `quality` and `privacy`."""
    distill_config: Mapping[str, Any]
    """The run's resolved configuration."""


def inspect(bundle: str | Path | None = None) -> BundleFacts:
    """Describe a bundle from its manifest, without an engine.

    Args:
        bundle: a folder, a URL, or the name of a bundle that comes with the package; None for the default one.

    Returns:
        what it holds.

    Raises:
        BundleError: no bundle there, or its manifest, `latents.npz` or `accepted.bin` is altered or malformed.
    """
    path, _ = find_bundle(bundle)
    manifest = load_manifest(path)
    latents = BundleLatents(path, manifest, use_fixed=True)
    fixed_latents, accepted = latents.count_fixed(), latents.accepted
    files = sorted(manifest.files.items())
    return BundleFacts(
        path=str(path),
        name=manifest.name,
        content_id=manifest.content_id,
        manifest_sha256=manifest.manifest_sha256,
        format_version=FORMAT_VERSION,
        sampling_version=manifest.sampling.sampling_version,
        created_by=manifest.created_by,
        licence=manifest.licence,
        classes=manifest.classes,
        image=manifest.image,
        latent_dim=manifest.latent_dim,
        latent_std=manifest.latent_std,
        source=manifest.source,
        precisions=manifest.precisions,
        engines=tuple(name for name, _ in files if name.endswith(".engine")),
        teacher=TEACHER_ONNX in manifest.files,
        fixed_latents=fixed_latents,
        candidates=accepted.per_class if accepted else 0,
        accepted=accepted.num_accepted if accepted else 0,
        files=tuple(FileFacts(path=name, sha256=file.sha256, size_bytes=file.size_bytes) for name, file in files),
        size_bytes=sum(file.size_bytes for _, file in files),
        accuracy=manifest.accuracy,
        evaluation=manifest.evaluation,
        distill_config=manifest.distill_config,
    )
