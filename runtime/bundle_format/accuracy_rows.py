"""Measured accuracy in a manifest: fields that are equal in all rows are written once, the others as a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dim.runtime.errors import BundleError
from dim.runtime.storage import strict_json
from dim.runtime.storage.records import FieldError, from_plain, show_value, to_plain

Row = Mapping[str, Any]
MAX_CELLS = 2**19
"""Values of all rows together, so that a small file cannot become large in memory."""


@dataclass(frozen=True, kw_only=True)
class AccuracyTable:
    """Rows that have the same fields."""

    shared: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are equal in every row."""
    columns: tuple[str, ...] = ()
    """Names of the other fields."""
    rows: tuple[tuple[Any, ...], ...]
    """A value for each column."""

    def __post_init__(self) -> None:
        if len(set(self.columns) | self.shared.keys()) != len(self.columns) + len(self.shared):
            raise FieldError("columns", self.columns, "different names, none of them shared")
        for row in self.rows:
            if len(row) != len(self.columns):
                raise FieldError("rows", row, f"one value for each of {len(self.columns)} columns")


@dataclass(frozen=True, kw_only=True)
class _Tables:
    accuracy: tuple[AccuracyTable, ...]

    def __post_init__(self) -> None:
        cells = sum(len(table.rows) * (len(table.shared) + len(table.columns) + 1) for table in self.accuracy)
        if cells > MAX_CELLS:
            raise FieldError("accuracy", cells, f"at most {MAX_CELLS:,} values in all rows")


def pack_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Turn rows into tables of plain JSON data; rows that follow one another and have the same fields make one.

    Args:
        rows: of plain JSON data.

    Raises:
        BundleError: a row is no object.
    """
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise BundleError(f"The manifest's field accuracy[{number}] is {show_value(row)}; it must be an object.")
    groups: list[list[Row]] = []
    for row in rows:
        if groups and groups[-1][0].keys() == row.keys():
            groups[-1].append(row)
        else:
            groups.append([row])
    return [to_plain(_pack(group)) for group in groups]


def _pack(rows: Sequence[Row]) -> AccuracyTable:
    first = rows[0]
    texts = [{name: strict_json.write_canonical(value) for name, value in row.items()} for row in rows]
    shared = {name for name in first if all(text[name] == texts[0][name] for text in texts)}
    columns = tuple(sorted(first.keys() - shared))
    return AccuracyTable(
        shared={name: first[name] for name in shared},
        columns=columns,
        rows=tuple(tuple(row[name] for name in columns) for row in rows),
    )


def unpack_rows(tables: Any, what: str) -> list[dict[str, Any]]:
    """Turn a manifest's tables back into rows.

    Args:
        tables: plain JSON data of anybody.
        what: names the file, for errors.

    Raises:
        BundleError: they are malformed, or too large.
    """
    found = from_plain(_Tables, {"accuracy": tables}, what).accuracy
    rows = ({**table.shared, **dict(zip(table.columns, row, strict=True))} for table in found for row in table.rows)
    return [dict(sorted(row.items())) for row in rows]


def write_rows_on_lines(block: Mapping[str, Any]) -> bytes:
    """Write a manifest as indented JSON in which every row of accuracy takes one line.

    Args:
        block: the manifest's data, `accuracy` as `pack_rows` returns it; no text in it has control characters.
    """
    lines: list[str] = []

    def hold(row: Any) -> str:
        lines.append(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False))
        return f"\0{len(lines) - 1}\0"

    tables = [{**table, "rows": [hold(row) for row in table["rows"]]} for table in block["accuracy"]]
    text = strict_json.write_indented({**block, "accuracy": tables}).decode()
    for number, line in enumerate(lines):
        text = text.replace(json.dumps(f"\0{number}\0"), line, 1)
    return text.encode()
