"""Push the affine map of an evaluated BatchNorm into the weights around it.

A BatchNorm at evaluation is x -> gain * x + shift per channel. It moves backwards into the layers that make x; where x
has other readers that are 1x1 convolutions (a residual shortcut), these take the inverse. In front of a per-class gain
and bias it moves into their tables.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto

from dim.export.graph.editor import Array, GraphEditor, get_attribute

MAX_CONDITION = 1e3
"""Largest ratio of channel gains that is inverted; beyond it a shortcut would lose digits."""

Edit = Callable[[], None]


def fold_norms(editor: GraphEditor) -> None:
    """Fold every BatchNorm that can be folded, in place."""
    for node in [n for n in editor.graph.node if n.op_type == "BatchNormalization"]:
        affine = _read_affine(editor, node)
        if affine is None:
            continue
        gain, shift = affine
        if not (_fold_forwards(editor, node, gain, shift) or _fold_backwards(editor, node, gain, shift)):
            continue
        editor.replace_input(editor.readers(node.output[0]), node.output[0], node.input[0])
        editor.graph.node.remove(node)
        editor.reindex()
    editor.remove_dead()


def _read_affine(editor: GraphEditor, node: NodeProto) -> tuple[Array, Array] | None:
    """Return gain and shift of a BatchNorm, float64 [C]; None where it is not at evaluation."""
    constants = [editor.constant(name) for name in node.input[1:5]]
    if get_attribute(node, "training_mode", 0) or len(node.output) > 1 or node.output[0] in editor.outputs:
        return None
    weight, bias, mean, variance = (None if c is None else c.astype(np.float64) for c in constants)
    if weight is None or bias is None or mean is None or variance is None:
        return None
    gain = weight / np.sqrt(variance + get_attribute(node, "epsilon", 1e-5))
    return gain, bias - gain * mean


def _fold_forwards(editor: GraphEditor, node: NodeProto, gain: Array, shift: Array) -> bool:
    """Fold into the per-class gain and bias that follow: (gain x + shift) g + b = x (gain g) + (shift g + b)."""
    multiply = _find_only_reader(editor, node.output[0], "Mul")
    add = None if multiply is None else _find_only_reader(editor, multiply.output[0], "Add")
    if multiply is None or add is None:
        return False
    names = [
        _find_table(editor, _other_input(n, v)) for n, v in ((multiply, node.output[0]), (add, multiply.output[0]))
    ]
    if names[0] is None or names[1] is None or names[0] == names[1]:
        return False
    gains, biases = editor.constant(names[0]), editor.constant(names[1])
    if gains is None or biases is None or gains.shape != biases.shape or gains.shape[1:] != (len(gain), 1, 1):
        return False
    gain_C11, shift_C11 = gain[:, None, None], shift[:, None, None]
    editor.set_constant(names[1], (biases + shift_C11 * gains).astype(biases.dtype))
    editor.set_constant(names[0], (gains * gain_C11).astype(gains.dtype))
    return True


def _find_only_reader(editor: GraphEditor, value: str, op_type: str) -> NodeProto | None:
    readers = editor.readers(value)
    return readers[0] if editor.read_once(value) and readers[0].op_type == op_type else None


def _other_input(node: NodeProto, value: str) -> str:
    first, second = node.input
    return str(second if first == value else first)


def _find_table(editor: GraphEditor, value: str) -> str | None:
    """Find the constant from which a value is gathered by rows, if nothing else reads either."""
    producer = editor.producer(value)
    if producer is None or producer.op_type != "Gather" or get_attribute(producer, "axis", 0) != 0:
        return None
    table = str(producer.input[0])
    readable = editor.constant(table) is not None and editor.read_once(table) and editor.read_once(value)
    return table if readable else None


def _fold_backwards(editor: GraphEditor, node: NodeProto, gain: Array, shift: Array) -> bool:
    """Fold into what makes the input, and the inverse into shortcuts that also read it."""
    value = node.input[0]
    others = [reader for reader in editor.readers(value) if reader is not node]
    edits = _plan_fold(editor, value, gain, shift, top=True)
    if edits is None or value in editor.outputs:
        return False
    size = np.abs(gain)
    if others and size.max() > MAX_CONDITION * size.min():
        return False
    for other in others:
        inverse = _plan_inverse_fold(editor, other, value, gain, shift)
        if inverse is None:
            return False
        edits.append(inverse)
    for edit in edits:
        edit()
    editor.reindex()
    return True


def _plan_fold(editor: GraphEditor, value: str, gain: Array, shift: Array, top: bool = False) -> list[Edit] | None:
    """Plan the edits that turn `value` into gain * value + shift along axis 1; None where that is not possible."""
    node = editor.producer(value)
    if node is None or not (top or editor.read_once(value)):
        return None
    if node.op_type == "Add":
        first, second = node.input if _has_bias(editor, node.input[0]) else reversed(node.input)
        with_shift, without = _plan_fold(editor, first, gain, shift), _plan_fold(editor, second, gain, 0 * shift)
        return None if with_shift is None or without is None else with_shift + without
    if node.op_type == "Resize":
        return _plan_fold(editor, node.input[0], gain, shift)
    if node.op_type == "Reshape":
        shape = editor.constant(node.input[1])
        if shape is None or len(shape) != 4 or shape[0] > 0 or shape[1] != len(gain) or min(shape[2:]) < 1:
            return None
        pixels = int(shape[2] * shape[3])
        return _plan_fold(editor, node.input[0], np.repeat(gain, pixels), np.repeat(shift, pixels))
    if node.op_type == "Gather":
        table = editor.constant(node.input[0])
        if _find_table(editor, value) is None or table is None or table.shape[1:] != gain.shape:
            return None
        return [lambda: editor.set_constant(node.input[0], (table * gain + shift).astype(table.dtype))]
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return _plan_layer_fold(editor, node, gain, shift)
    return None


def _has_bias(editor: GraphEditor, value: str) -> bool:
    """Say whether a shift of this value needs no new constant."""
    node = editor.producer(value)
    while node is not None and node.op_type in ("Resize", "Reshape"):
        node = editor.producer(node.input[0])
    return node is not None and (node.op_type == "Gather" or (len(node.input) > 2 and bool(node.input[2])))


def _plan_layer_fold(editor: GraphEditor, node: NodeProto, gain: Array, shift: Array) -> list[Edit] | None:
    weight = editor.constant(node.input[1])
    if weight is None or not editor.read_once(node.input[1]):
        return None
    axis = 0
    if node.op_type == "ConvTranspose":
        if get_attribute(node, "group", 1) != 1:
            return None
        axis = 1
    elif node.op_type == "Gemm":
        if get_attribute(node, "alpha", 1.0) != 1.0 or get_attribute(node, "beta", 1.0) != 1.0:
            return None
        axis = 0 if get_attribute(node, "transB", 0) else 1
    if weight.shape[axis] != len(gain):
        return None
    bias: Array = np.zeros(len(gain))
    if has_bias := len(node.input) > 2 and bool(node.input[2]):
        found = editor.constant(node.input[2])
        if found is None or found.shape != gain.shape or not editor.read_once(node.input[2]):
            return None
        bias = found

    def edit() -> None:
        shape = [1] * weight.ndim
        shape[axis] = len(gain)
        editor.set_constant(node.input[1], (weight * gain.reshape(shape)).astype(weight.dtype))
        _set_bias(editor, node, (bias * gain + shift).astype(weight.dtype), has_bias)

    return [edit]


def _plan_inverse_fold(editor: GraphEditor, node: NodeProto, value: str, gain: Array, shift: Array) -> Edit | None:
    """Plan the edit with which a 1x1 convolution reads gain * value + shift and gives what it gave before."""
    weight = editor.constant(node.input[1]) if node.op_type == "Conv" and node.input[0] == value else None
    if weight is None or weight.shape[2:] != (1, 1) or get_attribute(node, "group", 1) != 1:
        return None
    if any(get_attribute(node, "pads", [0])) or not editor.read_once(node.input[1]):
        return None
    has_bias = len(node.input) > 2 and bool(node.input[2])
    bias = editor.constant(node.input[2]) if has_bias else np.zeros(weight.shape[0])
    if bias is None or (has_bias and not editor.read_once(node.input[2])):
        return None
    scaled = weight / gain[None, :, None, None]

    def edit() -> None:
        editor.set_constant(node.input[1], scaled.astype(weight.dtype))
        _set_bias(editor, node, (bias - scaled[:, :, 0, 0] @ shift).astype(weight.dtype), has_bias)

    return edit


def _set_bias(editor: GraphEditor, node: NodeProto, bias: Array, has_bias: bool) -> None:
    """Write a layer's bias, adding one where it had none and now needs one."""
    if has_bias:
        editor.set_constant(node.input[2], bias)
    elif np.any(bias):
        name = editor.new_name(f"{node.input[1].removesuffix('.weight')}.bias")
        editor.set_constant(name, bias)
        inputs = [*node.input[:2], name]
        del node.input[:]
        node.input.extend(inputs)
