"""Lists the students that an evaluation trains, in order."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from dim.data.image_set import ImageSet
from dim.evaluation.archive import Archive
from dim.evaluation.cells import Cell
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.evaluation.subjects import Subject
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import ACCEPTED, CANONICAL_ONNX, TEACHER_ONNX
from dim.runtime.trt.store import find_onnx_sha256
from dim.students.recipes import resolve_recipe


def bundle_bytes(manifest: Manifest, precision: str, *, soft: bool) -> int:
    """Count what must be kept of a bundle to draw a stream again: one generator, which candidates it accepts, and the
    teacher of soft labels.

    Streams draw no fixed latents, so `latents.npz` does not count.

    Args:
        manifest: of the bundle.
        precision: of the generator that drew the images; empty or without a file of its own: the canonical fp32 one.
        soft: whether the student learns the teacher's logits.
    """
    files = manifest.files
    generator = files.get(f"generator.{precision}.onnx", files[CANONICAL_ONNX])
    others = [name for name in (ACCEPTED, *[TEACHER_ONNX] * soft) if name in files]
    return generator.size_bytes + sum(files[name].size_bytes for name in others)


def plan_cells(
    data: ImageSet,
    subjects: Sequence[Subject],
    protocol: EvalProtocol,
    execution: Execution,
    archives: Sequence[Archive] = (),
) -> list[Cell]:
    """List the cells in the order in which they are run: by images per class, then network, seed, labels and mode.

    Args:
        subjects: bundles. Without any, and without archives, students of real images are planned whatever the protocol
            says.
        protocol: what is measured; its recipe is chosen already.
        execution: its precisions and engine are part of what a cell stands for.
        archives: archives of real images that stand beside every stream.

    Returns:
        The cells; every generated one is followed by its controls.

    Raises:
        BundleError: soft labels are asked for and the first bundle has no teacher.
    """
    teacher = subjects[0].teacher_sha256 if "soft" in protocol.labels else ""
    common: dict[str, Any] = {
        "data": data.name,
        "fingerprint": data.fingerprint(),
        "width": protocol.width,
        "precision": execution.choose_precision(),
    }
    drawn = [_describe_bundle(subject, execution) for subject in subjects]
    real = _plan_controls(subjects, protocol, execution, archives)
    mixed = [source for percent in protocol.real_percents for source in _plan_mixed(percent, drawn)]
    cells = [
        Cell(
            mode=mode,
            ipc=ipc,
            arch=arch,
            seed=seed,
            epochs=protocol.epochs,
            labels=labels,
            teacher=teacher if labels == "soft" else "",
            recipe=resolve_recipe(protocol.recipe, data.name, ipc),
            **source,
            **common,
        )
        for ipc, arch, seed, labels, mode in product(
            protocol.ipcs, protocol.archs, protocol.seeds, protocol.labels, protocol.modes
        )
        for source in drawn + real[mode] + (mixed if mode == "stream" else [])
    ]
    if protocol.whole_epochs:
        cells += [
            Cell(
                mode="whole",
                ipc=0,
                arch=arch,
                seed=seed,
                epochs=protocol.whole_epochs,
                source="whole",
                subject="whole set",
                recipe=resolve_recipe(protocol.recipe, data.name),
                **common,
            )
            for arch, seed in product(protocol.archs, protocol.seeds)
        ]
    return cells


def _describe_bundle(subject: Subject, execution: Execution) -> dict[str, Any]:
    """Fields of a cell that say what a bundle draws its images with."""
    precision = execution.image_precision
    return {
        "source": "bundle",
        "subject": f"{subject.name}{_name_precision(execution)}",
        "content_id": subject.manifest.content_id,
        "engine": execution.image_engine,
        "engine_precision": precision,
        # Where a bundle has no such file, opening its engine will say so.
        "generator": find_onnx_sha256(subject.manifest, precision) or "",
    }


def _name_precision(execution: Execution) -> str:
    """What images reach in a precision that was asked for stands beside what fp32 images do."""
    precision = execution.image_precision
    return "" if precision == "fp32" or execution.engine.precision == "auto" else f", {precision}"


def _plan_controls(
    subjects: Sequence[Subject], protocol: EvalProtocol, execution: Execution, archives: Sequence[Archive]
) -> dict[str, list[dict[str, Any]]]:
    """By mode, the real images that stand beside the generated ones."""
    wanted = "real" in protocol.controls or not (subjects or archives)
    real: list[dict[str, Any]] = [{"source": "real", "subject": "real"}] if wanted else []
    name = f"archive{_name_precision(execution)}"
    kept = [{"source": "archive", "subject": name, "archive": archive} for archive in archives]
    return {mode: real + (kept if mode == "stream" else []) for mode in protocol.modes}


def _plan_mixed(percent: float, drawn: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A part of the real images alone, and with generated ones added."""
    alone = {"source": "few", "subject": f"{percent:g} % real", "real_percent": percent}
    added = {"source": "mixed", "real_percent": percent}
    return [alone, *(bundle | added | {"subject": f"{alone['subject']} + {bundle['subject']}"} for bundle in drawn)]
