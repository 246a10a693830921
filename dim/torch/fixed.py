"""A set of a bundle as a PyTorch dataset: drawn once, then indexed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dim.runtime.bundle import Bundle
from dim.torch.source import Pixels, Source, Transform, to_logits, to_tensor


class FixedDataset(Dataset[tuple[Any, ...]]):
    """One set, drawn once and kept in memory: `DataLoader(FixedDataset("mnist", ipc=50), 64, shuffle=True)`.

    It holds what `dim generate` writes for the same arguments, in the same order, with the bundle's optimised latents
    where it has some. An index gives an image float32 [C, H, W] and its label; with `soft_labels` logits float32 [K]
    come third.

    Args:
        bundle: a path, a name or a URL as `open_bundle` takes them, or an open bundle with an engine of your choice.
        ipc: images per class.
        ratio: or the size relative to the source set, keeping its balance of classes.
        total: or the number of images, keeping that balance.
        per_class: or images by class name, or one number for each class.
        classes: names or labels of the classes wanted; None for all. Labels stay those of the bundle.
        seed: 0 to 2**64 - 1.
        start: the first index of every class; continues another set of the same seed.
        transform: gets uint8 [C, H, W] at every access, and returns uint8 or floating point from 0 to 1, before
            normalisation.
        normalize: subtract the mean of the bundle's source and divide by its standard deviation; without it images
            are uint8, or what the transform returns.
        soft_labels: give the teacher's logits as a third value.

    Raises:
        BadValueError: no size or two sizes, no such class, or a number out of range.
        BundleError: there is no such bundle, or it has no teacher.
        EngineError: the engine cannot be opened or failed.
    """

    images: Tensor
    """All of them as drawn, uint8 [N, C, H, W]."""
    labels: Tensor
    """int64 [N]."""
    logits: Tensor | None
    """The teacher's, float32 [N, K]; None without soft labels."""
    classes: tuple[str, ...]
    """Class names in the order of their labels."""
    image_shape: tuple[int, int, int]
    """Channels, height and width of a drawn image."""

    def __init__(
        self,
        bundle: Bundle | str | Path,
        ipc: int | None = None,
        *,
        ratio: float | None = None,
        total: int | None = None,
        per_class: Mapping[str, int] | Sequence[int] | None = None,
        classes: str | Sequence[str | int] | None = None,
        seed: int = 0,
        start: int = 0,
        transform: Transform | None = None,
        normalize: bool = True,
        soft_labels: bool = False,
    ) -> None:
        source = Source(bundle, soft_labels)
        self.classes, self.image_shape = source.bundle.classes, source.image_shape
        self._pixels = Pixels(source.bundle, transform, normalize)
        try:
            opened, score = source.open(in_worker=False)
            images, labels = opened.arrays(
                ipc, ratio=ratio, total=total, per_class=per_class, classes=classes, seed=seed, start=start
            )
            self.logits = None if score is None else to_logits(score, images)
        finally:
            if source.bundle is not bundle:
                source.bundle.close()
        self.images, self.labels = to_tensor(images), torch.from_numpy(labels)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise other images, such as real ones to test on, as this dataset's are.

        Args:
            images: uint8, or floating point from 0 to 1, [..., C, H, W].

        Returns:
            floating point [..., C, H, W].
        """
        return self._pixels.normalize(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range: there are {len(self):,} images")
        item = self._pixels(self.images[index]), int(self.labels[index])
        return item if self.logits is None else (*item, self.logits[index])

    def __repr__(self) -> str:
        return f"<FixedDataset: {len(self):,} images of {len(self.classes)} classes>"
