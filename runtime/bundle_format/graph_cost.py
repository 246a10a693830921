"""Estimates from a graph's shapes how long one image takes on one core, so that no bundle runs for hours.

The numbers are nanoseconds of one core of an AMD EPYC under ONNX Runtime, taken from the slowest form found of each
operator and rounded up.
"""

import math

from dim.runtime.bundle_format.graph_values import BATCHES, Step, Value

_MULTIPLY_NS = 0.04
"""Of a multiplication in a large product of float32 matrices."""
_INTEGER_MULTIPLY_NS = 0.5
_MOVE_NS = 0.5
"""Of an element that is read or written where nothing is computed with it."""
_TAP_NS = 0.7
"""Of one element of a pooling window."""
_SMALL_MATRIX_NS = 100
_PLAIN_NS = 4.0
"""Of an element in an operator that is not named below."""
_ELEMENT_NS = {
    **dict.fromkeys("Pow Mod ScatterND".split(), 12.0),
    **dict.fromkeys("Softmax LogSoftmax Softplus".split(), 20.0),
    **dict.fromkeys("Gather ScatterElements Where".split(), 8.0),
    **dict.fromkeys("LayerNormalization Transpose".split(), 16.0),
}
# Fast for float32 and for bytes; half precision is converted one element at a time.
_QUICK = frozenset(
    """
    Abs Add BatchNormalization Cast Ceil Clip Concat Constant DequantizeLinear Div Erf Exp Flatten Floor HardSigmoid
    Identity InstanceNormalization LeakyRelu Max Min Mul Neg Not PRelu Pad QuantizeLinear Reciprocal Relu Reshape Round
    Shape Sigmoid Sqrt Squeeze Sub Tanh Unsqueeze
    """.split()
)
_RESIZE_NS = {b"nearest": 1.0, b"linear": 5.0, b"cubic": 100.0}
# They read only as much as they write.
_PICKERS = frozenset("Gather GatherElements Shape Slice Flatten Identity Reshape Squeeze Unsqueeze Constant".split())


def estimate_ns(step: Step) -> float:
    """Estimate the time of a node for one image, in nanoseconds of one core.

    What does not depend on the batch is counted in full, because it may be computed anew for every image.
    """
    written = sum(output.per_image for output in step.outputs)
    if step.operator in _PICKERS:
        touched = written
    else:
        touched = max(written, *(value.per_image for value in step.inputs if value is not None), 1)
    moved: float = touched * _element_ns(step)
    if step.operator in ("Conv", "ConvTranspose"):
        return moved + _convolution_ns(step)
    if step.operator in ("MatMul", "Gemm"):
        return moved + _product_ns(step)
    if step.operator in ("AveragePool", "MaxPool"):
        return moved + written * float(math.prod(step.attribute("kernel_shape", [1]))) * _TAP_NS
    return moved


def _element_ns(step: Step) -> float:
    if step.operator in ("Conv", "ConvTranspose", "MatMul", "Gemm", "AveragePool", "MaxPool"):
        return _MOVE_NS
    if step.operator == "Resize":
        return _RESIZE_NS.get(step.attribute("mode", b"nearest"), _RESIZE_NS[b"cubic"])
    if step.operator in _QUICK and step.outputs[0].kind != "FLOAT16":
        return _MOVE_NS
    return _ELEMENT_NS.get(step.operator, _PLAIN_NS)


def _convolution_ns(step: Step) -> float:
    """Every tap of the weight at every place, and the copying before, which few output channels share badly."""
    image, weight = step.inputs[0], step.inputs[1]
    if image is None or weight is None:
        return 0.0
    group = int(step.attribute("group", 1))
    if step.operator == "Conv":
        multiplications = step.outputs[0].per_image * math.prod(weight.shape[1:])
        channels = weight.shape[0] / max(1, group)
    else:
        multiplications = image.per_image * math.prod(weight.shape[1:])
        # Every product is added to its place in the output on its own.
        channels = weight.shape[1] / 2
    return multiplications * (_MULTIPLY_NS + _MOVE_NS / max(0.5, channels))


def _product_ns(step: Step) -> float:
    first, second, output = step.inputs[0], step.inputs[1], step.outputs[0]
    if first is None or second is None:
        return 0.0
    inner: int = first.shape[0] if step.attribute("transA", 0) else first.shape[-1]
    each = _INTEGER_MULTIPLY_NS if output.kind.startswith(("INT", "UINT")) else _MULTIPLY_NS
    matrices = _matrices(output)
    # Where one side is a vector, every element of the other is read for one multiplication.
    thin = min((value.shape[-2] if len(value.shape) > 1 else 1) for value in (first, output))
    wide = output.shape[-1] if output.shape else 1
    reread = _MOVE_NS / max(1, min(thin, wide))
    return output.per_image * inner * (each + reread) + matrices * _SMALL_MATRIX_NS


def _matrices(output: Value) -> int:
    count = math.prod(output.shape[:-2])
    return count if output.batch_axis is None or output.batch_axis >= len(output.shape) - 2 else -(-count // BATCHES[0])
