"""Checks that every image depends only on its own row: no node mixes or counts rows, or uses a row's position.

A value either has one axis that grows with the batch, in which row n stands at place n, or it is the same for every
batch. Each operator preserves this under its own condition, which is checked here. So a sample is the same at every
batch size, which test runs alone could not prove.
"""

import math
from collections.abc import Callable

from dim.runtime.bundle_format.graph_values import INTEGERS, Step, Value
from dim.runtime.errors import GraphError, printable

# The inputs that only say how large something becomes.
_SHAPE_INPUTS = {("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0), ("Resize", 3)}


def check_rows(step: Step) -> None:
    """Check that a node keeps the images of a batch apart.

    Raises:
        GraphError: it may not, or a value grows otherwise than with the batch.
    """
    for name, output in zip(filter(None, step.node.output), step.outputs, strict=True):
        _check_growth(step, name, output)
    for place, value in enumerate(step.inputs):
        allowed = (step.operator, place) in _SHAPE_INPUTS or all(output.known is not None for output in step.outputs)
        if value is not None and value.varies and not allowed:
            raise GraphError(
                f"A {step.operator} of the ONNX file computes with the number of images in a batch, which may only "
                "become part of a shape."
            )
    if step.operator == "Shape":
        return
    batched = [value for value in step.inputs if value is not None and value.batch_axis is not None]
    if not batched:
        grows = any(output.batch_axis is not None for output in step.outputs)
        kept = not grows or step.operator in ("Expand", "ConstantOfShape")
    else:
        first = step.inputs[0]
        kept = all(output.batch_axis is not None for output in step.outputs) and (
            _RULES[step.operator](step, first) if first is not None else False
        )
    if not kept:
        raise GraphError(
            f"A {step.operator} of the ONNX file may mix the images of a batch; every image must depend on its own "
            "latents and label alone."
        )


def check_division(step: Step) -> None:
    """Check that whole numbers are divided by known ones; by 0, and the least by -1, ends the whole process.

    Raises:
        GraphError: the divisor is not known, or holds a 0 or a -1.
    """
    if step.operator not in ("Div", "Mod") or step.outputs[0].kind not in INTEGERS:
        return
    divisor = step.known(1)
    if divisor is None or bool(((divisor == 0) | (divisor == -1)).any()):
        raise GraphError(
            f"A {step.operator} of the ONNX file divides whole numbers by what may be 0 or -1, which ends the process."
        )


def check_reach(step: Step) -> None:
    """Check that a node reads and writes within its values; not every engine does, and one that does not can crash.

    Raises:
        GraphError: a Pad takes away or mirrors more than there is, or a convolution's groups or output padding do not
            fit.
    """
    if step.operator == "Pad" and not _pads_within(step):
        raise GraphError(
            "A Pad of the ONNX file takes elements away, or mirrors more of them than there are; cut with a Slice."
        )
    if step.operator in ("Conv", "ConvTranspose") and not _groups_fit(step):
        raise GraphError(f"A {step.operator} of the ONNX file has groups that do not fit its channels.")
    if step.operator == "ConvTranspose" and not _output_padding_fits(step):
        raise GraphError(
            "A ConvTranspose of the ONNX file has an output padding that is not below its stride or its dilation."
        )


def _pads_within(step: Step) -> bool:
    first, pads = step.inputs[0], step.known(1)
    if first is None or pads is None or int(pads.min(initial=0)) < 0:
        return False
    if step.attribute("mode", b"constant") != b"reflect":
        return True
    if (places := _list_axes(step, first, len(first.shape))) is None:
        return False
    most = pads.reshape(2, -1).max(axis=0).tolist()
    return all(pad < first.shape[place] for place, pad in zip(places, most, strict=True) if pad)


def _groups_fit(step: Step) -> bool:
    image, weight = step.inputs[:2]
    group = int(step.attribute("group", 1))
    if image is None or weight is None or group < 1 or weight.shape[0] % group:
        return False
    channels = weight.shape[0] if step.operator == "ConvTranspose" else weight.shape[1] * group
    return image.shape[1] == channels


def _output_padding_fits(step: Step) -> bool:
    padding = [int(each) for each in step.attribute("output_padding", [])]
    ones = [1] * len(padding)
    strides, dilations = (list(step.attribute(name, [])) or ones for name in ("strides", "dilations"))
    return all(
        0 <= each < max(stride, dilation) for each, stride, dilation in zip(padding, strides, dilations, strict=True)
    )


def _check_growth(step: Step, name: str, value: Value) -> None:
    changed = [pair for pair in zip(value.shape, value.larger_shape, strict=True) if pair[0] != pair[1]]
    if not changed or (len(changed) == 1 and changed[0][1] == 2 * changed[0][0]):
        return
    shown = f"The size of {printable(name[:80])!r} ({step.operator})"
    if math.prod(value.larger_shape) > 2 * value.elements:
        raise GraphError(f"{shown} grows faster than the batch.")
    raise GraphError(f"{shown} does not grow in step with the batch.")


def _axis(step: Step, value: Value, default: int) -> int:
    axis = int(step.attribute("axis", default))
    return axis + len(value.shape) if axis < 0 else axis


def _list_axes(step: Step, first: Value, count: int) -> list[int] | None:
    """List the axes that a Slice or a Pad names in its fourth input, else the first so many; None if not known."""
    if len(step.inputs) < 4 or step.inputs[3] is None:
        return list(range(count))
    axes = step.known(3)
    return None if axes is None else [int(axis) % len(first.shape) for axis in axes]


def _others_fixed(step: Step) -> bool:
    return all(value is None or value.batch_axis is None for value in step.inputs[1:])


def _elementwise(step: Step, first: Value) -> bool:
    """Shape inference has checked that all inputs fit each other at both batch sizes."""
    return True


def _images_first(step: Step, first: Value) -> bool:
    """Windows and averages are taken within one image where the batch is the first axis."""
    return first.batch_axis == 0 and _others_fixed(step) and len(step.outputs) == 1


def _along_axis(default: int) -> Callable[[Step, Value], bool]:
    return lambda step, first: _axis(step, first, default) != first.batch_axis and _others_fixed(step)


def _spread_over(first: Value, parameter: Value | None) -> bool:
    """Say whether a parameter is the same for every row when it is spread over the first input."""
    if parameter is None or first.batch_axis is None:
        return parameter is None
    place = first.batch_axis - len(first.shape) + len(parameter.shape)
    fits = len(parameter.shape) <= len(first.shape) and parameter.batch_axis is None
    return fits and (place < 0 or parameter.shape[place] == 1)


def _with_parameters(step: Step, first: Value) -> bool:
    return all(value is None or _spread_over(first, value) for value in step.inputs[1:])


def _layer_normalization(step: Step, first: Value) -> bool:
    before = first.batch_axis is not None and first.batch_axis < _axis(step, first, -1)
    return before and _with_parameters(step, first)


def _batch_normalization(step: Step, first: Value) -> bool:
    return not step.attribute("training_mode", 0) and first.batch_axis == 0 and _others_fixed(step)


def _quantize(step: Step, first: Value) -> bool:
    single = all(value is None or value.elements == 1 for value in step.inputs[1:])
    return _others_fixed(step) and (single or _axis(step, first, 1) != first.batch_axis)


def _concat(step: Step, first: Value) -> bool:
    axes = {None if value is None else value.batch_axis for value in step.inputs}
    return axes == {first.batch_axis} and _axis(step, first, 0) != first.batch_axis


def _gather(step: Step, first: Value) -> bool:
    return first.batch_axis is None or (_axis(step, first, 0) != first.batch_axis and _others_fixed(step))


def _gather_elements(step: Step, first: Value) -> bool:
    indices = step.inputs[1]
    if indices is None:
        return False
    if first.batch_axis is None:
        return _axis(step, first, 0) == indices.batch_axis
    return first.batch_axis == indices.batch_axis != _axis(step, first, 0)


def _slice(step: Step, first: Value) -> bool:
    starts = step.inputs[1]
    if starts is None or not _others_fixed(step):
        return False
    places = _list_axes(step, first, starts.elements)
    return places is not None and first.batch_axis not in places


def _pad(step: Step, first: Value) -> bool:
    pads = step.known(1)
    if pads is None or not _others_fixed(step):
        return False
    if (places := _list_axes(step, first, len(first.shape))) is None:
        return False
    pairs = zip(places, pads[: len(places)].tolist(), pads[len(places) :].tolist(), strict=False)
    return all(before == after == 0 for place, before, after in pairs if place == first.batch_axis)


def _tile(step: Step, first: Value) -> bool:
    repeats = step.known(1)
    return repeats is not None and first.batch_axis is not None and int(repeats[first.batch_axis]) == 1


def _resize(step: Step, first: Value) -> bool:
    place = first.batch_axis
    if place is None or not _others_fixed(step) or first.shape[place] != step.outputs[0].shape[place]:
        return False
    if step.attribute("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        return False
    axes = [int(axis) % len(first.shape) for axis in step.attribute("axes", range(len(first.shape)))]
    if len(step.inputs) > 2 and (scales := step.inputs[2]) is not None and scales.elements:
        known = step.known(2)
        return known is not None and (place not in axes or float(known[axes.index(place)]) == 1.0)
    return True


def _same_order(step: Step, first: Value) -> bool:
    """Row n stays block n where as much stands before the batch as did."""
    output = step.outputs[0]
    return _others_fixed(step) and _size_before(first) == _size_before(output)


def _size_before(value: Value) -> int:
    return math.prod(value.shape[: value.batch_axis])


def _gemm(step: Step, first: Value) -> bool:
    second = step.inputs[1]
    rows, columns = int(bool(step.attribute("transA", 0))), 1 - int(bool(step.attribute("transB", 0)))
    if first.batch_axis not in (None, rows) or second is None or second.batch_axis not in (None, columns):
        return False
    added = step.inputs[2] if len(step.inputs) > 2 else None
    return added is None or _spread_over(step.outputs[0], added)


_ELEMENTWISE = """
Abs Add And Cast Ceil Cos Div Elu Equal Erf Exp Floor Greater GreaterOrEqual HardSigmoid HardSwish Identity LeakyRelu
Less LessOrEqual Log Max Mean Min Mod Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Sqrt Sub
Sum Tanh Where Transpose MatMul Expand ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare
"""
_RULES: dict[str, Callable[[Step, Value], bool]] = {
    # What these make has two growing axes, or none, where they mix rows; both are refused before.
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("Clip", "PRelu"), _with_parameters),
    **dict.fromkeys(
        """AveragePool Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalMaxPool InstanceNormalization MaxPool
        SpaceToDepth""".split(),
        _images_first,
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LpNormalization"), _along_axis(-1)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _same_order),
    **dict.fromkeys(
        ("Constant", "ConstantOfShape", "ScatterElements", "ScatterND", "Shape"), lambda step, first: False
    ),
    "Split": _along_axis(0),
    "LayerNormalization": _layer_normalization,
    "BatchNormalization": _batch_normalization,
    "Concat": _concat,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _tile,
    "Resize": _resize,
    "Gemm": _gemm,
    "OneHot": lambda step, first: _others_fixed(step),
}
