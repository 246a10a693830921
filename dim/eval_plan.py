"""Which students an evaluation trains, and in which order."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from dim.data_set import ImageSet
from dim.eval_cells import Cell
from dim.runtime.manifest import Manifest
from dim.runtime.manifest_check import CANONICAL_ONNX
from dim.students import Recipe

MODES = ("fixed", "stream")


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
) -> list[Cell]:
    """List the cells in the order in which they are run: by images per class, then network, seed, labels and mode.

    Args:
        data: the dataset.
        bundles: names and manifests; the first one's size decides the control of equal bytes.
        teacher: SHA-256 of the teacher, empty for hard labels alone; the rest as in `evaluate`.

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
    # Every source: (source, name, content id, most images per class).
    drawn = [("bundle", name, manifest.content_id, 0) for name, manifest in bundles]
    real = {mode: [("real", "real", "", 0)] for mode in MODES} if controls else {mode: [] for mode in MODES}
    if controls and bundles:
        budget = bundles[0][1].files[CANONICAL_ONNX].size_bytes // (image_bytes * len(data.classes))
        if budget < max(data.class_counts):
            real["stream"].append(("real-bytes", "real, equal bytes", "", max(1, budget)))
    kinds = ("hard", "soft") if teacher else ("hard",)
    # What fp16 and int8 images teach stands beside what fp32 images do.
    shown = engine_precision not in ("", "fp32")
    cells = [
        Cell(
            source=source,
            subject=f"{name}, {engine_precision}" if source == "bundle" and shown else name,
            content_id=content_id,
            images_per_class=limit,
            mode=mode,
            ipc=ipc,
            arch=arch,
            seed=seed,
            epochs=epochs,
            labels=labels,
            teacher=teacher if labels == "soft" else "",
            engine_precision=engine_precision if source == "bundle" else "",
            **common,
        )
        for ipc, arch, seed, labels, mode in product(ipcs, archs, seeds, kinds, modes)
        for source, name, content_id, limit in drawn + real[mode]
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
                engine_precision="",
                **common,
            )
            for arch, seed in product(archs, seeds)
        ]
    return cells
