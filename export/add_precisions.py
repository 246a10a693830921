"""Add precisions to a bundle from its own canonical file; fp16 needs no torch, int8 needs the run's classifiers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dim.export.card import read_record
from dim.export.graph.half import to_half
from dim.export.parity import PARITY_SEED, check_precision, draw_samples, draw_with_onnx
from dim.export.publish import finish, merged_record, staged, still_measured
from dim.runtime.bundle_format.files import copy_bundle, load_manifest, read_checked_file, update_bundle
from dim.runtime.bundle_format.graph_contract import MAX_ONNX_BYTES, check_graph
from dim.runtime.bundle_format.manifest import Manifest, onnx_name
from dim.runtime.bundle_format.names import CANONICAL_ONNX, PRECISIONS
from dim.runtime.errors import BadValueError, MissingExtraError, RunError
from dim.runtime.trt.store import find_onnx_sha256

Say = Callable[[str], None]


def add_precisions(
    bundle_path: Path,
    precisions: Sequence[str],
    *,
    run_dir: Path | None = None,
    say: Say = lambda line: None,
) -> Path:
    """Write further precisions into a bundle, or write them again.

    Args:
        bundle_path: the bundle's folder.
        precisions: any of `fp32`, `fp16`, `int8`; fp32 is there already.
        run_dir: the run that the bundle came from, for int8; None for the folder around the bundle.
        say: gets lines for the user.

    Returns:
        the bundle's folder.

    Raises:
        BadValueError: an unknown precision.
        BundleError: the bundle is missing or damaged.
        RunError: int8 was asked for, and the run of this bundle is not there.
        MissingExtraError: a package is missing.
        ParityError: a new file draws something else than the canonical one; the bundle is as it was.
        OutputError: the disk refused; the bundle is as it was.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise BadValueError(f"There is no precision {precision!r}: choose from {', '.join(PRECISIONS)}.")
    bundle_path = Path(bundle_path)
    manifest = load_manifest(bundle_path)
    wanted = [p for p in PRECISIONS if p in precisions and p != "fp32"]
    if not wanted:
        return bundle_path
    canonical = read_checked_file(bundle_path, manifest, CANONICAL_ONNX, max_bytes=MAX_ONNX_BYTES)
    check_graph(canonical, manifest)
    latents, labels = draw_samples(manifest.num_classes, manifest.latent_dim, manifest.latent_std, seed=PARITY_SEED)
    expected = draw_with_onnx(canonical, latents, labels)
    files: dict[str, bytes] = {}
    changed: set[str] = set()
    record: dict[str, Any] = {"agreements": []}
    for precision in wanted:
        source = _Source(canonical, manifest, run_dir or bundle_path.parent) if precision == "int8" else None
        model = to_half(canonical) if source is None else source.quantised()
        agreement = check_precision(precision, model, latents, labels, expected, "fp32")
        say(f"{agreement}; {len(model):,} bytes.")
        record["agreements"].append(agreement.as_json())
        if source is not None:
            record["int8_acceptance"] = source.judged(model, say)
        files[onnx_name(precision)] = model
        if find_onnx_sha256(manifest, precision) != hashlib.sha256(model).hexdigest():
            changed.add(onnx_name(precision))
    merged = merged_record(record, read_record(bundle_path, manifest))
    with staged(bundle_path) as path:
        copy_bundle(bundle_path, path)
        update_bundle(path, add_files=files, accuracy=still_measured(manifest, changed))
        finish(path, merged)
    return bundle_path


class _Source:
    """The run that a bundle came from: it calibrates and judges int8, with torch."""

    def __init__(self, canonical: bytes, manifest: Manifest, run_dir: Path) -> None:
        wish = "int8 is judged by the classifiers of the run that a bundle came from"
        try:
            from dim.export import export_run, run_files
        except ImportError as error:
            raise MissingExtraError(error.name or "torch", "train", "judge int8 by the run's classifiers") from None
        try:
            run = run_files.read_run(run_dir)
        except RunError as error:
            raise RunError(f"{wish}, and it is not there: {error}") from None
        if dict(run.config) != dict(manifest.distill_config):
            raise RunError(f"{wish}, and {run_dir} is another run: export that run with --precision int8 instead.")
        self.canonical, self.run, self.library = canonical, run, export_run
        self.pool = export_run.pool_for_int8(run)

    def quantised(self) -> bytes:
        return self.library.quantise(self.canonical, self.run)

    def judged(self, model: bytes, say: Say) -> dict[str, Any]:
        return self.library.judge_int8(self.canonical, model, self.run, self.pool, say)
