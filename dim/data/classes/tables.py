"""Tables that say which image is of which class: CSV, TSV, JSON and JSON Lines beside the images.

Declared tables are read whatever the folders are called: `metadata.csv`, `.tsv` or `.jsonl` with a column `file_name`
(Hugging Face), one in each split's folder or one for all, and `dataset.json` with `labels` (StyleGAN). Other tables
(`labels.csv`, `train.csv`, ...) are read where folders name no classes. A column `split` says the split, else folders
named like splits do.
"""

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dim.data.classes.columns import COLUMN_OPTIONS, LABEL_COLUMNS, choose_column, name_other_columns
from dim.data.classes.labelled import Labelled, arrange_labelled, name_split, read_numbers
from dim.data.classes.layout import Fault, Layout, list_first, split_role
from dim.data.classes.table_rows import Row, parse_json, read_rows
from dim.data.image_set import Source
from dim.runtime.errors import DataError

_FILE_COLUMNS = ("file_name", "filename", "file", "path", "image", "image_path", "img", "image_id", "image_name", "id")
_DECLARED = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
_TABLES_TRIED = 16
_ROWS_LOOKED_AT = 1000  # for names of columns


def arrange_by_declared_tables(tables: Mapping[str, bytes], images: list[str], source: Source) -> Layout | None:
    """Read `metadata.*` and StyleGAN's `dataset.json`; None where there is none, or none with labels."""
    for path, data in tables.items():
        if path.rpartition("/")[2] == "dataset.json":
            described = parse_json(data, f"{source.path}: {path}") if data.lstrip()[:1] == b"{" else {}
            labels = described.get("labels", [])
            if labels is None:
                raise DataError(
                    f"{source.path}: {path} says that the images have no labels; write them there, or say --layout "
                    "classes where folders name the classes."
                )
            if isinstance(labels, list) and labels:
                rows = _stylegan_rows(labels, f"{source.path}: {path}")
                layout = _arrange_rows({path: rows}, images, ("file_name", "label"), source)
                return replace(layout, heeds=frozenset(("split",)))  # its columns have no names
    declared = {path: data for path, data in tables.items() if path.rpartition("/")[2].casefold() in _DECLARED}
    by_table = {path: read_rows(path, data, f"{source.path}: {path}") for path, data in declared.items()}
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


@dataclass(frozen=True)
class FoundTable:
    """A table that names images."""

    path: str
    rows: list[Row]
    columns: list[str]
    file_column: str
    num_found: int
    """Rows whose image is there."""
    label_column: str = ""
    """Empty where none was found."""
    one_hot: bool = False
    """Whether labels were made of columns of zeros and ones."""


def find_tables(
    tables: Mapping[str, bytes], images: list[str], source: Source
) -> tuple[list[FoundTable], tuple[str, ...]]:
    """Find the tables that name images.

    Returns:
        the tables, those with labels first, among them those that name most images first; and what is wrong with those
        that cannot be used.
    """
    if not tables:
        return [], ()
    index = _Index(images)
    found: list[FoundTable] = []
    problems: list[str] = []
    for path, data in sorted(tables.items(), key=lambda item: -len(item[1]))[:_TABLES_TRIED]:
        try:
            table = _look_at_table(path, data, index, source)
            found.append(table)
            found[-1] = _choose_labels(table, source)
        except DataError as error:
            problems.append(str(error).removesuffix("."))
    return sorted(found, key=lambda table: (not table.label_column, -table.num_found)), tuple(problems)


def _look_at_table(path: str, data: bytes, index: "_Index", source: Source) -> FoundTable:
    rows = read_rows(path, data, path)
    if not rows:
        raise DataError(f"{path}: no rows of file and label.")
    folder, asked = path.rpartition("/")[0], source.options.image_column
    columns = list(dict.fromkeys(name for row in rows[:_ROWS_LOOKED_AT] for name in row))
    if asked is None and any(index.find(cell, folder) for cell in columns):
        raise DataError(
            f"{path}: its first line names no columns ({', '.join(columns)}); put a line such as  file,label  above it."
        )
    column = choose_column(columns, asked, _FILE_COLUMNS, "image", path)
    num_found = sum(index.find(row.get(column), folder) is not None for row in rows)
    if not num_found:
        first = list_first(str(row.get(column)) for row in rows)
        raise DataError(
            f"{path}: none of the {len(rows)} files that it names is there ({first}); mend its column '{column}'."
        )
    return FoundTable(path, rows, columns, column, num_found)


def _choose_labels(table: FoundTable, source: Source) -> FoundTable:
    asked = source.options.label_column
    others = [name for name in table.columns if name != table.file_column and (asked or name != "split")]
    if not others:
        raise DataError(f"{table.path}: no column of labels beside '{table.file_column}'; add one.")
    if asked is None and len(others) == 1:
        return replace(table, label_column=others[0])
    try:
        return replace(table, label_column=choose_column(others, asked, LABEL_COLUMNS, "label", table.path))
    except DataError:
        one_hot = [] if asked else _find_one_hot(table.rows, others)
        if not one_hot:
            raise
        label = f"the one-hot columns {list_first(one_hot)}"
        rows: list[Row] = [{**row, label: next(name for name in one_hot if float(row[name]))} for row in table.rows]
        return replace(table, rows=rows, label_column=label, one_hot=True)


def _find_one_hot(rows: list[Row], columns: list[str]) -> list[str]:
    """Find two or more columns of zeros and ones with a single one in every row; none where there are no such."""
    bits = ("0", "1", "0.0", "1.0")
    found = [
        name for name in columns if not split_role(name) and all(str(row.get(name)).strip() in bits for row in rows)
    ]
    return found if len(found) > 1 and all(sum(float(row[name]) for name in found) == 1 for row in rows) else []


def arrange_by_table(table: FoundTable, images: list[str], source: Source) -> Layout:
    """Take the labels of a table that has some.

    Raises:
        DataError: a label is missing, or as `arrange_labelled`.
    """
    columns = (table.file_column, table.label_column)
    return _arrange_rows({table.path: table.rows}, images, columns, source, table.label_column if table.one_hot else "")


def compare_classes(folders: Layout, table: Layout, where: str, *, same_names: bool) -> bool:
    """Say whether class folders and a table agree on every image that both know.

    Args:
        folders, table: the same images, by folders and by the table.
        where: stands for the source in messages.
        same_names: whether they contradict each other only where both have a class of the same name.

    Raises:
        DataError: they contradict each other: neither only divides the other's classes, or joins or renames them.
    """
    by_folder, by_table = (
        {file: name for split in (layout.train, layout.test) for name, files in split.items() for file in files}
        for layout in (folders, table)
    )
    both = [(file, name, by_table[file]) for file, name in by_folder.items() if file in by_table]
    odd = [f"{file} is '{label}'" for file, name, label in both if name != label]
    pairs = {(name, label) for _, name, label in both}
    names, labels = {name for name, _ in pairs}, {label for _, label in pairs}
    if len(pairs) not in (len(names), len(labels)) and (names & labels or not same_names):
        by_column = f"{table.answer} to take that of the table, or " if table.answer else ""
        raise DataError(
            f"{where}: {len(odd)} of {len(both)} images have another class in {table.origin} than their folder says "
            f"({list_first(odd)}): say {by_column}{folders.answer} to take that of the folder."
        )
    return not odd


class _Index:
    """Finds images by what a table calls them: a path from the table's folder or the top, with or without extension."""

    def __init__(self, images: list[str]) -> None:
        self._paths = set(images)
        names = Counter(path.rpartition("/")[2] for path in images)
        stems = Counter(path.rpartition(".")[0].rpartition("/")[2] for path in images)
        self._by_stem_path = {path.rpartition(".")[0]: path for path in images}
        self._by_name = {path.rpartition("/")[2]: path for path in images if names[path.rpartition("/")[2]] == 1}
        self._by_stem = {
            stem: path for path in images if stems[stem := path.rpartition(".")[0].rpartition("/")[2]] == 1
        }

    def find(self, value: Any, folder: str) -> str | None:
        """Return an image's path, or None; `folder` is that of the table."""
        text = str(value).strip().replace("\\", "/").removeprefix("./")
        below = f"{folder}/{text}" if folder else text
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
    index = _Index(images)
    for path, rows in tables.items():
        for row in rows:
            key = index.find(row.get(file_column), path.rpartition("/")[0])
            label = row.get(label_column)
            label = label.strip() if isinstance(label, str) else label
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
    there = next(iter(tables.values()))[0]
    others = name_other_columns(there, label_column, source.options.label_column, LABEL_COLUMNS, "label")
    remarks = [f"labels are those of {table}, " + (said or f"column '{label_column}'{others}")]
    if rest := [file for file in images if file not in found]:
        remarks.append(f"{len(rest)} images that it does not name were passed over ({rest[0]})")
    labelled = read_numbers(sorted(found.values(), key=lambda image: image.key))
    if not labelled:
        raise DataError(f"{where}: none of the {len(missing)} files that it names is there ({list_first(missing)}).")
    layout = arrange_labelled(labelled, None, where, remarks, asked)
    answer = "" if said else f"--label-column {shlex.quote(label_column)}"
    return replace(layout, faults=tuple(faults), heeds=COLUMN_OPTIONS, origin=table, answer=answer)


def _stylegan_rows(labels: list[Any], where: str) -> list[Row]:
    rows: list[Row] = []
    for pair in labels:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int)):
            raise DataError(f"{where}: {str(pair)[:60]!r} among its labels, expected [file, whole number].")
        rows.append({"file_name": pair[0], "label": pair[1]})
    return rows
