"""Finds the type of every value in a graph, its shape for two batch sizes, and its numbers where shapes need them.

Values are computed node by node, and the size of each is checked before the next node. So a file of two kilobytes
cannot make the check itself large. Only arrays of a few numbers are ever computed; they stay linear in the batch size,
so two batch sizes tell what they are at any other.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.errors import GraphError, describe_error, printable

BATCHES = (4, 8)
"""The batch sizes for which everything is worked out."""
BYTES_PER_ELEMENT = {"FLOAT": 4, "FLOAT16": 2, "INT64": 8, "INT32": 4, "INT8": 1, "UINT8": 1, "BOOL": 1}
"""The types that a value may have."""
INTEGERS = ("INT64", "INT32", "INT8", "UINT8")
MAX_KNOWN_ELEMENTS = 64
"""Of an array whose numbers are followed; shapes, axes and scales have a dozen."""
MAX_RANK = 8
_MAX_KNOWN_NUMBER = 2**31

Known = tuple[NDArray[Any], NDArray[Any]]
"""The numbers of a value for the smaller and the larger batch."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value of the graph."""

    kind: str
    """FLOAT, INT64, ..."""
    shape: tuple[int, ...]
    """For the smaller batch."""
    larger_shape: tuple[int, ...]
    """For the larger batch."""
    known: Known | None = None
    """Its numbers, where they follow from the file and the batch size."""

    @property
    def elements(self) -> int:
        """Elements for the smaller batch."""
        return math.prod(self.shape)

    @property
    def batch_axis(self) -> int | None:
        """The axis that grows with the batch, or None."""
        return next((axis for axis, size in enumerate(self.shape) if size != self.larger_shape[axis]), None)

    @property
    def per_image(self) -> int:
        """Elements of one image, or all of them where the batch does not matter."""
        return self.elements if self.batch_axis is None else -(-self.elements // BATCHES[0])

    @property
    def varies(self) -> bool:
        """Whether its numbers are known and depend on the batch size."""
        # By their bytes, because NaN is not equal to itself.
        return self.known is not None and self.known[0].tobytes() != self.known[1].tobytes()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A node with what goes into it and comes out of it."""

    node: Any
    inputs: tuple[Value | None, ...]
    """None where an optional input is left out."""
    outputs: tuple[Value, ...]

    @property
    def operator(self) -> str:
        """Its name in ONNX."""
        return str(self.node.op_type)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute, or the default where it is not given."""
        import onnx

        return next((onnx.helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)

    def known(self, place: int) -> NDArray[Any] | None:
        """Return the numbers of an input that do not depend on the batch, or None."""
        value = self.inputs[place] if place < len(self.inputs) else None
        return None if value is None or value.known is None or value.varies else value.known[0]


@lru_cache(maxsize=64)
def name_type(number: int) -> str:
    """Return ONNX's name of a type: FLOAT, INT64, ..."""
    import onnx

    names = onnx.TensorProto.DataType
    return str(names.Name(number)) if number in names.values() else str(number)


def follow_values(model: Any) -> Iterator[Step]:
    """Follow the values of a graph, in the order of its nodes.

    Args:
        model: an `onnx.ModelProto` that onnx's checker passed, so that its nodes are in order.

    Yields:
        each node; nothing is known yet of the nodes behind it, so whoever finds a value too large can stop.

    Raises:
        GraphError: a type that a bundle may not use, a shape that does not follow from the file, or no valid node.
    """
    values = {tensor.name: _read_tensor(tensor) for tensor in model.graph.initializer}
    for given in model.graph.input:
        tensor = given.type.tensor_type
        inner = tuple(dim.dim_value for dim in tensor.shape.dim[1:])
        small, large = ((batch, *inner) for batch in BATCHES)
        values[given.name] = Value(kind=name_type(tensor.elem_type), shape=small, larger_shape=large)
    opset = model.opset_import[0].version
    for node in model.graph.node:
        inputs = tuple(values[name] if name else None for name in node.input)
        outputs = _infer_outputs(node, inputs, opset)
        step = Step(node=node, inputs=inputs, outputs=tuple(outputs.values()))
        known = _compute(step)
        if known is not None:
            (name,) = outputs
            outputs[name] = _with_numbers(outputs[name], known)
            step = Step(node=node, inputs=inputs, outputs=tuple(outputs.values()))
        values |= outputs
        yield step


def _read_tensor(tensor: Any) -> Value:
    import onnx

    shape = tuple(tensor.dims)
    known = None
    if math.prod(shape) <= MAX_KNOWN_ELEMENTS:
        array = onnx.numpy_helper.to_array(tensor)
        known = (array, array)
    return Value(kind=name_type(tensor.data_type), shape=shape, larger_shape=shape, known=known)


def _read_constant(node: Any) -> Value:
    import onnx

    (attribute,) = node.attribute
    if attribute.HasField("t"):
        return _read_tensor(attribute.t)
    kind = np.float32 if attribute.name.startswith("value_float") else np.int64
    return _read_tensor(onnx.numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(attribute), kind)))


def _infer_outputs(node: Any, inputs: Sequence[Value | None], opset: int) -> dict[str, Value]:
    """Infer type and shape of what a node makes, for both batch sizes."""
    import onnx

    if node.op_type == "Constant":
        return {node.output[0]: _read_constant(node)}
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    opsets = [onnx.helper.make_opsetid("", opset)]
    same = all(value is None or (value.batch_axis is None and not value.varies) for value in inputs)
    found = []
    for place in range(1 if same else len(BATCHES)):
        types, data = {}, {}
        for name, value in zip(node.input, inputs, strict=True):
            if value is None:
                continue
            types[name] = _make_type(value.kind, (value.shape, value.larger_shape)[place])
            if value.known is not None:
                data[name] = onnx.numpy_helper.from_array(value.known[place], name)
        try:
            found.append(onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets))
        except (
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            ValueError,
            RuntimeError,
            TypeError,
        ) as error:
            raise GraphError(f"The ONNX file is not a valid graph: {describe_error(error)}") from None
    outputs = {}
    for name in filter(None, node.output):
        types_found = [_read_type(node, name, each.get(name)) for each in found]
        (kind, small), (_, large) = types_found[0], types_found[-1]
        if len(small) != len(large):
            raise GraphError(f"The rank of {printable(name[:80])!r} ({node.op_type}) depends on the batch size.")
        outputs[name] = Value(kind=kind, shape=small, larger_shape=large)
    return outputs


@lru_cache(maxsize=1024)
def _make_type(kind: str, shape: tuple[int, ...]) -> Any:
    import onnx

    return onnx.helper.make_tensor_type_proto(onnx.TensorProto.DataType.Value(kind), shape)


def _read_type(node: Any, name: str, found: Any) -> tuple[str, tuple[int, ...]]:
    shown = printable(name[:80])
    tensor = found.tensor_type if found is not None and found.HasField("tensor_type") else None
    kind = name_type(tensor.elem_type) if tensor is not None else "no tensor"
    if tensor is not None and kind not in BYTES_PER_ELEMENT:
        raise GraphError(
            f"{shown!r} ({node.op_type}) of the ONNX file has the type {kind}, which a bundle may not use."
        )
    if tensor is None or not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        raise GraphError(
            f"The size of {shown!r} ({node.op_type}) does not follow from the ONNX file alone, so the file is not run."
        )
    shape = tuple(dim.dim_value for dim in tensor.shape.dim)
    if len(shape) > MAX_RANK or min((1, *shape)) < 1:
        raise GraphError(
            f"{shown!r} ({node.op_type}) of the ONNX file has the shape {str(list(shape))[:100]}; a shape has at most "
            f"{MAX_RANK} sizes, all of them 1 or more."
        )
    return kind, shape


def _compute(step: Step) -> Known | None:
    """Compute the numbers of a small array from small arrays; None where they are not followed."""
    if len(step.outputs) != 1 or step.outputs[0].batch_axis is not None or step.operator == "Constant":
        return None
    shape = step.outputs[0].shape
    if math.prod(shape) > MAX_KNOWN_ELEMENTS:
        return None
    if step.operator == "Shape":
        value, part = step.inputs[0], slice(step.attribute("start", 0), step.attribute("end"))
        return None if value is None else (np.array(value.shape[part]), np.array(value.larger_shape[part]))
    function = _FUNCTIONS.get(step.operator)
    known = [None if value is None else value.known for value in step.inputs]
    if function is None or any(value is not None and value.known is None for value in step.inputs):
        return None
    varying = [value is not None and value.varies for value in step.inputs]
    if any(varying) and not _stays_linear(step, varying):
        return None
    try:
        with np.errstate(all="ignore"):
            small, large = (
                np.asarray(function(step, [None if pair is None else pair[place] for pair in known], shape))
                for place in range(len(BATCHES))
            )
    except (ArithmeticError, IndexError, TypeError, ValueError):
        return None
    return (small, large) if small.shape == large.shape == shape else None


def _stays_linear(step: Step, varying: Sequence[bool]) -> bool:
    """Say whether numbers that are linear in the batch size stay so: then two batch sizes decide over all."""
    if step.operator in ("Add", "Sub", "Concat"):
        return True
    if step.operator == "Mul":
        return varying.count(True) == 1
    if step.operator == "Cast":
        return name_type(step.attribute("to")) == "INT64"
    return step.operator in ("Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze") and not any(varying[1:])


def _with_numbers(value: Value, known: Known) -> Value:
    """Give a value its numbers, unless one is too large to stay exact in whatever is computed from it."""
    if value.kind in INTEGERS:
        if any(abs(int(number)) > _MAX_KNOWN_NUMBER for numbers in known for number in numbers.ravel().tolist()):
            return value
        known = known[0].astype(np.int64), known[1].astype(np.int64)
    small, large = (numbers.astype(_DTYPES[value.kind]) for numbers in known)
    return replace(value, known=(small, large))


Arrays = Sequence[NDArray[Any] | None]
_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


def _exact(array: NDArray[Any] | None) -> NDArray[Any]:
    """Whole numbers as Python's, which never wrap around."""
    if array is None:
        raise ValueError("an input is missing")
    return array.astype(object) if array.dtype.kind in "iu" else array


def _arithmetic(operation: Callable[[Any, Any], Any]) -> Callable[[Step, Arrays, tuple[int, ...]], Any]:
    return lambda step, arrays, shape: operation(_exact(arrays[0]), _exact(arrays[1]))


def _divide(step: Step, arrays: Arrays, shape: tuple[int, ...]) -> Any:
    """Divide; whole numbers towards zero, as ONNX does."""
    above, below = _exact(arrays[0]), _exact(arrays[1])
    if step.outputs[0].kind not in INTEGERS:
        return above / below
    quotient = np.abs(above) // np.abs(below)
    return np.where((above < 0) != (below < 0), -quotient, quotient)


def _gather(step: Step, arrays: Arrays, shape: tuple[int, ...]) -> Any:
    if arrays[0] is None or arrays[1] is None:
        raise ValueError("an input is missing")
    return np.take(arrays[0], arrays[1], axis=step.attribute("axis", 0))


def _slice(step: Step, arrays: Arrays, shape: tuple[int, ...]) -> Any:
    padded: list[NDArray[Any] | None] = [*arrays, None, None]
    data, starts, ends, axes, steps = padded[:5]
    if data is None or starts is None or ends is None:
        raise ValueError("an input is missing")
    places = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    parts = [slice(None)] * data.ndim
    for place, start, end, stride in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
        # Backwards, the end may be meant to lie before the first element.
        parts[place] = slice(start, None if stride < 0 and end < -data.shape[place] else end, stride)
    return data[tuple(parts)]


def _cast(step: Step, arrays: Arrays, shape: tuple[int, ...]) -> Any:
    array = _exact(arrays[0])
    if array.dtype.kind == "f" and step.outputs[0].kind in INTEGERS:
        return np.vectorize(int, otypes=[object])(array)
    return array


def _reshape(step: Step, arrays: Arrays, shape: tuple[int, ...]) -> Any:
    return _exact(arrays[0]).reshape(shape)


_FUNCTIONS: dict[str, Callable[[Step, Arrays, tuple[int, ...]], Any]] = {
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Div": _divide,
    "Max": _arithmetic(np.maximum),
    "Min": _arithmetic(np.minimum),
    "Neg": lambda step, arrays, shape: -_exact(arrays[0]),
    "Floor": lambda step, arrays, shape: np.floor(_exact(arrays[0])),
    "Ceil": lambda step, arrays, shape: np.ceil(_exact(arrays[0])),
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": lambda step, arrays, shape: np.concatenate([_exact(a) for a in arrays], step.attribute("axis")),
    "Identity": _reshape,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
}
