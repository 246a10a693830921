"""Quality and copies of one bundle's images, measured, kept in a file and put into words."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dim.data.image_set import ImageSet
from dim.evaluation.files import write_json
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.evaluation.quality import features
from dim.evaluation.quality.copying import MIN_IMAGES, measure_copying, write_verdict
from dim.evaluation.quality.distances import Rows, flatten_pixels
from dim.evaluation.quality.features import Extractor, hold_out, load_extractor, train_extractor
from dim.evaluation.quality.fidelity import NEIGHBOURS, compare_neighbourhoods, frechet_distance, kernel_distance
from dim.evaluation.quality.pairs import draw_pairs
from dim.evaluation.subjects import Subject
from dim.execution.device_data import seed_of
from dim.runtime.bundle import Bundle
from dim.runtime.errors import DataError
from dim.runtime.progress.show import Progress
from dim.runtime.storage import strict_json
from dim.torch_engine.engine import TorchEngine
from dim.version import __version__

FORMAT_VERSION = 1
MAX_IMAGES = 3000
"""Images of every kind that are compared."""
MAX_BYTES = 2**22
PAIRS_NAME = "nearest-pairs.png"
DRAWN = 512

Say = Callable[[str], None]
Found = dict[str, Any]


def assess(
    subject: Subject,
    data: ImageSet,
    protocol: EvalProtocol,
    execution: Execution,
    out: Path,
    *,
    say: Say,
    progress: Progress,
) -> Found:
    """Measure the quality of a bundle's images and whether they are copies.

    Args:
        subject: the bundle.
        data: the dataset that it was distilled from.
        protocol: its `quality`, `privacy` and `features` are used.
        execution: device, engine and precision of the images.
        out: folder; `quality-*.json` holds the result, `nearest-pairs.png` the pairs, `features/` the classifier.
        say: gets a sentence about what begins.
        progress: is told how many steps of the classifier are done.

    Returns:
        Plain JSON data with the keys `quality` and `privacy`, those that were asked for.

    Raises:
        BadValueError: the features are not to be had.
        DataError: there are too few images.
        OutputError: the disk refused.
    """
    asked = {
        "format_version": FORMAT_VERSION,
        "fingerprint": data.fingerprint(),
        "content_id": subject.manifest.content_id,
        "precision": execution.image_precision,
        "features": protocol.features or f"classifier, {features.STEPS} steps",
    }
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    path = out / f"quality-{digest}.json"
    found = _read(path) if execution.resume else {}
    missing = [part for part in ("quality", "privacy") if getattr(protocol, part) and part not in found]
    if missing:
        device = execution.choose_device()
        say(f"Comparing images of {subject.name} with real ones: {' and '.join(missing)}.")
        extractor = (
            load_extractor(protocol.features)
            if protocol.features
            else train_extractor(
                data,
                out / "features",
                device,
                lambda step, all_steps: progress("features", step, all_steps, "training a classifier"),
            )
        )
        with _open(subject, execution, device) as bundle:
            for part in missing:
                began = time.perf_counter()
                measured = (
                    measure_quality(bundle, data, extractor, device)
                    if part == "quality"
                    else measure_privacy(bundle, data, extractor, device, out / PAIRS_NAME)
                )
                found[part] = measured | {
                    "compared_by": extractor.description,
                    "precision": execution.image_precision,
                    "seconds": round(time.perf_counter() - began, 1),
                    "dim_version": __version__,
                }
        write_json(path, {"asked": asked, **found}, f"The file {path}")
    return {part: found[part] for part in ("quality", "privacy") if getattr(protocol, part)}


def _open(subject: Subject, execution: Execution, device: torch.device) -> Bundle:
    bundle = Bundle(subject.folder, execution.engine, say=lambda sentence: None)
    if execution.torch_draws:
        bundle.draw_with(TorchEngine(bundle, execution.image_precision, device))
    return bundle


def _read(path: Path) -> Found:
    """Return what an earlier call measured; nothing where there is none."""
    try:
        found = strict_json.parse(path.read_bytes(), str(path), MAX_BYTES)
    except (OSError, ValueError):
        return {}
    return {part: found[part] for part in ("quality", "privacy") if isinstance(found, dict) and part in found}


def draw_images(bundle: Bundle, counts: Sequence[int]) -> NDArray[np.uint8]:
    """Draw as many images of every class, as a stream has them, in class order, uint8 `[N, H, W, C]`."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    indices = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
    parts = [
        bundle.sample(labels[start : start + DRAWN], indices[start : start + DRAWN], 0, use="stream")
        for start in range(0, len(labels), DRAWN)
    ]
    return np.concatenate(parts)


def pick_rows(labels: NDArray[np.int64], counts: Sequence[int], among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pick as many rows of every class at random among some, in class order."""
    rng = np.random.default_rng(seed_of("quality"))
    rows = [rng.permutation(np.flatnonzero((labels == label) & among))[:count] for label, count in enumerate(counts)]
    return np.concatenate(rows)


def count_comparable(data: ImageSet, held: NDArray[np.bool_]) -> list[int]:
    """Return how many images per class all three kinds have: test, training that the classifier has not seen, drawn.

    Raises:
        DataError: one class has no test image.
    """
    num_classes = len(data.classes)
    test = np.bincount(data.test_labels, minlength=num_classes)
    unseen = np.bincount(data.train_labels[held], minlength=num_classes)
    counts = np.minimum(np.minimum(test, unseen), max(1, MAX_IMAGES // num_classes))
    if counts.min() < 1 or counts.sum() <= NEIGHBOURS:
        raise DataError(f"{data.name} has too few test images to compare with: at least one per class, and six in all.")
    return [int(count) for count in counts]


def measure_quality(bundle: Bundle, data: ImageSet, extractor: Extractor, device: torch.device) -> Found:
    """Compare generated images with real test images, and as many training images with them: the best there is."""
    held = hold_out(data)
    counts = count_comparable(data, held)
    everything = np.ones(len(data.test_labels), dtype=bool)
    test = extractor.extract(data.test_images[pick_rows(data.test_labels, counts, everything)])
    shown = {
        "generated": extractor.extract(draw_images(bundle, counts)),
        "real": extractor.extract(data.train_images[pick_rows(data.train_labels, counts, held)]),
    }
    ends = np.cumsum(counts)
    by_class = {name: slice(end - count, end) for name, end, count in zip(data.classes, ends, counts, strict=True)}
    return {
        "images": sum(counts),
        "accuracy_of_features": extractor.accuracy,
        **{name: _compare(test, rows, device) for name, rows in shown.items()},
        "per_class": {
            name: _round(compare_neighbourhoods(test[part], shown["generated"][part], device))
            for name, part in by_class.items()
            if part.stop - part.start > NEIGHBOURS
        },
    }


def _compare(real: Rows, shown: Rows, device: torch.device) -> Found:
    kid, deviation = kernel_distance(real, shown)
    return _round(
        {
            "kid": kid,
            "kid_std": deviation,
            "fd": frechet_distance(real, shown),
            **compare_neighbourhoods(real, shown, device),
        }
    )


def _round(numbers: Mapping[str, Any]) -> Found:
    """Chance leaves fewer decimals of all of them; KID is small."""
    return {
        name: round(number, 6 if name.startswith("kid") else 4) if isinstance(number, float) else number
        for name, number in numbers.items()
    }


def measure_privacy(bundle: Bundle, data: ImageSet, extractor: Extractor, device: torch.device, pairs: Path) -> Found:
    """Look for copies of training images among generated ones, in pixels and in features.

    The generator has not seen the test images. The picture `pairs` shows training images, so no bundle may hold it.
    """
    held = hold_out(data)
    counts = count_comparable(data, held)
    members = pick_rows(data.train_labels, counts, held)
    unseen = data.test_images[pick_rows(data.test_labels, counts, np.ones(len(data.test_labels), dtype=bool))]
    generated = draw_images(bundle, counts)
    pixels, distances, closest = measure_copying(
        "pixels",
        flatten_pixels(generated),
        data.train_images.reshape(len(data.train_images), -1),
        members,
        flatten_pixels(unseen),
        device,
    )
    nearest = np.argsort(distances, kind="stable")
    draw_pairs(generated[nearest], data.train_images[closest[nearest]], distances[nearest], pairs)
    # The classifier knows the other training images, which would set them apart from held-out ones by itself.
    rows = [extractor.extract(images) for images in (generated, data.train_images[members], unseen)]
    by_features, _, _ = measure_copying("features", rows[0], rows[1], np.arange(len(members)), rows[2], device)
    found = [pixels, by_features]
    return {
        "verdict": write_verdict(found),
        "copies": any(one.signs for one in found) and pixels.held_out >= MIN_IMAGES,
        **{one.space: _round(asdict(one)) for one in found},
    }
