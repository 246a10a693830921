"""Judge an int8 file by what classifiers make of its images: the same class as of the fp32 images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dim.export.run_files import Classifier
from dim.runtime.errors import ParityError

NUM_PAIRS = 5000
MIN_SAME_CLASS = 0.99
"""Share of pairs, over all classifiers, that must get the same class."""
BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What the classifiers said."""

    pairs: int
    same_class: float
    """Share of pairs with the same class, over all classifiers."""
    by_classifier: dict[str, float]
    """The same for each architecture."""

    def as_json(self) -> dict[str, Any]:
        """Plain data for `export.json`."""
        return asdict(self)


def oldest_of_each(classifiers: Sequence[tuple[str, Classifier]]) -> dict[str, Classifier]:
    """The last snapshot of every architecture: a pool lists them by age, and young ones judge badly."""
    return dict(classifiers)


def judge(classifiers: dict[str, Classifier], images: NDArray[np.uint8], quantised: NDArray[np.uint8]) -> Acceptance:
    """Compare the classes of fp32 and int8 images drawn from the same latents.

    Args:
        classifiers: by architecture.
        images: uint8 [N, H, W, C], drawn in fp32.
        quantised: uint8 [N, H, W, C], drawn in int8.

    Returns:
        the shares.

    Raises:
        ParityError: fewer than 99 % agree.
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
    found = Acceptance(
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
