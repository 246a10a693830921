"""The images that students of the evaluation are trained on: sets and streams, generated and real.

All are iterators of batches, of which a student takes as many as it has steps. Images are drawn in chunks of many
batches: an engine with a padded batch of 256 would otherwise draw 256 images for a batch of 10, and drawing in turns
with training never has more threads than cores. On ONNX Runtime's CPU provider, which pads nothing, the chunk made no
difference.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dim.data.image_set import ImageSet
from dim.evaluation.drawn import DrawnStream
from dim.execution.device_data import DeviceImages, move_images, seed_of
from dim.runtime.bundle import Bundle
from dim.runtime.sampling.stream import StreamPlan
from dim.students.train import Batch

CHUNK_PIXELS = 2**20
"""Pixels that are drawn at once: 1,337 images of 28x28, 1,024 of 32x32, 64 of 128x128."""

Labels = NDArray[np.int64]
Pairs = Iterator[tuple[Labels, Labels]]
"""Labels and indices of one batch after another."""
Draw = Callable[[Labels, Labels], Tensor]
"""Labels and indices to images uint8 `[N, C, H, W]` on the device."""
Score = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""A teacher: images uint8 `[N, H, W, C]` to logits float32 `[N, K]`."""


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Batches for one student, and what they cost."""

    batches: Iterator[Batch]
    distinct_images: int
    """How many different images the given number of steps shows."""
    data_bytes: int
    """What must be kept to have them again."""


def draw_in_chunks(pairs: Pairs, draw: Draw, score: Score | None, rows: int) -> Iterator[Batch]:
    """Turn a pair per batch into batches, drawing whole batches together until there are `rows` images."""
    waiting: list[tuple[Labels, Labels]] = []
    for pair in pairs:
        waiting.append(pair)
        if sum(len(labels) for labels, _ in waiting) >= rows:
            yield from _draw_chunk(waiting, draw, score)
            waiting = []
    if waiting:
        yield from _draw_chunk(waiting, draw, score)


def _draw_chunk(waiting: list[tuple[Labels, Labels]], draw: Draw, score: Score | None) -> Iterator[Batch]:
    labels = np.concatenate([labels for labels, _ in waiting])
    images = draw(labels, np.concatenate([indices for _, indices in waiting]))
    labels_N, logits = torch.from_numpy(labels).to(images.device), None
    if score is not None:
        logits = torch.from_numpy(score(images.permute(0, 2, 3, 1).cpu().numpy())).to(images.device)
    start = 0
    for batch_labels, _ in waiting:
        part = slice(start, start + len(batch_labels))
        yield images[part], labels_N[part], None if logits is None else logits[part]
        start = part.stop


def fixed_images(
    images: NDArray[np.uint8], labels: Labels, batch_size: int, seed: int, device: torch.device, score: Score | None
) -> TrainingImages:
    """Show one set epoch after epoch, reshuffled, the last short batch of an epoch kept.

    Args:
        images: uint8 `[M, H, W, C]`.
        labels: int64 `[M]`.
        batch_size: images per step.
        seed: of the order.
        device: where the batches go.
        score: a teacher that labels the set once, or None.
    """
    images_M, labels_M = DeviceImages(images, device), torch.from_numpy(labels).to(device)
    logits_M = None if score is None else torch.from_numpy(score(images)).to(device)

    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed_of("fixed order", seed))
        while True:
            order = torch.randperm(len(labels), generator=generator).to(device)
            for start in range(0, len(order), batch_size):
                part = order[start : start + batch_size]
                yield images_M.gather(part), labels_M[part], None if logits_M is None else logits_M[part]

    soft_bytes = 0 if logits_M is None else 2 * logits_M.numel()
    return TrainingImages(batches=batches(), distinct_images=len(labels), data_bytes=images.nbytes + soft_bytes)


def generated_set(bundle: Bundle, ipc: int, seed: int) -> tuple[NDArray[np.uint8], Labels]:
    """Draw the images that `dim generate --ipc` writes, uint8 `[K * ipc, H, W, C]`, and their labels."""
    num_classes = len(bundle.classes)
    labels = np.tile(np.arange(num_classes, dtype=np.int64), ipc)
    indices = np.repeat(np.arange(ipc, dtype=np.int64), num_classes)
    return bundle.sample(labels, indices, seed, use="fixed"), labels


def generated_stream(
    bundle: Bundle,
    ipc: int,
    batch_size: int,
    epochs: int,
    seed: int,
    device: torch.device,
    score: Score | None,
    kept: Path | None = None,
) -> Iterator[Batch]:
    """Show `ipc` fresh images per class in every epoch, the same batches as `bundle.stream`.

    Args:
        bundle: an open one.
        ipc: images per class and epoch.
        batch_size: images per step; the last short batch of an epoch is kept.
        epochs: how many there are.
        seed: of the images and their order.
        device: where the batches go.
        score: a teacher that labels them, or None.
        kept: folder of the images that other students of the seed had drawn; None draws all anew.
    """
    num_classes, manifest = len(bundle.classes), bundle.manifest
    plan = StreamPlan(labels=tuple(range(num_classes)), ipc=ipc, batch_size=batch_size, seed=seed, epochs=epochs)

    name = f"{manifest.content_id}-{bundle.engine.precision}-{seed}"
    stream = None if kept is None else DrawnStream(bundle=bundle, seed=seed, path=kept / name)

    def draw(labels: Labels, indices: Labels) -> Tensor:
        images = bundle.sample(labels, indices, seed, use="stream") if stream is None else stream.draw(labels, indices)
        return move_images(images, device)

    rows = CHUNK_PIXELS // (manifest.height * manifest.width)
    return draw_in_chunks(plan.batches(), draw, score, rows)


def shuffled_rows_by_class(data: ImageSet, seed: int) -> list[Labels]:
    """List the rows of every class of the training split in an order of the seed, so that smaller sets are prefixes."""
    rng = np.random.default_rng(seed_of("real images", seed))
    order = rng.permutation(len(data.train_labels))
    by_class = order[np.argsort(data.train_labels[order], kind="stable")]
    return np.split(by_class, np.cumsum(data.class_counts)[:-1])


def real_set(data: ImageSet, ipc: int, seed: int) -> tuple[NDArray[np.uint8], Labels]:
    """Pick `ipc` random real images per class, or all of a class that has fewer."""
    rows = np.concatenate([rows[:ipc] for rows in shuffled_rows_by_class(data, seed)])
    return data.train_images[rows], data.train_labels[rows]


def real_stream(
    data: ImageSet,
    images: DeviceImages,
    ipc: int,
    batch_size: int,
    epochs: int,
    seed: int,
    score: Score | None,
) -> TrainingImages:
    """Show `ipc` real images per class in every epoch, none twice before all of its class were shown.

    Args:
        data: the dataset.
        images: its training images, on the device where the batches go.
        ipc: images per class and epoch.
        batch_size: images per step; the last short batch of an epoch is kept.
        epochs: how many will be used; decides `distinct_images`.
        seed: of the order.
        score: a teacher, or None.
    """
    classes = shuffled_rows_by_class(data, seed)
    rng = np.random.default_rng(seed_of("real order", seed))

    def endless(rows: Labels) -> Iterator[int]:
        while True:
            yield from rows
            rows = rng.permutation(rows)

    def pairs() -> Pairs:
        decks = [endless(rows) for rows in classes]
        while True:
            epoch = np.array([next(deck) for deck in decks for _ in range(ipc)], dtype=np.int64)
            epoch = rng.permutation(epoch)
            for start in range(0, len(epoch), batch_size):
                rows = epoch[start : start + batch_size]
                yield data.train_labels[rows], rows

    def draw(labels: Labels, rows: Labels) -> Tensor:
        return images.gather(torch.from_numpy(rows).to(images.device))

    image_bytes = int(np.prod(data.train_images.shape[1:]))
    distinct = sum(min(len(rows), ipc * epochs) for rows in classes)
    chunk = CHUNK_PIXELS // (data.height * data.width)
    soft_bytes = 0 if score is None else 2 * len(data.classes)
    return TrainingImages(
        batches=draw_in_chunks(pairs(), draw, score, chunk),
        distinct_images=distinct,
        data_bytes=distinct * (image_bytes + soft_bytes),
    )


def keep_percent(data: ImageSet, percent: float, seed: int) -> ImageSet:
    """Return the dataset with a random part of every class's training images, at least one of each."""
    kept = [rows[: max(1, round(len(rows) * percent / 100))] for rows in shuffled_rows_by_class(data, seed)]
    rows = np.concatenate(kept)
    return replace(data, train_images=data.train_images[rows], train_labels=data.train_labels[rows])


def mix_batches(real: Iterator[Batch], generated: Iterator[Batch]) -> Iterator[Batch]:
    """Show batches of both in halves: every batch is half real, and every image of both streams is shown.

    Args:
        real, generated: batches of equal sizes, one by one.
    """
    for first, second in zip(real, generated, strict=False):
        half = len(first[1]) // 2
        for start, stop in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
            parts = [
                None if a is None or b is None else torch.cat([a[start], b[stop]])
                for a, b in zip(first, second, strict=True)
            ]
            images, labels, logits = parts
            assert images is not None and labels is not None
            yield images, labels, logits
