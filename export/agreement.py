"""Checks an export: its files draw the same images as the network, and the images are neither blank nor collapsed.

Shapes: N batch, Z latent dimension, K classes, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dim.export.drawing import BATCHES, Images, Labels, Latents
from dim.export.record import Agreement
from dim.runtime.engines import image_checks
from dim.runtime.engines.onnx_session import open_cpu_session, run_in_pieces
from dim.runtime.errors import ParityError


def check_diversity(images: Images, labels: Labels, classes: Sequence[str]) -> None:
    """Check that a generator draws different images in every class.

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        classes: K names.

    Raises:
        ParityError: blank images, or a class that shows one image again and again.
    """
    blank = image_checks.blank_fraction(images)
    if blank > 0.5:
        raise ParityError(
            f"{blank:.0%} of the generator's images are of one single colour: its training broke down, so there is "
            "nothing to export."
        )
    for label, name in enumerate(classes):
        spread = image_checks.measure_std_levels(images[labels == label])
        if spread < image_checks.MIN_STD_LEVELS:
            raise ParityError(
                f"The class {name!r} collapsed: its images are on average {spread:.2g} of 255 levels apart, at least "
                f"{image_checks.MIN_STD_LEVELS:g} is expected; distil again with another seed or more steps."
            )


def check_precision(
    precision: str, model: bytes, latents: Latents, labels: Labels, expected: Images, reference: str
) -> Agreement:
    """Compare an ONNX file with the expected images, at three batch sizes, and rows of one batch with each other.

    Args:
        precision: `fp32`, `fp16` or `int8`.
        model: the file's bytes.
        latents: float32 [N, Z].
        labels: int64 [N].
        expected: uint8 [N, H, W, C].
        reference: what drew them, for the message.

    Returns:
        the figures.

    Raises:
        ParityError: they are beyond the limits of the precision; the message gives the figures.
    """
    session = open_cpu_session(model)
    images = run_in_pieces(session, {"latents": latents, "labels": labels}, BATCHES[-1])
    psnr = image_checks.psnr_db(images, expected)
    agreement = Agreement(
        precision=precision,
        reference=reference,
        images=len(images),
        max_levels=image_checks.max_levels(images, expected),
        psnr_db=round(psnr, 2) if np.isfinite(psnr) else None,
        changed_share=image_checks.changed_fraction(images, expected),
    )
    ok, found, allowed = image_checks.compare_precision(precision, images, expected)
    if not ok:
        raise ParityError(
            f"The {precision} file does not draw what {reference} draws: {found}, {allowed} is allowed "
            f"({agreement}); nothing was published."
        )
    for batch in BATCHES[:-1]:
        rows = slice(0, 3 * batch)
        again = run_in_pieces(session, {"latents": latents[rows], "labels": labels[rows]}, batch)
        levels = image_checks.max_levels(again, images[rows])
        if levels > image_checks.MAX_FP32_LEVELS:
            raise ParityError(
                f"The {precision} file draws other images at batch {batch} than at batch {BATCHES[-1]}: {levels} of "
                f"255 levels apart, at most {image_checks.MAX_FP32_LEVELS} is allowed; nothing was published."
            )
    first = np.zeros(BATCHES[-1], np.int64)
    same = run_in_pieces(session, {"latents": latents[first], "labels": labels[first]}, BATCHES[-1])
    if (same != same[:1]).any():
        raise ParityError(
            f"The {precision} file draws different images for identical rows of one batch, up to "
            f"{image_checks.max_levels(same, same[:1].repeat(len(same), axis=0))} levels; nothing was published."
        )
    return agreement
