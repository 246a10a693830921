"""Bundles with random weights, for benchmarks: speed does not depend on the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dim.export.graph.half import to_half
from dim.export.graph.int8 import to_int8
from dim.export.graph.trace import generator_to_onnx
from dim.networks.generator import generator_from_dict
from dim.presets import preset as find_preset
from dim.runtime.bundle_format.files import write_bundle
from dim.runtime.bundle_format.manifest import BundleDescription, ImageShape, SamplingInfo, SourceInfo, onnx_name
from dim.runtime.bundle_format.names import PRECISIONS
from dim.runtime.sampling.latents import draw_latents, order_slice

CLASS_COUNTS = (5000,) * 10
CALIBRATION_PER_CLASS = 64


def export_untrained(preset: str, folder: Path, precisions: Sequence[str] = PRECISIONS) -> Path:
    """Export the generator of a preset, untrained, for ten classes of 32x32 RGB images.

    Args:
        preset: as `dim distill --preset` knows it.
        folder: where `<preset>.dim` goes.
        precisions: `fp32` and any others.

    Returns:
        the bundle's folder.

    Raises:
        BadValueError: there is no such preset.
        GraphError: torch cannot export it.
    """
    data: Any = SimpleNamespace(name="cifar10", classes=tuple("0123456789"), class_counts=CLASS_COUNTS, height=32)
    config = {**vars(find_preset(preset, data=data).generator), "num_classes": 10, "image_px": 32, "channels": 3}
    torch.manual_seed(0)
    files = {onnx_name("fp32"): generator_to_onnx(generator_from_dict(config))}
    canonical = files[onnx_name("fp32")]
    if "fp16" in precisions:
        files[onnx_name("fp16")] = to_half(canonical)
    if "int8" in precisions:
        labels, indices = order_slice([CALIBRATION_PER_CLASS] * 10, 0, 10 * CALIBRATION_PER_CLASS)
        files[onnx_name("int8")] = to_int8(
            canonical, draw_latents(0, labels, indices, config["latent_dim"], 1.0), labels
        )
    path = folder / f"{preset}.dim"
    half = (0.5,) * 3
    write_bundle(
        path,
        BundleDescription(
            name=preset,
            created_by="untrained, for benchmarks",
            classes=data.classes,
            image=ImageShape(height=32, width=32, channels=3),
            sampling=SamplingInfo(latent_dim=config["latent_dim"], latent_std=1.0),
            source=SourceInfo(
                name="none", class_counts=CLASS_COUNTS, mean=half, std=half, licence="", note="random weights"
            ),
            distill_config={"generator": config},
            licence="",
        ),
        files,
    )
    return path
