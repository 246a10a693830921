"""The graph contract: what real exporters write passes, everything else is refused before an engine sees it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import build_tiny_bundle, tiny_graph

from dim.runtime import open_bundle
from dim.runtime.bundle_format import graph_contract as graph
from dim.runtime.bundle_format import graph_rules
from dim.runtime.bundle_format.files import load_manifest, read_checked_file, update_bundle
from dim.runtime.bundle_format.graph_contract import check_contract, check_graph, parse_onnx
from dim.runtime.bundle_format.graph_rules import GraphContract, check_model
from dim.runtime.errors import DimError, GraphError
from dim.runtime.storage import private_cache as cache

CONTRACT = GraphContract(
    inputs=(("latents", "FLOAT", (16,)), ("labels", "INT64", ())),
    output=("images", "UINT8", (8, 8, 1)),
    last_operator="Cast",
)
PLAIN = tiny_graph(num_classes=3, image_px=8, channels=1, latent_dim=16)


def changed(change: Callable[[Any], object]) -> bytes:
    model = onnx.load_from_string(PLAIN)
    change(model)
    return bytes(model.SerializeToString())


def node_named(model: Any, op_type: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == op_type)


def insert(model: Any, position: int, *nodes: Any) -> None:
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*kept[:position], *nodes, *kept[position:]])


def constant(model: Any, name: str, value: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_of_a_bundle_passes(tiny_bundle: Path, precision: str) -> None:
    manifest = load_manifest(tiny_bundle)
    check_graph(read_checked_file(tiny_bundle, manifest, f"generator.{precision}.onnx"), manifest)


def test_shapes_that_an_exporter_computes_inside_pass() -> None:
    def compute_shape(model: Any) -> None:
        """Reshape to Concat(Shape(latents)[:1], [6, 4, 4]), as torch writes it for `view(len(x), ...)`."""
        reshape = node_named(model, "Reshape")
        constant(model, "tail", np.array([6, 4, 4], np.int64))
        insert(
            model,
            2,
            helper.make_node("Shape", ["latents"], ["batch"], start=0, end=1),
            helper.make_node("Concat", ["batch", "tail"], ["computed"], axis=0),
        )
        reshape.input[1] = "computed"
        next(node for node in model.graph.node if node.op_type == "Reshape").input[1] = "computed"

    check_contract(changed(compute_shape), CONTRACT)


def bomb(op_type: str) -> Callable[[Any], None]:
    """A constant of 2^40 elements made by one small node."""

    def change(model: Any) -> None:
        constant(model, "huge", np.array([2**20, 2**20], np.int64))
        constant(model, "one", np.ones((1, 1), np.float32))
        inputs = {"ConstantOfShape": ["huge"], "Expand": ["one", "huge"], "Tile": ["one", "huge"]}[op_type]
        insert(model, 0, helper.make_node(op_type, inputs, ["bomb"]))

    return change


def enlarge(model: Any) -> None:
    """A Resize to 16384 x 16384 that nothing uses."""
    constant(model, "enormous", np.array([1, 1, 4096, 4096], np.float32))
    insert(model, 4, helper.make_node("Resize", ["maps", "", "enormous"], ["bomb"], mode="nearest"))


def quadratic(model: Any) -> None:
    constant(model, "first", np.array([-1, 1], np.int64))
    constant(model, "second", np.array([1, -1], np.int64))
    insert(
        model,
        0,
        helper.make_node("Cast", ["labels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "first"], ["column"]),
        helper.make_node("Reshape", ["numbers", "second"], ["row"]),
        helper.make_node("Mul", ["column", "row"], ["square"]),
    )


def shape_from_data(model: Any) -> None:
    constant(model, "one", np.ones((1,), np.float32))
    insert(model, 0, helper.make_node("Expand", ["one", "labels"], ["bomb"]))


def slow_convolution(model: Any) -> None:
    constant(model, "wide", np.zeros((256, 6, 1, 1), np.float32))
    constant(model, "wide2", np.zeros((256, 256, 5, 5), np.float32))
    constant(model, "big", np.array([1, 1, 64, 64], np.float32))
    insert(
        model,
        4,
        helper.make_node("Resize", ["maps", "", "big"], ["big_maps"], mode="nearest"),
        helper.make_node("Conv", ["big_maps", "wide"], ["wider"]),
        helper.make_node("Conv", ["wider", "wide2"], ["slow"], pads=[2, 2, 2, 2]),
        helper.make_node("Conv", ["slow", "wide2"], ["slower"], pads=[2, 2, 2, 2]),
    )


def spread_out(model: Any) -> None:
    """32 x 32 pixels, each spread over 1024 x 1024."""
    constant(model, "point", np.zeros((6, 1, 1024, 1024), np.float32))
    node = helper.make_node("ConvTranspose", ["maps", "point"], ["spread"], strides=[1, 1], group=1)
    constant(model, "big", np.array([1, 1, 8, 8], np.float32))
    insert(model, 4, helper.make_node("Resize", ["maps", "", "big"], ["larger_maps"], mode="nearest"), node)
    node.input[0] = "larger_maps"
    model.graph.node[5].input[0] = "larger_maps"


def external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def inner_graph(model: Any) -> None:
    node_named(model, "Tanh").attribute.append(helper.make_attribute("body", helper.make_graph([], "x", [], [])))


def wrong_tensor(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 10**9


def rename_symbol(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "M"


def fix_batch(model: Any) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 4


def output_type(model: Any) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT


def tensor_attribute(model: Any) -> None:
    value = numpy_helper.from_array(np.array(["text"], object), "text")
    insert(model, 0, helper.make_node("Constant", [], ["words"], value=value))


def lie_about_shapes(model: Any) -> None:
    enlarge(model)
    model.graph.value_info.append(helper.make_tensor_value_info("bomb", TensorProto.FLOAT, ["N", 6, 8, 8]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: node_named(m, "Tanh").CopyFrom(helper.make_node("RandomNormalLike", ["convolved"], ["bounded"])),
         "operator 'RandomNormalLike'"),
        (lambda m: setattr(node_named(m, "Tanh"), "op_type", "Loop"), "operator 'Loop'"),
        (lambda m: setattr(node_named(m, "Tanh"), "domain", "com.microsoft"), "operator 'com.microsoft.Tanh'"),
        (lambda m: setattr(node_named(m, "Tanh"), "op_type", "NonZero"), "operator 'NonZero'"),
        (inner_graph, "holds a graph of its own"),
        (lambda m: m.functions.add(), "holds functions"),
        (lambda m: m.training_info.add(), "holds training information"),
        (lambda m: m.graph.sparse_initializer.add(), "holds sparse tensors"),
        (external, "lies in another file"),
        (wrong_tensor, "holds more or less than its shape"),
        (tensor_attribute, "has the type STRING"),
        (lambda m: setattr(m, "ir_version", 11), "IR version 11; it must be 7 to 10"),
        (lambda m: setattr(m.opset_import[0], "version", 19), "opset 19; it must be 13 to 18"),
        (lambda m: m.opset_import.add(domain="evil", version=1), "operator sets 'ai.onnx, evil'"),
        (lambda m: m.graph.ClearField("input"), "has the inputs none"),
        (lambda m: setattr(m.graph.input[0], "name", "z"), "has the inputs z, labels"),
        (lambda m: m.graph.output.append(m.graph.output[0]), "the outputs images, images"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 17),
         "latents of the ONNX file is FLOAT"),
        (output_type, "images of the ONNX file is FLOAT"),
        (rename_symbol, "several names, M, N"),
        (fix_batch, "with a symbolic N"),
        (lambda m: node_named(m, "Transpose").input.__setitem__(0, "nowhere"), "is not a valid graph"),
        (lambda m: node_named(m, "Gemm").input.__setitem__(0, "clipped"), "is not a valid graph"),
        (bomb("ConstantOfShape"), "has 1,099,511,627,776 elements"),
        (bomb("Expand"), "has 1,099,511,627,776 elements"),
        (bomb("Tile"), "has 1,099,511,627,776 elements"),
        (enlarge, "elements per image; at most 16,777,216"),
        (lie_about_shapes, "elements per image; at most 16,777,216"),
        (quadratic, "grows faster than the batch"),
        (shape_from_data, "does not follow from the ONNX file alone"),
        (slow_convolution, "would take more than 0.6 s of one core for every image; Conv"),
        (spread_out, "A ConvTranspose of the ONNX file needs room for 1,073,741,824 elements beside its output"),
        (lambda m: setattr(node_named(m, "Transpose"), "op_type", "Identity"), "is not a valid graph"),
    ],
)  # fmt: skip
def test_hostile_graphs_are_refused(change: Callable[[Any], object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        check_contract(changed(change), CONTRACT)


def test_the_cast_must_come_last() -> None:
    def append_identity(model: Any) -> None:
        node_named(model, "Transpose").output[0] = "before"
        model.graph.node[-1].input[0] = "before"
        model.graph.node[-1].output[0] = "cast"
        model.graph.node.append(helper.make_node("Identity", ["cast"], ["images"]))

    with pytest.raises(GraphError, match="is not made by a last Cast"):
        check_contract(changed(append_identity), CONTRACT)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(GraphError, match="fields that this version of onnx does not know"):
        parse_onnx(PLAIN + b"\xfa\x7f\x03abc")


@pytest.mark.parametrize("old", [b"embedding", b"Tanh", b"generator"])
def test_text_that_is_not_utf8_is_refused(old: bytes) -> None:
    with pytest.raises(GraphError, match="that is not UTF-8"):
        parse_onnx(PLAIN.replace(old, b"\xff" + old[1:]))


@pytest.mark.parametrize("data", [b"", b"not onnx", PLAIN[:1000], b"\x00" * 100])
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    with pytest.raises(GraphError):
        check_contract(data, CONTRACT)


def test_a_file_over_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_ONNX_BYTES", 10)
    with pytest.raises(GraphError, match="has 7,859 bytes; at most 10 are read"):
        check_contract(PLAIN, CONTRACT)


def length_delimited(number: int, body: bytes) -> bytes:
    """A protobuf field that holds bytes or a message."""
    size, digits = len(body), b""
    while size > 127:
        digits, size = digits + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + digits + bytes([size]) + body


@pytest.mark.parametrize(
    "graph_fields",
    [
        b"\x0a\x00" * 2**18,  # empty nodes
        b"\x2a\x00" * 2**18,  # empty tensors
        length_delimited(1, b"\x2a\x00" * 2**18),  # empty attributes of one node
        length_delimited(13, bytes(2**22)),  # a type of four megabytes
        length_delimited(5, length_delimited(1, b"\1" * 2**22)),  # a shape of four million sizes
    ],
)
def test_a_swarm_of_small_things_is_refused_before_it_is_parsed(
    graph_fields: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx.ModelProto, "FromString", lambda data: pytest.fail("parsed"), raising=False)
    with pytest.raises(GraphError, match=r"more than 262,144 fields, or more than 4,194,304 bytes outside of its"):
        parse_onnx(PLAIN + length_delimited(7, graph_fields))


def test_large_weights_are_no_swarm() -> None:
    check_contract(changed(lambda model: constant(model, "weights", np.zeros(2**21, np.float32))), CONTRACT)


def wide(model: Any) -> None:
    """Maps of 6 x 512 x 512, made smaller again."""
    constant(model, "wider", np.array([1, 1, 128, 128], np.float32))
    constant(model, "narrower", np.array([1, 1, 1 / 128, 1 / 128], np.float32))
    insert(
        model,
        4,
        helper.make_node("Resize", ["maps", "", "wider"], ["wide_maps"], mode="nearest"),
        helper.make_node("Resize", ["wide_maps", "", "narrower"], ["narrow_maps"], mode="nearest"),
    )
    node_named(model, "Relu").input[0] = "narrow_maps"


def test_a_run_gets_as_many_rows_as_memory_allows() -> None:
    largest = 6 * 8 * 8 + 6 * 4 * 4  # `larger`, and `positive` that it is made from
    assert check_contract(PLAIN, CONTRACT) == graph_rules.MAX_ELEMENTS_PER_RUN // largest
    assert check_contract(changed(wide), CONTRACT) == 2**27 // (6 * 512 * 512 + 6 * 4 * 4)


def test_rows_that_are_drawn_in_pieces_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim")
    update_bundle(path, add_files={"generator.fp32.onnx": changed(wide)})
    labels, indices = np.arange(20) % 3, np.arange(20)
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    with open_bundle(path, engine="onnxruntime-cpu", threads=1) as bundle:
        whole = bundle.sample(labels, indices)
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "second"))
    monkeypatch.setattr(graph_rules, "MAX_ELEMENTS_PER_RUN", 3 * 6 * 512 * 512)
    with open_bundle(path, engine="onnxruntime-cpu", threads=1) as bundle:
        sizes: list[int] = []
        session = bundle.engine._session  # type: ignore[attr-defined]
        real = session.run
        monkeypatch.setattr(
            session, "run", lambda names, inputs: sizes.append(len(inputs["labels"])) or real(names, inputs)
        )
        assert np.array_equal(bundle.sample(labels, indices), whole)
    assert sizes == [2] * 10


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(PLAIN) * 8 - 1))
def test_a_flipped_bit_is_refused_or_harmless(bit: int) -> None:
    """The hash refuses it first in a bundle; here the reader itself must stand."""
    data = bytearray(PLAIN)
    data[bit // 8] ^= 1 << bit % 8
    try:
        check_model(parse_onnx(bytes(data)), CONTRACT)
    except GraphError:
        pass


def test_a_checked_file_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    check_contract(PLAIN, CONTRACT)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(
        "dim.runtime.bundle_format.graph_contract.parse_onnx", lambda data: pytest.fail("checked again")
    )
    check_contract(PLAIN, CONTRACT)
    narrower = GraphContract(inputs=CONTRACT.inputs, output=("images", "UINT8", (9, 9, 1)), last_operator="Cast")
    with pytest.raises(pytest.fail.Exception, match="checked again"):
        check_contract(PLAIN, narrower)


def test_a_refused_file_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path))
    for _ in range(2):
        with pytest.raises(GraphError):
            check_contract(changed(enlarge), CONTRACT)


def test_an_unusable_cache_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "file"))
    check_contract(PLAIN, CONTRACT)
    with pytest.raises(DimError, match="set DIM_CACHE to a folder of yours"):
        cache.cache_dir()


def test_a_shared_cache_is_closed_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    monkeypatch.setenv("DIM_CACHE", str(shared))
    assert cache.cache_dir() == shared and shared.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(shared)
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "link"))
    with pytest.raises(DimError, match="is a link or a file"):
        cache.cache_dir()
    monkeypatch.setenv("DIM_CACHE", str(shared))
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(DimError, match="is not private to this user"):
        cache.cache_dir()


def test_the_cache_follows_the_desktop_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "dim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_dir() == tmp_path / "home" / ".cache" / "dim"
