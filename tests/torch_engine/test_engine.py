"""A bundle drawn by PyTorch in the evaluation: the same images as ONNX Runtime's, for every file that we export."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli_tools import dim as run_command
from cli_tools import one_line
from digits_bundle import build_digits_bundle
from export_runs import export_each_network_once, make_run
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import build_tiny_bundle

import dim.torch_engine.engine
from dim.export.export_run import export_run
from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.files import update_bundle
from dim.runtime.bundle_format.locate import find_bundle
from dim.runtime.errors import BundleError, EngineError
from dim.torch_engine.engine import OnnxGraph, TorchEngine

CPU = torch.device("cpu")


def drawn(path: Path, precision: str, engine: TorchEngine | None, count: int = 70) -> np.ndarray:
    with open_bundle(path, engine="onnxruntime-cpu", precision=precision, threads=1) as bundle:
        labels = np.arange(count) % len(bundle.classes)
        if engine is not None:
            bundle.draw_with(engine)
        return bundle.sample(labels, np.arange(count), seed=3, use="stream").astype(int)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conditioning": "norm"},
        {"image_px": 13, "channels": 1},
        {"kind": "paper", "image_px": 8},
        {"mirrored": True},
    ],
    ids=["input", "norm", "odd", "published", "mirrored"],
)
def test_every_exported_generator_draws_the_same(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_each_network_once(monkeypatch)
    path = export_run(make_run(tmp_path / "run", **changes), precisions=("fp32", "fp16"))
    monkeypatch.setattr(dim.torch_engine.engine, "BATCH", 32)
    for precision, levels in (("fp32", 1), ("fp16", 4)):
        engine = TorchEngine(Bundle(path), precision, CPU)
        assert (engine.batch, engine.device, engine.precision) == (32, "cpu", precision)
        images, reference = drawn(path, precision, engine), drawn(path, precision, None)
        assert reference.std() > 10
        assert np.abs(images - reference).max() <= levels
        assert (images != reference).mean() < (0.001 if precision == "fp32" else 0.1)


def test_the_shipped_bundle_draws_the_same() -> None:
    path = find_bundle(None)[0]
    engine = TorchEngine(Bundle(path), "fp32", CPU)
    assert np.abs(drawn(path, "fp32", engine) - drawn(path, "fp32", None)).max() <= 1


def test_images_do_not_depend_on_how_many_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    path = find_bundle(None)[0]
    monkeypatch.setattr(dim.torch_engine.engine, "BATCH", 16)
    with Bundle(path) as bundle:
        bundle.draw_with(TorchEngine(bundle, "fp32", CPU))
        labels = np.arange(20) % 10
        whole = bundle.sample(labels, np.arange(20), use="stream")
        for part in (slice(0, 1), slice(3, 20)):
            assert (bundle.sample(labels[part], np.arange(20)[part], use="stream") == whole[part]).all()
        assert bundle.sample([], []).shape == (0, 28, 28, 1)


@pytest.mark.slow
def test_what_it_cannot_run_is_told(tmp_path: Path) -> None:
    path = find_bundle(None)[0]
    with pytest.raises(EngineError, match=r"cannot run the operator DequantizeLinear of this file; it knows Add, "):
        TorchEngine(Bundle(path), "int8", CPU)
    engine = TorchEngine(Bundle(path), "fp32", CPU)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(np.zeros((1, 64), np.float32), np.zeros(1, np.int64))
    digits = build_digits_bundle(tmp_path / "digits.dim")
    assert (
        np.abs(drawn(digits, "fp32", TorchEngine(Bundle(digits), "fp32", CPU)) - drawn(digits, "fp32", None)).max() <= 1
    )
    model = onnx.load_model_from_string((digits / "generator.fp32.onnx").read_bytes())
    model.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("axis", -2))
    update_bundle(digits, add_files={"generator.fp32.onnx": model.SerializeToString()})
    with pytest.raises(EngineError, match="cannot run Gather with axis=-2: draw with another --engine"):
        TorchEngine(Bundle(digits), "fp32", CPU)


def one_node(node: onnx.NodeProto, **constants: np.ndarray) -> bytes:
    """A model of one node from `x` to `y`."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "one", [value], [output], held)
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    return content


KERNEL = np.ones((1, 1, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Conv", {"auto_pad": "SAME_UPPER"}),
        ("ConvTranspose", {"output_shape": [8, 8]}),
        ("Resize", {"mode": "linear"}),
        ("Resize", {"mode": "nearest", "axes": [2, 3]}),
        ("Cast", {"to": TensorProto.DOUBLE}),
    ],
)
def test_an_attribute_that_it_does_not_know_is_refused(operator: str, attributes: dict[str, Any]) -> None:
    node = helper.make_node(operator, ["x", "w"], ["y"], **attributes)
    with pytest.raises(EngineError, match=f"cannot run {operator} with .*: draw with another --engine"):
        OnnxGraph(one_node(node, w=KERNEL), CPU)


def test_inputs_that_are_left_out_keep_the_others_in_their_places() -> None:
    x, limit = torch.tensor([-2.0, 0.5, 3.0]), np.float32(1)
    at_most = one_node(helper.make_node("Clip", ["x", "", "w"], ["y"]), w=np.array(limit))
    at_least = one_node(helper.make_node("Clip", ["x", "w", ""], ["y"]), w=np.array(limit))
    assert OnnxGraph(at_most, CPU)({"x": x}).tolist() == [-2.0, 0.5, 1.0]
    assert OnnxGraph(at_least, CPU)({"x": x}).tolist() == [1.0, 1.0, 3.0]
    plain = one_node(helper.make_node("Conv", ["x", "w", ""], ["y"]), w=KERNEL)
    assert OnnxGraph(plain, CPU)({"x": torch.ones(1, 1, 3, 3)}).tolist() == [[[[9.0]]]]
    unnamed = one_node(helper.make_node("Resize", ["x", "", "w"], ["y"], mode="nearest"), w=np.ones(4, np.float32))
    with pytest.raises(EngineError, match="to the nearest pixel, rounded down, only"):
        OnnxGraph(unnamed, CPU)({"x": torch.ones(1, 1, 3, 3)})


def test_a_bundle_draws_with_one_engine() -> None:
    path = find_bundle(None)[0]
    with open_bundle(path, engine="onnxruntime-cpu") as bundle:
        bundle.sample([0], [0])
        with pytest.raises(BundleError, match="draws with another engine; open it again"):
            bundle.draw_with(TorchEngine(bundle, "fp32", CPU))


def test_the_evaluation_draws_with_it_where_asked(tmp_path: Path) -> None:
    bundle = build_digits_bundle(tmp_path / "digits.dim")
    arguments = ["--bundle", bundle, "--data", "digits", "--ipc", "1", "--epochs", "1", "--seeds", "1", "--width", "4"]
    ran = run_command("eval", *arguments, "--threads", "1", "--engine", "torch", "--out", tmp_path / "eval")
    assert ran.code == 0, ran.err
    assert "drawn by torch fp32 on the cpu" in ran.err
    results = (tmp_path / "eval" / "results.json").read_text()
    assert f'"engine": "torch fp32 on cpu, torch {torch.__version__}"' in results
    assert "There is no engine 'Torch' (did you mean torch?); there are auto, torch, tensorrt, " in one_line(
        run_command("eval", *arguments, "--engine", "Torch", "--out", tmp_path / "eval")
    )
    tiny = build_tiny_bundle(tmp_path / "tiny.dim")
    assert "There is no engine 'torch'; there are auto, " in one_line(
        run_command("generate", "--bundle", tiny, "--engine", "torch", "--out", tmp_path / "set", "--ipc", "1")
    )


def test_what_is_rounded_comes_out_with_gradients() -> None:
    rounding = one_node(helper.make_node("Round", ["x"], ["y"]), w=KERNEL)
    x = torch.tensor([0.4, 1.6], requires_grad=True)
    levels = OnnxGraph(rounding, CPU, rounded=False)({"x": x})
    assert levels.tolist() == x.tolist() and levels.requires_grad
    with pytest.raises(EngineError, match="does not round to pixels"):
        OnnxGraph(one_node(helper.make_node("Relu", ["x"], ["y"]), w=KERNEL), CPU, rounded=False)
