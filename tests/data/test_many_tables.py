"""Several tables of labels beside the images, and columns that say the split."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from data_samples import image_file, random_images, tarred, write_folder, zipped

from dim.data.image_set import ImageSet
from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.runtime.errors import DataError

IMAGES = random_images(16, 8, 3)
PNGS = [image_file(image) for image in IMAGES]
LABELS = ["cat", "dog"] * 8
TEST = range(10, 16)


def _files(train: str = "train/", test: str = "test/", *, apart: bool = True) -> dict[str, bytes]:
    """Images of two splits; the names of the test images are those of training images where not apart."""
    first = 0 if apart else TEST[0]
    return {f"{test}{n - first}.png" if n in TEST else f"{train}{n}.png": PNGS[n] for n in range(16)}


def _table(numbers: Any, name: str = "{}.png", header: str = "id,label", labels: list[str] = LABELS) -> bytes:
    return "\n".join([header, *(f"{name.format(n)},{labels[n]}" for n in numbers)]).encode()


def _numbers(images: Any) -> set[int]:
    by_bytes = {image.tobytes(): n for n, image in enumerate(IMAGES)}
    return {by_bytes[image.tobytes()] for image in images}


def _check_splits(data: ImageSet) -> None:
    assert data.classes == ("cat", "dog")
    assert _numbers(data.test_images) == set(TEST)
    assert _numbers(data.train_images) == set(range(10))
    by_bytes = {image.tobytes(): n % 2 for n, image in enumerate(IMAGES)}
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert [by_bytes[image.tobytes()] for image in images] == labels.tolist()


def _refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_data(path, DataOptions(**options))
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("split", [None, "train,test"])
@pytest.mark.parametrize(
    ("train", "test"),
    [("train/labels.csv", "test/labels.csv"), ("train.csv", "test.csv"), ("train_labels.csv", "labels-test.csv")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_tables_of_splits_are_united(tmp_path: Path, train: str, test: str, split: str | None, packed: bool) -> None:
    files = _files() | {train: _table(range(10)), test: _table(TEST)}
    (tmp_path / "set.zip").write_bytes(zipped(files))
    place = tmp_path / "set.zip" if packed else write_folder(tmp_path / "set", files)
    _check_splits(load_data(place, DataOptions(split=split)))


def test_images_of_one_name_are_those_of_the_tables_split(tmp_path: Path) -> None:
    tests = "\n".join(["id,label", *(f"{n - TEST[0]},{LABELS[n]}" for n in TEST)]).encode()
    files = _files(apart=False) | {"train.csv": _table(range(10)), "test.csv": tests}
    _check_splits(load_data(write_folder(tmp_path / "set", files)))
    only = _files(apart=False) | {"labels.csv": _table(range(6))}
    assert _refusal(write_folder(tmp_path / "one", only)) == (
        "labels.csv: '0.png' is the name of 2 images (test/0.png, train/0.png); write paths into its column 'id', such "
        "as test/0.png."
    )


def test_split_is_asked_of_one_table_for_all(tmp_path: Path) -> None:
    files = _files() | {"labels.csv": _table(range(16))}
    _check_splits(load_data(write_folder(tmp_path / "set", files), DataOptions(split="train,test")))


def test_a_test_split_without_labels_and_a_sample_submission(tmp_path: Path) -> None:
    files = _files() | {
        "train.csv": _table(range(10)),
        "test.csv": "\n".join(["id", *(f"{n}.png" for n in TEST)]).encode(),
        "sample_submission.csv": _table(TEST, labels=["cat"] * 16),
    }
    said: list[str] = []
    data = load_data(write_folder(tmp_path / "set", files), say=said.append)
    assert _numbers([*data.train_images, *data.test_images]) == set(range(10))
    assert "set: the 6 images of 'test' have no labels and were passed over (test/10.png)" in said
    assert "set: sample_submission.csv shows how answers are written, by its name, and was passed over" in said
    (tmp_path / "set" / "train.csv").unlink()
    assert _refusal(tmp_path / "set") == (
        "sample_submission.csv shows how answers are written, by its name, and no other table has labels; say --data "
        f"{tmp_path / 'set' / 'sample_submission.csv'} to read that one alone."
    )


def test_parts_are_united_and_other_tables_are_asked_about(tmp_path: Path) -> None:
    parts = {"labels_1.csv": _table(range(8)), "labels_2.csv": _table(range(8, 16))}
    data = load_data(write_folder(tmp_path / "parts", _files("", "") | parts))
    assert _numbers([*data.train_images, *data.test_images]) == set(range(16))
    odd = {"left.csv": _table(range(8)), "right.csv": _table(range(8, 16))}
    folder = write_folder(tmp_path / "odd", _files("", "") | odd)
    assert _refusal(folder) == (
        "left.csv, right.csv have labels for different images, and their names are neither those of splits (train.csv, "
        f"test.csv) nor of parts (labels_1.csv, labels_2.csv): rename them; say --data {folder / 'left.csv'} to read "
        "that one alone, or move the others away."
    )
    data = load_data(folder / "left.csv")
    assert data.name == "odd"
    assert _numbers([*data.train_images, *data.test_images]) == set(range(8))


def test_tables_that_contradict_each_other_are_asked_about(tmp_path: Path) -> None:
    other = LABELS[1::-1] + LABELS[2:]
    files = _files("", "") | {"a.csv": _table(range(16)), "b.csv": _table(range(16), labels=other)}
    folder = write_folder(tmp_path / "set", files)
    sentence = "both a.csv and b.csv have labels for 16 images, 2 with another label (0.png, 1.png)"
    assert _refusal(folder) == (
        f"{sentence}; say --data {folder / 'a.csv'} to read that one alone, or move the others away."
    )
    (tmp_path / "set.zip").write_bytes(zipped(files))
    assert _refusal(tmp_path / "set.zip") == f"{sentence}; leave all but one out of the archive."
    by_a, by_b = (load_data(folder / name) for name in ("a.csv", "b.csv"))
    assert by_a.fingerprint() != by_b.fingerprint()
    (folder / "b.csv").write_bytes(_table(range(16)))  # the same once more
    assert load_data(folder).fingerprint() == by_a.fingerprint()


def test_tables_of_splits_with_other_kinds_of_labels_or_columns(tmp_path: Path) -> None:
    files = _files() | {"train.csv": _table(range(10)), "test.csv": _table(TEST, labels=["0", "1"] * 8)}
    assert _refusal(write_folder(tmp_path / "kinds", files)) == (
        "train.csv, test.csv: labels are numbers in test.csv and text in train.csv; write all alike."
    )
    files["test.csv"] = _table(TEST, header="id,class")
    assert _refusal(write_folder(tmp_path / "columns", files)).startswith(
        "train.csv, test.csv have labels in different columns ('label' in train.csv, 'class' in test.csv): give these "
    )


@pytest.mark.parametrize(
    ("column", "train", "test"),
    [
        ("split", "train", "test"),
        ("SPLIT", "Train", "TEST"),
        ("Set", "training", "val"),
        ("subset", "train", "test"),
        ("partition", "train", "valid"),
        ("Usage", "Training", "Testing"),
        ("phase", "train", "test"),
        ("is_train", "1", "0"),
        ("is_train", "True", "false"),
    ],
)
@pytest.mark.parametrize("folders", [False, True])
def test_columns_of_splits(tmp_path: Path, column: str, train: str, test: str, folders: bool) -> None:
    rows = [f"{n},{LABELS[n]},{test if n in TEST else train}" for n in range(16)]
    files = {f"{LABELS[n]}/{n}.png" if folders else f"{n}.png": PNGS[n] for n in range(16)}
    files["labels.csv"] = "\n".join([f"id,label,{column}", *rows]).encode()
    _check_splits(load_data(write_folder(tmp_path / "set", files)))


@pytest.mark.parametrize("values", [("0", "1"), ("A", "B")])
def test_other_values_of_a_column_called_split_are_asked_about(tmp_path: Path, values: tuple[str, str]) -> None:
    rows = [f"{n},{LABELS[n]},{values[n in TEST]}" for n in range(16)]
    files = _files("", "") | {"labels.csv": "\n".join(["id,label,split", *rows]).encode()}
    folder = write_folder(tmp_path / "set", files)
    assert _refusal(folder) == (
        f"labels.csv: the column 'split' holds no usual names of splits ({', '.join(values)}): say --split TRAIN,TEST "
        "with two of these, or rename the column where it says no split."
    )
    _check_splits(load_data(folder, DataOptions(split=",".join(values))))


def test_a_table_of_splits_beside_class_folders(tmp_path: Path) -> None:
    files = {f"{LABELS[n]}/{n}.png": PNGS[n] for n in range(16)}
    rows = [f"{LABELS[n]}/{n}.png,{'test' if n in TEST else 'train'}" for n in range(16)]
    files["split.csv"] = "\n".join(["file,split", *rows]).encode()
    folder = write_folder(tmp_path / "set", files)
    said: list[str] = []
    _check_splits(load_data(folder, say=said.append))
    assert "set: splits are those of split.csv, column 'split'" in said
    assert not any("--label-column" in sentence for sentence in said)
    _check_splits(load_data(folder, DataOptions(split="train,test")))
    (folder / "split.csv").write_text("\n".join(["file,split", *rows[1:]]))
    assert _refusal(folder) == (
        "splits are those of split.csv, column 'split', which does not name 1 of 16 images (cat/0.png): name all "
        "there, or say --layout classes to do without it."
    )
    assert _refusal(folder, split="train,test") == _refusal(folder)
    (folder / "split.csv").write_text("\n".join(["file,note,more", *(f"{row},1" for row in rows)]))
    assert "no split 'a' (found: cat, dog)" in _refusal(folder, split="a,b")


def test_split_folders_and_a_table_that_says_other_splits(tmp_path: Path) -> None:
    files = {f"{'test' if n in TEST else 'train'}/{LABELS[n]}/{n}.png": PNGS[n] for n in range(16)}
    rows = [f"{n},{LABELS[n]},{'test' if n > 10 else 'train'}" for n in range(16)]
    files["labels.csv"] = "\n".join(["file,label,split", *rows]).encode()
    folder = write_folder(tmp_path / "set", files)
    assert _refusal(folder) == (
        "1 images are in another split by labels.csv, column 'split' than by their folders (test/cat/10.png): say "
        "--layout splits/classes to take that of the folders, or fix the column."
    )
    _check_splits(load_data(folder, DataOptions(layout="splits/classes")))


def test_one_key_twice_in_json(tmp_path: Path) -> None:
    text = json.dumps({f"{n}.png": LABELS[n] for n in range(16)})
    files = _files("", "") | {"labels.json": text.replace("{", '{"3.png": "cat", ', 1).encode()}
    assert _refusal(write_folder(tmp_path / "set", files)) == (
        "labels.json: '3.png' stands there twice, with 'cat' and 'dog'; leave one out."
    )
    (tmp_path / "set" / "labels.json").write_text(text.replace("{", '{"3.png": "dog", ', 1))
    assert load_data(tmp_path / "set").classes == ("cat", "dog")


def test_class_folders_whose_names_a_table_swaps(tmp_path: Path) -> None:
    files = {f"{LABELS[n]}/{n}.png": PNGS[n] for n in range(16)}
    files["labels.csv"] = _table(range(16), labels=LABELS[::-1])
    assert _refusal(write_folder(tmp_path / "set", files)) == (
        "16 of 16 images have another class in labels.csv than their folder says (cat/0.png is 'dog', cat/10.png is "
        "'dog', cat/12.png is 'dog', ...): say --label-column label to take that of the table, or --layout classes to "
        "take that of the folder."
    )


@pytest.mark.parametrize("word", ["NaN", "null", "None"])
def test_words_for_missing_values_are_no_labels(tmp_path: Path, word: str) -> None:
    labels = [*LABELS[:4], word, *LABELS[5:]]
    files = _files("", "") | {"labels.csv": _table(range(16), labels=labels)}
    assert _refusal(write_folder(tmp_path / "set", files)) == (
        f"labels.csv: row 5 has the label '{word}', a word for a missing value (1 rows in all); fill it in, leave the "
        "row out, or write another word where it is a class."
    )


@pytest.mark.parametrize("names", [["dog", "cat"], {"0": "dog", "1": "cat"}, {"cat": 1, "dog": 0}])
@pytest.mark.parametrize("kind", ["csv", "json", "folders"])
def test_numbers_are_named_by_classes_json(tmp_path: Path, names: Any, kind: str) -> None:
    numbers = ["1" if label == "cat" else "0" for label in LABELS]
    files = {f"{numbers[n]}/{n}.png" if kind == "folders" else f"{n}.png": PNGS[n] for n in range(16)}
    files["classes.json"] = json.dumps(names).encode()
    if kind == "csv":
        files["labels.csv"] = _table(range(16), labels=numbers)
    elif kind == "json":
        files["labels.json"] = json.dumps({f"{n}.png": int(numbers[n]) for n in range(16)}).encode()
    data = load_data(write_folder(tmp_path / "set", files))
    assert data.classes == ("dog", "cat")
    assert _numbers(data.train_images[data.train_labels == 1]) <= set(range(0, 16, 2))
    assert _numbers(data.train_images[data.train_labels == 0]) <= set(range(1, 16, 2))


def test_classes_json_that_does_not_fit(tmp_path: Path) -> None:
    files = {f"{n % 3}/{n}.png": PNGS[n] for n in range(15)} | {"classes.json": b'["a", "b"]'}
    assert _refusal(write_folder(tmp_path / "few", files)).startswith("labels run from 0 to 2, expected 0 to 1 for 2 ")
    files["classes.json"] = b'["a", "b", "a"]'
    assert _refusal(write_folder(tmp_path / "two", files)) == (
        "two classes are called 'a'; give each a name of its own."
    )
    files = {f"{LABELS[n]}/{n}.png": PNGS[n] for n in range(16)} | {"classes.json": b'{"cat": "Katze"}'}
    assert load_data(write_folder(tmp_path / "text", files)).classes == ("cat", "dog")


@pytest.mark.parametrize("twin", ["00", "0.0"])
def test_one_number_written_in_two_ways_gets_a_caution(tmp_path: Path, twin: str) -> None:
    labels = ["0", twin] * 8
    said: list[str] = []
    files = _files("", "") | {"labels.csv": _table(range(16), labels=labels)}
    assert load_data(write_folder(tmp_path / "set", files), say=said.append).classes == ("0", twin)
    sentence = f"caution: '0' and '{twin}' are one number written in two ways, and two classes; write them alike"
    assert f"set: {sentence}" in said


def test_folders_in_class_folders_are_said(tmp_path: Path) -> None:
    files = {f"{'plant' if n < 8 else ('animal/cat', 'animal/dog')[n % 2]}/{n}.png": PNGS[n] for n in range(16)}
    said: list[str] = []
    assert load_data(write_folder(tmp_path / "set", files), say=said.append).classes == ("animal", "plant")
    assert "set: 2 folders in class folders were read as part of their class (animal/cat, animal/dog)" in said


def test_a_second_folder_beside_train_is_answered_by_split(tmp_path: Path) -> None:
    files = {f"{'holdout' if n in TEST else 'train'}/{LABELS[n]}/{n}.png": PNGS[n] for n in range(16)}
    folder = write_folder(tmp_path / "set", files)
    assert _refusal(folder).endswith("or --split train,holdout where 'holdout' is the test split.")
    _check_splits(load_data(folder, DataOptions(split="train,holdout")))


def _shard(numbers: Any, json_label: Any = None) -> bytes:
    files: dict[str, bytes] = {}
    for n in numbers:
        files |= {f"{n:02d}.png": PNGS[n], f"{n:02d}.cls": b"%d" % (n % 2)}
        if json_label is not None:
            files[f"{n:02d}.json"] = json.dumps({"label": json_label(n)}).encode()
    return tarred(files)


def test_two_labels_of_one_sample_of_a_webdataset(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(_shard(range(16), lambda n: 1 - n % 2))
    assert _refusal(tmp_path / "set.tar") == ("00.json: the label is '1', and that in .cls is '0'; fix or remove one.")
    for label in (lambda n: n % 2, lambda n: LABELS[n]):  # the same, or the name of the number
        (tmp_path / "set.tar").write_bytes(_shard(range(16), label))
        assert load_data(tmp_path / "set.tar").classes == ("0", "1")


def test_missing_shards_of_a_webdataset_are_said(tmp_path: Path) -> None:
    files = {"train-00000-of-00003.tar": _shard(range(8)), "train-00002-of-00003.tar": _shard(range(8, 16))}
    said: list[str] = []
    load_data(write_folder(tmp_path / "set", files), say=said.append)
    assert "set: 1 files of the set are missing (train-00001-of-00003.tar)" in said


@pytest.mark.parametrize("form", ["parquet", "train.parquet", "memory", "named"])
@pytest.mark.parametrize("column", ["split", "Set"])
def test_columns_of_splits_in_datasets(tmp_path: Path, form: str, column: str) -> None:
    splits = ["test" if n in TEST else "train" for n in range(16)]
    rows = {"image": [{"bytes": png, "path": None} for png in PNGS], "label": LABELS, column: splits}
    found = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    if form == "named":
        found = found.cast_column(column, datasets.ClassLabel(names=["test", "train"]))
    place: Any = found
    if form.endswith("parquet"):
        place = tmp_path / ("set.parquet" if form == "parquet" else form)
        found.to_parquet(str(place))
    _check_splits(load_data(place))
    _check_splits(load_data(place, DataOptions(split="train,test")))
    swapped = load_data(place, DataOptions(split="test,train"))
    assert _numbers(swapped.train_images) == set(TEST)


def test_parquet_files_whose_column_contradicts_their_names(tmp_path: Path) -> None:
    for name, value in (("train", "train"), ("test", "train")):
        rows = pyarrow.table({"image": PNGS, "label": LABELS, "split": [value] * 16})
        pyarrow.parquet.write_table(rows, tmp_path / f"{name}.parquet")
    with pytest.raises(DataError) as caught:
        load_data(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'test.parquet'}: its column 'split' says 'train' and its name 'test'; rename the file where the "
        "column is right, else the column."
    )


def test_parquet_says_which_of_two_columns_of_labels_it_took(tmp_path: Path) -> None:
    rows = pyarrow.table({"image": PNGS, "label": LABELS, "coarse_label": ["animal"] * 16})
    pyarrow.parquet.write_table(rows, tmp_path / "set.parquet")
    said: list[str] = []
    assert load_data(tmp_path / "set.parquet", say=said.append).classes == ("cat", "dog")
    assert "set: labels are those of the column 'label'; --label-column takes others (coarse_label)" in said
