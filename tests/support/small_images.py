"""Image sets that tests make: small, separable, and with variety inside every class."""

from __future__ import annotations

import numpy as np

from dim.data.load import ImageSet


def make_images(
    *, num_classes: int = 3, per_class: int = 40, image_px: int = 8, channels: int = 1, seed: int = 0
) -> ImageSet:
    """Bars at a place that the class decides, with a random brightness, shift and noise."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(num_classes), count).astype(np.int64)
        images = rng.integers(0, 40, (len(labels), image_px, image_px, channels)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            row = (int(label) * image_px // num_classes + int(rng.integers(0, 2))) % image_px
            image[row] = rng.integers(150, 256)
        return images, labels

    train_images, train_labels = split(per_class)
    test_images, test_labels = split(max(per_class // 4, 2))
    return ImageSet(
        name="bars",
        classes=tuple(f"bar{i}" for i in range(num_classes)),
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        licence="none",
        note="made by the tests",
    )
