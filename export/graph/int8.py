"""The int8 file of a bundle: symmetric S8S8 QuantizeLinear/DequantizeLinear pairs around the convolutions, or int8
weights alone.

Zero points are 0 and biases stay float32: TensorRT refuses anything else. ONNX Runtime turns a convolution into an int8
kernel only if its output is quantised as well, so everything between convolutions that has an int8 kernel is kept in
int8. Transposed convolutions stay float32: they gain little. Dense layers store int8 weights and multiply in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from dim.export.graph.editor import Array, GraphEditor, get_attribute, parse, serialise, tidy
from dim.export.graph.resizes import replace_resizes
from dim.runtime.engines.onnx_session import open_cpu_session

MAX_INT8 = 127
MAX_PAIR_STEPS = 127
"""Largest sum of the absolute values of two weights of a convolution's channel, in int8 steps.

Processors without int8 dot products (AVX2 alone, say) add two products of a weight and an unsigned byte in 16 bits,
which saturate beyond 2**15 / 255 = 128; one is left to rounding. Without this bound such a processor drew the test
networks at 24 to 29 dB against fp32 where 30 are asked for."""
CALIBRATION_BATCH = 32
MAX_CALIBRATION_VALUES = 400_000
"""Values per tensor that decide its scale, spread evenly over the calibration images."""


def to_int8(canonical: bytes, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> bytes:
    """Quantise the canonical ONNX file.

    Args:
        canonical: a file written by `generator_to_onnx`.
        latents: float32 [N, Z], drawn as the bundle draws them; a few hundred.
        labels: int64 [N].

    Returns:
        the bytes of the int8 file.
    """
    model = parse(canonical)
    editor = GraphEditor(model)
    moved = replace_resizes(editor)
    convolutions = [n for n in editor.graph.node if n.op_type == "Conv" and editor.constant(n.input[1]) is not None]
    scales = _choose_scales(editor, _choose_int8_values(editor, convolutions, moved), moved, latents, labels)
    for node in convolutions:
        _quantise_weight(editor, node)
    for node in [n for n in editor.graph.node if n.op_type == "Gemm" and get_attribute(n, "transB", 0)]:
        if editor.constant(node.input[1]) is not None:
            # Stored as int8, multiplied as float32: dense layers are most of the bytes and little of the time.
            _quantise_weight(editor, node)
    _quantise_values(editor, scales)
    editor.remove_dead()
    tidy(model, "generator")
    return serialise(model)


def to_int8_weights(canonical: bytes) -> bytes:
    """Store the weights of the canonical ONNX file as int8, and compute in float32.

    Args:
        canonical: a file written by `generator_to_onnx`.

    Returns:
        the bytes of the int8 file.
    """
    model = parse(canonical)
    editor = GraphEditor(model)
    for node in list(editor.graph.node):
        if node.op_type == "Conv" or (node.op_type == "Gemm" and get_attribute(node, "transB", 0)):
            if editor.constant(node.input[1]) is not None:
                _quantise_weight(editor, node, max_pair_steps=None)
    editor.remove_dead()
    tidy(model, "generator")
    return serialise(model)


def _choose_int8_values(editor: GraphEditor, convolutions: list[NodeProto], moved: set[str]) -> set[str]:
    """Choose the values that become int8: those at convolutions, and those between them where int8 kernels exist."""
    values = {name for node in convolutions for name in (node.input[0], node.output[0])}
    before = 0
    while before != len(values):
        before = len(values)
        for node in editor.graph.node:
            if node.output[0] in moved and values & {node.input[0], node.output[0]}:
                values |= {node.input[0], node.output[0]}
            elif node.op_type == "Add" and values.issuperset(node.input) and editor.read_once(node.output[0]):
                values.add(node.output[0])
    return values


def _choose_scales(
    editor: GraphEditor, values: set[str], moved: set[str], latents: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, float]:
    """Choose the step of each int8 value; ReLU, and what only rearranges values, keeps the step of what it reads."""
    shared: dict[str, str] = {}
    for node in editor.graph.node:
        source, target = str(node.input[0]), str(node.output[0])
        if source in values and target in values:
            if target in moved or (node.op_type == "Relu" and editor.read_once(source)):
                shared[target] = shared.get(source, source)
    roots = [name for name in sorted(values) if name not in shared]
    samples = _sample_values(editor.model, roots, latents, labels)
    scales = {name: find_best_scale(samples[name], _find_reader_function(editor, name)) for name in roots}
    return {name: scales[shared.get(name, name)] for name in sorted(values)}


def _find_reader_function(editor: GraphEditor, name: str) -> Callable[[Array], Array]:
    """Find the function that is all that reads a value: what the function flattens needs no fine steps."""
    readers = {node.op_type for node in editor.readers(name)}
    if readers == {"Tanh"}:
        return np.tanh
    if readers == {"Relu"}:
        return lambda x: np.maximum(x, 0)
    return lambda x: x


def find_best_scale(values: Array, through: Callable[[Array], Array] = lambda x: x) -> float:
    """Find the int8 step with the least squared error over a sample.

    Args:
        values: float32 [M].
        through: the function that the values pass next; the error is measured behind it.

    Returns:
        the step, positive.
    """
    target = through(values.astype(np.float32))
    largest = float(np.abs(values).max(initial=0))
    if largest == 0:
        return 1.0 / MAX_INT8
    errors: list[tuple[float, float]] = []
    for share in np.linspace(0.2, 1.0, 41):
        scale = float(np.float32(largest * share / MAX_INT8))
        restored = np.clip(np.rint(values / scale), -128, 127) * np.float32(scale)
        errors.append((float(np.mean(np.square(through(restored) - target))), scale))
    return min(errors)[1]


def _sample_values(
    model: ModelProto, names: list[str], latents: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Array]:
    """Run the float32 graph and keep an even sample of the values with the given names."""
    probe = ModelProto()
    probe.CopyFrom(model)
    inputs = {value.name for value in probe.graph.input}
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in inputs)
    session = open_cpu_session(probe.SerializeToString())
    kept: dict[str, list[Array]] = {name: [] for name in names}
    num_batches = -(-len(latents) // CALIBRATION_BATCH)
    for start in range(0, len(latents), CALIBRATION_BATCH):
        feeds = {
            "latents": latents[start : start + CALIBRATION_BATCH],
            "labels": labels[start : start + CALIBRATION_BATCH],
        }
        found = dict(zip([o.name for o in probe.graph.output], session.run(None, feeds), strict=True)) | feeds
        for name in names:
            flat = found[name].ravel()
            # A stride that shares no factor with the usual sizes does not always land on the same pixel.
            stride = max(1, flat.size * num_batches // MAX_CALIBRATION_VALUES) | 1
            kept[name].append(flat[::stride].copy())
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def _quantise_values(editor: GraphEditor, scales: dict[str, float]) -> None:
    """Put a pair behind every value of `scales` and let its readers read the restored value."""
    editor.set_constant("zero_point", np.array(0, np.int8))
    # ONNX Runtime fuses no kernel with a restored value that two nodes read: only convolutions read these as int8.
    shared = {
        name
        for name in scales
        if len(editor.readers(name)) > 1 and getattr(editor.producer(name), "op_type", "") != "Conv"
    }
    nodes: list[NodeProto] = []

    def add_pair(name: str) -> None:
        editor.set_constant(f"{name}.scale", np.array(scales[name], np.float32))
        border = [f"{name}.scale", "zero_point"]
        nodes.append(helper.make_node("QuantizeLinear", [name, *border], [f"{name}.int8"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.int8", *border], [f"{name}.restored"]))

    for value in editor.graph.input:
        if value.name in scales:
            add_pair(value.name)
    for node in editor.graph.node:
        if node.op_type == "Relu" and node.input[0] in scales.keys() - shared and node.output[0] in scales:
            # The same function, for which ONNX Runtime has an int8 kernel (a table) where it has none for Relu.
            node.op_type = "LeakyRelu"
            node.attribute.append(helper.make_attribute("alpha", 0.0))
        for place, name in enumerate(node.input):
            if name in scales and (name not in shared or node.op_type == "Conv"):
                node.input[place] = f"{name}.restored"
        nodes.append(node)
        for name in node.output:
            if name in scales:
                add_pair(name)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del editor.graph.node[:]
    editor.graph.node.extend(copies)
    editor.reindex()


def _quantise_weight(editor: GraphEditor, node: NodeProto, *, max_pair_steps: int | None = MAX_PAIR_STEPS) -> None:
    """Store a layer's weight as int8 with one step per output channel, the first axis.

    `max_pair_steps` is for convolutions that read int8 values; None where they read float32.
    """
    name = node.input[1]
    weight = editor.constant(name)
    assert weight is not None
    rows = np.abs(weight).reshape(len(weight), -1)
    largest, second = np.sort(np.pad(rows, ((0, 0), (1, 0))), axis=1)[:, :-3:-1].T
    step = largest / MAX_INT8
    if node.op_type == "Conv" and max_pair_steps is not None:
        step = np.maximum(step, (largest + second) / max_pair_steps)
    scale = np.where(largest > 0, step, 1.0).astype(np.float32)
    steps = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    parts: dict[str, Array] = {
        "int8": np.clip(steps, -MAX_INT8, MAX_INT8).astype(np.int8),
        "scale": scale,
        "zero_point": np.zeros(len(scale), np.int8),
    }
    for part, value in parts.items():
        editor.set_constant(f"{name}.{part}", value)
    restored = editor.new_name(f"{name}.restored")
    inputs = [f"{name}.{part}" for part in parts]
    node.input[1] = restored
    editor.insert_before(node, helper.make_node("DequantizeLinear", inputs, [restored], axis=0))
