"""Rewrite an exported generator into a smaller graph that draws the same images.

Every rule is exact algebra and changes only the rounding of floats; what it amounts to is measured by the parity check
of the export. Fewer operators are faster on every engine, and int8 needs convolutions without arithmetic between them.
"""

from __future__ import annotations

from math import floor

import numpy as np
from onnx import ModelProto, NodeProto, helper

from dim.export.graph.editor import Array, GraphEditor, get_attribute, infer_shapes
from dim.export.graph.fold_norms import fold_norms

SMALL_TABLE = 2**16
"""Entries of a table of class rows that is never too large."""


def simplify(model: ModelProto, num_classes: int) -> None:
    """Apply all rules to a generator, in place.

    Args:
        model: inputs `latents` float32 [N, Z] and `labels` int64 [N].
        num_classes: K.
    """
    editor = GraphEditor(model)
    _set_resize_scales(editor)
    editor.remove_dead()
    _tabulate_labels(editor, num_classes)
    _split_dense(editor, num_classes)
    fold_norms(editor)
    editor.remove_dead()


def _set_resize_scales(editor: GraphEditor) -> None:
    """Give resizes constant scales where torch computes their size from the shape of the batch."""
    shapes = infer_shapes(editor.model)
    for node in editor.graph.node:
        if node.op_type != "Resize" or len(node.input) < 4:
            continue
        before, after = shapes.get(node.input[0], [])[2:], shapes.get(node.output[0], [])[2:]
        if len(before) != 2 or len(after) != 2 or 0 in before + after:
            continue
        scales = [find_exact_scale(low, high) for low, high in zip(before, after, strict=True)]
        if get_attribute(node, "mode", "nearest") == "nearest" and None not in scales:
            name = editor.new_name("scales")
            editor.set_constant(name, np.array([1, 1, *scales], np.float32))
            inputs = [node.input[0], "", name]
            del node.input[:]
            node.input.extend(inputs)
    editor.reindex()


def find_exact_scale(before: int, after: int) -> float | None:
    """Find a float32 factor with which nearest-neighbour resizing gives `after` pixels, each from the right one.

    Args:
        before: pixels along an axis, at least 1.
        after: pixels wanted.

    Returns:
        the factor, or None where rounding could give another size or pick another pixel, here or in torch.
    """
    step = np.float32(before) / np.float32(after)  # torch multiplies by it, in float32
    if [min(before - 1, int(np.float32(x) * step)) for x in range(after)] != [
        x * before // after for x in range(after)
    ]:
        return None
    scale = np.float32(after / before)
    for candidate in (scale, np.nextafter(scale, np.float32(np.inf))):
        for kind in (np.float32, np.float64):
            factor = kind(candidate)
            picks = [floor(kind(x) / factor) for x in range(after)]
            if floor(kind(before) * factor) != after or picks != [x * before // after for x in range(after)]:
                break
        else:
            return float(candidate)
    return None


def _tabulate_labels(editor: GraphEditor, num_classes: int) -> None:
    """Replace what is computed from the label alone by a row of a table: one-hot vectors, normalised embeddings."""
    of_latents, of_labels = {"latents"}, {"labels"}
    for node in editor.graph.node:
        # The shape of the latents is the batch size, which the labels have as well.
        if of_latents & set(node.input) and node.op_type != "Shape":
            of_latents.update(node.output)
        elif of_labels & set(node.input):
            of_labels.update(node.output)
    frontier = {
        name: node
        for node in editor.graph.node
        for name in node.output
        if name in of_labels - of_latents and any(of_latents & set(r.output) for r in editor.readers(name))
    }
    frontier = {name: node for name, node in frontier.items() if not _is_table(editor, node)}
    if not frontier:
        return
    # Rows must not depend on their neighbours or on the batch size.
    probe = np.concatenate([np.arange(num_classes)[::-1], np.arange(num_classes)])
    for name, node in frontier.items():
        table, num_replaced = _evaluate(editor, name, np.arange(num_classes))
        if table.shape[:1] != (num_classes,) or not np.array_equal(_evaluate(editor, name, probe)[0], table[probe]):
            continue
        if table.size > max(2 * num_replaced, SMALL_TABLE):
            continue
        constant, replaced = editor.new_name(f"{name}.table"), editor.new_name(f"{name}.unused")
        editor.set_constant(constant, table)
        node.output[list(node.output).index(name)] = replaced
        editor.insert_before(node, helper.make_node("Gather", [constant, "labels"], [name], axis=0))
    editor.remove_dead()


def _is_table(editor: GraphEditor, node: NodeProto | None) -> bool:
    """Whether a node picks a row of a constant by the label."""
    return (
        node is not None
        and node.op_type == "Gather"
        and get_attribute(node, "axis", 0) == 0
        and node.input[1] == "labels"
        and editor.constant(node.input[0]) is not None
    )


def _evaluate(editor: GraphEditor, name: str, labels: Array) -> tuple[Array, int]:
    """Compute a value that depends on the labels only; the second number counts the constants that it takes."""
    from onnx.reference import ReferenceEvaluator

    model = ModelProto()
    model.CopyFrom(editor.model)
    del model.graph.output[:]
    model.graph.output.append(helper.make_empty_tensor_value_info(name))
    GraphEditor(model).remove_dead()
    latent_dim = next(v for v in model.graph.input if v.name == "latents").type.tensor_type.shape.dim[1].dim_value
    feeds = {"latents": np.zeros((len(labels), latent_dim), np.float32), "labels": labels.astype(np.int64)}
    [value] = ReferenceEvaluator(model).run([name], feeds)
    return np.asarray(value), sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


def _split_dense(editor: GraphEditor, num_classes: int) -> None:
    """Split a dense layer over [latents, class row] into one over the latents plus a table of class rows.

    The class part of the layer is the same for every image of a class: with fewer classes than entries in a class row,
    the table is smaller than the weights it replaces.
    """
    for node in [n for n in editor.graph.node if n.op_type == "Gemm"]:
        joined = editor.producer(node.input[0])
        weight = editor.constant(node.input[1])
        bias = editor.constant(node.input[2]) if len(node.input) > 2 else None
        plain = all(get_attribute(node, name, default) == default for name, default in (("alpha", 1.0), ("beta", 1.0)))
        if joined is None or weight is None or bias is None or not plain or get_attribute(node, "transA", 0):
            continue
        if joined.op_type != "Concat" or get_attribute(joined, "axis", 0) not in (1, -1):
            continue
        weight_MD = weight if get_attribute(node, "transB", 0) else weight.T
        parts = _list_concat_parts(editor, joined)
        tabled = [part for part in parts if part[1] is not None]
        if not tabled or len(tabled) == len(parts) or not editor.read_once(node.input[1]):
            continue
        if sum(stop - start for _, _, start, stop in tabled) < num_classes:
            continue
        rows_KM = bias + sum(
            table.astype(np.float64) @ weight_MD[:, start:stop].T.astype(np.float64)
            for _, table, start, stop in tabled
            if table is not None
        )
        kept = [part for part in parts if part[1] is None]
        editor.set_constant(node.input[1], np.concatenate([weight_MD[:, s:e] for _, _, s, e in kept], axis=1))
        table_name, row, dense = (
            editor.new_name(f"{node.input[1]}.{part}") for part in ("classes", "class", "latents")
        )
        editor.set_constant(table_name, np.asarray(rows_KM, weight.dtype))
        new = [helper.make_node("Gather", [table_name, "labels"], [row], axis=0)]
        source = kept[0][0]
        if len(kept) > 1:
            source = editor.new_name("dense_input")
            new.append(helper.make_node("Concat", [name for name, *_ in kept], [source], axis=1))
        new.append(helper.make_node("Gemm", [source, node.input[1]], [dense], transB=1))
        new.append(helper.make_node("Add", [dense, row], [node.output[0]]))
        node.output[0] = editor.new_name("unused")
        editor.insert_before(node, *new)
    editor.remove_dead()


def _list_concat_parts(editor: GraphEditor, joined: NodeProto) -> list[tuple[str, Array | None, int, int]]:
    """List the inputs of a concatenation: name, its table where it is a class row, first and last column."""
    widths = {name: shape[-1] for name, shape in infer_shapes(editor.model).items() if shape}
    parts: list[tuple[str, Array | None, int, int]] = []
    start = 0
    for name in joined.input:
        producer = editor.producer(name)
        table = editor.constant(producer.input[0]) if producer is not None and _is_table(editor, producer) else None
        width = table.shape[-1] if table is not None else widths.get(name, 0)
        if width == 0 or (table is not None and table.ndim != 2):
            return []
        parts.append((name, table, start, start + width))
        start += width
    return parts
