"""The classifiers of a run directory: its pool and its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dim.export.run_files import load_network
from dim.networks.classifiers import build_classifier
from dim.runs.files import read_json
from dim.runs.tensors import read_tensors
from dim.runtime.errors import RunError


class Classifier(nn.Module):
    """A classifier that takes pixels as a bundle draws them.

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


def read_classifiers(path: Path, kind: str) -> list[tuple[str, Classifier]]:
    """Read the classifiers of a run.

    Args:
        path: a run directory.
        kind: `pool` or `teacher`: `<kind>.safetensors` with keys `<i>.<name>`, and `<kind>.json`.

    Returns:
        architecture and network of each, none where the run has none.

    Raises:
        RunError: a file of the two is missing, damaged or does not fit the other.
    """
    weights, description = path / f"{kind}.safetensors", path / f"{kind}.json"
    if not weights.exists() and not description.exists():
        return []
    for file in (weights, description):
        if not file.is_file():
            raise RunError(f"{file} is missing: the run is incomplete.")
    entries = read_json(path, description.name)
    tensors = read_tensors(path, weights.name)
    classifiers: list[tuple[str, Classifier]] = []
    for number, entry in enumerate(entries):
        own = {k.removeprefix(f"{number}."): v for k, v in tensors.items() if k.startswith(f"{number}.")}

        def build(entry: Mapping[str, Any] = entry) -> nn.Module:
            num_classes, channels, image_px = (int(entry[key]) for key in ("num_classes", "channels", "image_px"))
            return build_classifier(entry["arch"], num_classes, channels, image_px, width=entry.get("width") or None)

        network = load_network(weights, build, own)
        classifiers.append((str(entry["arch"]), Classifier(network, entry["mean"], entry["std"]).eval()))
    return classifiers
