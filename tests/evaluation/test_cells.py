"""Result files and the identity of a cell."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_evaluations import run_evaluation

from dim.data.load import ImageSet
from dim.evaluation.archive import Archive
from dim.evaluation.cells import LATER_FIELDS, Cell, parse_result, read_result, write_result
from dim.evaluation.results import aggregate
from dim.runtime.errors import DataError, OutputError
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
        {"real_percent": 5}, {"archive": Archive(codec="avif", quality=5, images_per_class=3, max_bytes=100)},
    ]  # fmt: skip
    assert len({replace(cell, **change).identity() for change in changes} | {cell.identity()}) == len(changes) + 1
    assert replace(cell, seed=1).identity(with_seed=False) == cell.identity(with_seed=False)
    assert [cell.steps(10, 60_000), replace(cell, mode="whole", ipc=0).steps(10, 60_000)] == [10, 5 * 938]


def test_results_survive_their_file_and_rows_their_numbers(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    options = {"ipcs": (1,), "seeds": (0, 1, 2), "modes": ("fixed",), "controls": ()}
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
    # Fields that came later; files without them are of students that were not compiled.
    golden = json.loads(path.read_text())
    golden["cell"] |= LATER_FIELDS
    assert {"format_version": 1, **to_plain(result)} == golden | {"compiled": False, "class_accuracies": []}
    with pytest.raises(
        DataError, match="^The result has format version 2 and was made by a newer dim; this one reads version 1: "
    ):
        parse_result(path.read_bytes().replace(b'"format_version": 1', b'"format_version": 2'), "The result")


def test_a_notebook_shows_what_was_measured(bundle: Path, data: ImageSet, tmp_path: Path) -> None:
    options = {"ipcs": (1,), "seeds": (0,), "modes": ("fixed",)}
    found = run_evaluation(bundle, data, tmp_path, options)
    assert repr(found) == f"Evaluation(2 students, 0 left, in {tmp_path})"
    assert "Accuracy on the test split of stripes" in found._repr_mimebundle_((), ())["text/plain"]


def test_what_is_no_result_is_not_waited_for_nor_followed(tmp_path: Path) -> None:
    (golden,) = (Path(__file__).parents[1] / "golden" / "evaluation").glob("*.json")
    result = parse_result(golden.read_bytes(), "The result")
    path = result.cell.path(tmp_path)
    write_result(result, tmp_path)
    assert read_result(result.cell, tmp_path) == result
    for version in ("9" * 30, "9" * 5000, "18446744073709551616", "-1", "1.0", "true", '"1"', "null"):
        text = golden.read_text().replace('"format_version": 1', f'"format_version": {version}')
        path.write_text(text)
        assert read_result(result.cell, tmp_path) is None, version
    path.unlink()
    os.mkfifo(path)
    assert read_result(result.cell, tmp_path) is None
    path.unlink()
    path.symlink_to(golden)
    with pytest.raises(OutputError, match="is a link, which dim does not follow there: remove it"):
        read_result(result.cell, tmp_path)
    write_result(result, tmp_path)
    assert not path.is_symlink() and read_result(result.cell, tmp_path) == result
