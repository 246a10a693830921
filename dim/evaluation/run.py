"""Runs one cell of the evaluation: draw the images, train the student, test it once."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray

from dim.evaluation.cells import Cell, CellResult
from dim.evaluation.context import EvalContext
from dim.evaluation.images import (
    Score,
    TrainingImages,
    fixed_images,
    generated_set,
    generated_stream,
    keep_percent,
    mix_batches,
    real_set,
    real_stream,
)
from dim.evaluation.plan import bundle_bytes
from dim.execution.device_data import DeviceImages
from dim.students.train import Normalizer, StudentSpec, predict_classes, train_student
from dim.version import __version__


def run_cell(context: EvalContext, cell: Cell, progress: Callable[[int, int], None]) -> CellResult:
    """Train and test the student of one cell; `progress` is called with the finished steps and all steps."""
    began = time.perf_counter()
    data, device = context.data, torch.device(context.device)
    steps = cell.steps(len(data.classes), len(data.train_labels))
    engine = context.open_bundle(cell.content_id, cell.engine_precision).engine if cell.content_id else None
    images = training_images(context, cell)
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
        compiled=context.compiled,
    )
    student, loss = train_student(
        spec,
        images.batches,
        steps,
        seed=cell.seed,
        device=device,
        graphs=context.execution.graphs,
        progress=lambda step: progress(step, steps),
    )
    normalize = Normalizer(data.mean, data.std, device)
    predicted = predict_classes(student, data.test_images, normalize, device, compiled=spec.runs_compiled)
    right = predicted == data.test_labels
    return CellResult(
        cell=cell,
        accuracy=100.0 * int(right.sum()) / len(right),
        class_accuracies=_share_by_class(right, data.test_labels, len(data.classes)),
        diverged=not math.isfinite(loss),
        steps=steps,
        distinct_images=images.distinct_images,
        data_bytes=images.data_bytes,
        test_images=len(data.test_labels),
        seconds=round(time.perf_counter() - began, 2),
        engine="" if engine is None else f"{engine.name} {engine.precision} on {engine.device}, {engine.version}",
        device=context.device,
        machine=context.machine,
        threads=context.threads,
        compiled=spec.runs_compiled,
        torch_version=torch.__version__,
        dim_version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        data_note=data.note,
    )


def training_images(context: EvalContext, cell: Cell) -> TrainingImages:
    """Return the images that a cell's student is trained on."""
    data, device, seed = context.data, torch.device(context.device), cell.seed
    batch_size = cell.recipe.batch_size
    score = context.open_teacher(cell.teacher) if cell.teacher else None
    if cell.source == "whole":
        return fixed_images(data.train_images, data.train_labels, batch_size, seed, device, score)
    if cell.source == "real" and cell.mode == "fixed":
        return fixed_images(*real_set(data, cell.ipc, seed), batch_size, seed, device, score)
    if cell.source == "real":
        return real_stream(data, context.train_images, cell.ipc, batch_size, cell.epochs, seed, score)
    if cell.source == "few":
        return _few_images(context, cell, score)
    if cell.archive is not None:
        kept, size_bytes = context.open_archive(cell.archive, seed)
        shown = DeviceImages(kept.train_images, device)
        images = real_stream(kept, shown, cell.ipc, batch_size, cell.epochs, seed, score)
        return replace(images, data_bytes=size_bytes + context.count_teacher_bytes(cell.teacher))
    bundle = context.open_bundle(cell.content_id, cell.engine_precision)
    if cell.mode == "fixed":
        return fixed_images(*generated_set(bundle, cell.ipc, seed), batch_size, seed, device, score)
    stream = TrainingImages(
        batches=generated_stream(bundle, cell.ipc, batch_size, cell.epochs, seed, device, score, context.kept),
        distinct_images=len(data.classes) * cell.ipc * cell.epochs,
        data_bytes=bundle_bytes(bundle.manifest, bundle.engine.precision, soft=bool(cell.teacher)),
    )
    if cell.source == "bundle":
        return stream
    few = _few_images(context, cell, score)
    return TrainingImages(
        batches=mix_batches(few.batches, stream.batches),
        distinct_images=few.distinct_images + stream.distinct_images // 2,
        data_bytes=few.data_bytes + stream.data_bytes,
    )


def _few_images(context: EvalContext, cell: Cell, score: Score | None) -> TrainingImages:
    """A part of the real images, again and again."""
    few = keep_percent(context.data, cell.real_percent, cell.seed)
    shown = DeviceImages(few.train_images, torch.device(context.device))
    return real_stream(few, shown, cell.ipc, cell.recipe.batch_size, cell.epochs, cell.seed, score)


def _share_by_class(right: NDArray[np.bool_], labels: NDArray[np.int64], num_classes: int) -> tuple[float, ...]:
    """Percent of the images of every class that are right; 0 where a class has none."""
    counts = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, weights=right, minlength=num_classes)
    return tuple(round(float(share), 4) for share in 100 * hits / np.maximum(counts, 1))
