"""Warnings about a source that can be read: printed before training, and again below an evaluation's table."""

from dim.data.classes.layout import list_first
from dim.data.image_set import ImageSet, count_labels

FEW_IMAGES = 10
"""Training images of a class below which its generator learns little more than those images."""
MOST_RATIO = 50
"""Training images of the largest class over those of the smallest."""
FEW_TEST_IMAGES = 20
"""Test images of a class below which one image is more than five points of its accuracy."""


def find_cautions(images: ImageSet) -> tuple[str, ...]:
    """Return a sentence for each thing that makes results on a set doubtful; none for most sets."""
    cautions = []
    counts = images.class_counts
    if len(images.classes) == 1:
        cautions.append(
            f"'{images.classes[0]}' is the only class, so classifiers have nothing to tell apart: "
            "images are matched by untrained features, and accuracies say nothing"
        )
    tests = count_labels(images.test_labels, len(images.classes))
    if few := _list_classes(images, counts, FEW_IMAGES):
        cautions.append(f"fewer than {FEW_IMAGES} training images in {few}")
    if max(counts) > MOST_RATIO * min(counts):
        most, least = counts.index(max(counts)), counts.index(min(counts))
        cautions.append(
            f"class '{images.classes[most]}' has {max(counts)} training images and '{images.classes[least]}' "
            f"{min(counts)}, more than {MOST_RATIO} to 1, while every class is drawn equally often"
        )
    if few := _list_classes(images, tests, FEW_TEST_IMAGES):
        cautions.append(f"fewer than {FEW_TEST_IMAGES} test images in {few}, so accuracies are rough")
    return tuple(cautions)


def _list_classes(images: ImageSet, counts: tuple[int, ...], limit: int) -> str:
    """Write which classes have fewer images than `limit`, the first by name."""
    names = [f"'{name}'" for name, count in zip(images.classes, counts, strict=True) if count < limit]
    if not names:
        return ""
    return f"{len(names)} of {len(counts)} classes ({list_first(names)})"
