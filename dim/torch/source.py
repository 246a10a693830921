"""Shared by both datasets: the bundle, its teacher, and the conversion of a drawn image to a tensor."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.names import TEACHER_ONNX
from dim.runtime.errors import BadValueError, BundleError
from dim.runtime.sets.soft_labels import Score, open_teacher

Transform = Callable[[Tensor], Any]

_MIN_STD = 1e-3  # of a channel that is the same everywhere
# Sessions that were inherited by fork have lost their threads; destroying them would wait for these for ever.
_leaked_after_fork: list[object] = []


class Source:
    """A bundle and perhaps its teacher; a loader worker opens engines of its own, of one thread unless told otherwise.

    Args:
        bundle: an open bundle, which stays its owner's, or what `open_bundle` takes.
        soft_labels: whether the teacher is needed.

    Raises:
        BundleError: there is no such bundle, or it has no teacher.
    """

    def __init__(self, bundle: Bundle | str | Path, soft_labels: bool) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.soft_labels = soft_labels
        self._opened: tuple[int, Bundle, Score | None] | None = None
        if soft_labels and TEACHER_ONNX not in self.bundle.manifest.files:
            raise BundleError(
                f"The bundle {self.bundle.path} has no {TEACHER_ONNX} to make soft labels; leave soft_labels out."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a drawn image."""
        manifest = self.bundle.manifest
        return manifest.channels, manifest.height, manifest.width

    def open(self, in_worker: bool) -> tuple[Bundle, Score | None]:
        """Return the bundle to draw with in this process, and its teacher where soft labels are wanted."""
        if self._opened is None or self._opened[0] != os.getpid():
            _leaked_after_fork.append(self._opened)
            bundle, threads = self.bundle, self.bundle.engine_options.threads
            if in_worker:
                threads = threads or 1
                options = replace(bundle.engine_options, threads=threads)
                bundle = Bundle(bundle.path, options, fixed_latents=bundle.fixed_latents)
            self._opened = os.getpid(), bundle, open_teacher(bundle, threads) if self.soft_labels else None
        return self._opened[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {"bundle": self.bundle, "soft_labels": self.soft_labels, "_opened": None}


class Pixels:
    """Turns drawn images into what a network takes: the transform first, then normalisation.

    Args:
        bundle: its source's mean and standard deviation normalise.
        transform: gets uint8 [C, H, W], or [B, C, H, W] of a ready batch; None for none.
        normalize: whether to normalise.

    Raises:
        BadValueError: the transform cannot be called.
    """

    def __init__(self, bundle: Bundle, transform: Transform | None, normalize: bool) -> None:
        if transform is not None and not callable(transform):
            raise BadValueError(f"transform is {transform!r}; it must be a function of a tensor, or None.")
        self.mean = torch.tensor(bundle.manifest.source.mean, dtype=torch.float32)
        self.std = torch.tensor(bundle.manifest.source.std, dtype=torch.float32).clamp_min(_MIN_STD)
        self._transform = transform
        self._normalize = normalize

    def __call__(self, images: Tensor) -> Any:
        """Transform and normalise uint8 [C, H, W] or [B, C, H, W]."""
        changed = images if self._transform is None else self._transform(images)
        if not self._normalize:
            return changed
        if not isinstance(changed, Tensor):
            raise BadValueError(
                f"The transform returned a {type(changed).__name__}, which cannot be normalised: return a tensor, or "
                "pass normalize=False."
            )
        return self.normalize(changed)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise uint8, or floating point from 0 to 1, [..., C, H, W] to float32 (or the floating point given)."""
        pixels = images if images.is_floating_point() else images.to(torch.float32) / 255
        mean, std = (each.to(pixels.device, pixels.dtype).view(-1, 1, 1) for each in (self.mean, self.std))
        return (pixels - mean) / std

    @property
    def by_batch(self) -> bool:
        """Whether single images may be handled many at a time."""
        return self._transform is None


def to_tensor(images_NHWC: NDArray[np.uint8]) -> Tensor:
    """Turn drawn images into a tensor uint8 [N, C, H, W]."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous()


def to_logits(score: Score, images_NHWC: NDArray[np.uint8]) -> Tensor:
    """Score images with the teacher: float32 [N, K]."""
    return torch.from_numpy(score(images_NHWC)).float()
