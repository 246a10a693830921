"""The rules behind the graph contract, over parsed ONNX.

The file alone must determine the shape of every value, and shapes grow in proportion to the batch. So the memory and
the time of one image are bounded before an engine runs anything. Sizes are checked node by node, and the check stops at
the first that is too large, so the check is bounded as well.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dim.runtime.bundle_format.graph_cost import estimate_ns
from dim.runtime.bundle_format.graph_rows import check_division, check_reach, check_rows
from dim.runtime.bundle_format.graph_values import BYTES_PER_ELEMENT, Step, follow_values, name_type
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
MAX_INTEGERS = 2**20
"""Elements of all whole numbers of 4 or 8 bytes, per image and in the file: engines follow them one by one."""
MAX_MILLISECONDS_PER_IMAGE = 600
"""Of one core, as `graph_cost` estimates it, so that 16 images take 10 seconds at most."""

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
_CONSTANTS = frozenset({"value", "value_int", "value_ints", "value_float", "value_floats"})


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
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise GraphError(f"The ONNX file is not a valid graph: {describe_error(error)}") from None
    return _check_steps(model, contract)


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
        if name_type(tensor.elem_type) != kind or dims[1:] != list(shape) or not dims or not isinstance(dims[0], str):
            expected = ", ".join(["N", *map(str, shape)])
            raise GraphError(
                f"{name} of the ONNX file is {name_type(tensor.elem_type)} {str(dims)[:100]}; it must be {kind} "
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
    if node.op_type == "Constant" and (len(node.attribute) != 1 or node.attribute[0].name not in _CONSTANTS):
        raise GraphError("A Constant of the ONNX file holds something other than one array of numbers.")
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
    import onnx

    name, kind = tensor.name[:80], name_type(tensor.data_type)
    if tensor.data_location or tensor.external_data:
        raise GraphError(f"The tensor {name!r} of the ONNX file lies in another file.")
    if kind not in BYTES_PER_ELEMENT:
        raise GraphError(f"The tensor {name!r} of the ONNX file has the type {kind}, which a bundle's graphs may not.")
    if tensor.HasField("segment") or any(size < 0 for size in tensor.dims):
        raise GraphError(f"The tensor {name!r} of the ONNX file has an impossible shape.")
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        fits = len(tensor.raw_data) == count * BYTES_PER_ELEMENT[kind]
    else:
        fits = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type))) == count
    if not fits:
        raise GraphError(f"The tensor {name!r} of the ONNX file holds more or less than its shape {list(tensor.dims)}.")


def _check_steps(model: Any, contract: GraphContract) -> int:
    """Check every node in turn, and what all of them need together; return the rows that one run may be given."""
    needs = _Needs(model.graph)
    name, kind, shape = contract.output
    for step in follow_values(model):
        needs.add(step)
        check_rows(step)
        check_division(step)
        check_reach(step)
        for made, value in zip(filter(None, step.node.output), step.outputs, strict=True):
            if made == name and (value.kind, value.batch_axis, value.shape[1:]) != (kind, 0, shape):
                raise GraphError(
                    f"The ONNX file is not a valid graph: {name} becomes {value.kind} {list(value.shape)} for "
                    f"{value.shape[0] if value.shape else 0} images."
                )
    return max(1, needs.rows)


class _Needs:
    """What one image needs so far."""

    def __init__(self, graph: Any) -> None:
        self.rows = MAX_ELEMENTS_PER_RUN
        """As many as keep what a later node still needs, or is being made, within the limit at any one time."""
        self._last_use = {name: place for place, node in enumerate(graph.node) for name in node.input}
        self._freed: dict[int, list[tuple[bool, int]]] = {}
        # Elements of 4 bytes: those that are the same for every batch, and those of one image.
        self._held = {False: 0, True: 0}
        self._place = self._total = 0
        self._milliseconds = 0.0
        self._integers = sum(
            math.prod(t.dims) for t in graph.initializer if name_type(t.data_type) in ("INT32", "INT64")
        )

    def add(self, step: Step) -> None:
        """Count a node.

        Raises:
            GraphError: one value, or all together, are too large or take too long.
        """
        for name, value in zip(filter(None, step.node.output), step.outputs, strict=True):
            if value.per_image > MAX_ELEMENTS_PER_IMAGE:
                raise GraphError(
                    f"{printable(name[:80])!r} ({step.operator}) of the ONNX file has {value.per_image:,} elements per "
                    f"image; at most {MAX_ELEMENTS_PER_IMAGE:,} are allowed."
                )
            size = value.per_image * (2 if value.kind == "INT64" else 1)
            self._total += size
            grows = value.batch_axis is not None
            self._held[grows] += size
            self._integers += value.per_image if value.kind in ("INT32", "INT64") else 0
            last = self._last_use.get(name, self._place)
            self._freed.setdefault(last, []).append((grows, size))
        if self._held[True]:
            self.rows = min(self.rows, (MAX_ELEMENTS_PER_RUN - self._held[False]) // self._held[True])
        for grows, size in self._freed.pop(self._place, []):
            self._held[grows] -= size
        self._place += 1
        if (columns := _count_column_elements(step)) > MAX_TOTAL_ELEMENTS_PER_IMAGE:
            raise GraphError(
                f"A {step.operator} of the ONNX file needs room for {columns:,} elements beside its output; at most "
                f"{MAX_TOTAL_ELEMENTS_PER_IMAGE:,} are allowed."
            )
        if self._total > MAX_TOTAL_ELEMENTS_PER_IMAGE:
            raise GraphError(
                f"The ONNX file needs more than {MAX_TOTAL_ELEMENTS_PER_IMAGE:,} elements per image, which no "
                "generator does."
            )
        if self._integers > MAX_INTEGERS:
            raise GraphError(
                f"The ONNX file holds or makes more than {MAX_INTEGERS:,} whole numbers of 4 or 8 bytes per image, "
                "which no generator does."
            )
        self._milliseconds += estimate_ns(step) / 1e6
        if self._milliseconds > MAX_MILLISECONDS_PER_IMAGE:
            raise GraphError(
                f"The ONNX file would take more than {MAX_MILLISECONDS_PER_IMAGE / 1000:g} s of one core for every "
                f"image; {step.operator} {printable(step.node.name[:80])!r} is the operator that went beyond."
            )


def _count_column_elements(step: Step) -> int:
    """Return the elements that a transposed convolution holds before it adds them up, for one image at a time."""
    image, weight = (*step.inputs, None, None)[:2]
    if step.operator != "ConvTranspose" or image is None or weight is None:
        return 0
    return math.prod(weight.shape[1:]) * math.prod(image.shape[2:])


def _list_names(names: list[str]) -> str:
    # A name that is not UTF-8 comes as bytes.
    return ", ".join(printable(str(name)[:40]) for name in names[:8]) or "none"
