"""Tables that cannot be used, and tables that class folders contradict."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from data_samples import image_file, random_images, tarred, write_folder, zipped

from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.runtime.errors import DimError

PNGS = [image_file(image) for image in random_images(12, 8, 3)]
LABELS = ["chat", "été"] * 6
ROWS = [f"{number:03d}.png,{label}" for number, label in enumerate(LABELS)]
CSV = "\n".join(["file,label", *ROWS])
FIX = "write one label for each image."


def _flat(folder: str = "") -> dict[str, bytes]:
    return {f"{folder}{number:03d}.png": data for number, data in enumerate(PNGS)}


def _by_class() -> dict[str, bytes]:
    return {f"{label}/{number:03d}.png": PNGS[number] for number, label in enumerate(LABELS)}


def _refusal(folder: Path, files: dict[str, bytes], **options: Any) -> str:
    write_folder(folder, files)
    with pytest.raises(DimError) as caught:
        load_data(folder, DataOptions(**options))
    return str(caught.value).removeprefix(f"{folder}: ")


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF16_LE + CSV.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + CSV.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + CSV.encode("utf-32-le"),
        CSV.encode("utf-8-sig"),
        ("sep=;\r\n" + CSV.replace(",", ";").replace("\n", "\r\n")).encode(),
        codecs.BOM_UTF16_LE + CSV.replace(",", "\t").encode("utf-16-le"),
        CSV.replace(",", "|").encode(),
        ("\n\n" + CSV + "\n\n").encode(),
        "\n".join(["file,label,", *(f"{row}," for row in ROWS)]).encode(),
        "\n".join(["file,label", *(f"{row} " for row in ROWS), *ROWS, ",", ","]).encode(),
    ],
)
@pytest.mark.parametrize("name", ["labels.csv", "LABELS.CSV"])
def test_tables_as_spreadsheets_write_them(tmp_path: Path, data: bytes, name: str) -> None:
    data_set = load_data(write_folder(tmp_path / "set", _flat() | {name: data}))
    assert data_set.classes == ("chat", "été")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "labels.csv",
            CSV.encode("latin-1"),
            "labels.csv: not text in UTF-8 (invalid continuation byte at byte 32); save it as UTF-8.",
        ),
        (
            "labels.csv",
            CSV.encode("utf-16-le"),
            "labels.csv: not text in UTF-8 (invalid continuation byte at byte 64); save it as UTF-8.",
        ),
        (
            "labels.csv",
            CSV.replace("é", "e").encode("utf-16-le"),
            "labels.csv: text with zero bytes, as UTF-16 without its mark has; save it as UTF-8.",
        ),
        (
            "labels.csv",
            codecs.BOM_UTF16_LE + CSV.encode("utf-16-le")[:-1],
            "labels.csv: not text in UTF-16 (truncated data at byte 320); save it as UTF-8.",
        ),
        (
            "labels.csv",
            "\n".join(ROWS).encode(),
            "labels.csv: its first line names no columns (000.png, chat); put a line such as  file,label  above it.",
        ),
        (
            "labels.csv",
            "\n".join(row.replace(".png", "") for row in ROWS).encode(),
            "labels.csv: its first line names no columns (000, chat); put a line such as  file,label  above it.",
        ),
        ("labels.csv", b"file,label\n", "labels.csv: no rows of file and label."),
        ("labels.csv", b"", "labels.csv: no rows of file and label."),
        (
            "labels.json",
            b'[{"file": "000.png", "label": "cat"},',
            "labels.json: not JSON that can be read (Expecting value: line 1 column 38 (char 37)); fix or remove it.",
        ),
        (
            "labels.jsonl",
            b'{"file": "000.png", "label": "cat"}\n{"file": "001.png"',
            "labels.jsonl: not JSON that can be read (Expecting ',' delimiter: line 1 column 19 (char 18)); fix or "
            "remove it.",
        ),
        *(
            (
                "labels.json",
                json.dumps(other).encode(),
                "labels.json: JSON of another form; expected a list of objects with file and label, or one object of "
                "labels by file.",
            )
            for other in ({"images": [], "annotations": []}, {"cat": ["000.png"]}, [["000.png", "cat"]], "x", 1)
        ),
        (
            "labels.json",
            json.dumps([{"file": "000.png"}, {"file": "001.png", "label": "cat"}]).encode(),
            "labels.json: '000.png' has no 'label'; fill it in.",
        ),
        (
            "test.csv",
            "\n".join(["id", *(row.split(",")[0] for row in ROWS)]).encode(),
            "test.csv: no column of labels beside 'id'; add one.",
        ),
        (
            "test.csv",
            "\n".join(["id,split", *(f"{row.split(',')[0]},test" for row in ROWS)]).encode(),
            "test.csv: no column of labels beside 'id'; add one.",
        ),
        (
            "labels.csv",
            b"a,b\n1,2\n",
            "labels.csv: no column is named like the image (found: a, b); say --image-column.",
        ),
        (
            "labels.csv",
            b"file,label\n000.png,tench, Tinca tinca\n",
            "labels.csv: line 2 has more cells than the header; put text that holds ',' into double quotes.",
        ),
        (
            "labels.csv",
            b"file,label,label\n",
            "labels.csv: two columns are called 'label'; give each a name of its own.",
        ),
    ],
)
@pytest.mark.parametrize("place", ["", "images/", "train/"])
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, place: str, name: str, data: bytes, message: str) -> None:
    assert _refusal(tmp_path / "set", _flat(place) | {name: data}) == message
    if not place:
        (tmp_path / "x.zip").write_bytes(zipped(_flat() | {name: data}))
        with pytest.raises(DimError) as caught:
            load_data(tmp_path / "x.zip")
        assert str(caught.value) == f"{tmp_path / 'x.zip'}: {message}"


@pytest.mark.parametrize("name", ["labels.txt", "labels.xlsx"])
def test_labels_in_a_file_that_is_not_read_as_a_table(tmp_path: Path, name: str) -> None:
    assert _refusal(tmp_path / "set", _flat() | {"README.txt": b"", name: CSV.encode()}) == (
        f"no folders name the classes, and {name} is not read as a table: save it as CSV there, its first line such as "
        " file,label."
    )


def test_all_tables_are_told_and_one_with_labels_is_enough(tmp_path: Path) -> None:
    bare = "\n".join(["id", *(f"{number:03d}" for number in range(12))]).encode()
    files = _flat() | {"test.csv": bare, "a.json": b"{"}
    assert _refusal(tmp_path / "set", files) == (
        "test.csv: no column of labels beside 'id'; add one; also a.json: not JSON that can be read (Expecting "
        "property name enclosed in double quotes: line 1 column 2 (char 1)); fix or remove it."
    )
    (tmp_path / "set" / "train.csv").write_text("\n".join(["id,label", *(row for row in ROWS[:8])]))
    said: list[str] = []
    assert len(load_data(tmp_path / "set", say=said.append).train_labels) == 6
    assert "set: 4 images that it does not name were passed over (008.png)" in said


def test_a_broken_table_beside_class_folders_does_no_harm(tmp_path: Path) -> None:
    for name, data in {"labels.csv": CSV.encode("latin-1"), "x.json": b"{"}.items():
        folder = write_folder(tmp_path / name, _by_class() | {name: data})
        assert load_data(folder).classes == ("chat", "été")
    refused = _refusal(tmp_path / "asked", _by_class() | {"labels.csv": CSV.encode("latin-1")}, label_column="label")
    assert refused.startswith("labels.csv: not text in UTF-8")


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv", "labels.json"])
def test_a_table_that_contradicts_class_folders_is_asked_about(tmp_path: Path, name: str) -> None:
    other = dict(zip(LABELS[:2], LABELS[1::-1], strict=True))
    rows = [(f"{label}/{n:03d}.png", other[label] if n < 3 else label) for n, label in enumerate(LABELS)]
    lines = ["file_name,label", *(",".join(row) for row in rows)]
    table = json.dumps(dict(rows)) if name.endswith("json") else "\n".join(lines)
    files = _by_class() | {
        name: table.encode(),
        "0.csv": "\n".join([",,file", *(f"0,1,{row[0]}" for row in rows)]).encode(),
    }
    files["all.csv"] = "\n".join(["file,label", *(f"{path},{path[:4].strip('/')}" for path, _ in rows)]).encode()
    declared = name == "metadata.csv"
    answer = "--label-column label" if declared else f"--data {tmp_path / 'set' / name}"
    assert _refusal(tmp_path / "set", files) == (
        f"3 of 12 images have another class in {name} than their folder says (chat/000.png is 'été', chat/002.png is "
        f"'été', été/001.png is 'chat'): say {answer} to take that of the table, or --layout classes to "
        "take that of the folder."
    )
    if declared:
        by_table = load_data(tmp_path / "set", DataOptions(label_column="label"))
    else:
        by_table = load_data(tmp_path / "set" / name)
        refused = _refusal(tmp_path / "set", files, label_column="label")
        assert refused.startswith(f"both {name} and all.csv have labels for 12 images, 3 with another label (chat/000")
    by_folder = load_data(tmp_path / "set", DataOptions(layout="classes"))
    assert by_table.classes == by_folder.classes == ("chat", "été")
    assert by_table.fingerprint() != by_folder.fingerprint()


@pytest.mark.parametrize(
    ("labels", "remark"),
    [
        (LABELS, False),
        (["0", "1"] * 6, True),
        (["animal"] * 12, True),
        (["a", "b", "c", "d"] * 3, True),
    ],
)
def test_a_table_that_agrees_renames_joins_or_divides_classes_does_not_contradict(
    tmp_path: Path, labels: list[str], remark: bool
) -> None:
    rows = [f"{LABELS[n]}/{n:03d}.png,{label}" for n, label in enumerate(labels)]
    files = _by_class() | {"labels.csv": "\n".join(["file,label", *rows]).encode()}
    said: list[str] = []
    assert load_data(write_folder(tmp_path / "set", files), say=said.append).classes == ("chat", "été")
    assert remark == ("set: classes are those of the folders; --label-column NAME reads those of labels.csv" in said)


def test_one_hot_columns_that_contradict_class_folders_are_asked_about(tmp_path: Path) -> None:
    rows = [f"{LABELS[n]}/{n:03d}.png,{int(n % 3 == 0)},{int(n % 3 > 0)}" for n in range(12)]
    files = _by_class() | {"labels.csv": "\n".join(["file,chat,été", *rows]).encode()}
    assert _refusal(tmp_path / "set", files) == (
        "6 of 12 images have another class in labels.csv than their folder says (chat/002.png is 'été', chat/004.png "
        "is 'été', chat/008.png is 'été', ...): say --layout classes to take that of the folder."
    )


def test_folders_that_divide_images_otherwise_than_a_table_are_asked_about(tmp_path: Path) -> None:
    files = {f"{'left' if n < 6 else 'right'}/{n:03d}.png": data for n, data in enumerate(PNGS)} | {
        "labels.csv": CSV.encode()
    }
    assert _refusal(tmp_path / "set", files).startswith("12 of 12 images have another class in labels.csv than their ")
    assert load_data(tmp_path / "set", DataOptions(label_column="label")).classes == ("chat", "été")


def test_a_second_column_of_labels_is_said(tmp_path: Path) -> None:
    lines = ["file,label,category", *(f"{row},x" for row in ROWS)]
    said: list[str] = []
    load_data(write_folder(tmp_path / "set", _flat() | {"t.csv": "\n".join(lines).encode()}), say=said.append)
    assert "set: labels are those of t.csv, column 'label'; --label-column takes others (category)" in said


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1], [2], [3, 4]], f"labels are lists of different lengths, or lists beside single labels; {FIX}"),
        ([1, [2], 3], f"labels are lists of different lengths, or lists beside single labels; {FIX}"),
        ([{"a": 1}] * 3, f"the label of 000.png is {{'a': 1}}, expected text or a whole number of 64 bits; {FIX}"),
        ([1, 0.5, 1], f"the label of 001.png is 0.5, expected text or a whole number of 64 bits; {FIX}"),
        ([1, float("inf")], f"the label of 001.png is inf, expected text or a whole number of 64 bits; {FIX}"),
        ([1, float("nan")], f"the label of 001.png is nan, expected text or a whole number of 64 bits; {FIX}"),
        ([10**20, 1], f"the label of 000.png is {10**20}, expected text or a whole number of 64 bits; {FIX}"),
        ([1, 2, None], "'002.png' has no 'label'; fill it in."),
    ],
)
def test_labels_of_no_kind_that_is_read(tmp_path: Path, labels: list[Any], message: str) -> None:
    rows = [{"file": f"{n:03d}.png", "label": label} for n, label in enumerate(labels)]
    assert _refusal(tmp_path / "set", _flat() | {"l.json": json.dumps(rows).encode()}) == f"l.json: {message}"


def test_labels_that_are_text_here_and_numbers_there_are_refused(tmp_path: Path) -> None:
    rows = [{"file": f"{n:03d}.png", "label": n % 2 if n < 8 else LABELS[n]} for n in range(12)]
    assert _refusal(tmp_path / "set", _flat() | {"labels.json": json.dumps(rows).encode()}) == (
        "labels.json: 4 labels are text (008.png: 'chat') and 8 are numbers (000.png: 0); write all alike."
    )

    def shard(labels: list[str], kind: str) -> bytes:
        files = {}
        for n, label in enumerate(labels):
            text = json.dumps({"label": int(label) if label.isdigit() else label}) if kind == "json" else label
            files |= {f"{n}.png": PNGS[n], f"{n}.{kind}": text.encode()}
        return tarred(files)

    numbers, words, ranks = ["0", "1"] * 3, ["chat", "été"] * 3, ["7", "jack"] * 3
    for kind in ("cls", "txt", "json"):
        files = {"train-0.tar": shard(numbers, kind), "train-1.tar": shard(words, kind)}
        expected = (
            "6 labels are text (train-1.tar/0.png: 'chat') and 6 are numbers (train-0.tar/0.png: 0); write all alike."
            if kind == "json"
            else "labels are numbers in 1 shards (train-0.tar) and text in 1 (train-1.tar); write all alike."
        )
        assert _refusal(tmp_path / kind, files) == expected
    assert load_data(write_folder(tmp_path / "ranks", {"0.tar": shard(ranks, "cls")})).classes == ("7", "jack")
    both = {"0.tar": shard(numbers, "cls"), "1.tar": shard(numbers, "json")}
    assert load_data(write_folder(tmp_path / "both", both)).classes == ("0", "1")


def test_one_column_of_labels_in_all_rows_of_a_webdataset(tmp_path: Path) -> None:
    def row(n: int, **label: Any) -> dict[str, bytes]:
        return {f"{n}.png": PNGS[n], f"{n}.json": json.dumps(label).encode()}

    both = {}
    for n in range(8):
        both |= row(n, label=n % 2, category="x")
    said: list[str] = []
    load_data(write_folder(tmp_path / "both", {"0.tar": tarred(both)}), say=said.append)
    assert "both: labels are those of 'label' in JSON; --label-column takes others (category)" in said
    mixed = {"0.tar": tarred(row(0, label=0) | row(1, category=1))}
    assert _refusal(tmp_path / "mixed", mixed).endswith(
        "1.json: its label is in 'category', and those before are in 'label'; say --label-column."
    )
