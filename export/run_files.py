"""Read a run directory: record, generator and latents, checked before anything is exported."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dim.networks.generator import build_generator
from dim.runs.deployment import DEPLOYMENT_FILE, read_deployment
from dim.runs.files import read_file, write_resume_command
from dim.runs.record import CONFIG_FILE, RunRecord, read_run_record
from dim.runs.tensors import read_tensors
from dim.runtime.bundle_format.accepted_file import MAX_ACCEPTED_BYTES
from dim.runtime.bundle_format.names import ACCEPTED
from dim.runtime.errors import RunError

GENERATOR, LATENTS = "generator.safetensors", "latents.npz"
MAX_LATENTS_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    path: Path
    record: RunRecord
    """The content of `config.json`."""
    generator: nn.Module
    """On the CPU, float32, in evaluation mode."""
    latents: NDArray[np.float32] | None
    """Latents optimised for fixed sets, [K, M, Z], where the run has some."""
    accepted: bytes | None
    """Which candidates the bundle draws, as `accepted.bin`, where the run chose some."""
    latent_std: float
    """Standard deviation of the latents in the bundle: the one in `deployment.json`, else the one trained with."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return self.record.data.classes

    @property
    def latent_dim(self) -> int:
        """Z."""
        return self.record.config.generator.latent_dim


def read_run(path: Path) -> Run:
    """Read what an export needs.

    Args:
        path: a run directory.

    Returns:
        the run, its generator built and loaded.

    Raises:
        RunError: no run there, unfinished, a file missing, damaged or not fitting the others, weights not finite.
    """
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise RunError(f"There is no run at {path}: it {found}; make one with  dim distill")
    if not (path / CONFIG_FILE).is_file():
        raise RunError(f"{path} holds no run: it has no {CONFIG_FILE}; make one with  dim distill")
    record = read_run_record(path)
    if not (path / GENERATOR).is_file():
        raise RunError(f"The run {path} is not finished: go on with  {write_resume_command(path)}")
    spec = record.data.images
    sizes = {"num_classes": spec.num_classes, "image_px": spec.image_px, "channels": spec.channels}
    tensors = read_tensors(path, GENERATOR)
    generator = load_network(path / GENERATOR, lambda: build_generator(record.config.generator, **sizes), tensors)
    latents, latent_std = _read_latents(path, record), _read_latent_std(path, record)
    accepted = _read_accepted(path, record)
    return Run(path=path, record=record, generator=generator, latents=latents, accepted=accepted, latent_std=latent_std)


def load_network(path: Path, build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build a network and load its weights, refusing any that do not fit or are not finite.

    Args:
        path: the file of the weights, for messages.
        build: makes the network.
        tensors: its state.

    Returns:
        the network, on the CPU, float32, in evaluation mode, without gradients.

    Raises:
        RunError: it cannot be built, or the weights do not fit or are not finite.
    """
    try:
        network = build()
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"The network of {path} cannot be built from its description: {error}.") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunError(f"{path} holds values that are not finite, in {name}: its training broke down.")
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{path} does not fit the network of its run, so one of them was altered: {reason}") from None
    return network.to("cpu", torch.float32).eval().requires_grad_(False)


def _read_latent_std(run_dir: Path, record: RunRecord) -> float:
    if not (run_dir / DEPLOYMENT_FILE).exists():
        return record.config.latent_std
    return float(read_deployment(run_dir)["latent_std"])


def _read_accepted(run_dir: Path, record: RunRecord) -> bytes | None:
    if not record.config.filter.candidates:
        return None
    file = run_dir / ACCEPTED
    try:
        data = read_file(run_dir, ACCEPTED, MAX_ACCEPTED_BYTES + 1)
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}.") from None
    expected = 16 + len(record.data.classes) * record.config.filter.candidates // 8
    if len(data) != expected:
        raise RunError(f"{file} has {len(data):,} bytes; of this run it must have {expected:,}.")
    return data


def _read_latents(run_dir: Path, record: RunRecord) -> NDArray[np.float32] | None:
    file = run_dir / LATENTS
    if not file.exists():
        return None
    if file.stat().st_size > MAX_LATENTS_BYTES:
        raise RunError(f"{file} has {file.stat().st_size:,} bytes; at most {MAX_LATENTS_BYTES:,} are read.")
    try:
        content = read_file(run_dir, LATENTS, MAX_LATENTS_BYTES)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            latents: NDArray[Any] = archive["latents"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{file} cannot be read: {error}.") from None
    num_classes, latent_dim = len(record.data.classes), record.config.generator.latent_dim
    fits = (
        latents.ndim == 3 and latents.shape[1] > 0 and (latents.shape[0], latents.shape[2]) == (num_classes, latent_dim)
    )
    if not fits or latents.dtype != np.float32 or not np.isfinite(latents).all():
        raise RunError(
            f"{file} holds {latents.dtype} {latents.shape}; it must hold finite float32 ({num_classes}, images, "
            f"{latent_dim})."
        )
    return latents
