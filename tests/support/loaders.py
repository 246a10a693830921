"""What a loader yields, made comparable; and ranks without processes."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

from dim.runtime.bundle import Bundle

Pictures = Counter[tuple[bytes, int]]


def count_pictures(batches: Iterable[Any]) -> Pictures:
    """Count the pictures of batches [B, C, H, W], with their labels."""
    return Counter(
        (image.numpy().tobytes(), int(label))
        for images, labels, *_ in batches
        for image, label in zip(images, labels, strict=True)
    )


def expected_pictures(bundle: Bundle, ipc: int, epoch: int, invert: bool = False) -> Pictures:
    """Count the pictures of one epoch of a bundle's own stream, perhaps each as `Invert` makes it."""
    return Counter(
        ((255 - image if invert else image).transpose(2, 0, 1).tobytes(), int(label))
        for images, labels in bundle.stream(ipc, epochs=1, start_epoch=epoch)
        for image, label in zip(images, labels, strict=True)
    )


def act_as_rank(patch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    """Let torch.distributed say that this process is a rank."""
    patch.setattr(dist, "is_initialized", lambda: True)
    patch.setattr(dist, "get_rank", lambda: rank)
    patch.setattr(dist, "get_world_size", lambda: world)


class Invert:
    """A transform that a spawned worker can unpickle; notes the shapes that it gets."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return 255 - images


def take(loader: Iterable[Any], count: int) -> list[Any]:
    """Take some items of a loop and leave it."""
    found = []
    for item in loader:
        found.append(item)
        if len(found) == count:
            break
    return found
