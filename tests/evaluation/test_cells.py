"""Result files and the identity of a cell."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick_evaluations import run_evaluation

from dim.data.load import ImageSet
from dim.evaluation.cells import Cell, parse_result, read_result, write_result
from dim.evaluation.plan import images_that_fit, plan_cells
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.evaluation.results import aggregate
from dim.evaluation.subjects import Subject
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import DataError
from dim.runtime.storage.records import to_plain
from dim.students.recipes import DEFAULT, PUBLISHED

CPU = torch.device("cpu")


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
    results = run_evaluation(bundle, data, tmp_path, options).results
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
    # A field that came later; files without it are of students that were not compiled.
    assert {"format_version": 1, **to_plain(result)} == json.loads(path.read_text()) | {"compiled": False}
    with pytest.raises(
        DataError, match=r"^The result has format version 2 and was made by a newer dim \(\d[\w.]+\); this"
    ):
        parse_result(path.read_bytes().replace(b'"format_version": 1', b'"format_version": 2'), "The result")


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


def test_a_notebook_shows_what_was_measured(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    options = {"ipcs": (1,), "seeds": (0,), "modes": ("fixed",)}
    found = run_evaluation(bundle, data, tmp_path, options)
    assert repr(found) == f"Evaluation(2 students, 0 left, in {tmp_path})"
    assert "Accuracy on the test split of stripes" in found._repr_mimebundle_((), ())["text/plain"]
