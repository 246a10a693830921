"""The fp16 file of a bundle, made from the canonical one with onnx alone.

Weights and arithmetic become half precision; `latents` at one border and the scaling to pixels at the other stay
float32. Norms were folded in float32 before, so this is at least as accurate as exporting a model in half precision.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from dim.export.graph.editor import find_first_pixel_node, parse, serialise, tidy
from dim.runtime.errors import ParityError

FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Inputs that the operators want in float32 whatever the data: regions and scales."""


def to_half(canonical: bytes) -> bytes:
    """Convert the canonical ONNX file to half precision.

    Args:
        canonical: a file written by `generator_to_onnx`.

    Returns:
        the bytes of the fp16 file.

    Raises:
        ParityError: a weight lies beyond half precision's largest number, 65,504.
    """
    model = parse(canonical)
    graph = model.graph
    border = find_first_pixel_node(model)
    core = list(graph.node)[:border]
    kept = {name for node in list(graph.node)[border:] for name in node.input}
    kept |= {node.input[i] for node in core for i in FLOAT32_INPUTS.get(node.op_type, ()) if i < len(node.input)}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            weight = numpy_helper.to_array(tensor)
            largest = float(np.abs(weight).max(initial=0))
            if largest > float(np.finfo(np.float16).max):
                raise ParityError(
                    f"fp16 cannot hold the weight {tensor.name}: it reaches {largest:.3g}, half precision ends at "
                    "65,504; export without fp16."
                )
            tensor.CopyFrom(numpy_helper.from_array(weight.astype(np.float16), tensor.name))
    for node in core:
        for place, name in enumerate(node.input):
            if name == "latents":
                node.input[place] = "latents.half"
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    first_pixel = graph.node[border]
    values = next(name for name in first_pixel.input if name != "half_range")
    graph.node.insert(border, helper.make_node("Cast", [values], ["values.float"], to=TensorProto.FLOAT))
    for place, name in enumerate(first_pixel.input):
        if name == values:
            graph.node[border + 1].input[place] = "values.float"
    graph.node.insert(0, helper.make_node("Cast", ["latents"], ["latents.half"], to=TensorProto.FLOAT16))
    tidy(model, "generator")
    return serialise(model)
