"""How much work one image is, and how fast this machine multiplies matrices: the yardstick of `dim bench`.

The matrix product is measured through the engine that is judged, on a generator that is nothing but matrix products,
so the share reached says what the network's shape costs, not what the library costs.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dim.runtime.bundle_format.files import load_manifest, write_bundle
from dim.runtime.bundle_format.graph_contract import parse_onnx
from dim.runtime.bundle_format.manifest import Manifest, SourceInfo
from dim.runtime.engines.base import Engine

_LAYERS = 8
_LATENT_DIM, _IMAGE_PX = 64, 8
_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class ProductSize:
    """How large the measured products are."""

    rows: int
    """Rows of the left matrix, one per image of a batch."""
    width: int
    """Width and height of the right matrix."""

    @property
    def flop(self) -> float:
        """Floating-point operations of one run; the two small products at the ends are left out."""
        return 2.0 * self.rows * self.width**2 * _LAYERS


# A run takes about 0.1 s at 170 GFLOP/s, and about 2 ms at 500 TFLOP/s.
SIZES = {"cpu": ProductSize(rows=1024, width=1024), "gpu": ProductSize(rows=4096, width=4096)}


def flop_per_image(onnx_bytes: bytes) -> float:
    """Count the floating-point operations of convolutions and matrix products for one image, two per multiplication.

    Args:
        onnx_bytes: a checked generator.
    """
    import onnx

    model = parse_onnx(onnx_bytes)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return 2.0 * sum(_macs(node, shapes) for node in inferred.node)


def _macs(node: Any, shapes: dict[str, list[int]]) -> int:
    if node.op_type == "Conv":
        return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type in ("Gemm", "MatMul"):
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-2 if transposed else -1]
    return 0


@dataclass(frozen=True)
class ProductBundle:
    """A bundle whose generator is a chain of matrix products."""

    path: Path
    manifest: Manifest


@contextmanager
def product_bundle(size: ProductSize) -> Iterator[ProductBundle]:
    """Write the bundle into a temporary folder; its bytes are always the same, so built engines are found again."""
    with tempfile.TemporaryDirectory(prefix="dim-products-") as folder:
        path = Path(folder) / "products.dim"
        write_bundle(
            path,
            files={f"generator.{precision}.onnx": _products(size.width, precision) for precision in ("fp32", "fp16")},
            name="products",
            created_by="dim bench",
            classes=("a",),
            height=_IMAGE_PX,
            width=_IMAGE_PX,
            channels=1,
            latent_dim=_LATENT_DIM,
            latent_std=1.0,
            source=SourceInfo(name="", class_counts=(0,), mean=(0.5,), std=(0.5,), licence="", note=""),
            distill_config={},
            licence="",
        )
        yield ProductBundle(path, load_manifest(path))


def measure_product_rate(engine: Engine, size: ProductSize, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the rate of matrix products.

    Args:
        engine: opened on a `product_bundle` of this size, with its rows as batch.
        size: how large the products are.
        clock: seconds.

    Returns:
        floating-point operations per second, the best of five runs.
    """
    latents = np.random.default_rng(0).standard_normal((size.rows, _LATENT_DIM)).astype(np.float32)
    labels = np.zeros(size.rows, np.int64)
    engine.run(latents, labels)
    seconds = []
    for _ in range(_ROUNDS):
        start = clock()
        engine.run(latents, labels)
        seconds.append(clock() - start)
    return size.flop / min(seconds)


def _products(width: int, precision: str) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    inner = np.float16 if precision == "fp16" else np.float32
    weights = {
        "embedding": np.zeros((1, _LATENT_DIM), inner),
        "first": rng.standard_normal((_LATENT_DIM, width)) / math.sqrt(_LATENT_DIM),
        "square": rng.standard_normal((width, width)) / math.sqrt(width),
        "last": rng.standard_normal((width, _IMAGE_PX**2)) / math.sqrt(width),
        "half": np.array(127.5),
        "low": np.array(0.0),
        "high": np.array(255.0),
    }
    node = helper.make_node
    start = "latents"
    nodes = []
    if precision == "fp16":
        nodes.append(node("Cast", ["latents"], ["halved"], to=TensorProto.FLOAT16))
        start = "halved"
    nodes += [
        node("Gather", ["embedding", "labels"], ["row"]),
        node("Add", [start, "row"], ["mixed"]),
        node("MatMul", ["mixed", "first"], ["product_0"]),
    ]
    for layer in range(_LAYERS):
        nodes.append(node("MatMul", [f"product_{layer}", "square"], [f"product_{layer + 1}"]))
    nodes += [
        node("MatMul", [f"product_{_LAYERS}", "last"], ["flat"]),
        node("Tanh", ["flat"], ["bounded"]),
        node("Mul", ["bounded", "half"], ["scaled"]),
        node("Add", ["scaled", "half"], ["shifted"]),
        node("Round", ["shifted"], ["rounded"]),
        node("Clip", ["rounded", "low", "high"], ["clipped"]),
        node("Reshape", ["clipped", "shape"], ["nhwc"]),
        node("Cast", ["nhwc"], ["images"], to=TensorProto.UINT8),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value, inner), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([-1, _IMAGE_PX, _IMAGE_PX, 1], np.int64), "shape"))
    graph = helper.make_graph(
        nodes,
        "products",
        [
            helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["N", _LATENT_DIM]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", _IMAGE_PX, _IMAGE_PX, 1])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
