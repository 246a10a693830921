"""The teacher of a run as `teacher.onnx`: images as the bundle draws them in, logits for soft labels out."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dim.export.graph.editor import serialise, tidy
from dim.export.graph.trace import export_module
from dim.export.run_classifiers import Classifier
from dim.runtime.engines.onnx_session import open_cpu_session
from dim.runtime.errors import ParityError

MAX_RELATIVE_ERROR = 1e-3
"""Largest difference of any logit between torch and ONNX Runtime, as a share of the largest logit."""


def teacher_to_onnx(teacher: Classifier, images: NDArray[np.uint8]) -> bytes:
    """Export a classifier in float32 and check it against torch.

    Args:
        teacher: takes uint8 images_NHWC, gives logits_NK.
        images: uint8 [N, H, W, C], N at least 2; what it is checked on.

    Returns:
        the bytes of an ONNX file with the input `images` uint8 [N, H, W, C] and the output `logits` float32 [N, K].

    Raises:
        GraphError: torch cannot export it.
        ParityError: the file gives other logits than torch.
    """
    model = export_module(_replace_pools(teacher), {"images": torch.from_numpy(images[:3])}, "logits")
    tidy(model, "teacher")
    data = serialise(model)
    with torch.inference_mode():
        expected = teacher(torch.from_numpy(images)).numpy()
    found = open_cpu_session(data).run(None, {"images": images})[0]
    error = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))
    if not error <= MAX_RELATIVE_ERROR:
        raise ParityError(
            f"teacher.onnx gives other logits than torch: they differ by {error:.2g} of the largest logit, at most "
            f"{MAX_RELATIVE_ERROR:g} is allowed; nothing was published."
        )
    return data


class _Mean(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.mean(dim=(2, 3), keepdim=True)


def _replace_pools(teacher: Classifier) -> nn.Module:
    """Copy a classifier with means for its global average pools, which torch 2.13 exports badly for 1x1 maps."""
    network = copy.deepcopy(teacher)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, _Mean())
    return network
