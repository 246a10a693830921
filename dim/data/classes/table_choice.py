"""Chooses the tables that labels come from if several name images: one, or several that are parts of one set."""

import re
from collections.abc import Iterable
from dataclasses import replace

from dim.data.classes.columns import LABEL_COLUMNS
from dim.data.classes.image_index import ImageIndex
from dim.data.classes.labelled import is_whole
from dim.data.classes.layout import Layout, list_first, split_role
from dim.data.classes.tables import FoundTable, arrange_by_tables
from dim.data.image_set import Source
from dim.runtime.errors import DataError


def arrange_by_chosen_tables(tables: Iterable[FoundTable], images: list[str], source: Source) -> Layout:
    """Take the labels of the table that has some, or of several that are splits or parts of one set.

    Raises:
        DataError: it is open which of several tables counts, or as `arrange_by_tables`.
    """
    chosen, remarks = _choose(tables, images, source)
    layout = arrange_by_tables(chosen, images, source)
    return replace(layout, remarks=(*layout.remarks, *remarks))


def _choose(tables: Iterable[FoundTable], images: list[str], source: Source) -> tuple[list[FoundTable], list[str]]:
    labelled = [table for table in tables if table.label_column]
    if len(labelled) == 1 and source.table:
        return labelled, []
    samples = [table for table in labelled if "submission" in table.path.rpartition("/")[2].casefold()]
    left = [table for table in labelled if table not in samples]
    if not left:
        raise DataError(
            f"{source.path}: {samples[0].path} shows how answers are written, by its name, and no other table has "
            f"labels{_describe_choice(source, samples[:1])}."
        )
    remarks = [f"{table.path} shows how answers are written, by its name, and was passed over" for table in samples]
    if len(left) == 1:
        return left, remarks
    index = ImageIndex(images)
    named = [(table, _find_labels(table, index)) for table in left]
    different: list[tuple[FoundTable, dict[str, str]]] = []
    for table, labels in named:
        if all(labels != others for _, others in different):
            different.append((table, labels))
    usual = {file for table, labels in different if _is_usual(table) for file in labels}
    kept = [(table, labels) for table, labels in different if _is_usual(table) or not labels.keys() <= usual]
    remarks += [f"{table.path} was passed over" for table, _ in different if table not in [kept for kept, _ in kept]]
    _refuse_doubles(kept, source)
    kept.sort(key=lambda item: (split_role(item[0].split) != "train", item[0].path))
    chosen = [table for table, _ in kept]
    if len(chosen) > 1:
        _refuse_unlike(chosen, [set(labels.values()) for _, labels in kept], source)
    return chosen, remarks


def _is_usual(table: FoundTable) -> bool:
    return table.one_hot or table.label_column.casefold().strip() in LABEL_COLUMNS


def _find_labels(table: FoundTable, index: ImageIndex) -> dict[str, str]:
    """Return the labels of a table by image."""
    found = {}
    for row in table.rows:
        if (key := index.find(row.get(table.file_column), table.folder, table.split)) is not None:
            found[key] = str(row.get(table.label_column)).strip()
    return found


def _refuse_doubles(named: list[tuple[FoundTable, dict[str, str]]], source: Source) -> None:
    """Refuse two tables that name the same image."""
    seen: dict[str, tuple[FoundTable, str]] = {}
    for table, labels in named:
        both = [(file, *seen[file]) for file in labels if file in seen]
        if both:
            other = both[0][1]
            odd = [file for file, first, label in both if first is other and label != labels[file]]
            say = f"{len(odd)} with another label ({list_first(odd)})" if odd else f"such as {both[0][0]}"
            raise DataError(
                f"{source.path}: both {other.path} and {table.path} have labels for {len(both)} images, "
                f"{say}{_describe_choice(source, [other, table])}."
            )
        seen |= {file: (table, label) for file, label in labels.items()}


def _refuse_unlike(tables: list[FoundTable], labels: list[set[str]], source: Source) -> None:
    """Refuse tables of different images that are not the splits or the parts of one set by their names."""
    shown = f"{source.path}: {list_first(table.path for table in tables)}"
    are_splits = all(table.split for table in tables)
    names = {re.sub(r"\d+", "", table.path.rpartition("/")[2]).casefold() for table in tables}
    if not are_splits and (len(names) > 1 or any(table.split for table in tables)):
        raise DataError(
            f"{shown} have labels for different images, and their names are neither those of splits (train.csv, "
            f"test.csv) nor of parts (labels_1.csv, labels_2.csv): rename them{_describe_choice(source, tables)}."
        )
    columns = {table.label_column.casefold().strip(): table for table in tables}
    if len(columns) > 1:
        listed = list_first(f"'{table.label_column}' in {table.path}" for table in columns.values())
        raise DataError(
            f"{shown} have labels in different columns ({listed}): give these one name"
            f"{_describe_choice(source, tables)}."
        )
    kinds = [all(map(is_whole, texts)) for texts in labels]
    if len(set(kinds)) > 1:
        numbers, texts = tables[kinds.index(True)], tables[kinds.index(False)]
        raise DataError(f"{shown}: labels are numbers in {numbers.path} and text in {texts.path}; write all alike.")


def _describe_choice(source: Source, tables: list[FoundTable]) -> str:
    """Say how one table alone is read."""
    if not source.path.is_dir():
        return "; leave all but one out of the archive" if len(tables) > 1 else "; leave it out of the archive"
    path = source.path / tables[0].path
    return f"; say --data {path} to read that one alone" + (", or move the others away" if len(tables) > 1 else "")
