"""Running one cell of the evaluation: draw the images, train the student, test it once."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dim.data.image_set import ImageSet
from dim.evaluation.cells import Cell, CellResult, describe_machine
from dim.evaluation.images import (
    Score,
    TrainingImages,
    as_nchw,
    fixed_images,
    generated_set,
    generated_stream,
    real_set,
    real_stream,
)
from dim.evaluation.plan import bundle_bytes
from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import TEACHER_ONNX
from dim.runtime.errors import BadValueError, BundleError
from dim.runtime.sets.soft_labels import open_teacher
from dim.students.train import Normalizer, StudentSpec, measure_accuracy, train_student
from dim.torch_engine.engine import TORCH, TorchEngine
from dim.version import __version__

_TEACHER_ROWS = 512


@dataclass(kw_only=True)
class Bench:
    """What cells share: the dataset on the device and the opened bundles. Pickles without what it opened."""

    data: ImageSet
    bundles: Mapping[str, Path]
    """Content id to folder."""
    device: str
    """A torch device."""
    threads: int
    """Of torch and of CPU engines, which take turns."""
    engine: str = "auto"
    engine_device: str = "auto"
    graphs: bool = True
    """Whether students on a GPU may be trained by CUDA graphs."""
    _opened: dict[tuple[str, str], Bundle] = field(default_factory=dict)
    _teachers: dict[str, Score] = field(default_factory=dict)

    @cached_property
    def train_images(self) -> Tensor:
        """The training split on the device, uint8 `[N, C, H, W]`."""
        return as_nchw(self.data.train_images, torch.device(self.device))

    @cached_property
    def machine(self) -> str:
        return describe_machine(self.device)

    def bundle(self, content_id: str, precision: str) -> Bundle:
        """Return the opened bundle of that content id, with an engine of that precision ("" for any)."""
        key = (content_id, precision)
        if key not in self._opened:
            torch_draws = self.engine == TORCH
            bundle = open_bundle(
                self.bundles[content_id],
                engine="auto" if torch_draws else self.engine,
                device=self.engine_device,
                precision=precision or None,
                threads=self.threads,
                say=lambda sentence: None,
            )
            if torch_draws:
                bundle.draw_with(TorchEngine(bundle, precision or "fp32", torch.device(self.device)))
            self._opened[key] = bundle
        return self._opened[key]

    def teacher(self, sha256: str) -> Score:
        """Return the teacher whose file has that hash, from whichever bundle holds it.

        Its logits are rounded to float16, as in the files that `dim generate --soft-labels` writes.
        """
        if sha256 not in self._teachers:
            for folder in self.bundles.values():
                with open_bundle(folder, say=lambda sentence: None) as bundle:
                    record = bundle.manifest.files.get(TEACHER_ONNX)
                    if record is not None and record.sha256 == sha256:
                        self._teachers[sha256] = _in_parts(open_teacher(bundle, self.threads))
                        break
        return self._teachers[sha256]

    def close(self) -> None:
        """Close the bundles."""
        for bundle in self._opened.values():
            bundle.close()
        self._opened.clear()
        self._teachers.clear()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("data", "bundles", "device", "threads", "engine", "engine_device", "graphs")
        return {name: getattr(self, name) for name in kept} | {"_opened": {}, "_teachers": {}}


def check_fits(folder: Path, manifest: Manifest, data: ImageSet) -> None:
    """Refuse a bundle whose classes or image shape are not the dataset's.

    Raises:
        BadValueError: they differ.
    """
    if manifest.classes != data.classes:
        raise BadValueError(
            f"The bundle {folder} draws the classes {_listed(manifest.classes)}, but {data.name} has "
            f"{_listed(data.classes)}: evaluate it on the dataset it was distilled from, {manifest.source.name}."
        )
    found, expected = (manifest.height, manifest.width, manifest.channels), data.train_images.shape[1:]
    if found != expected:
        shapes = [" x ".join(map(str, shape)) for shape in (found, expected)]
        raise BadValueError(
            f"The bundle {folder} draws images of {shapes[0]} but those of {data.name} are {shapes[1]}: "
            f"load the dataset with size={manifest.height} and channels={manifest.channels}."
        )


def _listed(classes: tuple[str, ...]) -> str:
    more = f" and {len(classes) - 3} more" if len(classes) > 3 else ""
    return ", ".join(repr(name) for name in classes[:3]) + more


def teacher_hash(folder: Path, manifest: Manifest) -> str:
    """Return the SHA-256 of the bundle's teacher.

    Raises:
        BundleError: it has none.
    """
    if TEACHER_ONNX not in manifest.files:
        raise BundleError(f"The bundle {folder} has no {TEACHER_ONNX}, so there are no soft labels to train with.")
    return manifest.files[TEACHER_ONNX].sha256


def _in_parts(score: Callable[[NDArray[np.uint8]], NDArray[np.float16]]) -> Score:
    """Bound the memory that a teacher takes, whatever the size of the set."""

    def score_all(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [
            score(np.ascontiguousarray(images[start : start + _TEACHER_ROWS]))
            for start in range(0, len(images), _TEACHER_ROWS)
        ]
        return np.concatenate(parts).astype(np.float32)

    return score_all


def run_cell(bench: Bench, cell: Cell, progress: Callable[[int, int], None]) -> CellResult:
    """Train and test the student of one cell.

    Args:
        bench: dataset, bundles and device.
        cell: what to run.
        progress: called with the finished steps and all steps.

    Returns:
        The finished cell.
    """
    began = time.perf_counter()
    data, device = bench.data, torch.device(bench.device)
    steps = cell.steps(len(data.classes), len(data.train_labels))
    engine = bench.bundle(cell.content_id, cell.engine_precision).engine if cell.source == "bundle" else None
    images = training_images(bench, cell)
    spec = StudentSpec(
        arch=cell.arch,
        width=cell.width,
        num_classes=len(data.classes),
        channels=data.channels,
        image_px=data.height,
        mean=data.mean,
        std=data.std,
        recipe=cell.recipe,
        precision=cell.precision,
    )
    student, loss = train_student(
        spec,
        images.batches,
        steps,
        seed=cell.seed,
        device=device,
        graphs=bench.graphs,
        progress=lambda step: progress(step, steps),
    )
    normalize = Normalizer(data.mean, data.std, device)
    accuracy = measure_accuracy(student, data.test_images, data.test_labels, normalize, device)
    return CellResult(
        cell=cell,
        accuracy=accuracy,
        diverged=not math.isfinite(loss),
        steps=steps,
        distinct_images=images.distinct_images,
        data_bytes=images.data_bytes,
        test_images=len(data.test_labels),
        seconds=round(time.perf_counter() - began, 2),
        engine="" if engine is None else f"{engine.name} {engine.precision} on {engine.device}, {engine.version}",
        device=bench.device,
        machine=bench.machine,
        threads=bench.threads,
        torch_version=torch.__version__,
        dim_version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        data_note=data.note,
    )


def training_images(bench: Bench, cell: Cell) -> TrainingImages:
    """Return the images that a cell's student is trained on."""
    data, device, seed = bench.data, torch.device(bench.device), cell.seed
    batch_size = cell.recipe.batch_size
    score = bench.teacher(cell.teacher) if cell.teacher else None
    if cell.source == "whole":
        return fixed_images(data.train_images, data.train_labels, batch_size, seed, device, score)
    if cell.source == "real" and cell.mode == "fixed":
        return fixed_images(*real_set(data, cell.ipc, seed), batch_size, seed, device, score)
    if cell.source in ("real", "real-bytes"):
        return real_stream(
            data,
            bench.train_images,
            cell.ipc,
            batch_size,
            cell.epochs,
            seed,
            device,
            score,
            limit=cell.images_per_class,
        )
    bundle = bench.bundle(cell.content_id, cell.engine_precision)
    if cell.mode == "fixed":
        return fixed_images(*generated_set(bundle, cell.ipc, seed), batch_size, seed, device, score)
    return TrainingImages(
        batches=generated_stream(bundle, cell.ipc, batch_size, cell.epochs, seed, device, score),
        distinct_images=len(data.classes) * cell.ipc * cell.epochs,
        data_bytes=bundle_bytes(bundle.manifest, bundle.engine.precision, soft=bool(cell.teacher)),
    )
