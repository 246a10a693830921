"""Which students an evaluation trains, and in which order."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from dim.data.image_set import ImageSet
from dim.evaluation.cells import Cell
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import CANONICAL_ONNX, TEACHER_ONNX
from dim.runtime.trt.store import find_onnx_sha256
from dim.students.recipes import Recipe

MODES = ("fixed", "stream")


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


def plan_cells(
    data: ImageSet,
    bundles: Sequence[tuple[str, Manifest]],
    *,
    modes: Sequence[str],
    ipcs: Sequence[int],
    archs: Sequence[str],
    width: int | None,
    seeds: Sequence[int],
    epochs: int,
    recipe: Recipe,
    controls: bool,
    teacher: str,
    whole_epochs: int,
    precision: str,
    engine_precision: str,
    engine: str = "",
) -> list[Cell]:
    """List the cells in the order in which they are run: by images per class, then network, seed, labels and mode.

    Args:
        data: the dataset.
        bundles: names and manifests; the first one's size decides the control of equal bytes: the file of the precision
            asked for, fp32 where none is, in soft rows with the teacher. Real images are priced as raw uint8 pixels, in
            soft rows with their logits.
        teacher: SHA-256 of the teacher, empty for hard labels alone; the rest as in `evaluate`.
        engine: by name, empty where it is left to choose.

    Returns:
        The cells; every generated one is followed by its controls.
    """
    fingerprint, image_bytes = data.fingerprint(), data.train_images[0].nbytes
    common: dict[str, Any] = {
        "data": data.name,
        "fingerprint": fingerprint,
        "width": width,
        "recipe": recipe,
        "precision": precision,
    }
    # What fp16 and int8 images teach stands beside what fp32 images do.
    shown = f", {engine_precision}" if engine_precision not in ("", "fp32") else ""
    # Every source: (source, name, content id, most images per class).
    drawn = [("bundle", f"{name}{shown}", manifest.content_id, 0) for name, manifest in bundles]
    # Where a bundle has no such file, opening its engine will say so.
    files = {manifest.content_id: find_onnx_sha256(manifest, engine_precision) or "" for _, manifest in bundles}
    kinds = ("hard", "soft") if teacher else ("hard",)
    real = {(labels, mode): [("real", "real", "", 0)] if controls else [] for labels in kinds for mode in MODES}
    for labels in kinds if controls and bundles else ():
        soft = labels == "soft"
        with_logits = image_bytes + (2 * len(data.classes) if soft else 0)
        budget = bundle_bytes(bundles[0][1], engine_precision, soft=soft) // with_logits
        per_class = images_that_fit(data.class_counts, budget)
        if 0 < per_class < max(data.class_counts):
            real[labels, "stream"].append(("real-bytes", f"real, equal bytes{shown}", "", per_class))
    cells = [
        Cell(
            source=source,
            subject=name,
            content_id=content_id,
            images_per_class=limit,
            mode=mode,
            ipc=ipc,
            arch=arch,
            seed=seed,
            epochs=epochs,
            labels=labels,
            teacher=teacher if labels == "soft" else "",
            engine=engine if source == "bundle" else "",
            engine_precision=engine_precision if source == "bundle" else "",
            generator=files.get(content_id, ""),
            **common,
        )
        for ipc, arch, seed, labels, mode in product(ipcs, archs, seeds, kinds, modes)
        for source, name, content_id, limit in drawn + real[labels, mode]
    ]
    if whole_epochs:
        cells += [
            Cell(
                source="whole",
                subject="whole set",
                content_id="",
                images_per_class=0,
                mode="whole",
                ipc=0,
                arch=arch,
                seed=seed,
                epochs=whole_epochs,
                labels="hard",
                teacher="",
                engine="",
                engine_precision="",
                generator="",
                **common,
            )
            for arch, seed in product(archs, seeds)
        ]
    return cells
