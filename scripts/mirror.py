"""Let the generator of a bundle mirror every image whose last latent is positive, without distilling again.

    python scripts/mirror.py BUNDLE

For bundles from before `generator.mirrored`: their discriminator was shown mirrored images, so it could not tell which
way an object looks, and the generator drew it looking one way (docs/method.md, "What is shown of both"). What it
learned is right but for mirroring, so mirroring half of its images at random makes it right. Nothing is trained. Needs
the package with its `train` extra.

fp16 is converted again. int8 and engines are refused: they would draw other images than the rest. Accuracy rows of
generated images are dropped, and must be measured again (`dim eval`); so are those of as many real images as fit into
the file, whose size changes a little.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dim.export.card import read_record
from dim.export.half import to_half
from dim.export.onnx_graph import parse, serialised, tidy
from dim.export.parity import PARITY_SEED, check_precision, draw_samples, draw_with_onnx
from dim.export.pixels import mirror
from dim.export.publish import finish, merged_record, staged
from dim.runtime.bundle_files import check_file, copy_bundle, load_manifest, update_bundle
from dim.runtime.errors import BadValueError, DimError
from dim.runtime.graph import MAX_ONNX_BYTES, check_graph
from dim.runtime.manifest import Manifest, onnx_name
from dim.runtime.manifest_check import CANONICAL_ONNX


def mirror_bundle(bundle_path: Path) -> Manifest:
    """Mirror in a bundle's own file; it stays as it was until the new one passed its checks.

    Args:
        bundle_path: of a generator that mirrors nothing, whose discriminator was shown mirrored images.

    Returns:
        the new manifest.

    Raises:
        BadValueError: it mirrors already, mirroring is no part of how it was made, or it holds int8 or engines.
        DimError: the bundle is damaged, or the new one does not pass its checks.
    """
    if bundle_path.is_symlink():
        raise BadValueError(f"{bundle_path} is a link: name the folder that it points to.")
    manifest = load_manifest(bundle_path)
    record = {"agreements": []} | read_record(bundle_path, manifest)
    _check(bundle_path, manifest, record)
    old = check_file(bundle_path, manifest, CANONICAL_ONNX, max_bytes=MAX_ONNX_BYTES)
    check_graph(old, manifest)
    model = parse(old)
    mirror(model)
    tidy(model, "generator")
    files = {CANONICAL_ONNX: serialised(model)}
    if "fp16" in manifest.precisions:
        half = to_half(files[CANONICAL_ONNX])
        latents, labels = draw_samples(manifest.num_classes, manifest.latent_dim, manifest.latent_std, seed=PARITY_SEED)
        expected = draw_with_onnx(files[CANONICAL_ONNX], latents, labels)
        agreement = check_precision("fp16", half, latents, labels, expected, "fp32")
        files[onnx_name("fp16")] = half
        record = merged_record({"agreements": [agreement.as_json()]}, record)
    rows = [row for row in manifest.accuracy if row.get("source") in ("real", "whole")]
    with staged(bundle_path) as path:
        if load_manifest(bundle_path).manifest_sha256 != manifest.manifest_sha256:
            raise BadValueError(f"{bundle_path} was changed by another process meanwhile: run the command again.")
        copy_bundle(bundle_path, path)
        update_bundle(path, add_files=files, accuracy=rows)
        return finish(path, record | {"mirrored_after": len(record.get("refined", []))})


def _check(bundle_path: Path, manifest: Manifest, record: Mapping[str, Any]) -> None:
    """Refuse what mirroring would not set right."""
    config = manifest.distill_config
    if "mirrored_after" in record or config.get("generator", {}).get("mirrored"):
        raise BadValueError(f"{bundle_path} mirrors already.")
    stages = [config.get(stage, {}) for stage in ("stage1", "stage2")]
    trained = [stage for stage in stages if stage.get("steps")]
    shown = [str(stage.get("adversarial", {}).get("augment", "")).split("_") for stage in trained]
    if not shown or any("flip" not in policy for policy in shown):
        raise BadValueError(
            f"{bundle_path} was distilled by a discriminator that was not shown mirrored images, so its images look "
            "the way they should."
        )
    others = sorted(
        name
        for name in manifest.files
        if name.startswith("generator.") and name not in (CANONICAL_ONNX, onnx_name("fp16"))
    )
    if others:
        raise BadValueError(f"{bundle_path} holds {others[0]}, which would go on drawing what it drew.")


def main() -> int:
    """Parse, mirror, say what was made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    try:
        manifest = mirror_bundle(options.bundle)
    except DimError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Stopped; {options.bundle} is as it was.", file=sys.stderr)
        return 130
    print(f"Bundle: {options.bundle}, content id {manifest.content_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
