"""The same samples drawn by the network in torch and by an ONNX file.

Shapes: N batch, Z latent dimension, K classes, C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dim.runtime.engines.onnx_session import open_cpu_session, run_in_pieces
from dim.runtime.errors import ParityError
from dim.runtime.sampling.latents import draw_latents, order_slice

if TYPE_CHECKING:
    from torch import nn

BATCHES = (1, 7, 64)
"""Batch sizes that every file is run at."""
NUM_SAMPLES = 256
"""Images compared, or two of every class where that is more."""
PARITY_SEED, CALIBRATION_SEED, ACCEPTANCE_SEED = 20_232, 20_233, 20_234
"""Seeds of the images that are compared, that set int8's steps and whose classes are compared: never the same ones."""

Latents = NDArray[np.float32]
Labels = NDArray[np.int64]
Images = NDArray[np.uint8]


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
    """Draw with an ONNX file on ONNX Runtime's CPU provider, `batch` images per call; the rest as `draw_with_torch`."""
    return run_in_pieces(open_cpu_session(model), {"latents": latents, "labels": labels}, batch)
