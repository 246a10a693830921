"""What users get wrong in their data is told in one sentence that names what was found and what fixes it."""

import ast
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import class_folders, image_file, random_images, write_folder
from tiny_bundle import build_tiny_bundle

import dim.data
from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.runtime.errors import DataError, DimError

PNGS = [image_file(image) for image in random_images(8, 8, 3)]


def _refusal(data: Any, **options: Any) -> str:
    with pytest.raises(DimError) as caught:
        load_data(data, DataOptions(**options))
    return str(caught.value)


def _parquet(path: Path, columns: dict[str, Any], names: list[str] | None = None) -> Path:
    table = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "x.parquet", {"image": PNGS, "label": [0, 1] * 4})
    assert _refusal(path, image_column="foto") == (
        f"{path}: no column 'foto' (found: image, label); say another --image-column."
    )
    assert _refusal(path, label_column="kind") == (
        f"{path}: no column 'kind' (found: image, label); say another --label-column."
    )


def test_images_that_do_not_decode(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "x.parquet", {"image": [*PNGS[:7], b"nonsense"], "label": [0, 1] * 4})
    expected = "not a readable image: expected PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"
    skip = "; --skip-unreadable leaves out what cannot be read"
    assert _refusal(path) == f"{path}: x.parquet, row 7: {expected}{skip}."
    assert load_data(path, DataOptions(skip_unreadable=True)).note.startswith(
        "7 images; 1 unreadable images were left out; "
    )
    folder = write_folder(tmp_path / "set", class_folders() | {"train/cat/9.png": b"nonsense"})
    assert _refusal(folder) == f"{folder}: train/cat/9.png: {expected}{skip}."


def test_labels_outside_the_names(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "x.parquet", {"image": PNGS, "label": [0, 5] * 4}, ["cat", "dog"])
    sentence = "labels run from 0 to {}, expected 0 to 1 for 2 class names; fix the labels, or name every class."
    assert _refusal(path) == f"{path}: {sentence.format(5)}"
    arrays = {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(4), "classes": np.array(["cat", "dog"])}
    np.savez(tmp_path / "x.npz", **arrays)
    assert _refusal(tmp_path / "x.npz") == f"{tmp_path / 'x.npz'}: {sentence.format(3)}"


def test_a_table_of_files_that_are_not_there(tmp_path: Path) -> None:
    rows = "".join(f"x{number}.png,{'ab'[number % 2]}\n" for number in range(8))
    files = {f"{number}.png": data for number, data in enumerate(PNGS)}
    folder = write_folder(tmp_path / "set", files | {"labels.csv": f"file,label\n{rows}".encode()})
    assert _refusal(folder) == (
        f"{folder}: labels.csv: none of the 8 files that it names is there (x0.png, x1.png, x2.png, ...); "
        "fix its column 'file'."
    )


def test_sources_that_differ_in_size_or_channels(tmp_path: Path) -> None:
    grey = write_folder(tmp_path / "grey", class_folders(channels=1))
    colour = write_folder(tmp_path / "colour", class_folders(size=16))
    bundle = build_tiny_bundle(tmp_path / "tiny.dim", image_px=16)
    to_one = "to bring both to one form."
    assert _refusal([grey, colour]) == (
        "grey has images of 8 x 8 x 1 and colour of 16 x 16 x 3: say --size 8 or 16 and --channels 1 or 3 " + to_one
    )
    assert _refusal([bundle, grey], replay_ipc=2) == (
        f"tiny has images of 16 x 16 x 1 and grey of 8 x 8 x 1: say --size 16 or 8 {to_one}"
    )
    assert load_data([bundle, grey], DataOptions(replay_ipc=2, size=8)).height == 8


def test_classes_of_equal_or_nearly_equal_names_are_said(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "first", class_folders(classes=("cat", "dog")))
    second = write_folder(tmp_path / "second", class_folders(classes=("cat", "Dog")))
    said: list[str] = []
    assert load_data([first, second], say=said.append).classes == ("cat", "dog", "Dog")
    shared = "1 classes are in several sources and become one each: cat; where they are not the same, rename them"
    assert f"{shared} in one source" in said
    assert "the classes 'dog' and 'Dog' stay two; rename one where they are the same" in said
    assert _refusal([first, first]) == f"the source {first} is named twice; name it once."


def test_a_pipe_in_place_of_a_set_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(DataError, match=f"^{path}: neither a file nor a folder; name one of these.$"):
            load_data(path)


def test_every_message_is_a_sentence_with_a_full_stop() -> None:
    for path in sorted(Path(dim.data.__path__[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if named and node.func.id in ("DataError", "BadValueError") and node.args:
                text = node.args[0].values[-1] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
                if isinstance(text, ast.Constant):
                    assert text.value.endswith("."), f"{path}:{node.lineno}"
                else:
                    assert isinstance(text, ast.Name | ast.Call), f"{path}:{node.lineno}: ends in a value"
