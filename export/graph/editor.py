"""Edits ONNX graphs: finds producers and readers of a value, changes constants, writes reproducible files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from dim.runtime.errors import GraphError

Array = NDArray[Any]


class GraphEditor:
    """Edits a model in place; call `reindex` after changing nodes by hand.

    Args:
        model: a model without sub-graphs and functions.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self._move_constant_nodes()
        self.reindex()

    def _move_constant_nodes(self) -> None:
        for node in [n for n in self.graph.node if n.op_type == "Constant"]:
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            if tensor is not None:
                self.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor), node.output[0]))
                self.graph.node.remove(node)

    def reindex(self) -> None:
        """Find makers, readers and constants again, after nodes were changed by hand."""
        self._producers = {output: node for node in self.graph.node for output in node.output if output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                if name:
                    self._readers.setdefault(name, []).append(node)
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.outputs = {output.name for output in self.graph.output}

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that makes a value; None for constants and inputs."""
        return self._producers.get(name)

    def readers(self, name: str) -> list[NodeProto]:
        """Return the nodes that read a value, each once, in the graph's order."""
        return self._readers.get(name, [])

    def read_once(self, name: str) -> bool:
        """Say whether one node reads the value at one place, and it is no output of the graph."""
        places = sum(list(node.input).count(name) for node in self.readers(name))
        return places == 1 and name not in self.outputs

    def constant(self, name: str) -> Array | None:
        """Return the array of an initialiser, read-only; None for anything else."""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def set_constant(self, name: str, value: Array) -> None:
        """Replace the array of an initialiser, or add one."""
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if name in self._constants:
            self._constants[name].CopyFrom(tensor)
        else:
            self.graph.initializer.append(tensor)
            self._constants[name] = self.graph.initializer[-1]

    def new_name(self, hint: str) -> str:
        """Return a name that no value has, starting with `hint`."""
        taken = self._constants.keys() | self._producers.keys() | {i.name for i in self.graph.input}
        name, number = hint, 1
        while name in taken:
            name, number = f"{hint}_{number}", number + 1
        return name

    def replace_input(self, nodes: Iterable[NodeProto], old: str, new: str) -> None:
        """Let nodes read `new` where they read `old`."""
        for node in nodes:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new

    def insert_before(self, node: NodeProto, *new: NodeProto) -> None:
        """Put nodes in front of another, keeping the topological order."""
        place = list(self.graph.node).index(node)
        for offset, addition in enumerate(new):
            self.graph.node.insert(place + offset, addition)
        self.reindex()

    def remove_dead(self) -> None:
        """Remove nodes and constants that no output depends on."""
        needed = set(self.outputs)
        for node in reversed(list(self.graph.node)):
            if needed.isdisjoint(node.output):
                self.graph.node.remove(node)
            else:
                needed.update(node.input)
        for tensor in list(self.graph.initializer):
            if tensor.name not in needed:
                self.graph.initializer.remove(tensor)
        self.reindex()


def infer_shapes(model: ModelProto) -> dict[str, list[int]]:
    """Infer the shape of every value; 0 for an unknown side."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}


def get_attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return the value of a node's attribute, `default` where it is not set; bytes as `str`."""
    for candidate in node.attribute:
        if candidate.name == name:
            value = onnx.helper.get_attribute_value(candidate)
            return value.decode() if isinstance(value, bytes) else value
    return default


def parse(data: bytes) -> ModelProto:
    """Read an ONNX file of this package, without the shapes that `tidy` noted: an edit would make them wrong."""
    model = onnx.load_from_string(data)
    del model.graph.value_info[:]
    return model


def find_first_pixel_node(model: ModelProto) -> int:
    """Find the place of the node that starts the scaling to pixels, which stays float32 in every precision.

    Raises:
        GraphError: there is none.
    """
    for place, node in enumerate(model.graph.node):
        if "half_range" in node.input:
            return place
    raise GraphError("The ONNX file does not scale to pixels as dim export writes it: export the run again.")


def tidy(model: ModelProto, name: str) -> None:
    """Remove what differs between two exports: metadata, doc strings, producer, names that count calls.

    torch writes source paths and lines into `metadata_props`. Inputs, outputs and weights keep their names; nodes, the
    values between them and torch's own constants are named by kind and position, so that two exports have the same
    bytes.

    Args:
        model: changed in place.
        name: the graph's new name.
    """
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:], model.functions[:]
    model.doc_string = graph.doc_string = model.domain = model.producer_version = ""
    model.producer_name, model.model_version, graph.name = "dim", 0, name
    for part in [*graph.node, *graph.initializer, *graph.input, *graph.output]:
        part.doc_string = ""
        del part.metadata_props[:]
    outputs = {output.name for output in graph.output}
    kept = outputs | {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    counts: Counter[str] = Counter()
    renamed: dict[str, str] = {"": ""}
    for tensor in graph.initializer:
        if re.fullmatch(r"val_\d+", tensor.name):
            renamed[tensor.name] = f"constant_{counts['constant']}"
            counts["constant"] += 1
            tensor.name = renamed[tensor.name]
    for node in graph.node:
        node.name = f"{node.op_type.lower()}_{counts[node.op_type]}"
        counts[node.op_type] += 1
        for place, value in enumerate(node.input):
            node.input[place] = renamed.get(value, value)
        for place, value in enumerate(node.output):
            if value and value not in outputs:
                renamed[value] = node.name if place == 0 else f"{node.name}.{place}"
                assert renamed[value] not in kept
                node.output[place] = renamed[value]
        attributes = sorted(node.attribute, key=lambda a: a.name)
        del node.attribute[:]
        node.attribute.extend(attributes)
    _note_shapes(model)


def _note_shapes(model: ModelProto) -> None:
    """Write the shapes behind resizes and reshapes into the file, where inference loses a symbolic batch.

    ONNX Runtime adds inside a convolution only where it can show that both summands have one shape.
    """
    small, large = _infer_shapes(model, 3), _infer_shapes(model, 5)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    outputs = {output.name for output in model.graph.output}
    for node in model.graph.node:
        name = node.output[0]
        kind, sides = small.get(name, (0, []))
        if node.op_type not in ("Resize", "Reshape") or name in outputs or not all(sides) or sides[:1] != [3]:
            continue
        if large[name] == (kind, [5, *sides[1:]]):
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, [batch, *sides[1:]]))


def _infer_shapes(model: ModelProto, batch: int) -> dict[str, tuple[int, list[int]]]:
    """Infer type and shape of every value at one batch size; 0 for an unknown side."""
    concrete = ModelProto()
    concrete.CopyFrom(model)
    for value in [*concrete.graph.input, *concrete.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(concrete, data_prop=True)
    return {
        value.name: (value.type.tensor_type.elem_type, [d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in inferred.graph.value_info
    }


def serialise(model: ModelProto) -> bytes:
    """Check a model and return its bytes, the same for the same model."""
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
