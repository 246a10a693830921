"""Datasets of the Hugging Face world: Parquet, `save_to_disk`, the Hub, and in memory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from data_samples import image_file, random_images, without_cautions, write_folder
from PIL import Image

from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.runtime.errors import DataError

datasets = pytest.importorskip("datasets")

IMAGES = {"train": random_images(24, 8, 3), "test": random_images(12, 8, 3, seed=1)}
NAMES = ["emu", "ant", "cat"]


def _dataset(split: str, *, typed: bool = True, columns: tuple[str, str] = ("image", "label")) -> Any:
    pictures = [Image.fromarray(image) for image in IMAGES[split]]
    labels = [number % 3 for number in range(len(pictures))]
    label = datasets.ClassLabel(names=NAMES) if typed else datasets.Value("string")
    values = labels if typed else [NAMES[number] for number in labels]
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: label, "id": datasets.Value("int64")})
    rows = {columns[0]: pictures, columns[1]: values, "id": list(range(len(pictures)))}
    return datasets.Dataset.from_dict(rows, features=features)


def _check(data: Any, classes: list[str] = NAMES) -> None:
    assert data.classes == tuple(classes)
    for images, labels, split in (
        (data.train_images, data.train_labels, "train"),
        (data.test_images, data.test_labels, "test"),
    ):
        expected = {name: IMAGES[split][number::3] for number, name in enumerate(NAMES)}
        for label, name in enumerate(data.classes):
            assert np.array_equal(images[labels == label], expected[name])


@pytest.mark.parametrize("form", ["both", "folder", "memory"])
def test_saved_datasets_and_those_in_memory(tmp_path: Path, form: str) -> None:
    both = datasets.DatasetDict({split: _dataset(split) for split in IMAGES})
    if form == "memory":
        _check(load_data(both))
        return
    both.save_to_disk(str(tmp_path / "saved"))
    if form == "both":
        _check(load_data(tmp_path / "saved"))
    else:
        data = load_data(tmp_path / "saved" / "train")
        assert data.classes == tuple(NAMES) and len(data.train_labels) + len(data.test_labels) == 24


def test_parquet_as_the_library_writes_it(tmp_path: Path) -> None:
    for split in IMAGES:
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        _dataset(split).to_parquet(str(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"))
    said: list[str] = []
    _check(load_data(tmp_path / "set", say=said.append))
    assert without_cautions(said) == ["set: 36 rows of 2 Parquet files"]
    alone = load_data(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    assert alone.name == "train-00000-of-00001" and alone.classes == tuple(NAMES)
    swapped = load_data(tmp_path / "set", DataOptions(split="test,train"))
    assert len(swapped.train_labels) == 12 and len(swapped.test_labels) == 24


def test_missing_files_of_a_parquet_set_are_said(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    _dataset("train").to_parquet(str(tmp_path / "set" / "train-00001-of-00003.parquet"))
    said: list[str] = []
    load_data(tmp_path / "set", say=said.append)
    absent = "train-00000-of-00003.parquet, train-00002-of-00003.parquet"
    assert f"set: 2 files of the set are missing ({absent})" in said


def test_parquet_without_metadata_by_the_columns_named(tmp_path: Path) -> None:
    pngs = [image_file(image) for image in IMAGES["train"]]
    table = pyarrow.table({"photo": pngs, "kind": [NAMES[n % 3] for n in range(24)], "n": list(range(24))})
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert (
        str(caught.value) == f"{path}: no column is named like the image (found: photo, kind, n); say --image-column."
    )
    with pytest.raises(DataError, match=r"no column 'fotos' \(found: photo, kind, n\); say another --image-column\.$"):
        load_data(path, DataOptions(image_column="fotos"))
    with pytest.raises(
        DataError, match=r"no column is named like the label \(found: photo, kind, n\); say --label-column"
    ):
        load_data(path, DataOptions(image_column="photo"))
    assert load_data(path, DataOptions(image_column="photo", label_column="kind")).classes == ("ant", "cat", "emu")
    with pytest.raises(
        DataError, match="x.parquet, row 0: the column 'n' holds int, expected encoded images; say another"
    ):
        load_data(path, DataOptions(image_column="n", label_column="kind"))


def test_parquet_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "train-0.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="^.*train-0.parquet: not a Parquet file that can be read "):
        load_data(path)
    _dataset("train").to_parquet(str(path))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="not a Parquet file that can be read"):
        load_data(path)
    path.write_bytes(data)
    (tmp_path / "birds.parquet").write_bytes(data)
    with pytest.raises(DataError, match="birds.parquet begins with the name of no split, as train-00000.parquet would"):
        load_data(tmp_path)
    (tmp_path / "birds.parquet").rename(tmp_path / "test-0.parquet")
    with pytest.raises(
        DataError, match=r"no split 'val' \(found: test, train\); say --split TRAIN or --split TRAIN,TEST\.$"
    ):
        load_data(tmp_path, DataOptions(split="val"))


def test_a_row_without_image_or_label_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    good = image_file(IMAGES["train"][0])
    for image, label, message in (
        (None, 0, "row 1: the column 'image' holds NoneType"),
        (good, None, "row 1: the label"),
    ):
        pyarrow.parquet.write_table(pyarrow.table({"image": [good, image], "label": [1, label]}), path)
        with pytest.raises(DataError, match=message):
            load_data(path)
    pyarrow.parquet.write_table(pyarrow.table({"image": [good, b"abc"], "label": [0, 1]}), path)
    with pytest.raises(DataError, match="x.parquet, row 1: not a readable image"):
        load_data(path)


def test_text_labels_and_other_columns(tmp_path: Path) -> None:
    rows = datasets.DatasetDict(
        {split: _dataset(split, typed=False, columns=("img", "fine_label")) for split in IMAGES}
    )
    _check(load_data(rows), sorted(NAMES))
    with pytest.raises(DataError, match=r"no column 'x' \(found: img, fine_label, id\); say another --label-column\.$"):
        load_data(rows, DataOptions(label_column="x"))
    with pytest.raises(DataError, match="the column 'id' holds no images; say another --image-column"):
        load_data(rows, DataOptions(image_column="id"))


def test_splits_by_their_usual_names_or_by_option() -> None:
    rows = datasets.DatasetDict(
        {"training": _dataset("train"), "validation": _dataset("test"), "extra": _dataset("test")}
    )
    said: list[str] = []
    _check(load_data(rows, say=said.append))
    assert without_cautions(said) == [
        "data: Hugging Face dataset",
        "data: the split 'validation' serves as test split",
        "data: splits passed over: extra",
    ]
    odd = datasets.DatasetDict({"a": _dataset("train"), "b": _dataset("test")})
    with pytest.raises(DataError, match=r"no split is named 'train' \(found: a, b\); say --split TRAIN or --split"):
        load_data(odd)
    _check(load_data(odd, DataOptions(split="a,b")))


def test_a_dataset_of_the_hub_is_read_at_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Api:
        def dataset_info(self, name: str, revision: str | None) -> Any:
            asked.append((name, revision))
            return SimpleNamespace(sha="0123abc")

    def load_dataset(name: str, revision: str) -> Any:
        asked.append((name, revision))
        return datasets.DatasetDict({split: _dataset(split) for split in IMAGES})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_data("hf://user/birds@v1")
    _check(data)
    assert asked == [("user/birds", "v1"), ("user/birds", "0123abc")]
    assert data.name == "birds" and "Hugging Face dataset user/birds at revision 0123abc" in data.note
    assert load_data("hf://datasets/user/birds").name == "birds" and asked[2] == ("user/birds", None)
    with pytest.raises(DataError, match="^hf://a/b/c: expected hf://USER/NAME or hf://USER/NAME@REVISION.$"):
        load_data("hf://a/b/c")

    def refuse(name: str, revision: str) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"^hf://user/birds: cannot be had from the Hub \(no network\); check its name"):
        load_data("hf://user/birds")


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the library's
@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_imagefolder_with_metadata_as_the_library_reads_it(tmp_path: Path, table: str) -> None:
    for split, images in IMAGES.items():
        files = {f"{split}/{number:02d}.png": image_file(image) for number, image in enumerate(images)}
        write_folder(tmp_path / "set", files)
        rows = [(f"{number:02d}.png", NAMES[number % 3]) for number in range(len(images))]
        lines = [f"{name},{label}" for name, label in rows]
        if table.endswith("jsonl"):
            lines = [f'{{"file_name": "{name}", "label": "{label}"}}' for name, label in rows]
        else:
            lines = ["file_name,label", *lines]
        (tmp_path / "set" / split / table).write_text("\n".join(lines))
    reference = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    data = load_data(tmp_path / "set")
    _check(data, sorted(NAMES))
    _check(load_data(reference), sorted(NAMES))


def test_which_of_several_columns_of_labels_was_taken_is_said(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "coarse_label": datasets.ClassLabel(names=["animal", "plant"]),
            "fine_label": datasets.ClassLabel(names=NAMES),
        }
    )
    columns = {
        "image": [image_file(image) for image in IMAGES["train"]],
        "coarse_label": [n % 2 for n in range(24)],
        "fine_label": [n % 3 for n in range(24)],
    }
    rows = datasets.Dataset.from_dict(columns, features=features)
    rows.to_parquet(str(tmp_path / "train.parquet"))
    sentence = "labels are those of the column 'fine_label'; --label-column takes others (coarse_label)"
    for source, name in ((rows, "data"), (tmp_path / "train.parquet", "train")):
        said: list[str] = []
        assert load_data(source, say=said.append).classes == tuple(NAMES)
        assert f"{name}: {sentence}" in said
        said.clear()
        coarse = load_data(source, DataOptions(label_column="coarse_label"), say=said.append)
        assert coarse.classes == ("animal", "plant") and not any("takes others" in line for line in said)


@pytest.mark.parametrize("second", ["train-1.parquet", "test-0.parquet"])
def test_parquet_files_whose_labels_are_text_here_and_numbers_there_are_refused(tmp_path: Path, second: str) -> None:
    pngs = [image_file(image) for image in IMAGES["train"][:6]]
    for name, labels in (("train-0.parquet", [0, 1, 2] * 2), (second, NAMES * 2)):
        pyarrow.parquet.write_table(pyarrow.table({"image": pngs, "label": labels}), tmp_path / name)
    with pytest.raises(DataError) as caught:
        load_data(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: 6 labels are text ({second}, row 0: '{NAMES[0]}') and 6 are numbers (train-0.parquet, row 0: 0); "
        "write all alike."
    )


def test_splits_that_differ_in_columns_or_class_names_are_refused() -> None:
    def refusal(test: Any) -> str:
        with pytest.raises(DataError) as caught:
            load_data(datasets.DatasetDict({"train": _dataset("train"), "test": test}))
        return str(caught.value)

    assert refusal(_dataset("test").rename_column("label", "kind")) == (
        "data: the test split has no column 'label' (found: image, kind, id); make the splits alike, or "
        "say --split TRAIN."
    )
    swapped = _dataset("test").cast_column("label", datasets.ClassLabel(names=NAMES[::-1]))
    differ = (
        "data: the class names of the training split (emu, ant, cat) are not those of the test split ({}) in the same "
    )
    assert refusal(swapped) == differ.format("cat, ant, emu") + "order; make them alike."
    assert refusal(_dataset("test", typed=False)) == differ.format("none") + "order; make them alike."
