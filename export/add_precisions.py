"""Add precisions to a bundle from its own canonical file; fp16 needs no torch, int8 needs the run's classifiers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dim.export.agreement import check_precision
from dim.export.drawing import PARITY_SEED, draw_samples, draw_with_onnx
from dim.export.graph.half import to_half
from dim.export.publish import complete_bundle, stage_bundle
from dim.export.record import Agreement, ExportRecord, read_record
from dim.export.reuse import select_valid_findings, select_valid_rows
from dim.runtime.bundle_format.files import check_writable, copy_bundle, load_manifest, read_checked_file, update_bundle
from dim.runtime.bundle_format.graph_contract import MAX_ONNX_BYTES, check_graph
from dim.runtime.bundle_format.manifest import Manifest, check_precisions, onnx_name
from dim.runtime.bundle_format.names import CANONICAL_ONNX, PRECISIONS
from dim.runtime.errors import MissingExtraError, RunError
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import ProgressOption, show_progress
from dim.runtime.trt.store import find_onnx_sha256

if TYPE_CHECKING:
    from dim.export.run_files import Run


def add_precisions(
    bundle: str | Path,
    precisions: Sequence[str],
    *,
    run: str | Path | None = None,
    say: Callable[[str], None] = say_to_log,
    progress: ProgressOption = None,
) -> Path:
    """Write further precisions into a bundle, or write them again.

    Args:
        bundle: the bundle's folder.
        precisions: any of `fp32`, `fp16`, `int8`; fp32 is there already.
        run: the run directory that the bundle came from, for int8; None for the folder around the bundle.
        say: gets a line about each step.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`.

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
    path = Path(bundle)
    check_precisions(precisions)
    manifest = load_manifest(path)
    check_writable(path)
    wanted = [precision for precision in PRECISIONS if precision in precisions and precision != "fp32"]
    if not wanted:
        return path
    canonical = read_checked_file(path, manifest, CANONICAL_ONNX, max_bytes=MAX_ONNX_BYTES)
    check_graph(canonical, manifest)
    source = _read_source_run(manifest, Path(run) if run is not None else path.parent) if "int8" in wanted else None
    latents, labels = draw_samples(
        manifest.num_classes, manifest.sampling.latent_dim, manifest.sampling.latent_std, seed=PARITY_SEED
    )
    with show_progress(progress) as report:
        expected = draw_with_onnx(canonical, latents, labels)
        files: dict[str, bytes] = {}
        agreements: list[Agreement] = []
        accepted = None
        for done, precision in enumerate(wanted):
            report("exporting", done, len(wanted) + 1, precision)
            if precision == "int8" and source is not None:
                from dim.export.run_int8 import quantise, read_comparing_classifiers

                model, accepted = quantise(source, canonical, read_comparing_classifiers(source), say)
            else:
                model = to_half(canonical)
            agreements.append(check_precision(precision, model, latents, labels, expected, "fp32"))
            say(f"{agreements[-1]}; {len(model):,} bytes.")
            files[onnx_name(precision)] = model
        changed = {
            onnx_name(precision)
            for precision in wanted
            if find_onnx_sha256(manifest, precision) != hashlib.sha256(files[onnx_name(precision)]).hexdigest()
        }
        record = ExportRecord(agreements=tuple(agreements), int8_acceptance=accepted).merge(read_record(path, manifest))
        report("exporting", len(wanted), len(wanted) + 1, "verifying the bundle")
        with stage_bundle(path) as staged:
            copy_bundle(path, staged)
            update_bundle(
                staged,
                add_files=files,
                accuracy=select_valid_rows(manifest, changed),
                evaluation=select_valid_findings(manifest, changed),
            )
            complete_bundle(staged, record)
    return path


def _read_source_run(manifest: Manifest, run_dir: Path) -> Run:
    """Read the run that a bundle came from, with torch."""
    need = "int8 is judged by the classifiers of the run that a bundle came from"
    try:
        from dim.export.run_files import read_run
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "train", "judge int8 by the run's classifiers") from None
    try:
        run = read_run(run_dir)
    except RunError as error:
        raise RunError(f"{need}, and it is not there: {error}") from None
    if run.record.to_dict() != dict(manifest.distill_config):
        raise RunError(f"{need}, and {run_dir} is another run: export that run with --precision int8 instead.")
    return run
