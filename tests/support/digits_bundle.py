"""A real generator of digits without a network: a Gaussian per class, fitted to scikit-learn's digits.

Class means and one shared basis of the deviations from them; a classifier that learns from its samples recognises most
real digits, so examples can be tested in seconds.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dim.data.load import load_data
from dim.runtime.bundle_format.files import write_bundle
from dim.runtime.bundle_format.manifest import BundleDescription, ImageShape, SamplingInfo, SourceInfo

_LATENT_DIM = 24


def build_digits_bundle(path: Path) -> Path:
    """Write the bundle and return its path."""
    data = load_data("digits")
    pixels = data.train_images.reshape(-1, 64).astype(np.float64)
    means = np.stack([pixels[data.train_labels == label].mean(axis=0) for label in range(10)])
    _, spread, basis = np.linalg.svd(pixels - means[data.train_labels], full_matrices=False)
    basis = (basis * spread[:, None] / np.sqrt(len(pixels)))[:_LATENT_DIM]
    weights = {
        "means": means.astype(np.float32),
        "basis": basis.astype(np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
        "shape": np.array([-1, 1, 8, 8], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["means", "labels"], ["centre"], axis=0),
        helper.make_node("MatMul", ["latents", "basis"], ["deviation"]),
        helper.make_node("Add", ["centre", "deviation"], ["flat"]),
        helper.make_node("Round", ["flat"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "low", "high"], ["clipped"]),
        helper.make_node("Reshape", ["clipped", "shape"], ["nchw"]),
        helper.make_node("Transpose", ["nchw"], ["nhwc"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["nhwc"], ["images"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "generator",
        [
            helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["N", _LATENT_DIM]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    write_bundle(
        path,
        BundleDescription(
            name="gaussian-digits",
            created_by="dim test",
            classes=tuple(data.classes),
            image=ImageShape(height=8, width=8, channels=1),
            sampling=SamplingInfo(latent_dim=_LATENT_DIM, latent_std=1.0),
            source=SourceInfo(
                name="digits",
                class_counts=tuple(int(count) for count in data.class_counts),
                mean=tuple(data.mean),
                std=tuple(data.std),
                licence=data.licence,
                note=data.note,
            ),
            distill_config={"preset": "gaussian"},
            licence=data.licence,
        ),
        {"generator.fp32.onnx": model.SerializeToString(deterministic=True)},
    )
    return path
