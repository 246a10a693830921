"""Read a run directory: configuration, generator, pool, teacher and latents, checked before anything is exported."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dim.networks.classifiers import build_classifier
from dim.networks.generator import generator_from_dict
from dim.runs.checkpoint import read_tensors
from dim.runtime.errors import BundleError, RunError
from dim.runtime.storage import strict_json

MAX_JSON_BYTES = 8 * 2**20
GENERATOR, CONFIG, DEPLOYMENT = "generator.safetensors", "config.json", "deployment.json"
MAX_LATENTS_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    path: Path
    config: Mapping[str, Any]
    """The whole of `config.json`."""
    generator: nn.Module
    """On the CPU, float32, in evaluation mode."""
    latents: NDArray[np.float32] | None
    """Latents optimised for fixed sets, [K, M, Z], where the run has some."""
    latent_std: float
    """Standard deviation of the deployed latents: the one that `deployment.json` chose, else the one trained with."""

    @property
    def data(self) -> Mapping[str, Any]:
        """What `config.json` says about the source data."""
        return self.config["data"]  # type: ignore[no-any-return]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return tuple(self.data["classes"])

    @property
    def latent_dim(self) -> int:
        """Z."""
        return int(self.config["generator"]["latent_dim"])


class Classifier(nn.Module):
    """A classifier of a run that takes pixels as a bundle draws them.

    Args:
        network: takes normalised images_NCHW.
        mean: per channel, of [0, 1] pixels.
        std: per channel.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        # x / 255 normalised by mean and std, as one multiplication and one addition.
        deviation = torch.tensor(std, dtype=torch.float64)
        gain = (1 / (255 * deviation)).float()
        shift = (-torch.tensor(mean, dtype=torch.float64) / deviation).float()
        self.register_buffer("gain", gain.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [N, K] of images uint8 [N, H, W, C]."""
        # The cast comes first: TensorRT knows uint8 only at the borders of a network.
        logits: Tensor = self.network(images.float().permute(0, 3, 1, 2) * self.gain + self.shift)
        return logits


def newest_run(folder: Path = Path("runs")) -> Path:
    """The run under `folder` that was finished last.

    Raises:
        RunError: there is none.
    """
    runs = [path.parent for path in folder.glob(f"*/{CONFIG}")]
    finished = [path for path in runs if (path / GENERATOR).is_file()]
    if finished:
        return max(finished, key=lambda path: ((path / GENERATOR).stat().st_mtime_ns, str(path)))
    if runs:
        raise _unfinished(max(runs, key=lambda path: ((path / CONFIG).stat().st_mtime_ns, str(path))))
    raise RunError(f"There is no run under {folder}/: name a run directory, or make one with  dim distill")


def _unfinished(path: Path) -> RunError:
    return RunError(f"The run {path} is not finished: go on with  dim distill --resume --out {path}")


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
    if not (path / CONFIG).is_file():
        raise RunError(f"{path} holds no run: it has no {CONFIG}; make one with  dim distill")
    config = _read_config(path / CONFIG)
    if not (path / GENERATOR).is_file():
        raise _unfinished(path)
    generator = _load_network(path / GENERATOR, lambda: generator_from_dict(config["generator"]))
    latents, latent_std = _read_latents(path, config), _read_latent_std(path, config)
    return Run(path=path, config=config, generator=generator, latents=latents, latent_std=latent_std)


def _read_latent_std(path: Path, config: Mapping[str, Any]) -> float:
    """The deployed spread of the latents; above 0 and at most 100, as in the configuration."""
    chosen = path / DEPLOYMENT
    values = _read_json(chosen) if chosen.exists() else config
    try:
        latent_std = float(values["latent_std"])
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{chosen} has no number latent_std: the run is damaged.") from None
    if not 0 < latent_std <= 100:
        raise RunError(f"{chosen} has the latent_std {latent_std}; it must be above 0 and at most 100.")
    return latent_std


def _read_json(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return strict_json.parse(data, str(path), MAX_JSON_BYTES)
    except BundleError as error:
        raise RunError(str(error)) from None


def _read_config(path: Path) -> Mapping[str, Any]:
    config = _read_json(path)
    try:
        version = config["format_version"]
        if version != 1:
            raise RunError(f"{path} has format version {version}; this dim reads version 1.")
        data, generator = config["data"], config["generator"]
        sizes = (int(generator["num_classes"]), int(generator["image_px"]), int(generator["channels"]))
        if sizes != (len(data["classes"]), int(data["image_px"]), int(data["channels"])):
            raise RunError(f"{path} contradicts itself: its generator and its data differ in classes or image size.")
        for key in ("name", "class_counts", "mean", "std", "licence", "note"):
            data[key]
        str(config["name"]), int(generator["latent_dim"]), float(config["latent_std"])
    except (KeyError, TypeError, ValueError) as error:
        what = f"lacks the field {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
        raise RunError(f"{path} {what}: it was not written by dim distill, or was altered.") from None
    return config  # type: ignore[no-any-return]


def _load_network(path: Path, build: Any, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build a network and load its weights, refusing any that do not fit or are not finite."""
    tensors = read_tensors(path) if tensors is None else tensors
    try:
        network: nn.Module = build()
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


def _read_latents(path: Path, config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    file = path / "latents.npz"
    if not file.exists():
        return None
    if file.stat().st_size > MAX_LATENTS_BYTES:
        raise RunError(f"{file} has {file.stat().st_size:,} bytes; at most {MAX_LATENTS_BYTES:,} are read.")
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            latents: NDArray[Any] = archive["latents"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{file} cannot be read: {error}.") from None
    num_classes, latent_dim = len(config["data"]["classes"]), int(config["generator"]["latent_dim"])
    fits = (
        latents.ndim == 3 and latents.shape[1] > 0 and (latents.shape[0], latents.shape[2]) == (num_classes, latent_dim)
    )
    if not fits or latents.dtype != np.float32 or not np.isfinite(latents).all():
        raise RunError(
            f"{file} holds {latents.dtype} {latents.shape}; it must hold finite float32 ({num_classes}, images, "
            f"{latent_dim})."
        )
    return latents


def read_classifiers(path: Path, kind: str) -> list[tuple[str, Classifier]]:
    """Read the classifiers of a run, architecture and network.

    Args:
        path: a run directory.
        kind: `pool` or `teacher`: `<kind>.safetensors` with keys `<i>.<name>`, and `<kind>.json`.

    Returns:
        the classifiers, none where the run has none.

    Raises:
        RunError: a file of the two is missing, damaged or does not fit the other.
    """
    weights, description = path / f"{kind}.safetensors", path / f"{kind}.json"
    if not weights.exists() and not description.exists():
        return []
    for file in (weights, description):
        if not file.is_file():
            raise RunError(f"{file} is missing: the run is incomplete.")
    entries = _read_json(description)
    entries = [entries] if isinstance(entries, dict) else entries
    tensors = read_tensors(weights)
    if kind == "teacher" and len(entries) == 1 and not all(name.startswith("0.") for name in tensors):
        tensors = {f"0.{name}": tensor for name, tensor in tensors.items()}
    classifiers: list[tuple[str, Classifier]] = []
    for number, entry in enumerate(entries):
        own = {k.removeprefix(f"{number}."): v for k, v in tensors.items() if k.startswith(f"{number}.")}

        def build(entry: Mapping[str, Any] = entry) -> nn.Module:
            num_classes, channels, image_px = (int(entry[key]) for key in ("num_classes", "channels", "image_px"))
            return build_classifier(entry["arch"], num_classes, channels, image_px, width=entry.get("width") or None)

        network = _load_network(weights, build, own)
        classifiers.append((str(entry["arch"]), Classifier(network, entry["mean"], entry["std"]).eval()))
    return classifiers
