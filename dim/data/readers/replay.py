"""A bundle as a dataset: images drawn from its stream replace originals that are no longer available."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.data.image_set import RawSet, Source
from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.names import CANONICAL_ONNX, MANIFEST_NAME

TEST_PART, FEWEST_TEST = 5, 20
"""Beside N training images per class, N / 5 further ones are drawn as test images, and at least 20."""


def is_bundle(path: Path) -> bool:
    """Whether a path is a bundle's folder."""
    return all((path / name).is_file() for name in (MANIFEST_NAME, CANONICAL_ONNX))


def read_bundle(source: Source) -> RawSet:
    """Draw training and test images of every class from a bundle.

    Raises:
        BundleError, EngineError: the bundle cannot be read or drawn from.
    """
    source.heed(frozenset(("replay_ipc",)))
    ipc = source.options.replay_ipc
    num_test = max(FEWEST_TEST, ipc // TEST_PART)
    with open_bundle(source.path) as bundle:
        images = _draw(bundle, source, 0, ipc + num_test)
        manifest = bundle.manifest
    labels = np.repeat(np.arange(len(manifest.classes)), ipc + num_test)
    is_train = np.tile(np.arange(ipc + num_test) < ipc, len(manifest.classes))
    note = (
        f"replayed from the bundle {manifest.name} (content id {manifest.content_id[:12]}): {ipc} images per class, "
        f"and {num_test} as test images"
    )
    source.say(f"{source.name}: {note}; none of them is real")
    return RawSet(
        name=source.name,
        classes=manifest.classes,
        train_images=images[is_train],
        train_labels=labels[is_train],
        test_images=images[~is_train],
        test_labels=labels[~is_train],
        licence=manifest.source.licence,
        notes=(note,),
    )


def _draw(bundle: Bundle, source: Source, start: int, count: int) -> NDArray[np.uint8]:
    """Draw the same indices of every class, class by class."""
    parts = []
    for label in range(len(bundle.classes)):
        source.progress(f"{source.name}: drawing", label, len(bundle.classes), "")
        parts.append(bundle.draw(label, count, start=start, use="stream"))
    source.progress(f"{source.name}: drawing", len(bundle.classes), len(bundle.classes), "")
    return np.concatenate(parts)
