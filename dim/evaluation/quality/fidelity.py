"""How close generated images are to real ones and how varied: FD, KID, precision, recall, density and coverage.

All take features. Their values depend on the feature extractor, so its name must be given with them.

Shape legend: N, M images, D features.
"""

from typing import TypedDict

import numpy as np
import torch

from dim.evaluation.quality.distances import Rows, neighbour_radii, squared_distances

NEIGHBOURS = 5
"""k of precision, recall, density and coverage, as in their paper."""
SUBSETS, SUBSET_SIZE = 50, 1000
"""Of KID: mean over so many draws of so many images."""


class Neighbourhood(TypedDict):
    """Precision, recall, density and coverage (Naeem et al. 2020, arXiv 2002.09797)."""

    precision: float
    """Share of generated images inside the neighbourhood of a real one, 0 to 1."""
    recall: float
    """Share of real images inside the neighbourhood of a generated one, 0 to 1."""
    density: float
    """How many real neighbourhoods a generated image lies in, divided by k; about 1 for equal distributions."""
    coverage: float
    """Share of real images with a generated one in their neighbourhood, 0 to 1."""


def frechet_distance(a_ND: Rows, b_MD: Rows) -> float:
    """Return the Fréchet distance of two normal distributions fitted to features (Heusel et al. 2017).

    It is biased upwards where there are few images: compare values of equal numbers of images only.
    """
    means = [rows.mean(axis=0, dtype=np.float64) for rows in (a_ND, b_MD)]
    covariances = [np.atleast_2d(np.cov(rows.astype(np.float64), rowvar=False)) for rows in (a_ND, b_MD)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    gap = float(np.square(means[0] - means[1]).sum())
    return max(0.0, gap + float(np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross))


def kernel_distance(a_ND: Rows, b_MD: Rows) -> tuple[float, float]:
    """Return the kernel distance of features and its deviation over subsets (KID, Bińkowski et al. 2018).

    The squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased: about 0 for equal distributions, and
    then as often negative as positive.
    """
    rng = np.random.default_rng(0)
    size = min(SUBSET_SIZE, len(a_ND), len(b_MD))
    found = []
    for _ in range(SUBSETS):
        a, b = (rows[rng.choice(len(rows), size, replace=False)].astype(np.float64) for rows in (a_ND, b_MD))
        inside = [_kernel(rows, rows) for rows in (a, b)]
        within = sum((kernel.sum() - np.trace(kernel)) / (size * (size - 1)) for kernel in inside)
        found.append(within - 2 * _kernel(a, b).mean())
    return float(np.mean(found)), float(np.std(found, ddof=1))


def _kernel(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    kernel: np.ndarray = (a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3
    return kernel


def compare_neighbourhoods(
    real_ND: Rows, generated_MD: Rows, device: torch.device, k: int = NEIGHBOURS
) -> Neighbourhood:
    """Compare the neighbourhoods of real and generated images, more than k each, as the library `prdc` does."""
    real_radii = neighbour_radii(real_ND, k, device)
    generated_radii = neighbour_radii(generated_MD, k, device)
    inside = torch.zeros(len(generated_MD), dtype=torch.int64, device=device)
    recalled = covered = 0
    for start, part in squared_distances(real_ND, generated_MD, device):
        radii = real_radii[start : start + len(part), None]
        inside += (part < radii).sum(dim=0)
        recalled += int((part < generated_radii).any(dim=1).sum())
        covered += int((part.min(dim=1).values < radii[:, 0]).sum())
    return {
        "precision": float((inside > 0).double().mean()),
        "recall": recalled / len(real_ND),
        "density": float(inside.double().mean()) / k,
        "coverage": covered / len(real_ND),
    }
