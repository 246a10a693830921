"""Finds the columns of images and labels in a table or dataset."""

from collections.abc import Iterable

from dim.data.classes.layout import list_first
from dim.runtime.errors import DataError

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
    "coarse_label",
    "dx",
    "diagnosis",
)
COLUMN_OPTIONS = frozenset(("split", "image_column", "label_column"))
"""Fields of `DataOptions` that have a say where there are columns."""


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


def name_other_columns(
    columns: Iterable[str], chosen: str, asked: str | None, usual: tuple[str, ...], what: str
) -> str:
    """Say which columns may be meant too, "" where none may or one was asked for; arguments as in `choose_column`."""
    others = [name for name in columns if name != chosen and name.casefold().strip() in usual]
    return "" if asked is not None or not others else f"; --{what}-column takes others ({list_first(others)})"


def choose_typed_column(
    columns: Iterable[str], typed: list[str], asked: str | None, usual: tuple[str, ...], what: str, where: str
) -> tuple[str, tuple[str, ...]]:
    """Choose a column: the one asked for, the only one of a fitting type, or one with a usual name.

    Args:
        columns: all that there are.
        typed: those whose type says that they are meant.
        asked, usual, what, where: as in `choose_column`.

    Returns:
        its name, and a remark where others may be meant too.

    Raises:
        DataError: as `choose_column`.
    """
    columns = list(columns)
    chosen = typed[0] if asked is None and len(typed) == 1 else choose_column(columns, asked, usual, what, where)
    others = name_other_columns(columns, chosen, asked, (*usual, *(name.casefold().strip() for name in typed)), what)
    return chosen, (f"{what}s are those of the column '{chosen}'{others}",) if others else ()
