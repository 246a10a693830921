"""Tables that say which image is of which class: CSV, TSV, JSON and JSON Lines beside the images.

Declared tables are read whatever the folders are called: `metadata.csv`, `.tsv` or `.jsonl` with a column `file_name`
(Hugging Face), one in each split's folder or one for all, and `dataset.json` with `labels` (StyleGAN). Other tables
(`labels.csv`, `train.csv`, ...) are read where folders name no classes. A column `split` says the split, else folders
named like splits do.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.data.classes.labels import name_labels
from dim.data.classes.layout import Fault, Layout, find_asked_splits, list_first, split_role
from dim.data.files.names import EXTENSIONS, extension_of
from dim.data.image_set import Source
from dim.runtime.errors import DataError

TABLE_EXTENSIONS = frozenset((".csv", ".tsv", ".json", ".jsonl"))
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "classes",
    "class_name",
    "classname",
    "category",
    "target",
    "y",
    "fine_label",
)
_FILE_COLUMNS = ("file_name", "filename", "file", "path", "image", "image_path", "img", "image_id", "image_name", "id")
_DECLARED = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
_TABLES_TRIED = 16
_TEST_ROLES = ("test", "validation")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Labelled:
    """One image and what is said of it."""

    key: str
    label: int | str
    split: str = ""
    """Its name, or "" where nothing says."""


def arrange_labelled(
    images: Iterable[Labelled],
    classes: tuple[str, ...] | None,
    where: str,
    remarks: list[str],
    asked: str | None = None,
) -> Layout:
    """Make a layout of images whose labels are known.

    Args:
        images: each with its own key.
        classes: names of integer labels in order; None takes names from the labels.
        where: stands for the source in messages.
        remarks: about the source, passed on.
        asked: the splits to read, one name or two joined by a comma; None for those with usual names.

    Raises:
        DataError: no such split, or as `name_labels`.
    """
    images = list(images)
    if asked is None:
        train, test, more = _choose_by_role(images)
    else:
        wanted = find_asked_splits(sorted({image.split for image in images} - {""}), asked, where)
        train, test = ([image for image in images if image.split in part] for part in (wanted[:1], wanted[1:]))
        left_out = len(images) - len(train) - len(test)
        more = [f"{left_out} images of other splits were passed over"] if left_out else []
    remarks = [*remarks, *more]
    numbers = [np.array([image.label for image in part]) if part else None for part in (train, test)]
    if numbers[0] is None:
        raise DataError(f"{where}: no labelled image found.")
    names, train_labels, test_labels, renamed = name_labels(numbers[0], numbers[1], classes, where)
    splits: list[dict[str, list[str]]] = [{name: [] for name in names} for _ in range(2)]
    for split, part, labels in zip(splits, (train, test), (train_labels, test_labels), strict=True):
        for image, label in zip(part, [] if labels is None else labels.tolist(), strict=True):
            split[names[label]].append(image.key)
    return Layout(splits[0], splits[1] if test else {}, (*remarks, *renamed))


def _choose_by_role(images: list[Labelled]) -> tuple[list[Labelled], list[Labelled], list[str]]:
    """Return the training images, the test images and remarks, by splits with usual names."""
    by_image = [split_role(image.split) for image in images]
    roles = set(by_image)
    held = next((role for role in _TEST_ROLES if role in roles and roles - {role, *_TEST_ROLES}), None)
    if held is None:
        return images, [], []
    train = [image for image, role in zip(images, by_image, strict=True) if role not in _TEST_ROLES]
    test = [image for image, role in zip(images, by_image, strict=True) if role == held]
    remarks = ["the validation split serves as test split"] if held == "validation" else []
    if left_out := len(images) - len(train) - len(test):
        remarks.append(f"{left_out} images of the validation split were passed over")
    return train, test, remarks


def choose_column(columns: Iterable[str], asked: str | None, usual: tuple[str, ...], what: str, where: str) -> str:
    """Choose a column: the one asked for, else the first with a usual name.

    Raises:
        DataError: it is not there; the columns found are named.
    """
    columns = list(columns)
    if asked is not None:
        if asked in columns:
            return asked
        raise DataError(f"{where}: no column '{asked}' (found: {', '.join(columns)}); say another --{what}-column.")
    by_name = {column.casefold().strip(): column for column in reversed(columns)}
    found = next((by_name[name] for name in usual if name in by_name), None)
    if found is None:
        raise DataError(
            f"{where}: no column is named like the {what} (found: {', '.join(columns)}); say --{what}-column."
        )
    return found


def arrange_by_declared_tables(tables: Mapping[str, bytes], images: list[str], source: Source) -> Layout | None:
    """Read `metadata.*` and StyleGAN's `dataset.json`; None where there is none, or none with labels."""
    for path, data in tables.items():
        if path.rpartition("/")[2] == "dataset.json":
            labels = _parse_json(data, f"{source.path}: {path}").get("labels") if data.lstrip()[:1] == b"{" else None
            if isinstance(labels, list) and labels:
                rows = _stylegan_rows(labels, f"{source.path}: {path}")
                return _arrange_rows({path: rows}, images, ("file_name", "label"), source)
    declared = {path: data for path, data in tables.items() if path.rpartition("/")[2] in _DECLARED}
    by_table = {path: _parse_table(path, data, f"{source.path}: {path}") for path, data in declared.items()}
    by_table = {path: rows for path, rows in by_table.items() if rows}
    if not by_table:
        return None
    path, rows = next(iter(by_table.items()))
    where, columns = f"{source.path}: {path}", list(rows[0])
    if "file_name" not in columns:
        return None
    try:
        label = choose_column(
            [c for c in columns if c != "file_name"], source.options.label_column, LABEL_COLUMNS, "label", where
        )
    except DataError:
        others = [column for column in columns if column not in ("file_name", "split")]
        if source.options.label_column is not None:
            raise
        if len(others) != 1 or not all("/" not in file for file in images):
            return None  # captions and the like: folders may name the classes
        label = others[0]
    return _arrange_rows(by_table, images, ("file_name", label), source)


def arrange_by_other_tables(tables: Mapping[str, bytes], images: list[str], source: Source) -> Layout | None:
    """Read the table that names most images; None where none does."""
    best, astray = _find_table(tables, images, source)
    if best is None:
        if astray and not any("/" in image for image in images):  # no folders name classes either
            raise DataError(astray)
        return None
    path, rows, column = best
    others = [name for name in rows[0] if name != column]
    if source.options.label_column is None and len(others) == 1:
        label = others[0]
    else:
        try:
            label = choose_column(others, source.options.label_column, LABEL_COLUMNS, "label", f"{source.path}: {path}")
        except DataError:
            one_hot = [] if source.options.label_column else _find_one_hot(rows, others)
            if not one_hot:
                raise
            label = f"the one-hot columns {list_first(one_hot)}"
            rows = [{**row, label: next(name for name in one_hot if float(row[name]))} for row in rows]
            return _arrange_rows({path: rows}, images, (column, label), source, label)
    return _arrange_rows({path: rows}, images, (column, label), source)


def _find_one_hot(rows: list[Row], columns: list[str]) -> list[str]:
    """Find two or more columns of zeros and ones with a single one in every row; none where there are no such."""
    bits = ("0", "1", "0.0", "1.0")
    found = [
        name for name in columns if not split_role(name) and all(str(row.get(name)).strip() in bits for row in rows)
    ]
    return found if len(found) > 1 and all(sum(float(row[name]) for name in found) == 1 for row in rows) else []


def find_passed_over_table(tables: Mapping[str, bytes], images: list[str], source: Source) -> str | None:
    """Find the path of a CSV or TSV that names most of the images, though folders name their classes."""
    tables = {path: data for path, data in tables.items() if path.endswith((".csv", ".tsv"))}
    try:
        best, _ = _find_table(tables, images, source)
    except DataError:  # it lacks the column asked for
        return None
    if best is None:
        return None
    path, rows, column = best
    index = _Index(images, path)
    named = {index.find(row.get(column)) for row in rows} - {None}
    return path if len(rows[0]) > 1 and 2 * len(named) > len(images) else None


_Found = tuple[str, list[Row], str]
"""A table's path, its rows, and the column of file names."""


def _find_table(tables: Mapping[str, bytes], images: list[str], source: Source) -> tuple[_Found | None, str]:
    """Find the table that names most images, and what is wrong with one whose files are not there."""
    best: _Found | None = None
    most, astray = 0, ""
    for path, data in sorted(tables.items(), key=lambda item: -len(item[1]))[:_TABLES_TRIED]:
        where = f"{source.path}: {path}"
        try:
            rows = _parse_table(path, data, where)
        except DataError:
            continue
        if not rows:
            continue
        try:
            column = choose_column(rows[0], source.options.image_column, _FILE_COLUMNS, "image", where)
        except DataError:
            if source.options.image_column is not None:
                raise
            continue
        index = _Index(images, path)
        found = sum(index.find(row.get(column)) is not None for row in rows)
        if not found and images and _has_file_names(rows, column):
            first = list_first(str(row.get(column)) for row in rows)
            astray = (
                f"{where}: none of the {len(rows)} files that it names is there ({first}); mend its column '{column}'."
            )
        if found > most:
            most, best = found, (path, rows, column)
    return best, astray


def _has_file_names(rows: list[Row], column: str) -> bool:
    """Whether a column holds names of image files."""
    return all(extension_of(str(row.get(column))) in EXTENSIONS for row in rows)


class _Index:
    """Finds images by what a table calls them: a path from the table's folder or the top, with or without extension."""

    def __init__(self, images: list[str], table: str) -> None:
        self._folder = table.rpartition("/")[0]
        self._paths = set(images)
        names = Counter(path.rpartition("/")[2] for path in images)
        stems = Counter(path.rpartition(".")[0].rpartition("/")[2] for path in images)
        self._by_stem_path = {path.rpartition(".")[0]: path for path in images}
        self._by_name = {path.rpartition("/")[2]: path for path in images if names[path.rpartition("/")[2]] == 1}
        self._by_stem = {
            stem: path for path in images if stems[stem := path.rpartition(".")[0].rpartition("/")[2]] == 1
        }

    def find(self, value: Any) -> str | None:
        """Return an image's path, or None."""
        text = str(value).strip().replace("\\", "/").removeprefix("./")
        below = f"{self._folder}/{text}" if self._folder else text
        for path in (below, text):
            if path in self._paths:
                return path
            if path in self._by_stem_path:
                return self._by_stem_path[path]
        name = text.rpartition("/")[2]
        return self._by_name.get(name) or self._by_stem.get(name)


def _arrange_rows(
    tables: Mapping[str, list[Row]], images: list[str], columns: tuple[str, str], source: Source, said: str = ""
) -> Layout:
    file_column, label_column = columns
    asked = source.options.split
    found: dict[str, Labelled] = {}
    missing: list[str] = []
    doubled: list[str] = []
    for path, rows in tables.items():
        index = _Index(images, path)
        for row in rows:
            key = index.find(row.get(file_column))
            label = row.get(label_column)
            if label is None:
                raise DataError(f"{source.path}: {path}: '{row.get(file_column)}' has no '{label_column}'; fill it in.")
            if key is None:
                missing.append(str(row.get(file_column)))
            elif key in found and found[key].label != label:
                doubled.append(key)
            else:
                split = str(row["split"]).strip() if "split" in row else name_split(key.split("/")[:-1], asked)
                found[key] = Labelled(key, label, split)
    table = list_first(tables)
    where = f"{source.path}: {table}"
    faults = []
    if missing:
        faults.append(Fault(f"{table} names '{missing[0]}', which is not there", tuple(missing[1:])))
    if doubled:
        faults.append(Fault(f"{table} gives '{doubled[0]}' two labels", tuple(doubled[1:])))
    remarks = [f"labels are those of {table}, " + (said or f"column '{label_column}'")]
    if rest := [file for file in images if file not in found]:
        remarks.append(f"{len(rest)} images that it does not name were passed over ({rest[0]})")
    texts = {str(image.label).strip() for image in found.values()}
    numbers = all(isinstance(image.label, str) and _is_whole(image.label) for image in found.values())
    numbers = numbers and len({int(text) for text in texts}) == len(texts)  # 7 and 007 are two classes
    labelled = [
        Labelled(image.key, int(image.label) if numbers else image.label, image.split)
        for image in sorted(found.values(), key=lambda image: image.key)
    ]
    if not labelled:
        raise DataError(f"{where}: none of the {len(missing)} files that it names is there ({list_first(missing)}).")
    layout = arrange_labelled(labelled, None, where, remarks, asked)
    return Layout(layout.train, layout.test, layout.remarks, tuple(faults))


def _is_whole(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit() and len(text) < 18


def name_split(words: Iterable[str], asked: str | None) -> str:
    """Return the first word that is a split asked for, or named like one; "" where none is."""
    wanted = [name.strip() for name in asked.split(",")] if asked else []
    return next((word for word in words if word in wanted or split_role(word)), "")


def _stylegan_rows(labels: list[Any], where: str) -> list[Row]:
    rows: list[Row] = []
    for pair in labels:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int)):
            raise DataError(f"{where}: {str(pair)[:60]!r} among its labels, expected [file, whole number].")
        rows.append({"file_name": pair[0], "label": pair[1]})
    return rows


def _parse_table(path: str, data: bytes, where: str) -> list[Row]:
    """Read a table's rows; none where it is another kind of JSON."""
    if path.endswith((".csv", ".tsv")):
        return list(_parse_csv(data, where))
    if path.endswith(".jsonl"):
        rows = [_parse_json(line, where) for line in data.splitlines() if line.strip()]
        return [row for row in rows if isinstance(row, dict)]
    found = _parse_json(data, where)
    if isinstance(found, dict) and found and all(isinstance(value, str | int) for value in found.values()):
        return [{"file_name": key, "label": value} for key, value in found.items()]
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _parse_csv(data: bytes, where: str) -> Iterator[Row]:
    text = _decode_text(data, where)
    start = text[:4096]
    delimiter = max(",;\t", key=start.partition("\n")[0].count)
    try:
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter):
            yield {str(key).strip(): value for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise DataError(f"{where}: not a table that can be read ({error}).") from error


def _parse_json(data: bytes, where: str) -> Any:
    try:
        return json.loads(_decode_text(data, where))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON that can be read ({str(error)[:80]}).") from error


def _decode_text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not text in UTF-8 ({error.reason}); save it as UTF-8.") from error
