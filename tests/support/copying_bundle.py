"""A bundle that was made to copy: its generator returns training images, picked by the first latent."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from dim.data.load import ImageSet
from dim.runtime.bundle_format.files import write_bundle
from dim.runtime.bundle_format.manifest import BundleDescription, ImageShape, SamplingInfo, SourceInfo


def copying_graph(data: ImageSet) -> bytes:
    """labels, latents -> Erf of the first latent, a uniform number -> a row of the class's images -> uint8."""
    per_class = min(data.class_counts)
    table = np.concatenate([data.train_images[data.train_labels == k][:per_class] for k in range(len(data.classes))])
    weights = {
        "table": table.astype(np.float32),
        "first": np.eye(4, 1, dtype=np.float32),
        "root": np.array(np.sqrt(0.5), np.float32),
        "half": np.array(0.5, np.float32),
        "count": np.array(per_class, np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(per_class - 1, np.float32),
        "per_class": np.array(per_class, np.int64),
        "flat": np.array([-1], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("MatMul", ["latents", "first"], ["picked"]),
        node("Reshape", ["picked", "flat"], ["one"]),
        node("Mul", ["one", "root"], ["scaled"]),
        node("Erf", ["scaled"], ["erf"]),
        node("Mul", ["erf", "half"], ["halved"]),
        node("Add", ["halved", "half"], ["uniform"]),
        node("Mul", ["uniform", "count"], ["place"]),
        node("Floor", ["place"], ["floor"]),
        node("Clip", ["floor", "low", "high"], ["clipped"]),
        node("Cast", ["clipped"], ["number"], to=TensorProto.INT64),
        node("Mul", ["labels", "per_class"], ["start"]),
        node("Add", ["start", "number"], ["row"]),
        node("Gather", ["table", "row"], ["pixels"], axis=0),
        node("Cast", ["pixels"], ["images"], to=TensorProto.UINT8),
    ]
    shape = [data.height, data.width, data.channels]
    graph = helper.make_graph(
        nodes,
        "generator",
        [
            helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *shape])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString(deterministic=True)


def build_copying_bundle(path: Path, data: ImageSet) -> Path:
    """Write the bundle and return its path."""
    write_bundle(
        path,
        BundleDescription(
            name="copy",
            created_by="dim test",
            classes=data.classes,
            image=ImageShape(height=data.height, width=data.width, channels=data.channels),
            sampling=SamplingInfo(latent_dim=4, latent_std=1.0),
            source=SourceInfo(
                name=data.name,
                class_counts=data.class_counts,
                mean=data.mean,
                std=data.std,
                licence=data.licence,
                note=data.note,
            ),
            distill_config={"preset": "none"},
            licence="CC0-1.0",
        ),
        {"generator.fp32.onnx": copying_graph(data), "README.md": b"# copy\n"},
    )
    return path
