"""Reads the rows of a table: CSV, TSV, JSON or JSON Lines, in UTF-8 or the encoding of its byte-order mark."""

import codecs
import csv
import io
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from dim.data.files.names import extension_of
from dim.runtime.errors import DataError

TABLE_EXTENSIONS = frozenset((".csv", ".tsv", ".json", ".jsonl"))
Row = Mapping[str, Any]

_MARKS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATORS = ",;\t|"


def read_rows(path: str, data: bytes, where: str) -> list[Row]:
    """Read a table's rows; none where it has none.

    Args:
        path: its name says what kind of table it is.
        data: the file.
        where: stands for it in messages.

    Raises:
        DataError: it is no text, no JSON, JSON of another form, or its rows do not fit its header.
    """
    text = _decode_text(data, where)
    kind = extension_of(path)
    if kind in (".csv", ".tsv"):
        return _read_csv(text, where)
    found: Any = (
        [_parse(line, where) for line in text.split("\n") if line.strip()] if kind == ".jsonl" else _parse(text, where)
    )
    if isinstance(found, dict) and found and all(isinstance(value, str | int) for value in found.values()):
        return [{"file_name": key, "label": value} for key, value in found.items()]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DataError(
            f"{where}: JSON of another form; expected a list of objects with file and label, or one object of "
            "labels by file."
        )
    return found


def parse_json(data: bytes, where: str) -> Any:
    """Read JSON.

    Raises:
        DataError: it is none.
    """
    return _parse(_decode_text(data, where), where)


def _decode_text(data: bytes, where: str) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise DataError(
            f"{where}: not text in {name} ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error
    if "\0" in text:
        raise DataError(f"{where}: text with zero bytes, as UTF-16 without its mark has; save it as UTF-8.")
    return text


def _read_csv(text: str, where: str) -> list[Row]:
    text = text.lstrip("\r\n")
    first, _, rest = text.partition("\n")
    separator = max(_SEPARATORS, key=first.count)
    if said := re.fullmatch(r'"?sep=(.)"?\s*', first):  # Excel's own line above the header
        separator, text = said[1], rest
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        if doubled := next((name for name in columns if name and columns.count(name) > 1), ""):
            raise DataError(f"{where}: two columns are called '{doubled}'; give each a name of its own.")
        rows: list[Row] = []
        for row in reader:
            if any(row.pop(None, ())):
                raise DataError(
                    f"{where}: line {reader.line_num} has more cells than the header; put text that holds "
                    f"{separator!r} into double quotes."
                )
            if any(row.values()):  # spreadsheets end in empty rows
                rows.append({name.strip(): value for name, value in row.items()})
    except csv.Error as error:
        raise DataError(f"{where}: not a table that can be read ({error}).") from error
    return rows


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=partial(_join_pairs, where))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON that can be read ({str(error)[:80]}); fix or remove it.") from error


def _join_pairs(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, which keeps the last of two values of one key; those that differ are refused."""
    found = dict(pairs)
    for key, value in pairs if len(found) < len(pairs) else ():
        if value != found[key]:
            raise DataError(f"{where}: '{key}' stands there twice, with {value!r} and {found[key]!r}; leave one out.")
    return found
