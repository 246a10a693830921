"""Matching losses of stage 2: distances between a classifier's outputs for real and for generated images.

Shapes: N images of one process, G groups, n images of one class in a group, D features or K logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_RELATIVE_SCALE = 0.01
"""Floor of the mean distance between real points of a class, relative to their mean length: a class may have a single
image."""


def paper_loss(real_NK: Tensor, fake_NK: Tensor) -> Tensor:
    """The published loss: mean squared difference of log-probabilities of pairs that share a label (DiM, equation 5).

    For independent pairs its expectation falls when the generated logits lose their variance, so it rewards collapse
    within a class; kept as the baseline.

    Args:
        real_NK: logits of real images.
        fake_NK: logits of generated images of the same labels.
    """
    return (F.log_softmax(real_NK, dim=1) - F.log_softmax(fake_NK, dim=1)).square().mean()


def energy_distance(real_ND: Tensor, fake_ND: Tensor, group_size: int) -> Tensor:
    """Energy distance within each class, relative to the mean distance of the real points, averaged over groups.

    2 E|x - y| - E|x - x'| - E|y - y'| over E|x - x'|, without the zero distances of a point to itself: an unbiased
    estimate of a distance that is zero only for equal distributions (Szekely and Rizzo 2013; an MMD, Sejdinovic et al.
    2013), with no bandwidth to choose.

    Args:
        real_ND: features or logits of real images, every `group_size` consecutive ones of one class.
        fake_ND: the same for generated images, in the same order of classes.
        group_size: n, at least 2; divides N.

    Returns:
        A scalar; may be slightly negative, as unbiased estimates are.
    """
    real = real_ND.float().reshape(-1, group_size, real_ND.shape[1])
    fake = fake_ND.float().reshape(-1, group_size, fake_ND.shape[1])
    pairs = group_size * (group_size - 1)
    across = _distances(real, fake).mean(dim=(1, 2))
    within_real = _distances(real, real).sum(dim=(1, 2)) / pairs
    within_fake = _distances(fake, fake).sum(dim=(1, 2)) / pairs
    # Floored, because a class of one image may have no distance at all.
    scale = torch.maximum(within_real, MIN_RELATIVE_SCALE * real.norm(dim=2).mean(dim=1)).detach().clamp_min(1e-6)
    return ((2 * across - within_real - within_fake) / scale).mean()


def _distances(a_GnD: Tensor, b_GnD: Tensor) -> Tensor:
    """Euclidean distances `[G, n, n]`; the small constant keeps the gradient of a zero distance finite."""
    squares = a_GnD.square().sum(-1)[:, :, None] + b_GnD.square().sum(-1)[:, None, :]
    squares = squares - 2 * torch.bmm(a_GnD, b_GnD.transpose(1, 2))
    distances = (squares.clamp_min(0) + 1e-8).sqrt()
    if a_GnD is b_GnD:
        diagonal = torch.eye(a_GnD.shape[1], device=a_GnD.device, dtype=torch.bool)
        distances = distances.masked_fill(diagonal, 0.0)
    return distances


def choose_group_size(batch_size: int, classes_per_step: int, discriminator_group: int) -> int:
    """The largest group that divides the batch, holds whole discriminator groups, and leaves room for the classes.

    Args:
        batch_size: images of all processes.
        classes_per_step: groups wanted at least, where the batch is large enough.
        discriminator_group: every group is a multiple of it.
    """
    fitting = [
        size
        for size in range(discriminator_group, batch_size + 1, discriminator_group)
        if batch_size % size == 0 and size > 1 and batch_size // size >= classes_per_step
    ]
    return max(fitting, default=max(discriminator_group, 2))
