"""Does a generator copy its training images? Distances, near duplicates and a membership test.

All compare with images that the generator has not seen. A generator that draws plain images is close to all real
images; only one that copies is closer to its training images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dim.evaluation.quality.distances import PixelRows, Rows, find_nearest, squared_distances, to_numbers

DUPLICATE_QUANTILE = 0.01
"""An image is a near duplicate if it is closer to its nearest training image than all but this part of the held-out
images are to theirs."""
MIN_POINTS, ERRORS = 0.02, 4
"""A share or AUC must leave chance by so much, and by so many standard errors, to be called a sign of copying."""
MIN_IMAGES = 100
"""Fewer held-out images cannot tell copies from chance."""


@dataclass(frozen=True, kw_only=True)
class Copying:
    """What distances in one space say about copies."""

    space: str
    """`pixels` or `features`."""
    generated: int
    """Number of generated images."""
    training: int
    """Number of training images."""
    held_out: int
    """Number of held-out images, and of training images in the membership test."""
    generated_distance: float
    """Median distance of a generated image to the closest training image."""
    held_out_distance: float
    """The same of held-out images."""
    near_duplicates: float
    """Share of generated images that are near duplicates of a training image, 0 to 1."""
    expected_duplicates: float
    """Share that would be at most, if training images were as near to them as held-out images are; may exceed 1."""
    expected_error: float
    """Standard error of that."""
    membership_auc: float
    """Area under the curve of a test that takes an image for a training image if a generated one is close; 0.5 is
    chance."""

    @property
    def signs(self) -> tuple[str, ...]:
        """What speaks for copies, as clauses; empty where nothing does."""
        found = []
        if self.near_duplicates > self.expected_duplicates + ERRORS * self.expected_error + MIN_POINTS / 4:
            found.append(
                f"{100 * self.near_duplicates:.1f} % are near duplicates of training images in {self.space}, where "
                f"{100 * min(1.0, self.expected_duplicates):.1f} % were to be expected"
            )
        # Of two sets of m images each, in a random order.
        if self.membership_auc - 0.5 > max(MIN_POINTS, ERRORS * (1 / (6 * max(self.held_out, 1))) ** 0.5):
            found.append(f"a membership test in {self.space} reaches AUC {self.membership_auc:.2f}")
        return tuple(found)


def measure_copying(
    space: str,
    generated: Rows,
    training: Rows | PixelRows,
    members: NDArray[np.int64],
    held_out: Rows,
    device: torch.device,
) -> tuple[Copying, NDArray[np.float64], NDArray[np.int64]]:
    """Measure how close generated images are to training and to held-out images.

    Args:
        space: `pixels` or `features`.
        generated: rows of generated images.
        training: rows of training images, read part by part; in features of a trained classifier, of those that it has
            not seen.
        members: which of them the membership test takes, int64 `[M]`.
        held_out: rows of M images that the generator has not seen.
        device: where to compute.

    Returns:
        What was found; the distance of every generated image to the closest training image; and which one that is.
    """
    to_training, closest = find_nearest(generated, training, device)
    held_out_to_training, _ = find_nearest(held_out, training, device)
    near = float(np.quantile(held_out_to_training, DUPLICATE_QUANTILE))
    # How many generated images lie near each held-out image: one number per image, drawn independently.
    counts = np.concatenate(
        [(part.sqrt() <= near).sum(dim=1).cpu().numpy() for _, part in squared_distances(held_out, generated, device)]
    )
    pairs_error = max(1.0, float(counts.std()) * len(counts) ** 0.5)
    scale = len(training) / len(held_out) / len(generated)
    scores = [-find_nearest(rows, generated, device)[0] for rows in (to_numbers(training[members]), held_out)]
    found = Copying(
        space=space,
        generated=len(generated),
        training=len(training),
        held_out=len(held_out),
        generated_distance=float(np.median(to_training)),
        held_out_distance=float(np.median(held_out_to_training)),
        near_duplicates=float(np.mean(to_training <= near)),
        expected_duplicates=scale * float(counts.sum()),
        expected_error=scale * pairs_error,
        membership_auc=rank_auc(*scores),
    )
    return found, to_training, closest


def rank_auc(higher: NDArray[np.float64], lower: NDArray[np.float64]) -> float:
    """Return how often a score of the first kind is above one of the second; equal ones count as half."""
    ordered = np.sort(lower)
    below, not_above = (np.searchsorted(ordered, higher, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(lower))


def write_verdict(found: list[Copying]) -> str:
    """Say in words whether images are copied, by what was found in pixels, in features, or in both."""
    signs = [sign for one in found for sign in one.signs]
    first = found[0]
    if first.held_out < MIN_IMAGES:
        head = f"{first.held_out} held-out images are too few to tell copies from chance"
        return f"{head}; so far: {'; '.join(signs)}." if signs else f"{head}."
    if signs:
        return f"The generator copies training images: of {first.generated:,} generated images, {'; '.join(signs)}."
    aucs = " and ".join(f"{one.membership_auc:.2f} in {one.space}" for one in found)
    return (
        f"No sign of copies: of {first.generated:,} generated images {100 * first.near_duplicates:.1f} % lie as close "
        f"to a training image as the closest {100 * DUPLICATE_QUANTILE:.0f} % of held-out images do, a membership test "
        f"reaches AUC {aucs} (0.5 is chance). This is no proof of privacy."
    )
