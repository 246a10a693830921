"""What an export must show before it is called done: its files draw what the network draws, and that is worth drawing.

Shapes: N batch, Z latent dimension, K classes, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.engines import image_checks
from dim.runtime.engines.onnx_session import open_cpu_session
from dim.runtime.errors import ParityError
from dim.runtime.sampling.latents import draw_latents, order_slice

if TYPE_CHECKING:
    from torch import nn

BATCHES = (1, 7, 64)
"""Batch sizes that every file is run at."""
NUM_SAMPLES = 256
"""Images compared, or two of every class where that is more."""
PARITY_SEED, CALIBRATION_SEED, ACCEPTANCE_SEED = 20_232, 20_233, 20_234
"""Seeds of the images that are compared, that set int8's steps and that judge int8: never the same ones."""

Latents = NDArray[np.float32]
Labels = NDArray[np.int64]
Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far one file's images lie from the reference."""

    precision: str
    reference: str
    """What it was compared with: `torch` or `fp32`."""
    images: int
    max_levels: int
    """Largest difference of any pixel, in levels of 0 to 255."""
    psnr_db: float | None
    """Over all pixels; None where every pixel is equal."""
    changed_share: float
    """Share of pixel values that differ at all."""

    def as_json(self) -> dict[str, Any]:
        """Plain data for `export.json`."""
        return asdict(self)

    def __str__(self) -> str:
        psnr = "" if self.psnr_db is None else f", PSNR {self.psnr_db:.1f} dB"
        return (
            f"{self.precision} against {self.reference}: at most {self.max_levels} of 255 levels apart, "
            f"{100 * self.changed_share:.2g} % of pixels differ{psnr} ({self.images} images)"
        )


def draw_samples(
    num_classes: int, latent_dim: int, latent_std: float, *, seed: int, at_least: int = NUM_SAMPLES
) -> tuple[Latents, Labels]:
    """Draw balanced samples by the sampling contract.

    Args:
        num_classes: K.
        latent_dim: Z.
        latent_std: the bundle's.
        seed: of the sampling contract.
        at_least: N; more where two of every class are more.

    Returns:
        latents float32 [N, Z] and labels int64 [N].
    """
    per_class = max(2, -(-at_least // num_classes))
    labels, indices = order_slice([per_class] * num_classes, 0, per_class * num_classes)
    return draw_latents(seed, labels, indices, latent_dim, latent_std), labels


def draw_with_torch(generator: nn.Module, latents: Latents, labels: Labels) -> Images:
    """Draw with the network itself: evaluation mode, float32, CPU.

    Args:
        generator: see `generator_to_onnx`.
        latents: float32 [N, Z].
        labels: int64 [N].

    Returns:
        uint8 [N, H, W, C].

    Raises:
        ParityError: the network draws values that are not finite.
    """
    import torch

    parts: list[Images] = []
    with torch.inference_mode():
        for start in range(0, len(labels), BATCHES[-1]):
            rows = slice(start, start + BATCHES[-1])
            values = generator(torch.from_numpy(latents[rows]), torch.from_numpy(labels[rows]))
            if not bool(torch.isfinite(values).all()):
                raise ParityError(
                    "The generator draws values that are not finite (NaN or infinite): its training broke down, so "
                    "there is nothing to export."
                )
            pixels = torch.clamp(torch.round(values * 127.5 + 127.5), 0, 255)
            parts.append(pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy())
    return np.concatenate(parts)


def draw_with_onnx(model: bytes, latents: Latents, labels: Labels, batch: int = BATCHES[-1]) -> Images:
    """Draw with an ONNX file on ONNX Runtime's CPU provider; arguments as `draw_with_torch`."""
    return _run(open_cpu_session(model), latents, labels, batch)


def _run(session: Any, latents: Latents, labels: Labels, batch: int) -> Images:
    parts = [
        session.run(None, {"latents": latents[i : i + batch], "labels": labels[i : i + batch]})[0]
        for i in range(0, len(labels), batch)
    ]
    return np.concatenate(parts)


def check_worth(images: Images, labels: Labels, classes: Sequence[str]) -> None:
    """Check that a generator draws something in every class.

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
        ParityError: they are beyond the design's limits; the message gives the figures.
    """
    session = open_cpu_session(model)
    images = _run(session, latents, labels, BATCHES[-1])
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
        levels = image_checks.max_levels(_run(session, latents[rows], labels[rows], batch), images[rows])
        if levels > image_checks.MAX_FP32_LEVELS:
            raise ParityError(
                f"The {precision} file draws other images at batch {batch} than at batch {BATCHES[-1]}: {levels} of "
                f"255 levels apart, at most {image_checks.MAX_FP32_LEVELS} is allowed; nothing was published."
            )
    same = _run(session, latents[:1].repeat(BATCHES[-1], axis=0), labels[:1].repeat(BATCHES[-1]), BATCHES[-1])
    if (same != same[:1]).any():
        raise ParityError(
            f"The {precision} file draws different images for identical rows of one batch, up to "
            f"{image_checks.max_levels(same, same[:1].repeat(len(same), axis=0))} levels; nothing was published."
        )
    return agreement
