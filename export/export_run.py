"""Turns a run directory into a bundle: exported, compared with torch, verified, and only then given its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from dim.export.agreement import check_diversity, check_precision
from dim.export.drawing import PARITY_SEED, draw_samples, draw_with_torch
from dim.export.graph.half import to_half
from dim.export.graph.trace import generator_to_onnx
from dim.export.publish import check_destination, complete_bundle, stage_bundle
from dim.export.record import Agreement, ExportRecord
from dim.export.reuse import read_reusable
from dim.export.run_classifiers import read_classifiers
from dim.export.run_files import Run, read_run
from dim.export.run_int8 import quantise, read_comparing_classifiers
from dim.export.teacher import teacher_to_onnx
from dim.runtime.bundle_format.files import write_bundle
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents
from dim.runtime.bundle_format.manifest import (
    BundleDescription,
    ImageShape,
    SamplingInfo,
    SourceInfo,
    check_precisions,
    compute_content_id,
    onnx_name,
)
from dim.runtime.bundle_format.names import ACCEPTED, FIXED_LATENTS, PRECISIONS, TEACHER_ONNX
from dim.runtime.bundle_format.schema import FileRecord
from dim.runtime.engines.onnx_session import import_onnxruntime
from dim.runtime.errors import BadValueError
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import Progress, ProgressOption, show_progress
from dim.runtime.sampling.philox import FILTERED_SAMPLING, PLAIN_SAMPLING
from dim.version import __version__

Say = Callable[[str], None]


def export_run(
    run: str | Path,
    out: str | Path | None = None,
    *,
    precisions: Sequence[str] = ("fp32",),
    name: str | None = None,
    licence: str | None = None,
    overwrite: bool = False,
    say: Say = say_to_log,
    progress: ProgressOption = None,
) -> Path:
    """Export a finished run as a bundle.

    Every file is compared with the network in torch, and the whole bundle is verified before it gets its name. A bundle
    of the same images that is replaced hands on its measured accuracy, its other precisions and its engines. Where an
    error is raised, nothing is left behind and an earlier bundle is as it was.

    Args:
        run: the run directory, as `distill` made it.
        out: the bundle's folder; None for `<run>/<name>.dim`, where an earlier bundle of the run is replaced.
        precisions: any of `fp32`, `fp16`, `int8`; fp32 is always written. int8 needs the classifiers that stage 2 kept.
        name: the bundle's name; None for the run's.
        licence: of the bundle; None for that of the source data.
        overwrite: replace a bundle at `out`.
        say: gets a line about each step.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`.

    Returns:
        the bundle's folder, for `open_bundle`.

    Raises:
        BadValueError: an unknown precision, or a name that cannot be a folder.
        RunError: the run is missing, unfinished, damaged, or lacks what int8 needs.
        GraphError: torch cannot export the network.
        ParityError: a file draws something else than the network, or nothing worth drawing.
        OutputError: the destination holds something else, or the disk refused.

    Examples:
        >>> bundle = export_run("runs/digits", precisions=("fp32", "fp16"))
    """
    check_precisions(precisions)
    wanted = [precision for precision in PRECISIONS if precision == "fp32" or precision in precisions]
    finished = read_run(Path(run))
    name = finished.record.config.name if name is None else name
    if not name or Path(name).name != name or name.startswith("."):
        raise BadValueError(f"The bundle's name is {name!r}; it must be a plain name of a folder.")
    destination = finished.path / f"{name}.dim" if out is None else Path(out)
    check_destination(destination, overwrite=overwrite or out is None)
    with show_progress(progress) as report:
        files, record = _export_networks(finished, wanted, say, report)
        report("exporting", len(wanted), len(wanted) + 1, "verifying the bundle")
        _publish(finished, destination, name, licence, files, record, say)
    return destination


def _export_networks(
    run: Run, precisions: Sequence[str], say: Say, report: Progress
) -> tuple[dict[str, bytes], ExportRecord]:
    """Export generator, teacher and latents; returns the files by name, and what was measured."""
    report("exporting", 0, len(precisions) + 1, "fp32")
    classifiers = read_comparing_classifiers(run) if "int8" in precisions else {}
    teacher = [classifier for _, classifier in read_classifiers(run.path, "teacher")]
    latents, labels = draw_samples(len(run.classes), run.latent_dim, run.latent_std, seed=PARITY_SEED)
    expected = draw_with_torch(run.generator, latents, labels)
    check_diversity(expected, labels, run.classes)
    canonical = generator_to_onnx(run.generator)
    files: dict[str, bytes] = {}
    agreements: list[Agreement] = []
    accepted = None
    for done, precision in enumerate(precisions):
        report("exporting", done, len(precisions) + 1, precision)
        model = canonical
        if precision == "fp16":
            model = to_half(canonical)
        elif precision == "int8":
            model, accepted = quantise(run, canonical, classifiers, say)
        agreements.append(check_precision(precision, model, latents, labels, expected, "torch"))
        say(f"{agreements[-1]}; {len(model):,} bytes.")
        files[onnx_name(precision)] = model
    if teacher:
        files[TEACHER_ONNX] = teacher_to_onnx(teacher[0], expected)
    if run.latents is not None:
        files[FIXED_LATENTS] = write_fixed_latents(run.latents)
    if run.accepted is not None:
        files[ACCEPTED] = run.accepted
    return files, ExportRecord(agreements=tuple(agreements), int8_acceptance=accepted, versions=_read_versions())


def _read_versions() -> dict[str, str]:
    import onnx
    import torch

    return {
        "dim": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": import_onnxruntime("cpu").__version__,
        "torch": str(torch.__version__),
    }


def _publish(
    run: Run,
    destination: Path,
    name: str,
    licence: str | None,
    files: dict[str, bytes],
    record: ExportRecord,
    say: Say,
) -> None:
    """Build the bundle under a temporary name, verify it, and let it take its place."""
    hashes = {path: FileRecord(sha256=sha256(data).hexdigest(), size_bytes=len(data)) for path, data in files.items()}
    version = PLAIN_SAMPLING if run.accepted is None else FILTERED_SAMPLING
    sampling = SamplingInfo(latent_dim=run.latent_dim, latent_std=run.latent_std, sampling_version=version)
    reused = read_reusable(destination, compute_content_id(run.classes, sampling, hashes), hashes, say)
    data = run.record.data
    description = BundleDescription(
        name=name,
        created_by=f"dim {__version__}",
        classes=run.classes,
        image=ImageShape(height=data.image_px, width=data.image_px, channels=data.channels),
        sampling=sampling,
        source=SourceInfo(
            name=data.name,
            class_counts=data.class_counts,
            mean=data.mean,
            std=data.std,
            licence=data.licence,
            note=data.note,
        ),
        distill_config=run.record.to_dict(),
        licence=data.licence if licence is None else licence,
        accuracy=reused.accuracy,
        evaluation=reused.evaluation,
    )
    with stage_bundle(destination) as path:
        write_bundle(path, description, {**reused.files, **files})
        complete_bundle(path, record.merge(reused.record))
    say(f"Bundle: {destination}")
