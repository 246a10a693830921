"""Distribution matching in the features of one classifier (Zhao and Bilen, arXiv 2110.04181), per class.

For sets with more than one image per class, the mean squares of the features are matched as well as the means. Without
them a set of ten did not gain accuracy.

Shapes: k classes, m images per class, N images, D features, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.augment import augment
from dim.distillation.losses import MIN_RELATIVE_SCALE
from dim.distillation.pool import PoolMember

SQUARES_WEIGHT = 1.0
"""Weight of the mean squares beside the means."""


class ClassMoments(NamedTuple):
    """Moments of the features of one class."""

    mean_D: Tensor
    mean_square_D: Tensor
    variance: Tensor
    """Trace of the covariance of the features, a scalar."""
    square_variance: Tensor
    """Trace of the covariance of their squares, a scalar."""


def measure_moments(features_ND: Tensor) -> ClassMoments:
    """Moments of the features of one class's images, `[N, D]`."""
    features_ND = features_ND.float()
    squares_ND = features_ND.square()
    variance, square_variance = (values.var(dim=0, correction=0).sum() for values in (features_ND, squares_ND))
    return ClassMoments(features_ND.mean(dim=0), squares_ND.mean(dim=0), variance, square_variance)


@dataclass(frozen=True, kw_only=True)
class FeatureTarget:
    """A classifier, and the moments of its features of the real images of some classes."""

    member: PoolMember
    mean_kD: Tensor
    mean_square_kD: Tensor
    variance: float
    """Trace of the features' covariance within a class, mean over the classes."""
    square_variance: float
    """The same of their squares."""
    cross_entropy: float
    """Weight of the classifier's cross-entropy; 0 for one that was not trained on real images."""

    def loss(
        self,
        images_kmCHW: Tensor,
        labels_k: Tensor,
        rows_k: Tensor,
        policy: str,
        draws: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Distance between the moments of a set and those of the real images, in units of the variance.

        Args:
            images_kmCHW: m images of each of k classes, -1 to 1.
            labels_k: the classes, int64.
            rows_k: where they are among the classes of the target, int64.
            policy: augmentation of the images.
            draws: 1 or 2 independent augmentations; see `unbiased_squared_distance`.
            generator: of the augmentations.

        Returns:
            A scalar, with the weighted cross-entropy of the classifier.
        """
        count = images_kmCHW.shape[1]
        normalised = self.member.normalise(images_kmCHW.flatten(0, 1))
        outputs = [self.member(augment(normalised, policy, generator)) for _ in range(draws)]
        features = [features.float().unflatten(0, (-1, count)) for features, _ in outputs]
        means = [features_kmD.mean(dim=1) - self.mean_kD[rows_k] for features_kmD in features]
        loss: Tensor = unbiased_squared_distance(means) / self.variance
        if count > 1:  # the squares of one image follow from its features
            squares = [features_kmD.square().mean(dim=1) - self.mean_square_kD[rows_k] for features_kmD in features]
            loss = loss + SQUARES_WEIGHT * unbiased_squared_distance(squares) / self.square_variance
        if self.cross_entropy:
            logits = outputs[0][1].float()
            loss = loss + self.cross_entropy * F.cross_entropy(logits, labels_k.repeat_interleave(count))
        return loss


def unbiased_squared_distance(differences_kD: Sequence[Tensor]) -> Tensor:
    """Mean over the classes of |E d|^2.

    Args:
        differences_kD: of one augmentation or of two independent ones. With two, d1 . d2 is unbiased; with one, |d|^2
            includes the variance of the augmentation.
    """
    return (differences_kD[0] * differences_kD[-1]).sum(dim=1).mean()


def make_target(member: PoolMember, of_classes: Sequence[ClassMoments], cross_entropy: float) -> FeatureTarget:
    """The target of a classifier from the moments of its classes."""
    mean_kD, mean_square_kD, variance_k, square_variance_k = (
        torch.stack(part) for part in zip(*of_classes, strict=True)
    )
    return FeatureTarget(
        member=member,
        mean_kD=mean_kD,
        mean_square_kD=mean_square_kD,
        variance=_floor_variance(variance_k.mean(), mean_kD),
        square_variance=_floor_variance(square_variance_k.mean(), mean_square_kD),
        cross_entropy=cross_entropy,
    )


def _floor_variance(variance: Tensor, mean_kD: Tensor) -> float:
    """A variance with a floor, because a class of one image may have none at all."""
    return max(float(variance), float((MIN_RELATIVE_SCALE * mean_kD.norm(dim=1).mean()).square().clamp_min(1e-12)))
