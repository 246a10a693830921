"""The rules behind the graph contract, over parsed ONNX.

Every value inside must have a shape that follows from the file alone and grows at most linearly with the batch, so the
memory and the work of one image are bounded before an engine runs anything.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dim.runtime.errors import GraphError, describe_error, printable

MAX_OPSET, MIN_OPSET = 18, 13
MAX_IR, MIN_IR = 10, 7
MAX_NODES = 4096
MAX_ELEMENTS_PER_IMAGE = 2**24
"""Of any one value inside the graph: 64 MiB as float32."""
MAX_TOTAL_ELEMENTS_PER_IMAGE = 2**28
"""Of all values together, and of the room that one transposed convolution needs beside them."""
MAX_ELEMENTS_PER_RUN = 2**27
"""Of the values that one run holds at a time: 512 MiB as float32; a run gets as many rows as fit, at least one."""
MAX_MACS_PER_IMAGE = 2 * 10**11
"""Multiply-accumulate operations: seconds on two cores; the published 32x32 generator has 0.37e9."""

# No random numbers, control flow, functions, strings or sequences, and nothing whose output size depends on data.
OPERATORS = frozenset(
    """
    Abs Add And Cast Ceil Clip Cos Div Elu Equal Erf Exp Floor Greater GreaterOrEqual HardSigmoid HardSwish Identity
    LeakyRelu Less LessOrEqual Log LogSoftmax Max Mean Min Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu
    Sigmoid Sign Sin Softmax Softplus Sqrt Sub Sum Tanh Where
    Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements OneHot Pad Reshape ScatterElements
    ScatterND Shape Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze
    AveragePool BatchNormalization Conv ConvTranspose Gemm GlobalAveragePool GlobalMaxPool InstanceNormalization
    LayerNormalization LpNormalization MatMul MaxPool ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum
    ReduceSumSquare Resize
    DequantizeLinear QuantizeLinear
    """.split()
)
_BYTES_PER_ELEMENT = {"FLOAT": 4, "FLOAT16": 2, "INT64": 8, "INT32": 4, "INT8": 1, "UINT8": 1, "BOOL": 1}
_TYPED_FIELDS = {
    "FLOAT": "float_data",
    "FLOAT16": "int32_data",
    "INT64": "int64_data",
    "INT32": "int32_data",
    "INT8": "int32_data",
    "UINT8": "int32_data",
    "BOOL": "int32_data",
}
_BATCHES = (4, 8)


@dataclass(frozen=True, kw_only=True)
class GraphContract:
    """The inputs and the output that a graph must have."""

    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    """(name, type, shape without the batch), type as ONNX names it: FLOAT, INT64, UINT8."""
    output: tuple[str, str, tuple[int, ...]]
    last_operator: str | None
    """The operator that must make the output; None for any."""


def check_model(model: Any, contract: GraphContract) -> int:
    """Check a parsed ONNX model.

    Args:
        model: an `onnx.ModelProto`.
        contract: its inputs and output.

    Returns:
        rows that one run may be given.

    Raises:
        GraphError: it breaks a rule; the message says which.
    """
    import onnx

    graph = model.graph
    _check_versions(model)
    if len(graph.node) > MAX_NODES:
        raise GraphError(f"The ONNX file has {len(graph.node):,} nodes; at most {MAX_NODES:,} are read.")
    for what, things in (
        ("functions", model.functions),
        ("training information", model.training_info),
        ("sparse tensors", graph.sparse_initializer),
    ):
        if len(things):
            raise GraphError(f"The ONNX file holds {what}; a generator has none.")
    _check_interface(graph, contract)
    for node in graph.node:
        _check_node(node)
    for tensor in graph.initializer:
        _check_tensor(tensor)
    makers = {output: node.op_type for node in graph.node for output in node.output}
    if contract.last_operator and makers.get(contract.output[0]) != contract.last_operator:
        raise GraphError(
            f"The output {contract.output[0]} of the ONNX file is not made by a last {contract.last_operator}."
        )
    try:
        onnx.checker.check_model(model)
        small, large = (_infer_shapes(model, contract, batch) for batch in _BATCHES)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise GraphError(f"The ONNX file is not a valid graph: {describe_error(error)}") from None
    _check_sizes(graph, small, large)
    return max(1, MAX_ELEMENTS_PER_RUN // _count_live_elements(graph, small))


def _check_versions(model: Any) -> None:
    if not MIN_IR <= model.ir_version <= MAX_IR:
        raise GraphError(f"The ONNX file has IR version {model.ir_version}; it must be {MIN_IR} to {MAX_IR}.")
    opsets = [(entry.domain, entry.version) for entry in model.opset_import]
    if len(opsets) != 1 or opsets[0][0] not in ("", "ai.onnx"):
        named = ", ".join(domain or "ai.onnx" for domain, _ in opsets)
        raise GraphError(f"The ONNX file imports the operator sets {named[:200]!r}; it must import ONNX's own alone.")
    if not MIN_OPSET <= opsets[0][1] <= MAX_OPSET:
        raise GraphError(f"The ONNX file has opset {opsets[0][1]}; it must be {MIN_OPSET} to {MAX_OPSET}.")


def _check_interface(graph: Any, contract: GraphContract) -> None:
    found_inputs = [value.name for value in graph.input]
    found_outputs = [value.name for value in graph.output]
    expected_inputs = [name for name, _, _ in contract.inputs]
    if found_inputs != expected_inputs or found_outputs != [contract.output[0]]:
        raise GraphError(
            f"The ONNX file has the inputs {_list_names(found_inputs)} and the outputs {_list_names(found_outputs)}; "
            f"they must be {_list_names(expected_inputs)} and {contract.output[0]}."
        )
    symbols = set()
    for value, (name, kind, shape) in zip(
        [*graph.input, *graph.output], [*contract.inputs, contract.output], strict=True
    ):
        tensor = value.type.tensor_type
        dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        if _type_name(tensor.elem_type) != kind or dims[1:] != list(shape) or not dims or not isinstance(dims[0], str):
            expected = ", ".join(["N", *map(str, shape)])
            raise GraphError(
                f"{name} of the ONNX file is {_type_name(tensor.elem_type)} {str(dims)[:100]}; it must be {kind} "
                f"[{expected}] with a symbolic N."
            )
        symbols.add(dims[0])
    if len(symbols) != 1:
        raise GraphError(
            f"The batch of the ONNX file has several names, {_list_names(sorted(symbols))}; it must have one."
        )


def _check_node(node: Any) -> None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise GraphError(f"The ONNX file uses the operator {name[:80]!r}, which a bundle's graphs may not.")
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs or attribute.ref_attr_name:
            raise GraphError(f"The operator {node.op_type} of the ONNX file holds a graph of its own.")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise GraphError(f"The operator {node.op_type} of the ONNX file holds a sparse tensor.")
        for tensor in _attribute_tensors(attribute):
            _check_tensor(tensor)


def _attribute_tensors(attribute: Any) -> Iterator[Any]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _check_tensor(tensor: Any) -> None:
    """A tensor's bytes must lie in the file, all of them and no more than its shape says."""
    name, kind = tensor.name[:80], _type_name(tensor.data_type)
    if tensor.data_location or tensor.external_data:
        raise GraphError(f"The tensor {name!r} of the ONNX file lies in another file.")
    if kind not in _BYTES_PER_ELEMENT:
        raise GraphError(f"The tensor {name!r} of the ONNX file has the type {kind}, which a bundle's graphs may not.")
    if tensor.HasField("segment") or any(size < 0 for size in tensor.dims):
        raise GraphError(f"The tensor {name!r} of the ONNX file has an impossible shape.")
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        fits = len(tensor.raw_data) == count * _BYTES_PER_ELEMENT[kind]
    else:
        fits = len(getattr(tensor, _TYPED_FIELDS[kind])) == count
    if not fits:
        raise GraphError(f"The tensor {name!r} of the ONNX file holds more or less than its shape {list(tensor.dims)}.")


def _infer_shapes(model: Any, contract: GraphContract, batch: int) -> dict[str, list[int]]:
    """Infer the shape of every value for one batch size, trusting nothing that the file says about shapes."""
    import onnx

    concrete = onnx.ModelProto()
    concrete.CopyFrom(model)
    del concrete.graph.value_info[:]
    for value in [*concrete.graph.input, *concrete.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(concrete, check_type=True, strict_mode=True, data_prop=True)
    shapes = {tensor.name: list(tensor.dims) for tensor in inferred.graph.initializer}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            shapes[value.name] = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]
    return shapes


def _check_sizes(graph: Any, small: dict[str, list[int]], large: dict[str, list[int]]) -> None:
    total, macs = 0, 0
    for node in graph.node:
        for output in filter(None, node.output):
            shape, larger_shape = small.get(output, [-1]), large.get(output, [-1])
            if min([0, *shape, *larger_shape]) < 0:
                raise GraphError(
                    f"The size of {output[:80]!r} ({node.op_type}) does not follow from the ONNX file alone, so the "
                    "file is not run."
                )
            elements = math.prod(shape)
            if math.prod(larger_shape) > elements:
                elements = -(-elements // _BATCHES[0])
            if math.prod(larger_shape) > 2 * math.prod(shape):
                raise GraphError(f"The size of {output[:80]!r} ({node.op_type}) grows faster than the batch.")
            if elements > MAX_ELEMENTS_PER_IMAGE:
                raise GraphError(
                    f"{output[:80]!r} ({node.op_type}) of the ONNX file has {elements:,} elements per image; at most "
                    f"{MAX_ELEMENTS_PER_IMAGE:,} are allowed."
                )
            total += elements
            macs += elements * _count_macs_per_element(node, small)
        if (columns := _count_column_elements(node, small)) > MAX_TOTAL_ELEMENTS_PER_IMAGE:
            raise GraphError(
                f"A {node.op_type} of the ONNX file needs room for {columns:,} elements beside its output; at most "
                f"{MAX_TOTAL_ELEMENTS_PER_IMAGE:,} are allowed."
            )
    if total > MAX_TOTAL_ELEMENTS_PER_IMAGE or macs > MAX_MACS_PER_IMAGE:
        raise GraphError(
            f"The ONNX file needs {total:,} elements and {macs:,} multiplications per image; at most "
            f"{MAX_TOTAL_ELEMENTS_PER_IMAGE:,} and {MAX_MACS_PER_IMAGE:,} are allowed."
        )


def _count_macs_per_element(node: Any, shapes: dict[str, list[int]]) -> int:
    """Return the multiplications behind each output element of the operators that have many."""
    if node.op_type == "Conv":
        return math.prod(shapes.get(node.input[1], [1])[1:])
    if node.op_type == "ConvTranspose":
        # An upper bound: a stride spreads these over several output elements.
        weight = shapes.get(node.input[1], [1])
        return weight[0] * math.prod(weight[2:])
    if node.op_type in ("Gemm", "MatMul"):
        return max(shapes.get(node.input[0], [1]), default=1)
    if node.op_type in ("AveragePool", "MaxPool"):
        return math.prod(next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), [1]))
    return 1


def _count_column_elements(node: Any, shapes: dict[str, list[int]]) -> int:
    """Return the elements that a transposed convolution holds before it adds them up, for one image at a time."""
    if node.op_type != "ConvTranspose":
        return 0
    weight, image = shapes.get(node.input[1], [1]), shapes.get(node.input[0], [1])
    return math.prod(weight[1:]) * math.prod(image[2:])


def _count_live_elements(graph: Any, shapes: dict[str, list[int]]) -> int:
    """Return the most elements per image that a later node still needs, or that are being made, at any one time."""
    last_use = {name: place for place, node in enumerate(graph.node) for name in node.input}
    held: dict[str, int] = {}
    most = 1
    for place, node in enumerate(graph.node):
        held |= {name: -(-math.prod(shapes.get(name, [1])) // _BATCHES[0]) for name in node.output if name}
        most = max(most, sum(held.values()))
        held = {name: size for name, size in held.items() if last_use.get(name, -1) > place}
    return most


def _type_name(number: int) -> str:
    import onnx

    names = onnx.TensorProto.DataType.items()
    return next((name for name, value in names if value == number), str(number))


def _list_names(names: list[str]) -> str:
    # A name that is not UTF-8 comes as bytes.
    return ", ".join(printable(str(name)[:40]) for name in names[:8]) or "none"
