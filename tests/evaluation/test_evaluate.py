"""The evaluation: what is run, in which order, how often, on what, and what is kept of it."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli_tools import dim as run_command
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from tiny_bundle import build_tiny_bundle

import dim.evaluation.images
import dim.evaluation.jobs
from dim.data.load import ImageSet
from dim.evaluation.cells import Cell, CellResult, parse_result, read_result, write_result
from dim.evaluation.choose_recipe import choose_recipe, list_candidates, read_recipe, split_holdout
from dim.evaluation.evaluate import evaluate
from dim.evaluation.images import draw_in_chunks, generated_set, generated_stream, real_set, real_stream
from dim.evaluation.measure import EvalProgress, Evaluation
from dim.evaluation.plan import images_that_fit, plan_cells
from dim.evaluation.protocol import PROTOCOLS, EvalProtocol, Execution
from dim.evaluation.results import aggregate
from dim.evaluation.subjects import Subject, find_split_seed
from dim.evaluation.table import accuracy_table, cost_table, format_bytes
from dim.export.record_accuracy import record_accuracy
from dim.runtime.bundle import open_bundle
from dim.runtime.bundle_format.files import load_manifest, update_bundle
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import BadValueError, BundleError, DataError
from dim.runtime.storage.records import to_plain
from dim.students.recipes import DEFAULT, PUBLISHED

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"epochs": 2, "width": 4, "device": "cpu", "threads": 1, "precision": "fp32"}


def striped_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes told apart by the brightness of a third of the image."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 3
    images = rng.integers(0, 120, (count, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 130
    return images, labels


@pytest.fixture(scope="module")
def data() -> ImageSet:
    train, test = striped_images(90, 0), striped_images(60, 1)
    return ImageSet(
        name="stripes",
        classes=("zero", "one", "two"),
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
        licence="CC0-1.0",
        note="drawn for a test",
    )


def teacher_graph() -> bytes:
    """A teacher whose logits are the mean brightness of three parts of the image."""
    weight = np.zeros((64, 3), np.float32)
    weight.reshape(8, 8, 3)[:, [0, 1, 3, 4, 6, 7], [0, 0, 1, 1, 2, 2]] = 0.1 / 16
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(
        tmp_path_factory.mktemp("bundle") / "tiny.dim", extra_files={"teacher.onnx": teacher_graph()}
    )


def divide(options: dict[str, Any]) -> tuple[EvalProtocol, Execution]:
    """A protocol and an execution from the fields of both."""
    protocol = {field.name for field in fields(EvalProtocol)} & options.keys()
    execution = options.keys() - protocol
    return (
        EvalProtocol(**{name: options[name] for name in protocol}),
        Execution(**{name: options[name] for name in execution}),
    )


def run(bundles: Any, data: ImageSet, out: Path, options: dict[str, Any], **calls: Any) -> Evaluation:
    return evaluate(bundles, data, *divide(QUICK | options), out=out, **calls)


def names(results: Sequence[CellResult]) -> list[tuple[str, str, int, int]]:
    return [(r.cell.subject, r.cell.mode, r.cell.ipc, r.cell.seed) for r in results]


def test_every_generated_student_has_its_controls_with_equal_steps_and_recipe(
    bundle: Path, data: ImageSet, tmp_path: Path
) -> None:
    events: list[EvalProgress] = []
    results = run(bundle, data, tmp_path, {"ipcs": (25, 1), "seeds": (0, 1)}, progress=events.append).results
    per_seed = [("generated", "fixed"), ("real", "fixed"), ("generated", "stream"), ("real", "stream")]
    assert names(results) == [(*pair, ipc, seed) for ipc in (25, 1) for seed in (0, 1) for pair in per_seed]
    assert {(r.cell.ipc, r.steps) for r in results} == {(25, 2 * 2), (1, 2)}  # 75 images are 64 and 11
    assert len({(r.cell.recipe, r.cell.precision, r.cell.epochs) for r in results}) == 1
    kept = {(r.cell.subject, r.cell.mode): (r.distinct_images, r.data_bytes) for r in results if r.cell.ipc == 25}
    onnx_bytes = load_manifest(bundle).files["generator.fp32.onnx"].size_bytes
    assert kept == {
        ("generated", "fixed"): (75, 75 * 64),
        ("real", "fixed"): (75, 75 * 64),
        ("generated", "stream"): (150, onnx_bytes),
        ("real", "stream"): (90, 90 * 64),
    }
    assert all(
        r.test_images == 60 and r.data_note == "drawn for a test" and "eval() mode" in r.protocol for r in results
    )
    assert {r.engine for r in results if r.cell.source == "real"} == {""}
    assert all(r.engine.startswith("onnxruntime-cpu fp32") for r in results if r.cell.source == "bundle")
    assert (events[-1].done_cells, events[-1].num_cells) == (16, 16)
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_int8_images_name_their_precision_and_go_beside_those_of_fp32(data: ImageSet, tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    update_bundle(bundle, add_files={"generator.int8.onnx": (bundle / "generator.fp32.onnx").read_bytes()})
    options: dict[str, Any] = {"ipcs": (2,), "seeds": (0,), "modes": ("fixed",), "controls": False}
    for precision in (None, "int8"):
        drawn = {"engine": EngineOptions(precision=precision)}
        results = run(bundle, data, tmp_path / "eval", options | drawn).results
        assert results[0].engine.startswith(f"onnxruntime-cpu {precision or 'fp32'}")
        record_accuracy(bundle, aggregate(results))
    rows = load_manifest(bundle).accuracy
    assert [(row["subject"], row["engine_precision"]) for row in rows] == [
        ("generated", "fp32"),
        ("generated, int8", "int8"),
    ]


def test_another_file_of_the_precision_is_measured_anew(data: ImageSet, tmp_path: Path) -> None:
    """An exporter that writes int8 otherwise leaves the content id as it was."""
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    model = onnx.load(bundle / "generator.fp32.onnx")
    options: dict[str, Any] = {"ipcs": (2,), "seeds": (0,), "modes": ("fixed",), "controls": False}
    files = []
    for text in ("first", "second", "second"):
        model.doc_string = text
        update_bundle(bundle, add_files={"generator.int8.onnx": model.SerializeToString(deterministic=True)})
        (result,) = run(bundle, data, tmp_path / "eval", options | {"engine": EngineOptions(precision="int8")}).results
        assert result.cell.generator == load_manifest(bundle).files["generator.int8.onnx"].sha256
        files.append(len(list((tmp_path / "eval" / "cells").iterdir())))
    assert files == [1, 2, 2]
    run(bundle, data, tmp_path / "eval", options | {"engine": EngineOptions(engine="fake")})
    assert len(list((tmp_path / "eval" / "cells").iterdir())) == 3
    (result,) = run(bundle, data, tmp_path / "eval", options).results
    assert (result.cell.engine, result.cell.engine_precision) == ("", "fp32")
    assert len(list((tmp_path / "eval" / "cells").iterdir())) == 4


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_time_limit_ends_between_students_and_the_same_call_goes_on(
    bundle: Path, data: ImageSet, tmp_path: Path, jobs: int
) -> None:
    options: dict[str, Any] = {"ipcs": (2,), "seeds": (0, 1), "jobs": jobs, "threads": 2}
    said: list[str] = []
    stopped = run(bundle, data, tmp_path, options | {"time_limit_s": 0.05}, say=said.append)
    left = stopped.students_left
    assert said[-1] == f"The time limit left {left} of 8 students untrained: the same command goes on."
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["finished"] is False and not stopped.finished and len(stopped.results) == 8 - left < 8
    assert len(stopped.results) == len(list((tmp_path / "cells").glob("*.json")))
    finished = run(bundle, data, tmp_path, options | {"time_limit_s": 600.0})
    assert finished.finished and len(finished.results) == 8
    assert json.loads((tmp_path / "results.json").read_text())["finished"] is True
    # All are there, so no time is needed.
    assert len(run(bundle, data, tmp_path, options | {"time_limit_s": 0.0}).results) == 8


def test_a_finished_student_is_not_trained_again_and_half_a_file_is_no_result(
    bundle: Path, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    run_cell = dim.evaluation.jobs.run_cell

    def counted(context: Any, cell: Cell, progress: Any) -> CellResult:
        trained.append(cell.path(tmp_path).name)
        return run_cell(context, cell, progress)

    monkeypatch.setattr(dim.evaluation.jobs, "run_cell", counted)
    options: dict[str, Any] = {"ipcs": (2,), "seeds": (0,)}
    first = run(bundle, data, tmp_path, options).results
    assert len(trained) == 4
    half, foreign = (tmp_path / "cells" / name for name in trained[:2])
    half.write_bytes(half.read_bytes()[:100])
    foreign.write_text(foreign.read_text().replace('"seed": 0', '"seed": 7'))
    (tmp_path / "cells" / ".x.tmp").write_text("{")
    again = run(bundle, data, tmp_path, options).results
    assert sorted(trained[4:]) == sorted(trained[:2])
    assert [r.accuracy for r in again] == [r.accuracy for r in first]
    run(bundle, data, tmp_path, options)
    assert len(trained) == 6
    run(bundle, data, tmp_path, options | {"resume": False})
    assert len(trained) == 10


def test_an_interruption_keeps_what_was_finished(
    bundle: Path, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cell = dim.evaluation.jobs.run_cell

    def interrupted(context: Any, cell: Cell, progress: Any) -> CellResult:
        if cell.mode == "stream":
            raise KeyboardInterrupt
        return run_cell(context, cell, progress)

    monkeypatch.setattr(dim.evaluation.jobs, "run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(bundle, data, tmp_path, {"ipcs": (2,), "seeds": (0,)})
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["subject"], row["mode"]) for row in rows] == [("generated", "fixed"), ("real", "fixed")]


def test_two_processes_give_the_same_results(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ipcs": (2,), "seeds": (0,), "modes": ("stream",)}
    one = run(bundle, data, tmp_path / "one", options).results
    events: list[EvalProgress] = []
    two = run(bundle, data, tmp_path / "two", options | {"jobs": 2, "threads": 2}, progress=events.append).results
    assert [r.accuracy for r in one] == [r.accuracy for r in two]
    assert events and len(list((tmp_path / "two" / "cells").glob("*.json"))) == 2


def test_soft_labels_and_other_bundles_have_rows_of_their_own(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    other = build_tiny_bundle(tmp_path / "other.dim", seed=5)
    options = {"ipcs": (2,), "seeds": (0,), "modes": ("fixed",), "labels": ("hard", "soft"), "whole_epochs": 3}
    results = run({"generated": bundle, "other": other}, data, tmp_path / "out", options).results
    assert [(r.cell.subject, r.cell.labels) for r in results] == [
        ("generated", "hard"), ("other", "hard"), ("real", "hard"),
        ("generated", "soft"), ("other", "soft"), ("real", "soft"),
        ("whole set", "hard"),
    ]  # fmt: skip
    assert results[-1].steps == 3 * 2 and results[-1].distinct_images == 90
    assert results[3].data_bytes == results[0].data_bytes + 6 * 3 * 2
    rows = aggregate(results)
    console = Console(width=200, record=True)
    console.print(accuracy_table(rows), cost_table(rows))
    shown = console.export_text()
    for text in [
        "generated, soft labels",
        "whole set",
        "generated - real",
        "2 epochs (published: 1,000)",
        "(one seed)",
    ]:
        assert text in shown
    with pytest.raises(BundleError, match=r"has no teacher.onnx, so there are no soft labels to train with\.$"):
        run(other, data, tmp_path / "out", {"labels": ("hard", "soft")})


def test_real_images_of_equal_bytes_are_few_where_the_generator_is_small(
    bundle: Path, data: ImageSet, tmp_path: Path
) -> None:
    larger = replace(
        data, train_images=np.tile(data.train_images, (4, 1, 1, 1)), train_labels=np.tile(data.train_labels, 4)
    )
    results = run(bundle, larger, tmp_path, {"ipcs": (60,), "seeds": (0,), "modes": ("stream",)}).results
    onnx_bytes = load_manifest(bundle).files["generator.fp32.onnx"].size_bytes
    few = results[-1]
    assert few.cell.subject == "real, equal bytes" and few.cell.images_per_class == onnx_bytes // (3 * 64)
    assert onnx_bytes - 3 * 64 < few.data_bytes <= onnx_bytes and few.steps == results[0].steps


def test_bytes_are_those_of_the_precision_used_and_of_the_teacher(data: ImageSet, tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "tiny.dim", extra_files={"teacher.onnx": teacher_graph()})
    smaller = onnx.load(path / "generator.fp32.onnx")
    smaller.doc_string = "x" * 500  # any other size than that of fp32
    update_bundle(path, add_files={"generator.int8.onnx": smaller.SerializeToString(deterministic=True)})
    files = load_manifest(path).files
    int8_bytes, teacher_bytes = files["generator.int8.onnx"].size_bytes, files["teacher.onnx"].size_bytes
    assert int8_bytes != files["generator.fp32.onnx"].size_bytes
    larger = replace(
        data, train_images=np.tile(data.train_images, (9, 1, 1, 1)), train_labels=np.tile(data.train_labels, 9)
    )
    options: dict[str, Any] = {"ipcs": (100,), "seeds": (0,), "modes": ("stream",), "labels": ("hard", "soft")}
    options["engine"] = EngineOptions(precision="int8")
    results = run(path, larger, tmp_path / "eval", options).results
    kept = {(r.cell.subject, r.cell.labels): r for r in results}
    assert kept["generated, int8", "hard"].data_bytes == int8_bytes
    assert kept["generated, int8", "soft"].data_bytes == int8_bytes + teacher_bytes
    hard, soft = (kept["real, equal bytes, int8", labels] for labels in ("hard", "soft"))
    assert int8_bytes - 3 * 64 < hard.data_bytes <= int8_bytes
    # In soft rows every real image is kept with its three logits.
    assert int8_bytes + teacher_bytes - 3 * 70 < soft.data_bytes <= int8_bytes + teacher_bytes
    assert [row["images_per_class"] for row in aggregate([hard, soft])] == [
        int8_bytes // 192,
        (int8_bytes + teacher_bytes) // 210,
    ]


def test_recorded_controls_of_equal_bytes_keep_their_identity(bundle: Path, data: ImageSet) -> None:
    """Of hard labels where no precision is asked for, as in the result files of the first bundles."""
    manifest = load_manifest(bundle)
    larger = replace(
        data, train_labels=np.tile(data.train_labels, 90), train_images=np.tile(data.train_images, (90, 1, 1, 1))
    )
    subject = Subject(name="generated", folder=bundle, manifest=manifest)
    protocol = EvalProtocol(modes=("stream",), ipcs=(1,), archs=("mlp",), width=4, seeds=(0,), epochs=1, recipe=DEFAULT)
    cells = [
        plan_cells(larger, [subject], protocol, Execution(precision="fp32", engine=EngineOptions(precision=precision)))[
            -1
        ]
        for precision in (None, "fp32")
    ]
    expected = manifest.files["generator.fp32.onnx"].size_bytes // (3 * 64)
    assert {(cell.subject, cell.images_per_class) for cell in cells} == {("real, equal bytes", expected)}
    assert cells[0].identity() == cells[1].identity()


def test_equal_bytes_of_unequal_classes_are_as_many_images_as_fit() -> None:
    assert [images_that_fit((100, 100), total) for total in (0, 1, 2, 21, 200, 500)] == [0, 0, 1, 10, 100, 100]
    counts = (1000, 100, 3)
    for total in (2, 3, 50, 103, 500, 1102, 1103):
        most = images_that_fit(counts, total)
        taken = sum(min(count, most) for count in counts)
        assert taken <= total < sum(min(count, most + 1) for count in counts) or most == max(counts)
    assert images_that_fit(counts, 603) == 500


def test_the_stream_shows_what_the_bundle_streams_whatever_the_chunk(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        expected = list(opened.stream(ipc=7, batch_size=8, seed=3, epochs=5))
        found = list(generated_stream(opened, 7, 8, 5, 3, CPU, None))
    assert len(found) == len(expected) == 15
    for (images, labels, _), (their_images, their_labels) in zip(found, expected, strict=True):
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), their_images)
        assert np.array_equal(labels.numpy(), their_labels)


def test_chunks_change_nothing_but_the_number_of_draws() -> None:
    pairs = [(np.full(n, n), np.arange(n)) for n in (3, 5, 1, 2, 4)]
    drawn: list[int] = []

    def draw(labels: np.ndarray, indices: np.ndarray) -> torch.Tensor:
        drawn.append(len(labels))
        return torch.from_numpy(indices).view(-1, 1, 1, 1)

    batches = list(draw_in_chunks(iter(pairs), draw, None, 8, CPU))
    assert drawn == [8, 7]
    assert [images.flatten().tolist() for images, _, _ in batches] == [list(range(n)) for n in (3, 5, 1, 2, 4)]


def test_fixed_images_are_those_that_the_bundle_numbers(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        images, labels = generated_set(opened, 2, 5)
        assert labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert np.array_equal(images[4:5], opened.sample([1], [1], 5))


def test_real_sets_are_balanced_prefixes_of_larger_ones(data: ImageSet) -> None:
    small, large = real_set(data, 3, 0), real_set(data, 20, 0)
    assert np.bincount(small[1]).tolist() == [3, 3, 3]
    for label in range(3):
        assert np.array_equal(small[0][small[1] == label], large[0][large[1] == label][:3])
    assert not np.array_equal(small[0], real_set(data, 3, 1)[0])
    assert len(real_set(data, 1000, 0)[1]) == 90


def test_a_real_stream_shows_every_image_once_before_any_twice(data: ImageSet) -> None:
    images = torch.arange(90).view(-1, 1, 1, 1)
    training = real_stream(data, images, 10, 16, 6, 0, CPU, None)
    seen = [next(training.batches) for _ in range(12)]  # six epochs of thirty images: 16 and 14
    assert [len(labels) for _, labels, _ in seen] == [16, 14] * 6
    rows = torch.cat([batch.flatten() for batch, _, _ in seen]).tolist()
    assert sorted(rows[:90]) == sorted(rows[90:]) == list(range(90)) and rows[:90] != rows[90:]
    for epoch in range(6):
        labels = torch.cat([seen[2 * epoch][1], seen[2 * epoch + 1][1]])
        assert torch.bincount(labels).tolist() == [10, 10, 10]
    assert training.distinct_images == 90
    assert real_stream(data, images, 1, 16, 6, 0, CPU, None).distinct_images == 18
    limited = real_stream(data, images, 10, 16, 6, 0, CPU, None, limit=4)
    shown = {int(row) for _ in range(12) for row in next(limited.batches)[0].flatten()}
    assert len(shown) == limited.distinct_images == 12


def test_the_identity_of_a_cell_leaves_out_names_and_nothing_else(data: ImageSet) -> None:
    cell = Cell(
        data="stripes", fingerprint="0" * 64, source="real", subject="real", content_id="", mode="fixed", ipc=10,
        images_per_class=0, arch="mlp", width=None, seed=0, epochs=5, labels="hard", teacher="", recipe=DEFAULT,
        precision="fp32", engine="", engine_precision="", generator="",
    )  # fmt: skip
    assert replace(cell, subject="x", recipe=replace(DEFAULT, name="x")).identity() == cell.identity()
    changes: list[dict[str, Any]] = [
        {"fingerprint": "1"}, {"source": "bundle"}, {"content_id": "a"}, {"mode": "stream"}, {"ipc": 1},
        {"arch": "vgg11"}, {"width": 8}, {"seed": 1}, {"epochs": 6}, {"labels": "soft"}, {"teacher": "a"},
        {"recipe": PUBLISHED}, {"precision": "bf16"}, {"engine_precision": "int8"}, {"images_per_class": 3},
        {"engine": "tensorrt"}, {"generator": "a"},
    ]  # fmt: skip
    assert len({replace(cell, **change).identity() for change in changes} | {cell.identity()}) == len(changes) + 1
    assert replace(cell, seed=1).identity(with_seed=False) == cell.identity(with_seed=False)
    assert [cell.steps(10, 60_000), replace(cell, mode="whole", ipc=0).steps(10, 60_000)] == [10, 5 * 938]


def test_results_survive_their_file_and_rows_their_numbers(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    options = {"ipcs": (1,), "seeds": (0, 1, 2), "modes": ("fixed",), "controls": False}
    results = run(bundle, data, tmp_path, options).results
    for result in results:
        assert read_result(result.cell, tmp_path) == result
        assert parse_result(result.cell.path(tmp_path).read_bytes(), "It") == result
    (row,) = aggregate([replace(results[i], accuracy=a) for i, a in enumerate((90.0, 92.0, 97.0))])
    assert (row["accuracy_mean"], row["accuracy_std"], row["accuracies"]) == (93.0, 3.6056, [90.0, 92.0, 97.0])
    assert row["seeds"] == [0, 1, 2] and row["diverged"] == 0
    path = results[0].cell.path(tmp_path)
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"accuracy": 101.0}))
    assert read_result(results[0].cell, tmp_path) is None
    write_result(results[0], tmp_path)
    assert read_result(results[0].cell, tmp_path) == results[0]


def test_a_result_of_format_version_1_is_read_under_its_name() -> None:
    (path,) = (Path(__file__).parents[1] / "golden" / "evaluation").glob("*.json")
    result = parse_result(path.read_bytes(), "The result")
    assert result.cell.path(Path()).name == path.name
    assert {"format_version": 1, **to_plain(result)} == json.loads(path.read_text())
    with pytest.raises(
        DataError, match=r"^The result has format version 2 and was made by a newer dim \(\d[\w.]+\); this"
    ):
        parse_result(path.read_bytes().replace(b'"format_version": 1', b'"format_version": 2'), "The result")


def test_measured_rows_go_into_the_bundle_and_leave_its_identity(data: ImageSet, tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "tiny.dim")
    before = load_manifest(path)
    rows = run(path, data, tmp_path / "out", {"ipcs": (1,), "seeds": (0,)}).rows
    after = record_accuracy(path, rows)
    assert after.content_id == before.content_id
    assert [row["accuracy_mean"] for row in load_manifest(path).accuracy] == [row["accuracy_mean"] for row in rows]


def test_the_hold_out_is_cut_from_the_training_split_alone(data: ImageSet, tmp_path: Path) -> None:
    holdout = split_holdout(data, 0.1)
    assert np.bincount(holdout.test_labels).tolist() == [3, 3, 3] and len(holdout.train_labels) == 81
    together = np.concatenate([holdout.train_images, holdout.test_images]).reshape(90, -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, data.train_images.reshape(90, -1)))
    assert np.array_equal(holdout.test_images, split_holdout(data, 0.1).test_images)
    with pytest.raises(DataError, match=r"class 'zero' has 1 training images; a hold-out needs two\.$"):
        split_holdout(replace(data, train_images=data.train_images[:3], train_labels=data.train_labels[:3]))
    with pytest.raises(BadValueError, match=r"^fraction is 1; it must lie between 0 and 1\.$"):
        split_holdout(data, 1)


def test_nine_recipes_are_to_choose_from() -> None:
    names = [recipe.name for recipe in list_candidates("cifar10")]
    grid = [f"onecycle-{lr}-smooth-{smoothing}" for lr in ("0.03", "0.06", "0.12") for smoothing in ("0", "0.1")]
    assert names == ["published", "condensation", "condensation-all", *grid]
    every = {name: list_candidates(name)[2].augment for name in ("cifar10", "mnist")}
    assert every == {"cifar10": "color_crop_cutout_flip_scale_rotate", "mnist": "color_crop_cutout_scale_rotate"}


def test_the_recipe_that_learns_is_chosen(data: ImageSet, tmp_path: Path) -> None:
    slow = replace(DEFAULT, name="slow", lr=1e-7)
    quick = replace(DEFAULT, name="quick", lr=0.1)
    said: list[str] = []
    protocol, execution = divide(QUICK | {"modes": ("fixed",), "seeds": (0,), "epochs": 40, "width": 8})
    chosen = choose_recipe(data, protocol, execution, out=tmp_path, recipes=[slow, quick], say=said.append)
    assert chosen == quick and said[-1] == "Chosen on the hold-out: the recipe quick."
    described = json.loads((tmp_path / "recipe.json").read_text())
    assert described["chosen"]["name"] == "quick" and len(described["candidates"]) == 2
    assert described["candidates"][1]["rows"][0]["test_images"] == 9


def test_a_chosen_recipe_is_read_again(data: ImageSet, tmp_path: Path) -> None:
    one = replace(DEFAULT, name="one", lr=0.03)
    protocol, execution = divide(QUICK | {"modes": ("fixed",), "seeds": (0,)})
    choose_recipe(data, protocol, execution, out=tmp_path, recipes=[one])
    assert read_recipe(tmp_path / "recipe.json") == one
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "missing.json"):
        with pytest.raises(DataError, match=rf"{name} is not the recipe\.json of an earlier choice: make one with"):
            read_recipe(tmp_path / name)


def test_the_command_leaves_the_number_of_jobs_to_the_library_and_takes_a_chosen_recipe(
    bundle: Path, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = replace(DEFAULT, name="one", lr=0.03)
    (tmp_path / "recipe.json").write_text(json.dumps({"chosen": asdict(chosen)}))
    seen: dict[str, Any] = {}

    def record(bundles: Any, images: ImageSet, protocol: EvalProtocol, execution: Execution, **_: Any) -> Evaluation:
        seen.update(recipe=protocol.recipe, jobs=execution.jobs)
        return Evaluation(out=tmp_path, results=(), students_left=0)

    monkeypatch.setattr("dim.evaluation.evaluate.evaluate", record)
    monkeypatch.setattr("dim.evaluation.subjects.load_data", lambda *_, **__: data)
    ran = run_command("eval", "--bundle", bundle, "--out", tmp_path / "eval", "--recipe", tmp_path / "recipe.json")
    assert ran.code == 0, ran.err
    assert seen["jobs"] is None and seen["recipe"] == chosen


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 0),
        ({"seed": 5}, 5),  # of bundles from before the split's seed was kept
        ({"seed": 5, "data": {"split_seed": None}}, 5),  # the source has a test split, so nothing is cut
        ({"seed": 5, "data": {"split_seed": 3}}, 3),
        ({"seed": 5, "data": {"split_seed": 0}}, 0),
    ],
)
def test_the_test_split_is_cut_as_it_was_for_distilling(config: dict[str, Any], expected: int, tmp_path: Path) -> None:
    assert find_split_seed(load_manifest(build_tiny_bundle(tmp_path / "tiny.dim", distill_config=config))) == expected


def test_the_command_stops_in_time_and_records_nothing_unfinished_or_foreign(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = {"data": {"fingerprint": data.fingerprint()}}
    bundle = build_tiny_bundle(tmp_path / "tiny.dim", distill_config=origin)
    monkeypatch.setattr("dim.evaluation.subjects.load_data", lambda *_, **__: data)
    words = ["eval", "--bundle", bundle, "--out", tmp_path / "eval", "--epochs", "1", "--width", "4", "--ipc", "2"]
    words += ["--jobs", "1", "--device", "cpu", "--recipe", "holdout", "--json"]

    def never(*_: Any, deadline: float | None = None, **__: Any) -> Evaluation:
        assert deadline is not None and 3590 < deadline - time.monotonic() <= 3600
        return Evaluation(out=tmp_path, results=(), students_left=6)

    monkeypatch.setattr("dim.evaluation.choose_recipe.measure", never)
    ran = run_command(*words, "--record", "--time-limit", "1h")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["finished"] is False
    assert "left 6 of 6 students untrained" in ran.err and load_manifest(bundle).accuracy == ()
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["finished"] is False
    other = replace(data, train_images=255 - data.train_images)
    monkeypatch.setattr("dim.evaluation.subjects.load_data", lambda *_, **__: other)
    ran = run_command(*words, "--record")
    assert ran.code == 1 and "Such accuracy is not recorded: leave out --record." in ran.err


def test_named_protocols_run_without_a_bundle(data: ImageSet, tmp_path: Path) -> None:
    for protocol in PROTOCOLS.values():
        small = replace(protocol, epochs=1, ipcs=(1,), seeds=(0,), archs=protocol.archs[:1], width=4)
        assert len(evaluate({}, data, small, Execution(device="cpu", threads=1), out=tmp_path).results) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ("both",)}, r"^There is no mode 'both'; there are fixed, stream\.$"),
        ({"archs": ("lenet",)}, r"^There is no classifier 'lenet'; there are convnet3, "),
        ({"seeds": (1, 1)}, r"^seeds is \[1, 1\]; give at least one, and each once\.$"),
        ({"ipcs": ()}, r"^ipcs is \[\]; give at least one, and each once\.$"),
        ({"ipcs": (0,)}, r"^ipc is 0; it must be at least 1\.$"),
        ({"epochs": 0}, r"^epochs is 0; it must be at least 1\.$"),
        ({"labels": ("none",)}, r"^There is no kind of labels 'none'; there are hard, soft\.$"),
        ({"recipe": "secret"}, r"^There is no student recipe 'secret'; there are default, "),
        ({"precision": "fp8"}, r"^precision is 'fp8'; it must be auto, fp32 or bf16\.$"),
        ({"threads": 0}, r"^threads is 0; it must be at least 1\.$"),
        ({"labels": ("soft",)}, r"^Soft labels come from a bundle's teacher, so they need a bundle\.$"),
        ({"device": "tpu"}, r"^device is 'tpu'; it must be auto, cpu or gpu\.$"),
        ({"width": 0}, r"^width is 0 for classifier 'convnet3', but must be at least 1\.$"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_trained(
    data: ImageSet, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadValueError, match=message):
        evaluate({}, data, *divide(options), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_another_dataset_is_refused(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(BadValueError, match=r"draws the classes 'zero', 'one', 'two', but stripes has 'a', 'b', 'c': "):
        evaluate(bundle, replace(data, classes=("a", "b", "c")), out=tmp_path)
    wide = replace(data, train_images=data.train_images.repeat(2, 1).repeat(2, 2))
    with pytest.raises(
        BadValueError, match=r"draws images of 8 x 8 x 1 but those of stripes are 16 x 16 x 1: load the "
    ):
        evaluate(bundle, wide, out=tmp_path)
    with pytest.raises(
        BadValueError, match=r"draw the same images \(content id [0-9a-f]{12}\): compare with another one"
    ):
        evaluate({"generated": bundle, "same": bundle}, data, out=tmp_path)


def test_other_data_than_the_bundle_came_from_is_said(data: ImageSet, tmp_path: Path) -> None:
    for number, fingerprint in enumerate([data.fingerprint(), "ab" * 32]):
        path = build_tiny_bundle(
            tmp_path / f"{number}.dim", distill_config={"data": {"fingerprint": fingerprint}, "name": "x"}
        )
        said: list[str] = []
        options = {"ipcs": (1,), "seeds": (0,), "modes": ("fixed",)}
        run(path, data, tmp_path, options, say=said.append)
        assert any(sentence.startswith("Caution: ") and "abababababab" in sentence for sentence in said) == bool(number)


def test_sizes_are_readable() -> None:
    assert [format_bytes(n) for n in (17, 6400, 3_915_000, 153_600_000)] == ["17 B", "6.4 kB", "3.9 MB", "154 MB"]
