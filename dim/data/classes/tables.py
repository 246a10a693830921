"""Tables of images and their classes: CSV, TSV, JSON and JSON Lines beside the images.

Declared tables are read whatever the folders are called: `metadata.csv`, `.tsv` or `.jsonl` with a column `file_name`
(Hugging Face), one in each split's folder or one for all, and `dataset.json` with `labels` (StyleGAN). Other tables
(`labels.csv`, `train.csv`, ...) are read where folders name no classes. A column `split` says the split, else folders
named like splits do.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dim.data.classes.columns import COLUMN_OPTIONS, LABEL_COLUMNS, choose_column, name_other_columns
from dim.data.classes.image_index import ImageIndex
from dim.data.classes.labelled import Labelled, arrange_labelled, name_split, read_numbers
from dim.data.classes.layout import Fault, Layout, list_first, split_role
from dim.data.classes.split_column import SplitColumn, find_split_column
from dim.data.classes.table_rows import Row, parse_json, read_rows
from dim.data.image_set import Source
from dim.runtime.errors import DataError

_FILE_COLUMNS = ("file_name", "filename", "file", "path", "image", "image_path", "img", "image_id", "image_name", "id")
_DECLARED = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
_LABEL_WORDS = frozenset(("label", "labels", "annotation", "annotations", "metadata", "meta", "classes", "gt"))
"""What names of tables say beside the split."""
_TABLES_TRIED = 16
_NOTHING = frozenset(("NaN", "nan", "NAN", "NULL", "null", "None", "<NA>"))
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
                layout = arrange_by_tables([_declare(path, rows, "label")], images, source)
                return replace(layout, heeds=frozenset(("split",)))  # its columns have no names
    declared = {path: data for path, data in tables.items() if path.rpartition("/")[2].casefold() in _DECLARED}
    by_table = {path: read_rows(path, data, f"{source.path}: {path}") for path, data in declared.items()}
    by_table = {path: rows for path, rows in by_table.items() if rows}
    if not by_table:
        return None
    path, rows = next(iter(by_table.items()))
    if "file_name" not in rows[0]:
        return None
    first, asked = _declare(path, rows), source.options
    others = [name for name in first.columns if name != "file_name"]
    if asked.label_column is None:
        others = [name for name in others if not first.says_split(name, asked.split)]
    try:
        label = choose_column(others, asked.label_column, LABEL_COLUMNS, "label", f"{source.path}: {path}")
    except DataError:
        if asked.label_column is not None:
            raise
        if len(others) != 1 or not all("/" not in file for file in images):
            return None  # captions and the like: folders may name the classes
        label = others[0]
    return arrange_by_tables([_declare(path, rows, label) for path, rows in by_table.items()], images, source)


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
    split: str = ""
    """The split that its name or its folder's says."""

    @property
    def folder(self) -> str:
        """The folder that it lies in, "" for the top."""
        return self.path.rpartition("/")[0]

    def find_split_column(self, asked: str | None, where: str) -> SplitColumn | None:
        """Find the column of splits; see `dim.data.classes.split_column`."""
        others = [name for name in self.columns if name not in (self.file_column, self.label_column)]
        return find_split_column(others, lambda name: (row.get(name) for row in self.rows), asked, where)

    def has_other_columns(self, asked: str | None) -> bool:
        """Whether it says more than the split."""
        return any(name != self.file_column and not self.says_split(name, asked) for name in self.columns)

    def says_split(self, column: str, asked: str | None) -> bool:
        """Whether a column says the split, or is called so."""
        if column.strip().casefold() == "split":
            return True
        found = find_split_column([column], lambda name: (row.get(name) for row in self.rows), asked, self.path)
        return found is not None


def _declare(path: str, rows: list[Row], label_column: str = "") -> FoundTable:
    return FoundTable(path, rows, list(rows[0]), "file_name", len(rows), label_column)


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
    index = ImageIndex(images)
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


def _look_at_table(path: str, data: bytes, index: ImageIndex, source: Source) -> FoundTable:
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
    split = _find_split_of_name(path, source.options.split)
    num_found = sum(index.find(row.get(column), folder, split) is not None for row in rows)
    if not num_found:
        if called := sorted(index.list_called(rows[0].get(column))):
            raise DataError(
                f"{path}: '{rows[0].get(column)}' is the name of {len(called)} images ({list_first(called)}); write "
                f"paths into its column '{column}', such as {called[0]}."
            )
        first = list_first(str(row.get(column)) for row in rows)
        raise DataError(
            f"{path}: none of the {len(rows)} files that it names is there ({first}); fix its column '{column}'."
        )
    return FoundTable(path, rows, columns, column, num_found, split=split)


def _find_split_of_name(path: str, asked: str | None) -> str:
    """Return the split of a table called as `train.csv`, `test_labels.csv` or `train/labels.csv`, else ""."""
    *folders, name = path.split("/")
    words = [word for word in re.split(r"[\s_.-]+", name.rpartition(".")[0]) if word.casefold() not in _LABEL_WORDS]
    return name_split((" ".join(words), *words[:1], *reversed(folders)), asked)


def _choose_labels(table: FoundTable, source: Source) -> FoundTable:
    asked = source.options.label_column
    others = [name for name in table.columns if name != table.file_column]
    others = others if asked else [name for name in others if not table.says_split(name, source.options.split)]
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
    divided = len(pairs) not in (len(names), len(labels)) and (names & labels or not same_names)
    swapped = any(name != label and label in names and (label, label) not in pairs for name, label in pairs)
    if divided or swapped:
        by_column = f"{table.answer} to take that of the table, or " if table.answer else ""
        raise DataError(
            f"{where}: {len(odd)} of {len(both)} images have another class in {table.origin} than their folder says "
            f"({list_first(odd)}): say {by_column}{folders.answer} to take that of the folder."
        )
    return not odd


def arrange_by_tables(tables: Sequence[FoundTable], images: list[str], source: Source) -> Layout:
    """Take the labels of a table that has some, or of several that name one set together.

    Raises:
        DataError: a label is missing, a column `split` has no usual values, or as `arrange_labelled`.
    """
    asked = source.options.split
    found: dict[str, Labelled] = {}
    missing: list[str] = []
    doubled: list[str] = []
    said_splits: list[str] = []
    blank = 0
    index = ImageIndex(images)
    are_splits = len(tables) > 1 and all(table.split for table in tables)
    for table in tables:
        path, column = f"{source.path}: {table.path}", table.label_column
        splits = table.find_split_column(asked, path)
        if splits and splits.name != "split":
            said_splits.append(f"splits are those of {table.path}, column '{splits.name}'")
        _refuse_words_for_nothing(table, path)
        for row in table.rows:
            called = row.get(table.file_column)
            key = index.find(called, table.folder, table.split)
            label = row.get(column)
            label = label.strip() if isinstance(label, str) else label
            if label is None:
                raise DataError(f"{path}: '{called}' has no '{column}'; fill it in.")
            if key is None:
                missing.append(str(called))
            elif key in found and found[key].label != label:
                doubled.append(key)
            else:
                split = table.split if are_splits else name_split(key.split("/")[:-1], asked)
                split = splits.read(row.get(splits.name)) if splits else split
                blank += bool(splits and not split)
                found[key] = Labelled(key, label, split)
    shown = list_first(table.path for table in tables)
    where = f"{source.path}: {shown}"
    faults = []
    if missing:
        faults.append(Fault(f"{shown} names '{missing[0]}', which is not there", tuple(missing[1:])))
    if doubled:
        faults.append(Fault(f"{shown} gives '{doubled[0]}' two labels", tuple(doubled[1:])))
    label_column, said = tables[0].label_column, tables[0].label_column if tables[0].one_hot else ""
    others = name_other_columns(tables[0].columns, label_column, source.options.label_column, LABEL_COLUMNS, "label")
    remarks = [f"labels are those of {shown}, " + (said or f"column '{label_column}'{others}")]
    remarks += said_splits
    remarks += _describe_rest([file for file in images if file not in found])
    if blank and asked is None:
        remarks.append(f"{blank} images whose split is empty count as training images")
    labelled = read_numbers(sorted(found.values(), key=lambda image: image.key))
    if not labelled:
        raise DataError(f"{where}: none of the {len(missing)} files that it names is there ({list_first(missing)}).")
    layout = arrange_labelled(labelled, None, where, remarks, asked)
    answer = "" if said else f"--label-column {shlex.quote(label_column)}"
    return replace(layout, faults=tuple(faults), heeds=COLUMN_OPTIONS, origin=shown, answer=answer)


def _describe_rest(rest: list[str]) -> list[str]:
    """Say which images no table names; a whole test split may be published without labels."""
    if not rest:
        return []
    folders = {folder for file in rest for folder in file.split("/")[:-1] if split_role(folder)}
    if len(folders) == 1 and all(folders & set(file.split("/")[:-1]) for file in rest):
        return [f"the {len(rest)} images of '{folders.pop()}' have no labels and were passed over ({rest[0]})"]
    return [f"{len(rest)} images that it does not name were passed over ({rest[0]})"]


def _refuse_words_for_nothing(table: FoundTable, where: str) -> None:
    """Refuse what programs write for a missing value, beside labels."""
    labels = [row.get(table.label_column) for row in table.rows]
    words = [label.strip() if isinstance(label, str) else "" for label in labels]
    bad = [number for number, word in enumerate(words, start=1) if word in _NOTHING]
    if bad and len(bad) < len(labels):
        raise DataError(
            f"{where}: row {bad[0]} has the label '{words[bad[0] - 1]}', a word for a missing value "
            f"({len(bad)} rows in all); fill it in, leave the row out, or write another word where it is a class."
        )


def _stylegan_rows(labels: list[Any], where: str) -> list[Row]:
    rows: list[Row] = []
    for pair in labels:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int)):
            raise DataError(f"{where}: {str(pair)[:60]!r} among its labels, expected [file, whole number].")
        rows.append({"file_name": pair[0], "label": pair[1]})
    return rows
