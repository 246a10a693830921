"""The latents of a bundle's samples: drawn from the seed, taken from its accepted candidates, or optimised by it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.accepted_file import MAX_ACCEPTED_BYTES, read_accepted
from dim.runtime.bundle_format.files import read_checked_file
from dim.runtime.bundle_format.fixed_latents import MAX_LATENTS_BYTES, read_fixed_latents
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import ACCEPTED, FIXED_LATENTS
from dim.runtime.errors import BadValueError
from dim.runtime.sampling.accepted import AcceptedCandidates, draw_accepted_latents
from dim.runtime.sampling.latents import draw_latents


class BundleLatents:
    """The latents of a bundle; its files are read at first use, and threads may share it.

    Args:
        path: the bundle's folder.
        manifest: the bundle's manifest.
        use_fixed: use the bundle's optimised latents in fixed sets, where it has some.
    """

    def __init__(self, path: Path, manifest: Manifest, use_fixed: bool) -> None:
        self._path, self._manifest, self._use_fixed = path, manifest, use_fixed
        self._optimised: NDArray[np.float32] | None = None
        self._accepted: AcceptedCandidates | None = None

    def draw(self, labels: NDArray[np.int64], indices: NDArray[np.int64], seed: int, use: str) -> NDArray[np.float32]:
        """Draw the latents of the given samples.

        Args:
            labels: int64 [N], 0..K-1.
            indices: int64 [N], 0 to 2**32 - 1.
            seed: 0 to 2**64 - 1.
            use: "fixed" (the bundle's optimised latents where it has some) or "stream".

        Returns:
            float32 [N, Z].

        Raises:
            BadValueError: an index, seed or use that cannot be.
            BundleError: a file was altered or is malformed.
        """
        optimised = self._find_optimised(use)
        shape = self._manifest.latent_dim, self._manifest.latent_std
        if (accepted := self.accepted) is not None:
            drawn = draw_accepted_latents(accepted, seed, labels, indices, *shape)
        else:
            drawn = draw_latents(seed, labels, indices, *shape)
        if optimised is not None:
            inside = indices < optimised.shape[1]
            drawn[inside] = optimised[labels[inside], indices[inside]]
        return drawn

    @property
    def accepted(self) -> AcceptedCandidates | None:
        """The candidates that samples are, in a bundle of sampling version 2; None in one of version 1."""
        if self._accepted is None and ACCEPTED in self._manifest.files:
            data = read_checked_file(self._path, self._manifest, ACCEPTED, max_bytes=MAX_ACCEPTED_BYTES)
            self._accepted = read_accepted(data, self._manifest.num_classes)
        return self._accepted

    def count_fixed(self) -> int:
        """Count the images of each class with optimised latents; 0 where they are not used."""
        optimised = self._find_optimised("fixed")
        return 0 if optimised is None else optimised.shape[1]

    def _find_optimised(self, use: str) -> NDArray[np.float32] | None:
        if use not in ("fixed", "stream"):
            raise BadValueError(f"There is no use {use!r}; there are fixed and stream.")
        if use == "stream" or not self._use_fixed or FIXED_LATENTS not in self._manifest.files:
            return None
        if self._optimised is None:  # threads that come at once may each read it, and read the same
            data = read_checked_file(self._path, self._manifest, FIXED_LATENTS, max_bytes=MAX_LATENTS_BYTES)
            self._optimised = read_fixed_latents(data, self._manifest)
        return self._optimised
