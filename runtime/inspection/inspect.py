"""What a bundle holds, as plain data for `dim inspect`."""

from pathlib import Path
from typing import Any

from dim.runtime.bundle_format.files import load_manifest, read_checked_file
from dim.runtime.bundle_format.fixed_latents import MAX_LATENTS_BYTES, read_fixed_latents
from dim.runtime.bundle_format.names import FIXED_LATENTS, FORMAT_VERSION, TEACHER_ONNX
from dim.runtime.storage.records import to_plain


def inspect(bundle_path: str | Path) -> dict[str, Any]:
    """Describe a bundle from its manifest, without an engine.

    Args:
        bundle_path: the bundle's folder.

    Returns:
        a dict of JSON values: `path`, `name`, `content_id`, `manifest_sha256`, `format_version`, `sampling_version`,
        `created_by`, `licence`, `classes`, `image` (height, width, channels), `latent_dim`, `latent_std`, `source`,
        `precisions`, `engines` (names of compiled plans), `teacher` (whether soft labels can be made), `fixed_latents`
        (images per class with optimised latents, 0 for none), `files` (path, size_bytes, sha256), `size_bytes` of all
        files, `accuracy` and `distill_config`.

    Raises:
        BundleError: no bundle there, or its manifest or `latents.npz` is altered or malformed.
    """
    path = Path(bundle_path)
    manifest = load_manifest(path)
    optimised = 0
    if FIXED_LATENTS in manifest.files:
        data = read_checked_file(path, manifest, FIXED_LATENTS, max_bytes=MAX_LATENTS_BYTES)
        optimised = read_fixed_latents(data, manifest).shape[1]
    return {
        "path": str(path),
        "name": manifest.name,
        "content_id": manifest.content_id,
        "manifest_sha256": manifest.manifest_sha256,
        "format_version": FORMAT_VERSION,
        "sampling_version": manifest.sampling.sampling_version,
        "created_by": manifest.created_by,
        "licence": manifest.licence,
        "classes": list(manifest.classes),
        "image": to_plain(manifest.image),
        "latent_dim": manifest.latent_dim,
        "latent_std": manifest.latent_std,
        "source": to_plain(manifest.source),
        "precisions": list(manifest.precisions),
        "engines": sorted(name for name in manifest.files if name.endswith(".engine")),
        "teacher": TEACHER_ONNX in manifest.files,
        "fixed_latents": optimised,
        "files": [{"path": name, **to_plain(record)} for name, record in sorted(manifest.files.items())],
        "size_bytes": sum(record.size_bytes for record in manifest.files.values()),
        "accuracy": [dict(row) for row in manifest.accuracy],
        "distill_config": dict(manifest.distill_config),
    }
