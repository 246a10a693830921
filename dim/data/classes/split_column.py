"""Finds the column of splits in a table or dataset."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dim.data.classes.layout import list_first, split_role
from dim.runtime.errors import DataError

_USUAL = ("split", "splits", "set", "subset", "partition", "usage", "phase", "mode", "dataset") + (
    "split_name",
    "data_split",
    "train_test",
)
_FLAGS = {
    "is_train": ("test", "train"),
    "is_training": ("test", "train"),
    "is_test": ("train", "test"),
    "is_valid": ("train", "validation"),
    "is_val": ("train", "validation"),
}
"""Columns of yes and no: the splits of no and of yes."""
_NO, _YES = frozenset(("0", "0.0", "false", "no")), frozenset(("1", "1.0", "true", "yes"))


@dataclass(frozen=True)
class SplitColumn:
    """A column that says the split."""

    name: str
    flags: tuple[str, str] | None = None
    """The splits of no and of yes, where it holds these."""

    def read(self, value: Any) -> str:
        """Return the split that a cell says, "" for an empty one."""
        text = _to_text(value)
        return self.flags[text.casefold() in _YES] if self.flags and text else text


def find_split_column(
    columns: Iterable[str], list_values: Callable[[str], Iterable[Any]], asked: str | None, where: str
) -> SplitColumn | None:
    """Find the column of splits: one with a usual name whose values are usual names of splits, or those asked for.

    Args:
        columns: those that may be it.
        list_values: gives the values of a column.
        asked: the splits to read, one name or two joined by a comma; None for those with usual names.
        where: stands for the source in messages.

    Raises:
        DataError: a column called `split` has other values, and none is asked for.
    """
    by_name = {re.sub(r"[\s-]+", "_", column.strip().casefold()): column for column in reversed(list(columns))}
    wanted = {name.strip() for name in asked.split(",")} if asked else set()
    for name in _USUAL:
        values = {_to_text(value) for value in list_values(by_name[name])} - {""} if name in by_name else set()
        if values and (values & wanted or all(map(split_role, values)) or (wanted and name == "split")):
            return SplitColumn(by_name[name])
        if values and name == "split":
            raise DataError(
                f"{where}: the column '{by_name[name]}' holds no usual names of splits ({list_first(sorted(values))}): "
                "say --split TRAIN,TEST with two of these, or rename the column where it says no split."
            )
    for name, flags in _FLAGS.items():
        values = {_to_text(value).casefold() for value in list_values(by_name[name])} if name in by_name else set()
        if values and values <= _NO | _YES:
            return SplitColumn(by_name[name], flags)
    return None


def _to_text(value: Any) -> str:
    return "" if value is None else str(value).strip()
