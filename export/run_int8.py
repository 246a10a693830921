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
from dim.export.graph.int8 import to_int8
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


def quantise(run: Run, canonical: bytes) -> bytes:
    """Quantise the canonical file of a run, calibrated on latents as its bundle draws them."""
    return to_int8(canonical, *_draw_samples(run, CALIBRATION_SEED, NUM_CALIBRATION))


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


def check_classes(
    run: Run,
    canonical: bytes,
    quantised: bytes,
    classifiers: dict[str, Classifier],
    say: Callable[[str], None],
) -> ClassAgreement:
    """Have classifiers compare the images of a run's fp32 and int8 files.

    Args:
        run: tells how its bundle draws latents.
        canonical: the fp32 file.
        quantised: the int8 file.
        classifiers: by architecture.
        say: gets a line with the result.

    Returns:
        the shares of pairs with the same class.

    Raises:
        ParityError: too many pairs get different classes.
    """
    latents, labels = _draw_samples(run, ACCEPTANCE_SEED, NUM_PAIRS)
    found = compare_classes(classifiers, *(draw_with_onnx(model, latents, labels) for model in (canonical, quantised)))
    say(f"int8: the pool's classifiers gave {found.same_class:.2%} of {found.pairs:,} fp32/int8 pairs the same class.")
    return found


def compare_classes(classifiers: dict[str, Classifier], images: Images, quantised: Images) -> ClassAgreement:
    """Compare the classes of fp32 and int8 images drawn from the same latents.

    Args:
        classifiers: by architecture.
        images: uint8 [N, H, W, C], drawn in fp32.
        quantised: uint8 [N, H, W, C], drawn in int8.

    Returns:
        the shares of pairs with the same class.

    Raises:
        ParityError: fewer than 99 % have the same class.
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
    found = ClassAgreement(
        pairs=len(images), same_class=round(float(np.mean(list(shares.values()))), 5), by_classifier=shares
    )
    if found.same_class < MIN_SAME_CLASS:
        worst = min(shares, key=shares.__getitem__)
        raise ParityError(
            f"int8 changes too much: the pool's classifiers give the same class to {found.same_class:.2%} of "
            f"{found.pairs:,} fp32/int8 pairs (least: {worst}, {shares[worst]:.2%}), at least {MIN_SAME_CLASS:.0%} is "
            "required; export without int8."
        )
    return found


def _draw_samples(run: Run, seed: int, at_least: int) -> tuple[Latents, Labels]:
    return draw_samples(len(run.classes), run.latent_dim, run.latent_std, seed=seed, at_least=at_least)
