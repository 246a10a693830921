"""A run directory becomes a bundle: exported, compared with torch, verified, and only then given its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.export.acceptance import NUM_PAIRS, judge, oldest_of_each
from dim.export.graph.half import to_half
from dim.export.graph.int8 import to_int8
from dim.export.graph.trace import generator_to_onnx
from dim.export.parity import (
    ACCEPTANCE_SEED,
    CALIBRATION_SEED,
    PARITY_SEED,
    Agreement,
    check_precision,
    check_worth,
    draw_samples,
    draw_with_onnx,
    draw_with_torch,
)
from dim.export.publish import check_destination, finish, kept_from, merged_record, staged
from dim.export.run_files import Classifier, Run, newest_run, read_classifiers, read_run
from dim.export.teacher import teacher_to_onnx
from dim.runtime.bundle_format.files import write_bundle
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents
from dim.runtime.bundle_format.manifest import (
    BundleDescription,
    ImageShape,
    SamplingInfo,
    SourceInfo,
    compute_content_id,
    onnx_name,
)
from dim.runtime.bundle_format.names import FIXED_LATENTS, PRECISIONS, TEACHER_ONNX
from dim.runtime.bundle_format.schema import FileRecord
from dim.runtime.errors import BadValueError, RunError
from dim.version import __version__

NUM_CALIBRATION = 512
"""Images whose values set int8's steps."""
Say = Callable[[str], None]


def export_run(
    run_dir: Path | None = None,
    *,
    out: Path | None = None,
    name: str | None = None,
    precisions: Sequence[str] = ("fp32",),
    licence: str | None = None,
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> Path:
    """Export a finished run as a bundle.

    Args:
        run_dir: the run; None for the newest finished one under `runs/`.
        out: the bundle's folder; None for `<run>/<name>.dim`, where an earlier bundle of the run is replaced.
        name: the bundle's name; None for the run's.
        precisions: any of `fp32`, `fp16`, `int8`; fp32 is always written.
        licence: of the bundle; None for that of the source data.
        overwrite: replace a bundle at `out`.
        say: gets lines for the user.

    Returns:
        the bundle's folder. A bundle that drew the same images keeps its measured accuracy and its other files.

    Raises:
        BadValueError: an unknown precision, or a name that cannot be a folder.
        RunError: the run is missing, unfinished, damaged, or lacks what int8 needs.
        GraphError: torch cannot export the network.
        ParityError: a file draws something else than the network, or nothing worth drawing.
        OutputError: the destination holds something else, or the disk refused.

    In all these cases nothing is left behind, and an earlier bundle is as it was.
    """
    wanted = check_precisions(precisions)
    if run_dir is None:
        run_dir = newest_run()
        say(f"Run: {run_dir}, the newest finished one under runs/.")
    run = read_run(Path(run_dir))
    name = str(run.config["name"]) if name is None else name
    if not name or Path(name).name != name or name.startswith("."):
        raise BadValueError(f"The bundle's name is {name!r}; it must be a plain name of a folder.")
    destination = run.path / f"{name}.dim" if out is None else Path(out)
    check_destination(destination, overwrite=overwrite or out is None)
    pool = pool_for_int8(run) if "int8" in wanted else {}
    teacher = [classifier for _, classifier in read_classifiers(run.path, "teacher")]

    latents, labels = draw_samples(len(run.classes), run.latent_dim, run.latent_std, seed=PARITY_SEED)
    expected = draw_with_torch(run.generator, latents, labels)
    check_worth(expected, labels, run.classes)
    canonical = generator_to_onnx(run.generator)
    files: dict[str, bytes] = {}
    agreements: list[Agreement] = []
    record: dict[str, Any] = {}
    for precision in wanted:
        model = canonical
        if precision == "fp16":
            model = to_half(canonical)
        elif precision == "int8":
            model = quantise(canonical, run)
        agreements.append(check_precision(precision, model, latents, labels, expected, "torch"))
        say(f"{agreements[-1]}; {len(model):,} bytes.")
        if precision == "int8":
            record["int8_acceptance"] = judge_int8(canonical, model, run, pool, say)
        files[onnx_name(precision)] = model
    if teacher:
        files[TEACHER_ONNX] = teacher_to_onnx(teacher[0], expected)
    if run.latents is not None:
        files[FIXED_LATENTS] = write_fixed_latents(run.latents)
    record |= {"agreements": [agreement.as_json() for agreement in agreements], "versions": _versions()}
    _publish(run, destination, name, licence, files, record, say)
    return destination


def check_precisions(precisions: Sequence[str]) -> list[str]:
    """The precisions to write, canonical first.

    Raises:
        BadValueError: an unknown one.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise BadValueError(f"There is no precision {precision!r}: choose from {', '.join(PRECISIONS)}.")
    return [precision for precision in PRECISIONS if precision == "fp32" or precision in precisions]


def pool_for_int8(run: Run) -> dict[str, Classifier]:
    """The classifiers that judge a run's int8 file.

    Raises:
        RunError: the run has none, or they are damaged.
    """
    classifiers = read_classifiers(run.path, "pool")
    if not classifiers:
        raise RunError(
            f"int8 is judged by the run's classifiers, and {run.path} has none (pool.safetensors): export without "
            "int8, or distil with stage 2."
        )
    return oldest_of_each(classifiers)


def quantise(canonical: bytes, run: Run) -> bytes:
    """Quantise a generator to int8, calibrated on its own latents."""
    return to_int8(canonical, *_draw(run, CALIBRATION_SEED, NUM_CALIBRATION))


def judge_int8(canonical: bytes, quantised: bytes, run: Run, pool: dict[str, Classifier], say: Say) -> dict[str, Any]:
    """Have a run's classifiers compare int8 with fp32 images.

    Args:
        canonical: the fp32 file.
        quantised: the int8 file.
        run: gives the sampling block.
        pool: the judges.
        say: gets a line with the result.

    Returns:
        what they said, for `export.json`.

    Raises:
        ParityError: they do not accept it.
    """
    latents, labels = _draw(run, ACCEPTANCE_SEED, NUM_PAIRS)
    found = judge(pool, *(draw_with_onnx(model, latents, labels) for model in (canonical, quantised)))
    say(f"int8: the pool's classifiers gave {found.same_class:.2%} of {found.pairs:,} fp32/int8 pairs the same class.")
    return found.as_json()


def _draw(run: Run, seed: int, at_least: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return draw_samples(len(run.classes), run.latent_dim, run.latent_std, seed=seed, at_least=at_least)


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import torch

    return {
        "dim": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "torch": str(torch.__version__),
    }


def _publish(
    run: Run,
    destination: Path,
    name: str,
    licence: str | None,
    files: dict[str, bytes],
    record: dict[str, Any],
    say: Say,
) -> None:
    """Build the bundle under a temporary name, look at it, and let it take its place."""
    hashes = {path: FileRecord(sha256=sha256(data).hexdigest(), size_bytes=len(data)) for path, data in files.items()}
    sampling = SamplingInfo(latent_dim=run.latent_dim, latent_std=float(run.latent_std))
    content_id = compute_content_id(run.classes, sampling, hashes)
    kept = kept_from(destination, content_id, hashes, say)
    data = run.data
    with staged(destination) as path:
        write_bundle(
            path,
            BundleDescription(
                name=name,
                created_by=f"dim {__version__}",
                classes=run.classes,
                image=ImageShape(
                    height=int(data["image_px"]), width=int(data["image_px"]), channels=int(data["channels"])
                ),
                sampling=sampling,
                source=SourceInfo(
                    name=data["name"],
                    class_counts=tuple(data["class_counts"]),
                    mean=tuple(data["mean"]),
                    std=tuple(data["std"]),
                    licence=data["licence"],
                    note=data["note"],
                ),
                distill_config=run.config,
                licence=data["licence"] if licence is None else licence,
                accuracy=kept.accuracy,
            ),
            {**kept.files, **files},
        )
        finish(path, merged_record(record, kept.record))
    say(f"Bundle: {destination}")
