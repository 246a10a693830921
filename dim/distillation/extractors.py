"""Classifiers of the kept pool as feature extractors, to compare generated images with real ones.

Shapes: N images, K classes, Z latent dimension, D features and logits together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dim.distillation.pool import PoolMember
from dim.distillation.session import Session
from dim.execution.device_data import step_generator, to_pixels, to_signed

BATCH_SIZE = 500
"""Images per forward pass."""
MAX_REAL_IMAGES = 1000
"""Most real images per class that generated ones are compared with."""


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """A classifier of the pool, and the mean lengths of its features and logits on real images."""

    member: PoolMember
    feature_length: Tensor
    """Scalar, above 0."""
    logit_length: Tensor
    """Scalar, above 0."""

    def embed(self, images_NCHW: Tensor) -> Tensor:
        """Features and logits side by side, each of about unit length, float32 `[N, D]`, of images in -1..1."""
        parts = []
        for images in torch.split(images_NCHW, BATCH_SIZE):
            features, logits = self.member(self.member.normalise(images))
            parts.append(torch.cat([features.float() / self.feature_length, logits.float() / self.logit_length], dim=1))
        return torch.cat(parts)


@torch.no_grad()
def make_extractors(session: Session, members: Sequence[PoolMember]) -> list[FeatureExtractor]:
    """Measure classifiers of the pool on real images of all classes."""
    data = session.gan.data
    generator = step_generator(data.device, session.config.seed, "judges")  # a new name would change the draws
    images = to_signed(data.draw_images(data.draw_labels(BATCH_SIZE, 1, generator), generator))
    extractors = []
    for member in members:
        features, logits = (output.float().norm(dim=1).mean() for output in member(member.normalise(images)))
        lengths = {"feature_length": features.clamp_min(1e-6), "logit_length": logits.clamp_min(1e-6)}
        extractors.append(FeatureExtractor(member=member, **lengths))
    return extractors


def generate_class(network: nn.Module, latents_NZ: Tensor, label: int) -> Tensor:
    """Images of one class as a bundle draws them, rounded to 256 levels, -1 to 1, `[N, C, H, W]`."""
    parts = []
    for part in torch.split(latents_NZ, BATCH_SIZE):
        images = network(part, torch.full((len(part),), label, device=part.device))
        parts.append(to_signed(to_pixels(images)))
    return torch.cat(parts)


def mean_pair_distance(points_ND: Tensor) -> Tensor:
    """Mean Euclidean distance between different points of a set; 0 for a single one."""
    count = len(points_ND)
    return torch.cdist(points_ND, points_ND).sum() / max(count * (count - 1), 1)
