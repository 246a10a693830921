"""No graph mixes the images of a batch, counts them or knows their places; none divides by what ends the process."""

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto
from small_graphs import CONTRACT, added, node, small_graph

from dim.runtime.bundle_format.graph_contract import check_contract
from dim.runtime.bundle_format.graph_rows import _RULES
from dim.runtime.bundle_format.graph_rules import OPERATORS
from dim.runtime.errors import GraphError

MIXES = "may mix the images of a batch"
COUNTS = "computes with the number of images in a batch"


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def test_every_allowed_operator_has_a_rule() -> None:
    assert set(_RULES) == OPERATORS


GATE = [
    node("Shape", ["labels"], ["count"]),
    node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
    node("Sub", ["number", "hundred"], ["beyond"]),
]


@pytest.mark.parametrize(
    ("nodes", "value", "weights", "message"),
    [
        (GATE, "beyond", {"hundred": np.float32(100)}, COUNTS),
        # 0 at every size that is tried, and 1 from 100 on.
        (
            [
                node("Shape", ["labels"], ["count"]),
                node("Div", ["count", "hundred"], ["hundreds"]),
                node("Cast", ["hundreds"], ["number"], to=TensorProto.FLOAT),
            ],
            "number",
            {"hundred": ints(100)},
            COUNTS,
        ),
        # 2^62 times an even number wraps around to 0.
        (
            [
                node("Shape", ["labels"], ["count"]),
                node("Mul", ["count", "huge"], ["wrapped"]),
                node("Cast", ["wrapped"], ["number"], to=TensorProto.FLOAT),
            ],
            "number",
            {"huge": ints(2**62)},
            COUNTS,
        ),
        # (N - 4)(N - 8) is 0 at the two sizes that are tried.
        (
            [
                node("Shape", ["labels"], ["count"]),
                node("Sub", ["count", "four"], ["a"]),
                node("Sub", ["count", "eight"], ["b"]),
                node("Mul", ["a", "b"], ["product"]),
                node("Cast", ["product"], ["number"], to=TensorProto.FLOAT),
            ],
            "number",
            {"four": ints(4), "eight": ints(8)},
            COUNTS,
        ),
        # The number of images as a sum of ones.
        ([node("ReduceSum", ["classes"], ["sum"], keepdims=0)], "sum", {}, MIXES),
        ([node("ReduceMean", ["plain"], ["mean"], axes=[0])], "mean", {}, "is not a valid graph"),
        ([node("Softmax", ["plain"], ["soft"], axis=0)], "soft", {}, MIXES),
        ([node("LpNormalization", ["plain"], ["unit"], axis=0)], "unit", {}, MIXES),
        ([node("LayerNormalization", ["plain", "one"], ["norm"], axis=0)], "norm", {"one": np.ones(1, "f4")}, MIXES),
        (
            [
                node("BatchNormalization", ["maps", "one", "one", "one", "one"], ["norm", "m", "v"], training_mode=1),
                node("Transpose", ["norm"], ["back"], perm=[0, 2, 3, 1]),
            ],
            "back",
            {"one": np.ones(1, "f4")},
            MIXES,
        ),
        # The batch as a side of the picture: the window reaches the neighbours.
        (
            [
                node("Transpose", ["plain"], ["turned"], perm=[3, 1, 0, 2]),
                node("AveragePool", ["turned"], ["pooled"], kernel_shape=[3, 1], pads=[1, 0, 1, 0]),
                node("Transpose", ["pooled"], ["back"], perm=[2, 1, 3, 0]),
            ],
            "back",
            {},
            MIXES,
        ),
        # Rows turned round, moved, picked, or dealt out anew.
        (
            [node("Slice", ["plain", "last", "first", "batch", "back"], ["turned"])],
            "turned",
            {"last": ints(-1), "first": ints(-(2**40)), "batch": ints(0), "back": ints(-1)},
            MIXES,
        ),
        ([node("Pad", ["plain", "shift"], ["moved"])], "moved", {"shift": ints(1, 0, 0, 0, -1, 0, 0, 0)}, MIXES),
        ([node("Gather", ["plain", "labels"], ["picked"])], "picked", {}, MIXES),
        (
            [node("Reshape", ["plain", "dealt"], ["other"]), node("Transpose", ["other"], ["back"], perm=[1, 0, 2, 3])],
            "back",
            {"dealt": ints(8, -1, 8, 1)},
            MIXES,
        ),
        (
            [node("Resize", ["plain", "", "scales"], ["stretched"], mode="linear")],
            "stretched",
            {"scales": np.array([1.01, 1, 1, 1], "f4")},
            MIXES,
        ),
        # A row's place: the largest value's place in the batch, and a table that is read in order.
        (
            [
                node("MaxPool", ["maps"], ["most", "places"], kernel_shape=[1, 1]),
                node("Cast", ["places"], ["number"], to=TensorProto.FLOAT),
                node("Transpose", ["number"], ["back"], perm=[0, 2, 3, 1]),
            ],
            "back",
            {},
            MIXES,
        ),
        (
            [
                node("Shape", ["labels"], ["count"]),
                node("Slice", ["table", "none", "count"], ["read"]),
                node("Reshape", ["read", "image_by_one"], ["back"]),
            ],
            "back",
            {"table": np.zeros(1000, "f4"), "none": ints(0), "image_by_one": ints(-1, 1, 1, 1)},
            COUNTS,
        ),
        # One row more, or all rows twice.
        ([node("Concat", ["plain", "more"], ["longer"], axis=0)], "longer", {"more": np.zeros((1, 8, 8, 1), "f4")},
         "does not grow in step with the batch"),
        ([node("Concat", ["plain", "plain"], ["twice"], axis=0)], "twice", {}, MIXES),
    ],
)  # fmt: skip
def test_a_graph_that_does_not_keep_its_images_apart_is_refused(
    nodes: list[NodeProto], value: str, weights: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        check_contract(added(nodes, value, weights), CONTRACT)


@pytest.mark.parametrize(
    ("nodes", "value", "weights"),
    [
        # What exporters write: the batch in a shape, norms of groups, products of matrices, slices of channels.
        (
            [
                node("Shape", ["plain"], ["all"]),
                node("Gather", ["all", "zero"], ["count"]),
                node("Concat", ["count", "tail"], ["shape"], axis=0),
                node("Reshape", ["plain", "shape"], ["flat"]),
                node("Reshape", ["flat", "all"], ["back"]),
            ],
            "back",
            {"zero": ints(0), "tail": ints(64)},
        ),
        (
            [
                node("Shape", ["maps"], ["all"]),
                node("Reshape", ["maps", "groups"], ["grouped"]),
                node("InstanceNormalization", ["grouped", "ones", "ones"], ["norm"]),
                node("Reshape", ["norm", "all"], ["whole"]),
                node("Transpose", ["whole"], ["back"], perm=[0, 2, 3, 1]),
            ],
            "back",
            {"groups": ints(0, 2, -1), "ones": np.ones(2, "f4")},
        ),
        (
            [
                node("Shape", ["labels"], ["count"]),
                node("Concat", ["count", "ones"], ["shape"], axis=0),
                node("Expand", ["half", "shape"], ["spread"]),
                node("ConstantOfShape", ["shape"], ["zeros"]),
                node("Add", ["spread", "zeros"], ["both"]),
            ],
            "both",
            {"ones": ints(1, 1, 1), "half": np.full((1, 1, 1, 1), 0.5, "f4")},
        ),
        (
            [
                node("Reshape", ["plain", "square"], ["s"]),
                node("MatMul", ["s", "s"], ["product"]),
                node("Softmax", ["product"], ["soft"], axis=-1),
                node("Slice", ["soft", "zero", "eight", "two"], ["cut"]),
                node("Unsqueeze", ["cut", "three"], ["back"]),
            ],
            "back",
            {"square": ints(-1, 8, 8), "zero": ints(0), "eight": ints(8), "two": ints(2), "three": ints(3)},
        ),
        (
            [
                node("OneHot", ["labels", "depth", "values"], ["hot"]),
                node("ReduceSum", ["hot", "last"], ["sum"]),
                node("Reshape", ["sum", "point"], ["back"]),
            ],
            "back",
            {"depth": ints(3), "values": np.array([0, 1], "f4"), "last": ints(1), "point": ints(-1, 1, 1, 1)},
        ),
        (
            [
                node("Div", ["labels", "two"], ["half"]),
                node("Mod", ["labels", "two"], ["odd"]),
                node("Add", ["half", "odd"], ["whole"]),
                node("Cast", ["whole"], ["number"], to=TensorProto.FLOAT),
                node("Reshape", ["number", "point"], ["back"]),
            ],
            "back",
            {"two": np.int64(2), "point": ints(-1, 1, 1, 1)},
        ),
    ],
)
def test_what_exporters_write_passes(nodes: list[NodeProto], value: str, weights: dict[str, Any]) -> None:
    check_contract(added(nodes, value, weights), CONTRACT)


@pytest.mark.parametrize("operator", ["Div", "Mod"])
@pytest.mark.parametrize("kind", [np.int64, np.int32])
@pytest.mark.parametrize("divisor", [0, -1, "labels"])
def test_whole_numbers_are_divided_by_known_numbers_only(operator: str, kind: type, divisor: int | str) -> None:
    """The least number by -1, or any by 0, ends the process with a signal."""
    least = np.full(1, np.iinfo(kind).min, kind)
    by = np.full(1, divisor, kind) if isinstance(divisor, int) else None
    to = TensorProto.INT64 if kind is np.int64 else TensorProto.INT32
    nodes = [
        node("Cast", ["labels" if by is None else "by"], ["divisor"], to=to),
        node(operator, ["least", "divisor"], ["quotient"]),
        node("Cast", ["quotient"], ["number"], to=TensorProto.FLOAT),
        node("Reshape", ["number", "point"], ["back"]),
    ]
    weights = {"least": least, "point": ints(-1, 1, 1, 1)} | ({} if by is None else {"by": by})
    with pytest.raises(GraphError, match=rf"A {operator} of the ONNX file divides whole numbers by what may be 0 or"):
        check_contract(added(nodes, "back", weights), CONTRACT)


@pytest.mark.parametrize(
    ("amounts", "mode", "allowed"),
    [
        ((0, 0, 1, 0, 0, 0, 1, 0), "constant", True),
        ((0, 0, 7, 0, 0, 0, 7, 0), "reflect", True),
        ((0, 0, 9, 0, 0, 0, 9, 0), "edge", True),
        ((0, 0, 8, 0, 0, 0, 0, 0), "reflect", False),
        # OpenVINO writes and reads beyond its memory here, where the whole axis or more is taken away.
        ((0, 0, 200, 0, 0, 0, -200, 0), "constant", False),
        ((0, 0, -7, 0, 0, 0, 7, 0), "reflect", False),
        ((0, 0, -9, 0, 0, 0, 9, 0), "edge", False),
        ((0, 0, -1, 0, 0, 0, 1, 0), "constant", False),
    ],
)
def test_a_pad_only_adds_and_mirrors_what_is_there(amounts: tuple[int, ...], mode: str, allowed: bool) -> None:
    nodes = [node("Pad", ["plain", "amounts"], ["wide"], mode=mode), node("Slice", ["wide", *SLICE], ["back"])]
    data = added(nodes, "back", {"amounts": ints(*amounts), "start": ints(0), "end": ints(8), "along": ints(2)})
    if allowed:
        assert check_contract(data, CONTRACT)
        return
    with pytest.raises(GraphError, match=r"A Pad of the ONNX file takes elements away, or mirrors more of them"):
        check_contract(data, CONTRACT)


SLICE = ("start", "end", "along")


@pytest.mark.parametrize("group", [0, -1, 2, 2**63 - 1])
@pytest.mark.parametrize(
    ("operator", "message"),
    [("Conv", "A Conv of the ONNX file has groups that do not fit its channels"), ("ConvTranspose", "group")],
)
def test_groups_that_do_not_fit_are_refused(operator: str, message: str, group: int) -> None:
    nodes = [
        node(operator, ["maps", "kernel"], ["folded"], group=group),
        node("Transpose", ["folded"], ["back"], perm=[0, 2, 3, 1]),
    ]
    with pytest.raises(GraphError, match=message):
        check_contract(added(nodes, "back", {"kernel": np.ones((1, 1, 1, 1), "f4")}), CONTRACT)


@pytest.mark.parametrize("padding", [3, 2**62])
def test_an_output_padding_beyond_the_stride_is_refused(padding: int) -> None:
    cut = padding // 2
    nodes = [
        node(
            "ConvTranspose", ["maps", "kernel"], ["grown"], output_padding=[padding, 0], pads=[cut, 0, padding - cut, 0]
        ),
        node("Transpose", ["grown"], ["back"], perm=[0, 2, 3, 1]),
    ]
    with pytest.raises(GraphError, match="an output padding that is not below its stride or its dilation"):
        check_contract(added(nodes, "back", {"kernel": np.ones((1, 1, 1, 1), "f4")}), CONTRACT)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.COMPLEX64])
def test_types_that_an_operator_does_not_have_are_refused(kind: int) -> None:
    nodes = [node("Cast", ["plain"], ["other"], to=kind), node("Cast", ["other"], ["back"], to=TensorProto.FLOAT)]
    with pytest.raises(GraphError, match=r"is not a valid graph: output has unsupported type"):
        check_contract(small_graph(nodes, {}, "back"), CONTRACT)


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.DOUBLE, TensorProto.UINT64, TensorProto.BFLOAT16])
def test_only_a_few_types_are_used_inside(kind: int) -> None:
    nodes = [node("Cast", ["plain"], ["other"], to=kind), node("Cast", ["other"], ["back"], to=TensorProto.FLOAT)]
    with pytest.raises(GraphError, match=f"has the type {TensorProto.DataType.Name(kind)}, which a bundle may not use"):
        check_contract(small_graph(nodes, {}, "back"), CONTRACT)


def test_a_constant_holds_numbers() -> None:
    words = node("Constant", [], ["words"], value_string=b"words")
    with pytest.raises(GraphError, match="something other than one array of numbers"):
        check_contract(small_graph([words]), CONTRACT)
