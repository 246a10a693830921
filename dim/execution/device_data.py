"""Training images that live on the device as uint8, and the draws that every step makes from them.

A step's draws depend on (seed, stage, step) and on nothing before them: resuming needs no saved generator state, and
every process of a data-parallel run makes the same draws and keeps its slice.

Shapes: N batch, K classes, C channels, H = W image_px.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dim.execution.large_images import MappedRows, select_images


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from a seed and the names of what it is for; unrelated for any two different tuples."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def step_generator(device: torch.device, *parts: int | str) -> torch.Generator:
    """A generator on `device` seeded by `seed_of(*parts)`."""
    return torch.Generator(device=device).manual_seed(seed_of(*parts))


def to_signed(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1."""
    return images.float() / 127.5 - 1.0


def to_pixels(images: Tensor) -> Tensor:
    """float -1..1 to uint8 0..255, rounded as a bundle does."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def move_images(images_NHWC: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Move images to the device, uint8 NCHW in channels_last memory."""
    # NHWC memory seen as NCHW is channels_last, so a gather of rows keeps the fast layout.
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).to(device).permute(0, 3, 1, 2)


class DeviceImages:
    """Images that live on the device; or, where they are larger than memory, on disk, from where each batch is read."""

    def __init__(self, images_NHWC: NDArray[np.uint8], device: torch.device) -> None:
        self.device = device
        self._on_disk = images_NHWC if _must_stay_on_disk(images_NHWC, device) else None
        self._on_device = None if self._on_disk is not None else move_images(images_NHWC, device)

    def gather(self, rows: Tensor) -> Tensor:
        """Return images of int64 rows, uint8 NCHW in channels_last memory."""
        if self._on_disk is None:
            assert self._on_device is not None
            return self._on_device[rows]
        return move_images(self._on_disk[rows.cpu().numpy()], self.device)


def _must_stay_on_disk(images: NDArray[np.uint8], device: torch.device) -> bool:
    """Whether images are too large for memory, and for half of what is free on a GPU."""
    mapped: Any = images
    if type(mapped) is not MappedRows:
        return False
    return device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] // 2


class DeviceData:
    """A labelled training set on a device, sorted by class.

    Args:
        images_NHWC: uint8.
        labels_N: int64, 0 to K-1; every class present in what is trained on.
        num_classes: K.
        device: where the images live.
    """

    def __init__(
        self, images_NHWC: NDArray[np.uint8], labels_N: NDArray[np.int64], num_classes: int, device: torch.device
    ) -> None:
        order = np.argsort(labels_N, kind="stable")
        self.images = DeviceImages(select_images(images_NHWC, order), device)
        self.labels_N = torch.from_numpy(np.ascontiguousarray(labels_N[order])).to(device)
        counts = torch.bincount(self.labels_N, minlength=num_classes)
        self.counts_K = counts
        self.offsets_K = torch.cumsum(counts, 0) - counts
        self.num_classes = num_classes
        self.device = device

    def draw_labels(self, count: int, group_size: int, generator: torch.Generator) -> Tensor:
        """Balanced labels: every class once before any comes again, in random order, each `group_size` times in a row.

        Returns:
            int64 `[count]`; `count` is a multiple of `group_size`.
        """
        groups = count // group_size
        rounds = -(-groups // self.num_classes)
        keys = torch.rand(rounds, self.num_classes, device=self.device, generator=generator)
        return keys.argsort(dim=1).flatten()[:groups].repeat_interleave(group_size)

    def draw_natural_labels(self, count: int, generator: torch.Generator) -> Tensor:
        """Labels as frequent as in the set, int64 `[count]`."""
        index = torch.randint(len(self.labels_N), (count,), device=self.device, generator=generator)
        return self.labels_N[index]

    def draw_class_images(self, label: int, most: int, generator: torch.Generator) -> Tensor:
        """Different images of one class in random order, uint8 NCHW: all of them, or `most`."""
        count = int(self.counts_K[label])
        chosen = torch.randperm(count, device=self.device, generator=generator)[:most]
        return self.images.gather(self.offsets_K[label] + chosen)

    def draw_images(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """A random real image of each label, uint8 NCHW in channels_last memory."""
        uniform = torch.rand(labels_N.shape, device=self.device, generator=generator, dtype=torch.float64)
        counts = self.counts_K[labels_N]
        within = (uniform * counts).long().clamp_(max=counts - 1)
        return self.images.gather(self.offsets_K[labels_N] + within)
