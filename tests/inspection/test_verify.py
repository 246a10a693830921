"""`dim verify` finds what is broken and passes what is whole."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import build_tiny_bundle, tiny_graph

from dim.runtime.bundle_format.accepted_file import write_accepted
from dim.runtime.bundle_format.files import load_manifest, update_bundle
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents
from dim.runtime.cores import find_bf16_instructions
from dim.runtime.engines import image_checks
from dim.runtime.engines.onnx_cpu import OnnxEngine
from dim.runtime.errors import BundleError
from dim.runtime.inspection import verify as verify_module
from dim.runtime.inspection.verify import VerifyReport, verify


def failed(report: VerifyReport) -> list[tuple[str, str]]:
    return [(row.subject, row.check) for row in report.rows if not row.ok]


def teacher(scale: float = 1.0) -> bytes:
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"]),
    ]
    weight = numpy_helper.from_array(np.full((64, 3), scale, np.float32), "weight")
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def spoil(precision: str, **values: Any) -> bytes:
    """The tiny graph with some of its weights replaced."""
    model = onnx.load_from_string(tiny_graph(num_classes=3, image_px=8, channels=1, latent_dim=16, precision=precision))
    for tensor in model.graph.initializer:
        if tensor.name in values:
            old = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(old, values[tensor.name]), tensor.name))
    return bytes(model.SerializeToString())


def test_a_whole_bundle_passes(tiny_bundle: Path) -> None:
    seen: list[tuple[str, float, float | None, str]] = []
    report = verify(tiny_bundle, threads=1, progress=lambda *told: seen.append(told))
    assert report.ok and failed(report) == []
    assert seen == [
        ("verifying", number + 1, None, f"{row.subject}: {row.check}") for number, row in enumerate(report.rows)
    ]
    assert report.manifest == load_manifest(tiny_bundle)
    checks = {(row.subject, row.check) for row in report.rows}
    for name in ("generator.fp32.onnx", "generator.fp16.onnx", "generator.int8.onnx"):
        for check in ("hash", "graph", "batch 1", "batch 16", "16 identical rows", "64 identical rows", "blank images"):
            assert (name, check) in checks
    allowed = {row.subject: row.allowed for row in report.rows if row.check == "against fp32"}
    bf16 = {"openvino-cpu bf16": "at least 45 dB"} if find_bf16_instructions() is not None else {}
    assert allowed == {
        "generator.fp16.onnx": "at least 45 dB",
        "generator.int8.onnx": "at least 30 dB",
        "openvino-cpu fp32": "at most 1 level",
        **bf16,
    }
    assert {"16 identical rows", "64 identical rows", "batch 1", "batch 16"} <= {
        row.check for row in report.rows if row.subject == "openvino-cpu fp32"
    }


def test_everything_a_bundle_may_hold_is_checked(tmp_path: Path) -> None:
    latents = write_fixed_latents(np.zeros((3, 2, 16), np.float32))
    path = build_tiny_bundle(tmp_path / "a.dim", extra_files={"teacher.onnx": teacher(), "latents.npz": latents})
    report = verify(path)
    assert report.ok
    assert {("teacher.onnx", "graph"), ("teacher.onnx", "logits"), ("latents.npz", "array")} <= {
        (row.subject, row.check) for row in report.rows
    }


def test_altered_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim", precisions=("fp32", "fp16"))
    (path / "README.md").unlink()
    os.truncate(path / "generator.fp16.onnx", 10)
    (path / "notes.txt").write_text("mine")
    report = verify(path)
    assert failed(report) == [("README.md", "hash"), ("generator.fp16.onnx", "hash")]
    assert [row.found for row in report.rows if row.subject == "notes.txt"] == ["not in the manifest"]


def test_a_wrong_graph_is_named_and_not_run(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim", extra_files={"generator.fp16.onnx": teacher(), "teacher.onnx": b"x"})
    assert failed(verify(path)) == [("generator.fp16.onnx", "graph"), ("teacher.onnx", "graph")]


def test_wrong_latents_are_named(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim", extra_files={"latents.npz": b"x"})
    assert failed(verify(path)) == [("latents.npz", "array")]


def test_accepted_candidates_are_checked(tmp_path: Path) -> None:
    good = write_accepted(1, np.arange(24).reshape(3, 8) % 4 > 0)
    report = verify(build_tiny_bundle(tmp_path / "a.dim", extra_files={"accepted.bin": good}))
    assert report.ok
    (row,) = [row for row in report.rows if row.check == "candidates"]
    assert (row.subject, row.found) == ("accepted.bin", "6 or more of 8 accepted in every class")
    bad = build_tiny_bundle(tmp_path / "b.dim", extra_files={"accepted.bin": good[:-1] + b"\0"})
    assert failed(verify(bad)) == [("accepted.bin", "candidates")]


def test_precisions_that_disagree_are_named(tmp_path: Path) -> None:
    other = {precision: spoil(precision, conv_bias=0.2) for precision in ("fp16", "int8")}
    path = build_tiny_bundle(
        tmp_path / "a.dim", extra_files={f"generator.{name}.onnx": data for name, data in other.items()}
    )
    assert failed(verify(path)) == [("generator.fp16.onnx", "against fp32"), ("generator.int8.onnx", "against fp32")]


@pytest.mark.parametrize("value", [np.nan, 100.0], ids=["NaN", "stuck"])
def test_a_broken_network_is_noticed(tmp_path: Path, value: float) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim")
    update_bundle(path, add_files={"generator.fp32.onnx": spoil("fp32", conv_bias=value)})
    assert failed(verify(path)) == [
        ("generator.fp32.onnx", "blank images"),
        ("generator.fp32.onnx", "spread within a class"),
    ]


def test_a_collapsed_class_is_noticed(tmp_path: Path) -> None:
    """Latents that reach the network a thousand times weaker than the label: one picture per class."""
    model = onnx.load_from_string(tiny_graph(num_classes=3, image_px=8, channels=1, latent_dim=16))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e-3, np.float32), "weaker"))
    add = next(node for node in model.graph.node if node.op_type == "Add")
    add.input[0] = "weak_latents"
    nodes = [helper.make_node("Mul", ["latents", "weaker"], ["weak_latents"]), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path = build_tiny_bundle(tmp_path / "a.dim")
    update_bundle(path, add_files={"generator.fp32.onnx": model.SerializeToString()})
    (row,) = (row for row in verify(path).rows if not row.ok)
    assert row.check == "spread within a class" and row.allowed == "at least 1"


def test_one_class_of_many_that_collapsed_is_named(tmp_path: Path) -> None:
    """Its row of the embedding drowns the latents."""
    path = build_tiny_bundle(tmp_path / "a.dim", classes=[f"class {label}" for label in range(1000)])
    model = onnx.load(path / "generator.fp32.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "embedding")
    rows = numpy_helper.to_array(tensor).copy()
    rows[777] = 1e6
    tensor.CopyFrom(numpy_helper.from_array(rows, "embedding"))
    update_bundle(path, add_files={"generator.fp32.onnx": model.SerializeToString()})
    (row,) = (row for row in verify(path, threads=1).rows if not row.ok)
    assert (row.check, row.found) == ("spread within a class", "0.0 levels, least of all in 'class 777'")


@pytest.mark.parametrize("equal", [True, False])
def test_an_engine_that_mixes_up_rows_is_noticed(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, equal: bool
) -> None:
    """TensorRT issue 4813, acted by an engine that errs in the second row of some batches of 16."""
    real = OnnxEngine.run

    def run(engine: OnnxEngine, latents: Any, labels: Any) -> Any:
        images = real(engine, latents, labels)
        if len(labels) == 16 and bool((latents == latents[0]).all()) == equal:
            images = images.copy()
            images[1] = images[1] // 2 + 9
        return images

    monkeypatch.setattr(OnnxEngine, "run", run)
    check = "16 identical rows" if equal else "batch 16"
    names = [f"generator.{precision}.onnx" for precision in ("fp32", "fp16", "int8")]
    assert failed(verify(tiny_bundle, threads=1)) == [(name, check) for name in names]


def test_a_broken_teacher_is_noticed(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim", extra_files={"teacher.onnx": teacher(np.inf)})
    assert failed(verify(path)) == [("teacher.onnx", "logits")]


def test_many_classes_are_sampled(tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "a.dim", classes=[f"class {i}" for i in range(250)])
    assert verify(path).ok


def test_one_class_is_enough(tmp_path: Path) -> None:
    assert verify(build_tiny_bundle(tmp_path / "a.dim", classes=["only"])).ok


def test_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There is no bundle"):
        verify(tmp_path)


def test_large_images_are_compared_in_bounded_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, others = (rng.integers(0, 256, (6, 9, 7, 3)).astype(np.uint8) for _ in range(2))
    whole = (
        image_checks.max_levels(images, others),
        image_checks.psnr_db(images, others),
        image_checks.measure_std_levels(images),
    )
    monkeypatch.setattr(image_checks, "_PIECE", 10)
    pieces = (
        image_checks.max_levels(images, others),
        image_checks.psnr_db(images, others),
        image_checks.measure_std_levels(images),
    )
    signed = images.astype(float)
    faced = [min((i, i[:, ::-1]), key=lambda other: np.abs(other - signed[0]).sum()) for i in signed]
    assert pieces == pytest.approx(whole) and whole[2] == pytest.approx(np.std(faced, axis=0).mean())
    monkeypatch.setattr(verify_module, "_MAX_BYTES", 64)
    labels, indices = verify_module._choose_samples(load_manifest(build_tiny_bundle(tmp_path / "a.dim", image_px=64)))
    assert len(labels) == 66 and sorted(set(labels.tolist())) == [0, 1, 2]


def test_parity_measures() -> None:
    black, grey = np.zeros((4, 2, 2, 1), np.uint8), np.full((4, 2, 2, 1), 255, np.uint8)
    assert image_checks.max_levels(black, grey) == 255 and image_checks.max_levels(black[:0], grey[:0]) == 0
    assert image_checks.psnr_db(black, grey) == 0.0 and image_checks.psnr_db(black, black) == np.inf
    assert image_checks.compare_precision("fp32", black, black) == (True, "0 levels", "at most 1 level")
    rest = "levels, 42.1 dB, 100.00% of pixels differ"
    assert image_checks.compare_precision("fp32", black, black + np.uint8(1)) == (
        True,
        "1 level, 48.1 dB, 100.00% of pixels differ",
        "at most 1 level",
    )
    assert image_checks.compare_precision("fp32", black, black + np.uint8(2)) == (False, f"2 {rest}", "at most 1 level")
    assert image_checks.compare_precision("fp16", black, black + np.uint8(2)) == (False, f"2 {rest}", "at least 45 dB")
    assert image_checks.compare_precision("int8", black, black + np.uint8(2)) == (True, f"2 {rest}", "at least 30 dB")
    assert image_checks.changed_fraction(black, np.concatenate([grey[:1], black[1:]])) == 0.25
    one_colour = np.zeros((2, 2, 2, 3), np.uint8)
    one_colour[0, ..., 1], one_colour[1, 0, 0, 0] = 9, 1
    assert image_checks.blank_fraction(one_colour) == 0.5 and image_checks.blank_fraction(one_colour[:0]) == 0.0
    assert (
        image_checks.measure_std_levels(black) == 0.0
        and image_checks.measure_std_levels(np.concatenate([black, grey])) == 127.5
    )


def test_an_image_and_its_mirror_image_again_and_again_have_no_spread() -> None:
    image, other = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    collapsed = np.stack([image, image[:, ::-1], image[:, ::-1], image])
    assert collapsed.std(axis=0).mean() > 30 and image_checks.measure_std_levels(collapsed) == 0.0
    assert image_checks.measure_std_levels(np.concatenate([collapsed, other[None]])) > 10


def test_batches_as_large_as_those_of_generate_are_compared(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that errs in the last of more than 1,000 rows."""
    real = OnnxEngine.run

    def run(engine: OnnxEngine, latents: Any, labels: Any) -> Any:
        images = real(engine, latents, labels)
        if len(images) > 1000:
            images[-1] ^= 64
        return images

    monkeypatch.setattr(OnnxEngine, "run", run)
    assert failed(verify(tiny_bundle, threads=1)) == [
        (f"generator.{precision}.onnx", "batch 1024") for precision in ("fp32", "fp16", "int8")
    ]
