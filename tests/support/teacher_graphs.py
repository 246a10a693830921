"""A teacher of a few weights, as ONNX."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def teacher_graph(scale: float = 1.0) -> bytes:
    """A linear classifier of 8x8 grey images into three classes."""
    weight = np.random.default_rng(0).normal(0, scale, (64, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)
