"""Let the generator of a bundle mirror every image whose last latent is positive, without distilling again.

    python scripts/mirror.py BUNDLE

For bundles from before `generator.mirrored`: their discriminator was shown mirrored images, so it could not tell which
way an object looks, and the generator drew it looking one way (docs/method.md, "What is shown of both"). What it
learned is as good mirrored, so students learn more from images of which half are. Nothing is trained. Needs the package
with its `train` extra.

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

from changing import change

from dim.augment import parse_policy
from dim.export.card import read_record
from dim.export.changes import MIRRORED_AFTER, passes_of
from dim.export.half import to_half
from dim.export.onnx_graph import parse, serialised, tidy
from dim.export.parity import PARITY_SEED, check_precision, draw_samples, draw_with_onnx
from dim.export.pixels import mirror
from dim.export.publish import finish, staged
from dim.runtime.bundle_files import check_file, copy_bundle, load_manifest, update_bundle
from dim.runtime.errors import BadValueError
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
        ParityError: the new file draws something else than the old one, mirrored.
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
    new = serialised(model)
    latents, labels = draw_samples(manifest.num_classes, manifest.latent_dim, manifest.latent_std, seed=PARITY_SEED)
    wanted, turned = draw_with_onnx(old, latents, labels), latents[:, -1] > 0
    wanted[turned] = wanted[turned][:, :, ::-1]
    check_precision("fp32", new, latents, labels, wanted, "fp32, mirrored")
    files = {CANONICAL_ONNX: new}
    agreements = [_before(a) for a in record["agreements"] if a["precision"] == "fp32"]
    if "fp16" in manifest.precisions:
        files[onnx_name("fp16")] = half = to_half(new)
        agreements.append(check_precision("fp16", half, latents, labels, wanted, "fp32").as_json())
    record |= {"agreements": agreements, MIRRORED_AFTER: len(passes_of(record))}
    rows = [row for row in manifest.accuracy if row.get("source") in ("real", "whole")]
    with staged(bundle_path) as path:
        if load_manifest(bundle_path).manifest_sha256 != manifest.manifest_sha256:
            raise BadValueError(f"{bundle_path} was changed by another process meanwhile: run the command again.")
        copy_bundle(bundle_path, path)
        update_bundle(path, add_files=files, accuracy=rows)
        return finish(path, record)


def _before(agreement: Mapping[str, Any]) -> dict[str, Any]:
    """An agreement with the run's network, which mirrors nothing; the file has drawn the same since, mirrored."""
    return {**agreement, "reference": f"{agreement['reference']}, before it mirrored"}


def _check(bundle_path: Path, manifest: Manifest, record: Mapping[str, Any]) -> None:
    """Refuse what mirroring would not set right."""
    config = manifest.distill_config
    if MIRRORED_AFTER in record or _block(config, "generator").get("mirrored"):
        raise BadValueError(f"{bundle_path} mirrors already.")
    trained = [stage for stage in (_block(config, "stage1"), _block(config, "stage2")) if stage.get("steps")]
    if not trained or not all(_is_shown_mirrored(stage) for stage in trained):
        raise BadValueError(
            f"{bundle_path} was not distilled by a discriminator that was shown mirrored images, so its images look "
            "the way they should."
        )
    kept = (CANONICAL_ONNX, onnx_name("fp16"))
    others = sorted(name for name in manifest.files if name.startswith("generator.") and name not in kept)
    if others:
        raise BadValueError(
            f"{bundle_path} holds {others[0]}, which would go on drawing what it drew: mirror a bundle of the same run "
            "without it, and make it again from that."
        )


def _is_shown_mirrored(stage: Mapping[str, Any]) -> bool:
    """Whether half of what a stage's discriminator saw was mirrored."""
    policy = parse_policy(str(_block(stage, "adversarial").get("augment", "")))
    return all(("flip", 0.5) in steps for steps in policy)


def _block(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a configuration; empty where a stranger's has none."""
    part = values.get(name)
    return part if isinstance(part, Mapping) else {}


def main() -> int:
    """Parse, mirror, say what was made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    return change(options.bundle, lambda: mirror_bundle(options.bundle))


if __name__ == "__main__":
    sys.exit(main())
