"""Distances between rows of numbers, in parts that bound the memory.

Shape legend: N, M rows, D numbers per row.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS, COLUMNS = 1024, 8192
"""Rows of a part, with as many columns as the other set has rows; at most so many where the nearest is searched."""

Rows = NDArray[np.float32]
PixelRows = NDArray[np.uint8]
"""Pixels that become numbers in [0, 1] part by part, so that a set larger than memory can be searched."""


def flatten_pixels(images: NDArray[np.uint8]) -> Rows:
    """Return pixels in [0, 1] as rows, float32 `[N, H * W * C]`."""
    return to_numbers(images.reshape(len(images), -1))


def to_numbers(rows: Rows | PixelRows) -> Rows:
    """Return rows of pixels as numbers in [0, 1], float32, and rows of numbers as they are."""
    return rows.astype(np.float32) / np.float32(255) if rows.dtype == np.uint8 else rows.astype(np.float32, copy=False)


def squared_distances(a_ND: Rows, b_MD: Rows, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield squared Euclidean distances of a part of `a` to all of `b`, with the number of the part's first row."""
    a, b = (torch.from_numpy(rows).to(device) for rows in (a_ND, b_MD))
    centre = b.mean(dim=0)  # small numbers lose less in the difference below
    a, b = a - centre, b - centre
    b_squares = b.square().sum(dim=1)
    for start in range(0, len(a), ROWS):
        part = a[start : start + ROWS]
        products = torch.addmm(b_squares, part, b.T, alpha=-2)
        yield start, products.add_(part.square().sum(dim=1, keepdim=True)).clamp_min_(0)


def find_nearest(
    a_ND: Rows, b_MD: Rows | PixelRows, device: torch.device
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the distance of every row of `a` to the closest one of `b`, float64 `[N]`, and which one, int64 `[N]`.

    The distance to the one found is computed anew, so that equal rows are at distance zero.
    """
    least, places = np.full(len(a_ND), np.inf, np.float32), np.zeros(len(a_ND), np.int64)
    for first in range(0, len(b_MD), COLUMNS):
        for start, part in squared_distances(a_ND, to_numbers(b_MD[first : first + COLUMNS]), device):
            found = part.min(dim=1)
            values, rows = found.values.cpu().numpy(), slice(start, start + len(part))
            closer = values < least[rows]
            places[rows][closer] = found.indices.cpu().numpy()[closer] + first
            least[rows][closer] = values[closer]
    gaps = a_ND.astype(np.float64) - to_numbers(b_MD[places])
    return np.sqrt(np.square(gaps).sum(axis=1)), places


def neighbour_radii(a_ND: Rows, k: int, device: torch.device) -> Tensor:
    """Return the squared distance of every row to its k-th nearest other row, `[N]` on the device."""
    radii = []
    for start, part in squared_distances(a_ND, a_ND, device):
        rows = torch.arange(len(part), device=device)
        part[rows, rows + start] = torch.inf
        radii.append(part.kthvalue(k, dim=1).values)
    return torch.cat(radii)
