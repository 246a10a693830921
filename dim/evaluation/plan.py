"""Which students an evaluation trains, and in which order."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from dim.data.image_set import ImageSet
from dim.evaluation.cells import Cell
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.evaluation.subjects import Subject
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import CANONICAL_ONNX, TEACHER_ONNX
from dim.runtime.trt.store import find_onnx_sha256
from dim.students.recipes import resolve_recipe


def bundle_bytes(manifest: Manifest, precision: str, *, soft: bool) -> int:
    """Count what must be kept of a bundle to train a student again: one generator, and the teacher of soft labels.

    Args:
        manifest: of the bundle.
        precision: of the generator that drew the images; empty or without a file of its own: the canonical fp32 one.
        soft: whether the student learns the teacher's logits.
    """
    files = manifest.files
    generator = files.get(f"generator.{precision}.onnx", files[CANONICAL_ONNX])
    return generator.size_bytes + (files[TEACHER_ONNX].size_bytes if soft else 0)


def images_that_fit(class_counts: Sequence[int], total: int) -> int:
    """Return the most images per class, or all of a class that has fewer, of which no more than `total` are taken."""
    least, most = 0, max(class_counts)
    while least < most:
        middle = (least + most + 1) // 2
        fits = sum(min(count, middle) for count in class_counts) <= total
        least, most = (middle, most) if fits else (least, middle - 1)
    return least


def plan_cells(data: ImageSet, subjects: Sequence[Subject], protocol: EvalProtocol, execution: Execution) -> list[Cell]:
    """List the cells in the order in which they are run: by images per class, then network, seed, labels and mode.

    Args:
        data: the dataset.
        subjects: bundles; the first one's size decides the control of equal bytes: the file of the precision in which
            images are drawn, in soft rows with the teacher. Real images are priced as raw uint8 pixels, in soft rows
            with their logits. Without any, controls are planned whatever the protocol says.
        protocol: what is measured; its recipe is chosen already.
        execution: its precisions and engine are part of what a cell stands for.

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
        "recipe": resolve_recipe(protocol.recipe, data.name),
        "precision": execution.choose_precision(),
    }
    drawn = [_describe_bundle(subject, execution) for subject in subjects]
    real = _plan_controls(data, subjects, protocol, execution)
    cells = [
        Cell(
            mode=mode,
            ipc=ipc,
            arch=arch,
            seed=seed,
            epochs=protocol.epochs,
            labels=labels,
            teacher=teacher if labels == "soft" else "",
            **source,
            **common,
        )
        for ipc, arch, seed, labels, mode in product(
            protocol.ipcs, protocol.archs, protocol.seeds, protocol.labels, protocol.modes
        )
        for source in drawn + real[labels, mode]
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
        "subject": f"{subject.name}{_name_precision(precision)}",
        "content_id": subject.manifest.content_id,
        "engine": execution.image_engine,
        "engine_precision": precision,
        # Where a bundle has no such file, opening its engine will say so.
        "generator": find_onnx_sha256(subject.manifest, precision) or "",
    }


def _name_precision(precision: str) -> str:
    """What fp16 and int8 images reach stands beside what fp32 images do."""
    return "" if precision == "fp32" else f", {precision}"


def _plan_controls(
    data: ImageSet, subjects: Sequence[Subject], protocol: EvalProtocol, execution: Execution
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By labels and mode, the real images that stand beside the generated ones."""
    wanted = protocol.controls or not subjects
    real: dict[tuple[str, str], list[dict[str, Any]]] = {
        (labels, mode): [{"source": "real", "subject": "real"}] if wanted else []
        for labels in protocol.labels
        for mode in protocol.modes
    }
    if not (wanted and subjects and "stream" in protocol.modes):
        return real
    precision = execution.image_precision
    for labels in protocol.labels:
        soft = labels == "soft"
        image_bytes = data.train_images[0].nbytes + (2 * len(data.classes) if soft else 0)
        budget = bundle_bytes(subjects[0].manifest, precision, soft=soft) // image_bytes
        per_class = images_that_fit(data.class_counts, budget)
        if 0 < per_class < max(data.class_counts):
            name = f"real, equal bytes{_name_precision(precision)}"
            source = {"source": "real-bytes", "subject": name, "images_per_class": per_class}
            real[labels, "stream"].append(source)
    return real
