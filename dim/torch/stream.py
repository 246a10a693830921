"""A stream of a bundle as a PyTorch dataset: every pass has new images, divided among workers and ranks."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from dim.runtime.bundle import Bundle
from dim.runtime.errors import BadValueError
from dim.runtime.sampling.stream import StreamPlan, iterate_ahead
from dim.torch.epochs import Epochs
from dim.torch.source import Pixels, Source, Transform, to_logits, to_tensor

Row = NDArray[np.int64]

# Images per run of the engine where the loader makes the batches, and batches drawn ahead where it has no workers.
_ROWS = 64
_PREFETCH = 2


class ReadyBatch(tuple[Any, ...]):
    """A batch that a loader must not make batches of."""


def _refuse_to_collate(batches: Sequence[ReadyBatch], *, collate_fn_map: object = None) -> None:
    raise BadValueError(
        "The dataset gives ready batches, because it has a batch_size: pass batch_size=None to DataLoader."
    )


default_collate_fn_map[ReadyBatch] = _refuse_to_collate


class StreamDataset(IterableDataset[tuple[Any, ...]]):
    """Fresh images at every pass: `DataLoader(StreamDataset("mnist", ipc=10), batch_size=64)`.

    Pass e holds indices e*ipc to (e+1)*ipc-1 of every class, shuffled, as epoch e of `Bundle.stream`. Loader workers
    and ranks of `torch.distributed` share a pass: each image comes once, in one of them. The passes are counted by
    the dataset and its workers together, persistent or not, so no epoch need be set. Under several ranks every rank
    gets the same number of images; those that cannot be shared evenly are left out of the pass.

    A loop yields images float32 [C, H, W] with their labels, or ready batches, float32 [B, C, H, W] and int64 [B]. With
    `soft_labels` logits come third, float32 [K] or [B, K].

    Args:
        bundle: a path, a name or a URL as `open_bundle` takes them, or an open bundle with an engine of your choice.
            Loader workers open their own engine, of one thread unless the open bundle says otherwise.
        ipc: images per class and pass.
        batch_size: None for single images, of which the loader makes batches; a number for ready batches, for a loader
            with `batch_size=None`. These do not depend on the number of workers, and their transform is run once per
            batch.
        transform: gets uint8 [C, H, W], or [B, C, H, W] of a ready batch, and returns uint8 or floating point from 0 to
            1, before normalisation.
        normalize: subtract the mean of the bundle's source and divide by its standard deviation; without it images
            are uint8, or what the transform returns.
        soft_labels: yield the teacher's logits as a third value.
        classes: names or labels to draw; None for all. Labels stay those of the bundle.
        seed: 0 to 2**64 - 1, for the images and the shuffles.
        drop_last: leave out a ready batch that is too small.
        shard: (i, n) takes every n-th image from the i-th; None for this process's rank. A trainer that shares out
            the items itself needs (0, 1).

    Raises:
        BadValueError: an argument is out of range, or a pass has fewer images than there are ranks.
        BundleError: there is no such bundle, or it has no teacher.
        EngineError: the engine cannot be opened or failed.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        ipc: int,
        *,
        batch_size: int | None = None,
        transform: Transform | None = None,
        normalize: bool = True,
        soft_labels: bool = False,
        classes: str | Sequence[str | int] | None = None,
        seed: int = 0,
        drop_last: bool = False,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self._source = Source(bundle, soft_labels)
        self._pixels = Pixels(self._source.bundle, transform, normalize)
        self._epochs = Epochs()
        self.ipc, self.batch_size, self.seed, self.drop_last = ipc, batch_size, seed, drop_last
        self._labels = self._source.bundle.select(classes)
        self._shard = shard
        self._rank = (0, 1)
        self._plan(0, shard or (0, 1), 1 if batch_size is None else batch_size)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return self._source.bundle.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a drawn image."""
        return self._source.image_shape

    @property
    def epoch(self) -> int:
        """The number of the next pass."""
        return self._epochs.next

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next pass, to resume or to repeat one; later passes count on from it.

        Raises:
            BadValueError: it is no integer from 0 to 2**32 - 2.
        """
        self._epochs.set(epoch)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise other images, such as real ones to test on, as this dataset's are.

        Args:
            images: uint8, or floating point from 0 to 1, [..., C, H, W].

        Returns:
            floating point [..., C, H, W].
        """
        return self._pixels.normalize(images)

    def __len__(self) -> int:
        """Count the images of a pass of this rank, or its ready batches."""
        images = self._count_images(self._find_shard())
        if self.batch_size is None:
            return images
        return images // self.batch_size if self.drop_last else -(-images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Begin the next pass; a loader worker yields its share of it."""
        worker = get_worker_info()
        labels, indices = self._begin(self._find_shard())
        chunks = self._cut(labels, indices, *((0, 1) if worker is None else (worker.id, worker.num_workers)))
        draw = partial(self._draw, chunks, worker is not None)
        drawn = iterate_ahead(draw, _PREFETCH if worker is None else 0)
        return self._single_images(drawn) if self.batch_size is None else self._ready_batches(drawn)

    def __repr__(self) -> str:
        items = "single images" if self.batch_size is None else f"batches of {self.batch_size}"
        name = self._source.bundle.manifest.name
        return f"<StreamDataset: {items} of {name}, ipc {self.ipc}, {len(self._labels)} classes, epoch {self.epoch}>"

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker knows nothing of the process group.
        return self.__dict__ | {"_rank": self._find_shard()}

    def _find_shard(self) -> tuple[int, int]:
        if self._shard is not None:
            return self._shard
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return self._rank

    def _plan(self, epoch: int, shard: tuple[int, int], batch_size: int) -> StreamPlan:
        return StreamPlan(
            labels=self._labels,
            ipc=self.ipc,
            batch_size=batch_size,
            seed=self.seed,
            epochs=1,
            start_epoch=epoch,
            shard=shard,
        )

    def _count_images(self, shard: tuple[int, int]) -> int:
        """Count the images of a pass that fall to each rank."""
        images, ranks = self.ipc * len(self._labels), shard[1]
        if images < ranks:
            enough = -(-ranks // len(self._labels))
            raise BadValueError(f"A pass has {images:,} images for {ranks:,} ranks: raise ipc to {enough} or more.")
        return images // ranks

    def _begin(self, shard: tuple[int, int]) -> tuple[Row, Row]:
        """Begin a pass: labels and indices of the images of this rank, int64 [N], in their order."""
        images = self._count_images(shard)
        plan = self._plan(self._epochs.begin(), shard, self.ipc * len(self._labels))
        labels, indices = next(plan.batches())
        if self.batch_size is not None and self.drop_last:
            images -= images % self.batch_size
        return labels[:images], indices[:images]

    def _cut(self, labels: Row, indices: Row, i: int, n: int) -> Iterator[tuple[Row, Row]]:
        """Cut the part of worker i of n into what is drawn at once: every n-th ready batch, or every n-th image."""
        if self.batch_size is None:
            labels, indices, rows, i, n = labels[i::n], indices[i::n], _ROWS, 0, 1
        else:
            rows = self.batch_size
        for start in range(i * rows, len(labels), n * rows):
            yield labels[start : start + rows], indices[start : start + rows]

    def _draw(self, chunks: Iterator[tuple[Row, Row]], in_worker: bool) -> Iterator[tuple[Tensor, ...]]:
        """Draw uint8 [B, C, H, W], with labels int64 [B] and perhaps logits [B, K]."""
        bundle, score = self._source.open(in_worker)
        for labels, indices in chunks:
            images = bundle.sample(labels, indices, self.seed, "stream")
            scores = () if score is None else (to_logits(score, images),)
            yield to_tensor(images), torch.from_numpy(labels), *scores

    def _single_images(self, chunks: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Any, ...]]:
        for images, labels, *scores in chunks:
            ready = self._pixels(images) if self._pixels.by_batch else map(self._pixels, images)
            for image, label, *logits in zip(ready, labels.tolist(), *scores, strict=True):
                yield image, label, *logits

    def _ready_batches(self, chunks: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Any, ...]]:
        for images, labels, *scores in chunks:
            yield ReadyBatch((self._pixels(images), labels, *scores))
