"""The evaluation: what is run, in which order, how often, and what is kept of it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from quick_evaluations import divide_options, run_evaluation
from rich.console import Console
from tiny_bundle import build_tiny_bundle

import dim.evaluation.images
import dim.evaluation.jobs
from dim.data.load import ImageSet
from dim.evaluation.cells import Cell, CellResult
from dim.evaluation.evaluate import evaluate
from dim.evaluation.plan import plan_cells
from dim.evaluation.protocol import PROTOCOLS, EvalProtocol, Execution
from dim.evaluation.results import aggregate
from dim.evaluation.subjects import read_subjects
from dim.evaluation.table import accuracy_table, cost_table, format_accuracy, format_bytes, mixed_table
from dim.export.record_accuracy import record_accuracy
from dim.runtime.bundle_format.files import load_manifest, update_bundle
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import BadValueError, BundleError

CPU = torch.device("cpu")


def names(results: Sequence[CellResult]) -> list[tuple[str, str, int, int]]:
    return [(r.cell.subject, r.cell.mode, r.cell.ipc, r.cell.seed) for r in results]


@pytest.mark.slow
def test_every_generated_student_has_its_controls_with_equal_steps_and_recipe(
    bundle: Path, data: ImageSet, tmp_path: Path
) -> None:
    events: list[tuple[str, float, float | None, str]] = []
    wish: dict[str, Any] = {"ipcs": (25, 1), "seeds": (0, 1)}
    results = run_evaluation(bundle, data, tmp_path, wish, progress=lambda *report: events.append(report)).results
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
    assert events[-1][:3] == ("students", 16, 16) and events[0][1] == 1
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_int8_images_name_their_precision_and_go_beside_those_of_fp32(data: ImageSet, tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    update_bundle(bundle, add_files={"generator.int8.onnx": (bundle / "generator.fp32.onnx").read_bytes()})
    options: dict[str, Any] = {"ipcs": (2,), "seeds": (0,), "modes": ("fixed",), "controls": ()}
    for precision in (None, "int8"):
        drawn = {"engine": EngineOptions(precision=precision)}
        results = run_evaluation(bundle, data, tmp_path / "eval", options | drawn).results
        assert results[0].engine.startswith(f"onnxruntime-cpu {precision or 'fp32'}")
        record_accuracy(bundle, aggregate(results))
    rows = load_manifest(bundle).accuracy
    assert [(row["subject"], row["engine_precision"]) for row in rows] == [
        ("generated", "fp32"),
        ("generated, int8", "int8"),
    ]


def test_a_precision_that_was_left_open_is_recorded_and_changes_no_name(
    bundle: Path, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settle(options: EngineOptions) -> EngineOptions:
        return replace(options, precision="bf16") if options.precision == "auto" else options

    monkeypatch.setattr("dim.evaluation.protocol.settle_precision", settle)
    subjects = read_subjects(bundle, data)
    found = {}
    for asked in ("auto", "bf16", "fp32"):
        execution = Execution(engine=EngineOptions(precision=asked))
        cells = plan_cells(data, subjects, EvalProtocol(modes=("fixed",)), execution)
        found[asked] = {(cell.subject, cell.engine_precision) for cell in cells if cell.source == "bundle"}
    expected = {"auto": ("generated", "bf16"), "bf16": ("generated, bf16", "bf16"), "fp32": ("generated", "fp32")}
    assert found == {asked: {cell} for asked, cell in expected.items()}


def test_another_file_of_the_precision_is_measured_anew(data: ImageSet, tmp_path: Path) -> None:
    """An exporter that writes int8 otherwise leaves the content id as it was."""
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    model = onnx.load(bundle / "generator.fp32.onnx")
    options: dict[str, Any] = {"ipcs": (2,), "seeds": (0,), "modes": ("fixed",), "controls": ()}
    files = []
    for text in ("first", "second", "second"):
        model.doc_string = text
        update_bundle(bundle, add_files={"generator.int8.onnx": model.SerializeToString(deterministic=True)})
        (result,) = run_evaluation(
            bundle, data, tmp_path / "eval", options | {"engine": EngineOptions(precision="int8")}
        ).results
        assert result.cell.generator == load_manifest(bundle).files["generator.int8.onnx"].sha256
        files.append(len(list((tmp_path / "eval" / "cells").iterdir())))
    assert files == [1, 2, 2]
    run_evaluation(bundle, data, tmp_path / "eval", options | {"engine": EngineOptions(engine="fake")})
    assert len(list((tmp_path / "eval" / "cells").iterdir())) == 3
    (result,) = run_evaluation(bundle, data, tmp_path / "eval", options).results
    assert (result.cell.engine, result.cell.engine_precision) == ("", "fp32")
    assert len(list((tmp_path / "eval" / "cells").iterdir())) == 4


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_time_limit_ends_between_students_and_the_same_call_goes_on(
    bundle: Path, data: ImageSet, tmp_path: Path, jobs: int
) -> None:
    options: dict[str, Any] = {"ipcs": (2,), "seeds": (0, 1), "jobs": jobs, "threads": 2}
    said: list[str] = []
    stopped = run_evaluation(bundle, data, tmp_path, options | {"time_limit_s": 0.05}, say=said.append)
    left = stopped.students_left
    assert said[-1] == f"The time limit left {left} of 8 students untrained: the same command goes on."
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["finished"] is False and not stopped.finished and len(stopped.results) == 8 - left < 8
    assert len(stopped.results) == len(list((tmp_path / "cells").glob("*.json")))
    finished = run_evaluation(bundle, data, tmp_path, options | {"time_limit_s": 600.0})
    assert finished.finished and len(finished.results) == 8
    assert json.loads((tmp_path / "results.json").read_text())["finished"] is True
    # All are there, so no time is needed.
    assert len(run_evaluation(bundle, data, tmp_path, options | {"time_limit_s": 0.0}).results) == 8


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
    first = run_evaluation(bundle, data, tmp_path, options).results
    assert len(trained) == 4
    half, foreign = (tmp_path / "cells" / name for name in trained[:2])
    half.write_bytes(half.read_bytes()[:100])
    foreign.write_text(foreign.read_text().replace('"seed": 0', '"seed": 7'))
    (tmp_path / "cells" / ".x.tmp").write_text("{")
    again = run_evaluation(bundle, data, tmp_path, options).results
    assert sorted(trained[4:]) == sorted(trained[:2])
    assert [r.accuracy for r in again] == [r.accuracy for r in first]
    run_evaluation(bundle, data, tmp_path, options)
    assert len(trained) == 6
    run_evaluation(bundle, data, tmp_path, options | {"resume": False})
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
        run_evaluation(bundle, data, tmp_path, {"ipcs": (2,), "seeds": (0,)})
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["subject"], row["mode"]) for row in rows] == [("generated", "fixed"), ("real", "fixed")]


@pytest.mark.slow
def test_two_processes_give_the_same_results(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ipcs": (2,), "seeds": (0,), "modes": ("stream",)}
    one = run_evaluation(bundle, data, tmp_path / "one", options).results
    events: list[tuple[str, float, float | None, str]] = []
    two = run_evaluation(
        bundle,
        data,
        tmp_path / "two",
        options | {"jobs": 2, "threads": 2},
        progress=lambda *report: events.append(report),
    ).results
    assert [r.accuracy for r in one] == [r.accuracy for r in two]
    assert events and len(list((tmp_path / "two" / "cells").glob("*.json"))) == 2


def test_soft_labels_and_other_bundles_have_rows_of_their_own(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    other = build_tiny_bundle(tmp_path / "other.dim", seed=5)
    options = {"ipcs": (2,), "seeds": (0,), "modes": ("fixed",), "labels": ("hard", "soft"), "whole_epochs": 3}
    results = run_evaluation({"generated": bundle, "other": other}, data, tmp_path / "out", options).results
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
        "soft labels",
        "whole set",
        " gap",
        "2 epochs (published: 1,000)",
        "(one seed)",
    ]:
        assert text in shown
    with pytest.raises(BundleError, match=r"has no teacher.onnx, so there are no soft labels to train with\.$"):
        run_evaluation(other, data, tmp_path / "out", {"labels": ("hard", "soft")})


def test_measured_rows_go_into_the_bundle_and_leave_its_identity(data: ImageSet, tmp_path: Path) -> None:
    path = build_tiny_bundle(tmp_path / "tiny.dim")
    before = load_manifest(path)
    rows = run_evaluation(path, data, tmp_path / "out", {"ipcs": (1,), "seeds": (0,)}).rows
    after = record_accuracy(path, rows)
    assert after.content_id == before.content_id
    assert [row["accuracy_mean"] for row in load_manifest(path).accuracy] == [row["accuracy_mean"] for row in rows]


def test_named_protocols_run_without_a_bundle(data: ImageSet, tmp_path: Path) -> None:
    for protocol in PROTOCOLS.values():
        small = replace(protocol, epochs=1, ipcs=(1,), seeds=(0,), archs=protocol.archs[:1], width=4)
        results = evaluate({}, data, small, Execution(device="cpu", threads=1), out=tmp_path).results
        assert len(results) == len(protocol.modes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ("both",)}, r"^There is no mode 'both'; there are fixed, stream\.$"),
        ({"archs": ("lenet",)}, r"^There is no classifier 'lenet'; there are convnet3, "),
        ({"seeds": (1, 1)}, r"^`seeds` is \[1, 1\]; give at least one, and each once\.$"),
        ({"ipcs": ()}, r"^`ipcs` is \[\]; give at least one, and each once\.$"),
        ({"ipcs": (0,)}, r"^`ipc` is 0; it must be at least 1\.$"),
        ({"epochs": 0}, r"^`epochs` is 0; it must be at least 1\.$"),
        ({"labels": ("none",)}, r"^There is no kind of labels 'none'; there are hard, soft\.$"),
        ({"recipe": "secret"}, r"^There is no student recipe 'secret'; there are default, "),
        ({"precision": "fp8"}, r"^`precision` is 'fp8'; it must be auto, fp32 or bf16\.$"),
        ({"threads": 0}, r"^The number of threads is 0; it must lie between 1 and \d+, the cores of this machine\.$"),
        ({"labels": ("soft",)}, r"^Soft labels come from a bundle's teacher, so they need a bundle\.$"),
        ({"device": "tpu"}, r"^`device` is 'tpu'; it must be auto, cpu or gpu\.$"),
        ({"width": 0}, r"^width is 0 for classifier 'convnet3', but must be at least 1\.$"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_trained(
    data: ImageSet, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadValueError, match=message):
        evaluate({}, data, *divide_options(options), out=tmp_path / "out")
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
        run_evaluation(path, data, tmp_path, options, say=said.append)
        assert any(sentence.startswith("Caution: ") and "abababababab" in sentence for sentence in said) == bool(number)


def test_sizes_are_readable() -> None:
    assert [format_bytes(n) for n in (17, 6400, 3_915_000, 153_600_000)] == ["17 B", "6.4 kB", "3.9 MB", "154 MB"]


def test_few_real_images_stand_alone_and_with_generated_ones(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ipcs": (4,), "seeds": (0,), "modes": ("stream",), "controls": (), "epochs": 3}
    results = run_evaluation(bundle, data, tmp_path, options | {"real_percents": (10, 50)}).results
    assert [(r.cell.subject, r.cell.source, r.cell.real_percent) for r in results] == [
        ("generated", "bundle", 0),
        ("10 % real", "few", 10), ("10 % real + generated", "mixed", 10),
        ("50 % real", "few", 50), ("50 % real + generated", "mixed", 50),
    ]  # fmt: skip
    assert {r.steps for r in results} == {3}
    # Nine images are 10 % of ninety; half of the 36 that were shown are generated.
    assert [r.distinct_images for r in results] == [36, 9, 9 + 18, 36, 36 + 18]
    assert results[2].data_bytes == results[0].data_bytes + 9 * 64
    assert [bool(r.engine) for r in results] == [True, False, True, False, True]
    rows = aggregate(results)
    console = Console(width=120, record=True)
    console.print(accuracy_table(rows), mixed_table(rows))
    shown = console.export_text()
    assert shown.count("10 %") == 1 and shown.count("50 %") == 1 and "alone" in shown
    for percent in (0, 101):
        with pytest.raises(BadValueError, match="it must lie above 0 and not above 100"):
            run_evaluation(bundle, data, tmp_path, options | {"real_percents": (percent,)})


def test_generators_of_one_recipe_share_a_row(data: ImageSet, tmp_path: Path) -> None:
    config = {"preset": "small"}
    # What has no effect on weights may differ, such as a seed for the reading of data.
    own = [{"seed": seed, "log_steps": 10 + seed, "data": {"reading": {"seed": seed}}} for seed in range(3)]
    folders = [
        build_tiny_bundle(tmp_path / f"{seed}.dim", seed=seed, distill_config=config | own[seed]) for seed in range(3)
    ]
    options: dict[str, Any] = {"ipcs": (4,), "seeds": (0, 1), "modes": ("stream",), "controls": ("real",)}
    rows = run_evaluation({"generated": folders}, data, tmp_path / "eval", options).rows
    assert [(row["subject"], row["generators"], row["seeds"]) for row in rows] == [
        ("generated", 3, [0, 1, 0, 1, 0, 1]),
        ("real", 0, [0, 1]),
    ]
    ours = np.reshape(rows[0]["accuracies"], (3, 2)).mean(axis=1)
    assert rows[0]["accuracy_mean"] == pytest.approx(ours.mean(), abs=1e-3)
    assert rows[0]["accuracy_std"] == pytest.approx(ours.std(ddof=1), abs=1e-3)
    assert rows[0]["content_ids"] == [load_manifest(folder).content_id for folder in folders]
    assert format_accuracy(rows[0]).endswith(" (3 generators)")
    other = build_tiny_bundle(tmp_path / "other.dim", seed=9, distill_config=own[0] | {"preset": "best"})
    message = r"were distilled by different recipes \(preset\), so they share no row: compare them with --compare\.$"
    with pytest.raises(BadValueError, match=message):
        run_evaluation({"generated": [folders[0], other]}, data, tmp_path / "eval", options)


def test_the_protocol_of_the_reference_code_has_its_batches(data: ImageSet) -> None:
    protocol = replace(PROTOCOLS["reference"], ipcs=(1, 10, 50, 20))
    cells = plan_cells(data, [], protocol, Execution(device="cpu"))
    found = {cell.ipc: (cell.recipe.batch_size, cell.steps(10, 0), cell.recipe.name) for cell in cells}
    assert found == {
        1: (10, 1000, "reference"),
        10: (25, 4000, "reference"),
        50: (50, 10_000, "reference"),
        20: (25, 8000, "reference"),
    }
