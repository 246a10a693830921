"""The int8 file of a run: its steps come from the run's own latents, and the run's classifiers compare its images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dim.export.drawing import (
    ACCEPTANCE_SEED,
    CALIBRATION_SEED,
    Images,
    Labels,
    Latents,
    draw_samples,
    draw_with_onnx,
)
from dim.export.graph.int8 import to_int8, to_int8_weights
from dim.export.record import ClassAgreement
from dim.export.run_classifiers import Classifier, read_classifiers
from dim.export.run_files import Run
from dim.runtime.errors import ParityError, RunError

NUM_CALIBRATION = 512
"""Images whose values set int8's steps."""
NUM_PAIRS = 5000
"""Pairs of fp32 and int8 images whose classes are compared."""
MIN_SAME_CLASS = 0.99
"""Share of pairs, mean over the classifiers, that must get the same class."""
BATCH = 250


def quantise(
    run: Run, canonical: bytes, classifiers: dict[str, Classifier], say: Callable[[str], None]
) -> tuple[bytes, ClassAgreement]:
    """Quantise the canonical file of a run: weights and values if classifiers agree, else weights alone.

    Both files are as small. Without int8 values a file draws at the speed of fp32, and closer to its images.

    Args:
        run: tells how its bundle draws latents.
        canonical: the fp32 file.
        classifiers: of the run, by architecture.
        say: gets a line with the result of each file.

    Returns:
        the int8 file, and the shares of pairs of fp32 and int8 images with the same class.

    Raises:
        ParityError: too many pairs get different classes, even with int8 weights alone.
    """
    samples = _draw_samples(run, ACCEPTANCE_SEED, NUM_PAIRS)
    images = draw_with_onnx(canonical, *samples)
    for name in ("int8", "int8 weights alone"):
        if name == "int8":
            model = to_int8(canonical, *_draw_samples(run, CALIBRATION_SEED, NUM_CALIBRATION))
        else:
            model = to_int8_weights(canonical)
        found = compare_classes(classifiers, images, draw_with_onnx(model, *samples))
        say(f"{name}: the pool's classifiers gave {found.same_class:.2%} of {found.pairs:,} pairs the same class.")
        if found.same_class >= MIN_SAME_CLASS:
            return model, found
    worst = min(found.by_classifier, key=found.by_classifier.__getitem__)
    raise ParityError(
        f"int8 changes too much: even with int8 weights alone, the pool's classifiers give the same class to "
        f"{found.same_class:.2%} of {found.pairs:,} fp32/int8 pairs (least: {worst}, "
        f"{found.by_classifier[worst]:.2%}), at least {MIN_SAME_CLASS:.0%} is required; export without int8."
    )


def read_comparing_classifiers(run: Run) -> dict[str, Classifier]:
    """Read the classifiers that compare a run's int8 images, by architecture.

    Raises:
        RunError: the run has none, or they are damaged.
    """
    classifiers = read_classifiers(run.path, "pool")
    if not classifiers:
        raise RunError(
            f"int8 is judged by the run's classifiers, and {run.path} has none (pool.safetensors): export without "
            "int8, or distil with stage 2."
        )
    # A pool lists its classifiers by age, so the last of every architecture stays: the least trained err most.
    return dict(classifiers)


def compare_classes(classifiers: dict[str, Classifier], images: Images, quantised: Images) -> ClassAgreement:
    """Compare the classes of fp32 and int8 images drawn from the same latents.

    Args:
        classifiers: by architecture.
        images: uint8 [N, H, W, C], drawn in fp32.
        quantised: uint8 [N, H, W, C], drawn in int8.

    Returns:
        the shares of pairs with the same class.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shares: dict[str, float] = {}
    for name, classifier in classifiers.items():
        classifier.to(device)
        same = 0
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                pair = [torch.from_numpy(part[start : start + BATCH]).to(device) for part in (images, quantised)]
                first, second = (classifier(part).argmax(dim=1) for part in pair)
                same += int((first == second).sum())
        shares[name] = round(same / len(images), 5)
    return ClassAgreement(
        pairs=len(images), same_class=round(float(np.mean(list(shares.values()))), 5), by_classifier=shares
    )


def _draw_samples(run: Run, seed: int, at_least: int) -> tuple[Latents, Labels]:
    return draw_samples(len(run.classes), run.latent_dim, run.latent_std, seed=seed, at_least=at_least)
