"""Splits from a table, for images whose classes come from folders."""

from collections.abc import Iterable
from dataclasses import replace

from dim.data.classes.image_index import ImageIndex
from dim.data.classes.labelled import Labelled, arrange_labelled
from dim.data.classes.layout import Layout, list_first, split_role
from dim.data.classes.tables import FoundTable
from dim.data.image_set import Source
from dim.runtime.errors import DataError


def split_by_tables(layout: Layout, tables: Iterable[FoundTable], images: list[str], source: Source) -> Layout:
    """Split class folders as a table's column of splits says; without such a column the layout stays as it is.

    Raises:
        DataError: the column contradicts split folders, or does not name every image.
    """
    where, asked = str(source.path), source.options.split
    split_of: dict[str, str] = {}
    said = ""
    for table in tables:
        column = table.find_split_column(asked, f"{where}: {table.path}")
        if column is None:
            continue
        index = ImageIndex(images)
        for row in table.rows:
            key = index.find(row.get(table.file_column), table.folder)
            if key is not None:
                split_of[key] = column.read(row.get(column.name))
        said = f"{table.path}, column '{column.name}'"
        break
    if not split_of or (asked is None and not {"train", "test"} & set(map(split_role, split_of.values()))):
        return layout
    if layout.test:
        _compare(layout, split_of, said, where)
        return layout
    labelled = [(file, name) for name, files in layout.train.items() for file in files]
    if rest := [file for file, _ in labelled if file not in split_of]:
        raise DataError(
            f"{where}: splits are those of {said}, which does not name {len(rest)} of {len(labelled)} images "
            f"({list_first(rest)}): name all there, or say {layout.answer} to do without it."
        )
    parts = [Labelled(file, name, split_of[file]) for file, name in labelled]
    split = arrange_labelled(parts, None, where, [f"splits are those of {said}"], asked)
    return replace(layout, train=split.train, test=split.test, remarks=(*layout.remarks, *split.remarks))


def _compare(layout: Layout, split_of: dict[str, str], said: str, where: str) -> None:
    """Refuse a column that puts images into the other split than their folders do."""
    odd = [
        file
        for split, other in ((layout.train, "test"), (layout.test, "train"))
        for files in split.values()
        for file in files
        if split_role(split_of.get(file, "")) == other
    ]
    if odd:
        raise DataError(
            f"{where}: {len(odd)} images are in another split by {said} than by their folders ({list_first(odd)}): "
            f"say {layout.answer} to take that of the folders, or fix the column."
        )
