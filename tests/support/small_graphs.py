"""Generators of a few nodes, and what a test puts in: latents [N, 4] and labels [N] to images [N, 8, 8, 1]."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from dim.runtime.bundle_format.graph_rules import GraphContract

CONTRACT = GraphContract(
    inputs=(("latents", "FLOAT", (4,)), ("labels", "INT64", ())),
    output=("images", "UINT8", (8, 8, 1)),
    last_operator="Cast",
)
node = helper.make_node


def small_graph(
    nodes: Sequence[NodeProto] = (), weights: Mapping[str, Any] | None = None, last: str = "plain"
) -> bytes:
    """Build the ONNX file.

    Args:
        nodes: put after those that make `plain` [N, 8, 8, 1] and `maps` [N, 1, 8, 8] of latents and labels.
        weights: the arrays that they use.
        last: the name of float32 [N, 8, 8, 1], which becomes the images.
    """
    rng = np.random.default_rng(0)
    arrays = {
        "embedding": rng.normal(0, 1, (3, 4)).astype(np.float32),
        "dense": rng.normal(0, 30, (4, 64)).astype(np.float32),
        "image_shape": np.array([-1, 8, 8, 1], np.int64),
        "middle": np.float32(128),
    } | dict(weights or {})
    before = [
        node("Gather", ["embedding", "labels"], ["classes"]),
        node("Add", ["latents", "classes"], ["mixed"]),
        node("MatMul", ["mixed", "dense"], ["rows"]),
        node("Add", ["rows", "middle"], ["brighter"]),
        node("Reshape", ["brighter", "image_shape"], ["plain"]),
        node("Transpose", ["plain"], ["maps"], perm=[0, 3, 1, 2]),
    ]
    graph = helper.make_graph(
        [*before, *nodes, node("Cast", [last], ["images"], to=TensorProto.UINT8)],
        "small",
        [
            helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def added(nodes: Sequence[NodeProto], value: str, weights: Mapping[str, Any] | None = None) -> bytes:
    """Build a graph whose images have `value`, which must fit [N, 8, 8, 1], added to them."""
    return small_graph([*nodes, node("Add", ["plain", value], ["result"])], weights, "result")
