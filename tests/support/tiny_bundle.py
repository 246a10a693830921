"""A tiny, valid bundle, built with onnx's helpers: no torch, a few kilobytes, different images for every sample.

labels -> Gather (a row of an embedding per class), plus latents -> Gemm -> Reshape -> Resize -> Conv -> Tanh -> scale,
Round, Clip -> Transpose to NHWC -> Cast to uint8.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dim.runtime.bundle_format.files import write_bundle
from dim.runtime.bundle_format.manifest import BundleDescription, ImageShape, SamplingInfo, SourceInfo
from dim.runtime.sampling.philox import FILTERED_SAMPLING, PLAIN_SAMPLING

_CHANNELS_INSIDE = 6


def tiny_graph(
    *, num_classes: int, image_px: int, channels: int, latent_dim: int, seed: int = 0, precision: str = "fp32"
) -> bytes:
    """Build the ONNX file of a tiny generator in one precision."""
    rng = np.random.default_rng(seed)
    small = image_px // 2
    weights: dict[str, NDArray[np.generic]] = {
        "embedding": rng.normal(0, 0.8, (num_classes, latent_dim)).astype(np.float32),
        "gemm_weight": rng.normal(0, 0.35, (latent_dim, _CHANNELS_INSIDE * small * small)).astype(np.float32),
        "gemm_bias": rng.normal(0, 0.1, (_CHANNELS_INSIDE * small * small,)).astype(np.float32),
        "conv_weight": rng.normal(0, 0.2, (channels, _CHANNELS_INSIDE, 3, 3)).astype(np.float32),
        "conv_bias": rng.normal(0, 0.05, (channels,)).astype(np.float32),
        "half_range": np.array(127.5, np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
        "shape": np.array([-1, _CHANNELS_INSIDE, small, small], np.int64),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    half = precision == "fp16"
    if half:
        weights = {
            name: value.astype(np.float16) if value.dtype == np.float32 and name != "scales" else value
            for name, value in weights.items()
        }
    node = helper.make_node
    nodes = [node("Cast", ["latents"], ["latents_half"], to=TensorProto.FLOAT16)] if half else []
    nodes += [
        node("Gather", ["embedding", "labels"], ["class_rows"], axis=0),
        node("Add", ["latents_half" if half else "latents", "class_rows"], ["mixed"]),
        node("Gemm", ["mixed", "gemm_weight", "gemm_bias"], ["dense"]),
        node("Reshape", ["dense", "shape"], ["maps"]),
        node("Relu", ["maps"], ["positive"]),
        node("Resize", ["positive", "", "scales"], ["larger"], mode="nearest"),
    ]
    convolved_from = ["larger", "conv_weight"]
    if precision == "int8":
        for name in ("larger", "conv_weight"):
            weight = weights.get(name)
            scale = 0.05 if weight is None else float(np.abs(weight).max()) / 127
            weights[f"{name}_scale"] = np.array(scale, np.float32)
            weights[f"{name}_zero"] = np.array(0, np.int8)
            border = [f"{name}_scale", f"{name}_zero"]
            nodes += [
                node("QuantizeLinear", [name, *border], [f"{name}_int8"]),
                node("DequantizeLinear", [f"{name}_int8", *border], [f"{name}_restored"]),
            ]
        convolved_from = ["larger_restored", "conv_weight_restored"]
    nodes += [
        node("Conv", [*convolved_from, "conv_bias"], ["convolved"], pads=[1, 1, 1, 1]),
        node("Tanh", ["convolved"], ["bounded"]),
        node("Mul", ["bounded", "half_range"], ["scaled"]),
        node("Add", ["scaled", "half_range"], ["shifted"]),
        node("Round", ["shifted"], ["rounded"]),
        node("Clip", ["rounded", "low", "high"], ["clipped"]),
        node("Transpose", ["clipped"], ["nhwc"], perm=[0, 2, 3, 1]),
        node("Cast", ["nhwc"], ["images"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "generator",
        [
            helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["N", latent_dim]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", image_px, image_px, channels])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def build_tiny_bundle(
    path: Path,
    *,
    classes: Sequence[str] = ("zero", "one", "two"),
    image_px: int = 8,
    channels: int = 1,
    latent_dim: int = 16,
    seed: int = 0,
    precisions: Sequence[str] = ("fp32",),
    extra_files: Mapping[str, bytes] | None = None,
    latent_std: float = 1.0,
    distill_config: Mapping[str, object] | None = None,
) -> Path:
    """Write a tiny bundle and return its path."""
    files = {
        f"generator.{precision}.onnx": tiny_graph(
            num_classes=len(classes),
            image_px=image_px,
            channels=channels,
            latent_dim=latent_dim,
            seed=seed,
            precision=precision,
        )
        for precision in precisions
    }
    write_bundle(
        Path(path),
        BundleDescription(
            name="tiny",
            created_by="dim test",
            classes=classes,
            image=ImageShape(height=image_px, width=image_px, channels=channels),
            sampling=SamplingInfo(
                latent_dim=latent_dim,
                latent_std=latent_std,
                sampling_version=FILTERED_SAMPLING if "accepted.bin" in (extra_files or {}) else PLAIN_SAMPLING,
            ),
            source=SourceInfo(
                name="tiny",
                class_counts=tuple(10 * (label + 1) for label in range(len(classes))),
                mean=(0.5,) * channels,
                std=(0.25,) * channels,
                licence="CC0-1.0",
                note="drawn from a random generator",
            ),
            distill_config={"preset": "none", **(distill_config or {})},
            licence="CC0-1.0",
        ),
        {**files, "README.md": b"# tiny\n", **(extra_files or {})},
    )
    return Path(path)
