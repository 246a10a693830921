"""Counts the arithmetic operations of one generated image."""

import math
from typing import Any

from dim.runtime.bundle_format.graph_contract import parse_onnx


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
    return 2.0 * sum(_count_multiplications(node, shapes) for node in inferred.node)


def _count_multiplications(node: Any, shapes: dict[str, list[int]]) -> int:
    if node.op_type == "Conv":
        return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type in ("Gemm", "MatMul"):
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-2 if transposed else -1]
    return 0
