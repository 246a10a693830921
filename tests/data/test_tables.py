"""Tables beside the images, and WebDataset tars."""

import json
from pathlib import Path
from typing import Any

import pytest
import webdataset
from data_samples import image_file, random_images, tarred, write_folder, zipped

from dim.data.image_set import Say
from dim.data.load import ImageSet, load_data
from dim.data.options import DataOptions
from dim.runtime.errors import DataError
from dim.runtime.messages import say_to_log

IMAGES = random_images(12, 8, 3)
PNGS = [image_file(image) for image in IMAGES]
LABELS = ["cat", "dog"] * 6


def _flat(folder: str = "") -> dict[str, bytes]:
    return {f"{folder}{number:03d}.png": data for number, data in enumerate(PNGS)}


def _load(folder: Path, files: dict[str, bytes], say: Say = say_to_log, **options: Any) -> ImageSet:
    return load_data(write_folder(folder / "set", files), DataOptions(**options), say=say)


def _check(data: ImageSet, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    assert data.classes == classes
    for label in range(2):
        found = [*data.train_images[data.train_labels == label], *data.test_images[data.test_labels == label]]
        assert {image.tobytes() for image in found} == {image.tobytes() for image in IMAGES[label::2]}


def _csv(header: str, rows: list[str], separator: str = ",") -> bytes:
    return "\n".join([header.replace(",", separator), *(row.replace(",", separator) for row in rows)]).encode()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("header", "folder", "name"),
    [
        ("filename,label", "", "{:03d}.png"),
        ("id,breed", "train/", "{:03d}"),
        ("image_id,class", "images/", "{:03d}.png"),
        ("path,target", "images/", "images/{:03d}.png"),
        ("file,category", "a/b/", "./a/b/{:03d}.png"),
    ],
)
def test_a_table_of_files_and_labels(tmp_path: Path, header: str, folder: str, name: str, separator: str) -> None:
    rows = [f"{name.format(number)},{label}" for number, label in enumerate(LABELS)]
    said: list[str] = []
    data = _load(tmp_path, _flat(folder) | {"labels.csv": _csv(header, rows, separator)}, say=said.append)
    _check(data)
    assert f"set: labels are those of labels.csv, column '{header.split(',')[1]}'" in said


@pytest.mark.parametrize("one", ["1", "1.0"])
def test_one_hot_columns_of_a_table(tmp_path: Path, one: str) -> None:
    zero = one.replace("1", "0")
    cells = {"cat": f"{one},{zero},{zero}", "dog": f"{zero},{one},{zero}"}
    rows = [f"{number:03d},{cells[label]},{number}" for number, label in enumerate(LABELS)]
    said: list[str] = []
    data = _load(tmp_path, _flat("input/") | {"truth.csv": _csv("image,cat,dog,UNK,age", rows)}, say=said.append)
    _check(data)
    assert "set: labels are those of truth.csv, the one-hot columns cat, dog, UNK" in said


@pytest.mark.parametrize(("header", "cells"), [("id,cat,dog", "1,1"), ("id,cat,age", "1,7"), ("id,train,test", "1,0")])
def test_columns_that_are_not_one_hot_are_asked_about(tmp_path: Path, header: str, cells: str) -> None:
    table = _csv(header, [f"{number:03d},{cells}" for number in range(12)])
    with pytest.raises(DataError, match=r"no column is named like the label \(found: .*\); say --label-column"):
        _load(tmp_path, _flat("input/") | {"truth.csv": table})


def test_a_table_counts_more_than_folders_where_its_column_is_named(tmp_path: Path) -> None:
    files = {f"{'left' if number < 6 else 'right'}/{number:03d}.png": data for number, data in enumerate(PNGS)}
    files["meta.csv"] = _csv(
        "image_id,finding,age", [f"{number:03d},{label},50" for number, label in enumerate(LABELS)]
    )
    remark = "set: classes are those of the folders; --label-column NAME reads those of meta.csv"
    said: list[str] = []
    assert _load(tmp_path, files, say=said.append).classes == ("left", "right")
    assert remark in said
    _check(_load(tmp_path, files, label_column="finding"))
    said.clear()
    assert _load(tmp_path, files, say=said.append, layout="classes").classes == ("left", "right")
    assert remark not in said
    with pytest.raises(
        DataError, match=r"meta.csv: no column 'picture' \(found: image_id, finding, age\); say another"
    ):
        _load(tmp_path, files, image_column="picture")


def test_folders_that_are_parts_of_a_set_name_no_classes(tmp_path: Path) -> None:
    """HAM10000 as it comes: parts of the images, and their table above."""
    files = {f"HAM_images_part_{1 + number // 6}/ISIC_{number:07d}.png": data for number, data in enumerate(PNGS)}
    rows = [f"HAM_{number},ISIC_{number:07d},{label},histo,50" for number, label in enumerate(LABELS)]
    files["HAM_metadata.csv"] = _csv("lesion_id,image_id,dx,dx_type,age", rows)
    said: list[str] = []
    _check(_load(tmp_path, files, say=said.append))
    assert "set: labels are those of HAM_metadata.csv, column 'dx'" in said
    assert _load(tmp_path, files, layout="classes").classes == ("HAM_images_part_1", "HAM_images_part_2")
    del files["HAM_metadata.csv"]
    assert _load(tmp_path / "alone", files).classes == ("HAM_images_part_1", "HAM_images_part_2")


def test_a_spreadsheet_beside_one_folder_of_images_is_not_passed_over(tmp_path: Path) -> None:
    files = _flat("images/") | {"truth.xlsx": b"PK"}
    with pytest.raises(DataError, match=r"truth.xlsx is not read as a table: save it as CSV there, its first line "):
        _load(tmp_path, files)
    assert _load(tmp_path, files, layout="classes").classes == ("images",)


def test_tables_in_json_and_in_archives(tmp_path: Path) -> None:
    rows = [{"file": f"{number:03d}.png", "label": label} for number, label in enumerate(LABELS)]
    by_name = {f"{number:03d}.png": label for number, label in enumerate(LABELS)}
    for number, table in enumerate((json.dumps(rows), json.dumps(by_name), "\n".join(map(json.dumps, rows)))):
        name = "labels.jsonl" if number == 2 else "labels.json"
        files = _flat("images/") | {name: table.encode()}
        (tmp_path / f"{number}.zip").write_bytes(zipped(files))
        _check(load_data(tmp_path / f"{number}.zip"))
        (tmp_path / f"{number}.tgz").write_bytes(tarred(files, "w:gz"))
        _check(load_data(tmp_path / f"{number}.tgz"))


def test_numbers_as_labels_and_a_column_of_splits(tmp_path: Path) -> None:
    rows = [f"{n:03d}.png,{n % 2 + 1},{'train' if n < 8 else 'test'}" for n in range(12)]
    said: list[str] = []
    data = _load(tmp_path, _flat() | {"all.csv": _csv("image,label,split", rows)}, say=said.append)
    _check(data, ("1", "2"))
    assert len(data.train_labels) == 8 and len(data.test_labels) == 4
    assert "labels run from 1 to 2 and count from 1: classes are named by their labels" in data.note


def _stylegan(labels: list[int] | None) -> dict[str, bytes]:
    """What StyleGAN's dataset tool writes: names of eight digits, five of which are the folder; labels last."""
    names = [f"{number:08d}"[:5] + f"/img{number:08d}.png" for number in range(12)]
    pairs = None if labels is None else [[name, label] for name, label in zip(names, labels, strict=True)]
    return dict(zip(names, PNGS, strict=True)) | {"dataset.json": json.dumps({"labels": pairs}).encode()}


def test_stylegan(tmp_path: Path) -> None:
    files = _stylegan([number % 2 for number in range(12)])
    _check(_load(tmp_path, files), ("0", "1"))
    (tmp_path / "x.zip").write_bytes(zipped(files))
    _check(load_data(tmp_path / "x.zip"), ("0", "1"))
    files["dataset.json"] = json.dumps({"labels": [["00000/img00000000.png", [1]]]}).encode()
    with pytest.raises(DataError, match=r"dataset.json: .* among its labels, expected \[file, whole number\]"):
        _load(tmp_path, files)
    with pytest.raises(DataError, match=r"dataset.json says that the images have no labels; write them there, or say"):
        _load(tmp_path, _stylegan(None))
    assert _load(tmp_path, _stylegan(None), layout="classes").classes == ("00000",)


def test_a_table_does_not_overrule_class_folders(tmp_path: Path) -> None:
    files = {f"{label}/{number:03d}.png": PNGS[number] for number, label in enumerate(LABELS)}
    rows = [f"{label}/{number:03d}.png,x{number % 3}" for number, label in enumerate(LABELS)]
    _check(_load(tmp_path, files | {"predictions.csv": _csv("file,kind,score", [f"{row},1" for row in rows])}))
    captions = [f"{label}/{number:03d}.png,a picture {number}" for number, label in enumerate(LABELS)]
    _check(_load(tmp_path, files | {"metadata.csv": _csv("file_name,text", captions)}))


@pytest.mark.parametrize(
    ("header", "rows", "options", "message"),
    [
        ("file,label", ["x.png,cat"], {}, r"none of the 1 files that it names is there \(x.png\); fix its column"),
        (
            "file,label",
            ["000.png,cat", "x.png,cat", "y.png,dog"],
            {},
            r"names 'x.png', which is not there \(1 more like",
        ),
        ("file,label", ["000.png,cat", "000.png,dog"], {}, "gives '000.png' two labels"),
        ("file,a,b", ["000.png,1,2"], {}, r"no column is named like the label \(found: a, b\); say --label-column\.$"),
        (
            "file,a,b",
            ["000.png,1,2"],
            {"label_column": "c"},
            r"no column 'c' \(found: a, b\); say another --label-column\.$",
        ),
        ("file,label", ["000.png,", "001.png,dog"], {}, "1 images have an empty label; fill it in"),
    ],
)
def test_tables_that_cannot_be_read(
    tmp_path: Path, header: str, rows: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _load(tmp_path, _flat() | {"labels.csv": _csv(header, rows)}, **options)


def test_images_that_no_table_names_are_said(tmp_path: Path) -> None:
    rows = [f"{number:03d}.png,{label}" for number, label in enumerate(LABELS[:10])]
    said: list[str] = []
    _load(tmp_path, _flat() | {"labels.csv": _csv("file,label", rows)}, say=said.append)
    assert "set: 2 images that it does not name were passed over (010.png)" in said


@pytest.mark.parametrize("kind", ["cls", "txt", "json"])
def test_webdataset_as_its_library_writes_it(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for shard, rows in (("train-000000", range(4)), ("train-000001", range(4, 8)), ("test-000000", range(8, 12))):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as writer:
            for number in rows:
                label = {"cls": number % 2, "txt": LABELS[number], "json": {"label": LABELS[number], "id": number}}[
                    kind
                ]
                writer.write({"__key__": f"{number:05d}", "png": PNGS[number], kind: label})
    data = load_data(folder)
    _check(data, ("0", "1") if kind == "cls" else ("cat", "dog"))
    assert len(data.train_labels) == 8 and len(data.test_labels) == 4
    alone = load_data(folder / "train-000000.tar")
    assert alone.name == "train-000000" and len(alone.train_labels) + len(alone.test_labels) == 4
    if kind == "cls":
        (folder / "classes.json").write_text('["cat", "dog"]')
        _check(load_data(folder))


def test_webdataset_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tarred({"a.png": PNGS[0], "a.cls": b"0", "b.png": PNGS[1]}))
    with pytest.raises(
        DataError, match=r"1 images have no label beside them \(x.tar/b.png\); expected .cls, .json or .txt"
    ):
        load_data(path)
    path.write_bytes(tarred({"a.png": PNGS[0], "a.json": b'{"x": 1}'}))
    with pytest.raises(DataError, match=r"a.json: no column is named like the label \(found: x\); say --label-column"):
        load_data(path)
    path.write_bytes(tarred({"a.png": PNGS[0], "a.json": b"{"}))
    with pytest.raises(DataError, match="a.json: the label cannot be read"):
        load_data(path)
    path.write_bytes(tarred({"a.png": PNGS[0], "a.jpg": PNGS[0], "a.cls": b"0"}))
    with pytest.raises(DataError, match="the key 'a' has two images; leave one out"):
        load_data(path)


def test_a_tar_of_class_folders_with_text_files_is_none(tmp_path: Path) -> None:
    files = {f"{label}/{number:03d}.png": PNGS[number] for number, label in enumerate(LABELS)}
    (tmp_path / "x.tar").write_bytes(tarred(files | {"cat/readme.txt": b"hello"}))
    _check(load_data(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.pkl", "a pickle runs code when it is read; save arrays by numpy.savez"),
        ("x.pt", "a pickle runs code"),
        ("x.h5", "this format is not read; save arrays by numpy.savez"),
        ("x.npy", "an array alone; put labels.npy beside images.npy and name their folder"),
        ("x.csv", "a table without images beside it; name the folder that holds both"),
        ("x.png", "one image; name the folder that holds the class folders"),
        ("x.arrow", "name the folder that save_to_disk wrote, not a file in it"),
    ],
)
def test_files_that_are_no_source_say_what_to_do(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=f"^{tmp_path / name}: {words}"):
        load_data(tmp_path / name)


def test_the_splits_of_a_table_can_be_chosen(tmp_path: Path) -> None:
    splits = ["train", "train", "val", "val", "test", "test", "train", "train", "val", "val", "test", "test"]
    rows = [f"{n:03d}.png,{label},{split}" for n, (label, split) in enumerate(zip(LABELS, splits, strict=True))]
    files = _flat() | {"labels.csv": _csv("file,label,split", rows)}
    said: list[str] = []
    data = _load(tmp_path, files, say=said.append, split="test,val")
    for images, split in ((data.train_images, "test"), (data.test_images, "val")):
        wanted = {IMAGES[n].tobytes() for n in range(12) if splits[n] == split}
        assert {image.tobytes() for image in images} == wanted
    assert "set: 4 images of other splits were passed over" in said
    with pytest.raises(DataError, match=r"labels.csv: no split 'x' \(found: test, train, val\)"):
        load_data(tmp_path / "set", DataOptions(split="x"))


def test_numbers_that_differ_in_zeros_alone_stay_apart(tmp_path: Path) -> None:
    rows = [f"{number:03d}.png,{'7' if label == 'cat' else '007'}" for number, label in enumerate(LABELS)]
    data = _load(tmp_path, _flat() | {"labels.csv": _csv("file,label", rows)})
    assert data.classes == ("007", "7")


def test_the_splits_of_shards_can_be_chosen_and_labels_without_an_image_are_said(tmp_path: Path) -> None:
    def shard(first: int) -> bytes:
        pairs = {}
        for number in range(first, first + 4):
            pairs |= {f"{number}.png": PNGS[number], f"{number}.cls": b"%d" % (number % 2)}
        return tarred(pairs | {"lonely.cls": b"0"})

    files = {"train-0.tar": shard(0), "extra-0.tar": shard(4), "val-0.tar": shard(8)}
    said: list[str] = []
    data = _load(tmp_path, files, say=said.append, split="extra,val")
    assert {image.tobytes() for image in data.train_images} == {image.tobytes() for image in IMAGES[4:8]}
    assert {image.tobytes() for image in data.test_images} == {image.tobytes() for image in IMAGES[8:]}
    assert "set: 3 labels have no image beside them (extra-0.tar/lonely) and were passed over" in said
    with pytest.raises(DataError, match="no split 'test'"):
        load_data(tmp_path / "set", DataOptions(split="train,test"))
