"""Parquet with a column of encoded images and one of labels: one file, or a folder of them in the Hugging Face layout.

Names of classes are those of the feature ClassLabel in the file's Hugging Face metadata. A file's split is told by how
its name begins (`data/train-00000-of-00002.parquet`) or by its folder.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dim.data.classes.class_names import read_class_names
from dim.data.classes.columns import COLUMN_OPTIONS, LABEL_COLUMNS, choose_typed_column
from dim.data.classes.labelled import Labelled, arrange_labelled
from dim.data.classes.layout import Layout, list_first, split_role
from dim.data.classes.split_column import SplitColumn, find_split_column
from dim.data.classes.splits import choose_splits
from dim.data.files.names import list_missing_shards
from dim.data.image_set import RawSet, Source
from dim.data.images.pictures import read_pictures
from dim.data.limits import MAX_FILE_BYTES
from dim.runtime.errors import DataError, MissingExtraError, describe_error

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

IMAGE_COLUMNS = ("image", "images", "img", "picture", "pixels", "png", "jpg", "jpeg", "x")
_ROWS = 256


def list_parquet(path: Path) -> list[Path]:
    """List the Parquet files that a path names: itself, or those in a folder and the folders in it, by name."""
    if path.is_dir():
        found = [*path.glob("*.parquet"), *path.glob("*/*.parquet"), *path.glob("*/*/*.parquet")]
        return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))
    return [path] if path.suffix.lower() == ".parquet" and path.is_file() else []


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    names: tuple[str, ...] | None
    remarks: tuple[str, ...]


class _Files:
    """The rows of several Parquet files."""

    def __init__(self, source: Source, files: list[Path]) -> None:
        self._source, self._root = source, source.path if source.path.is_dir() else source.path.parent
        by_split: dict[str, list[Path]] = {}
        for file in files:
            by_split.setdefault(_split_of(file, self._root), []).append(file)
        column = self._find_split_column(by_split)
        if column is None and "" in by_split and (len(by_split) > 1 or source.options.split is not None):
            raise DataError(
                f"{source.path}: {list_first(str(f.name) for f in by_split[''])} begins with the name of no split, as "
                "train-00000.parquet would; rename it, or name the files of one split alone."
            )
        self._split_column = column
        if column is None:
            train, test, self._remarks = choose_splits(by_split, source.options.split, str(source.path))
            self._files = [(file, "train") for file in by_split[train]]
            self._files += [(file, "test") for file in (by_split[test] if test else [])]
        else:
            self._remarks = (f"splits are those of the column '{column.name}'",)
            self._files = [(file, "") for file in files]
        if source.path.is_dir() and (absent := list_missing_shards(files)):
            self._remarks += (f"{len(absent)} files of the set are missing ({list_first(absent)})",)
        self._labelled: dict[str, Labelled] = {}
        self._columns: _Columns | None = None

    def _find_split_column(self, by_split: dict[str, list[Path]]) -> SplitColumn | None:
        """Find a column of splits in files that are all of one split by their names, or of none."""
        options, found = self._source.options, None
        for split, files in by_split.items():
            with _opened(files[0]) as file:
                features = _features(file.schema_arrow)
                names = [
                    name for name in file.schema_arrow.names if name not in (options.image_column, options.label_column)
                ]

            def list_values(name: str, files: list[Path] = files, features: dict[str, Any] = features) -> list[Any]:
                return [value for path in files for value in _list_values(path, name, features)]

            found = find_split_column(names, list_values, options.split, str(self._source.path))
            if found and len(by_split) > 1:
                said = {found.read(value) for value in list_values(found.name)} - {""}
                if other := sorted(value for value in said if split_role(value) != split_role(split)):
                    raise DataError(
                        f"{files[0]}: its column '{found.name}' says '{other[0]}' and its name '{split}'; rename the "
                        "file where the column is right, else the column."
                    )
        return found if len(by_split) == 1 else None

    def give(self) -> Iterator[tuple[str, bytes]]:
        for path, split in self._files:
            with _opened(path) as file:
                columns = _choose_columns(
                    file.schema_arrow, self._source, str(path), self._split_column.name if self._split_column else ""
                )
                if self._columns is not None and columns != self._columns:
                    raise DataError(f"{path}: other columns or class names than the file before; make them alike.")
                self._columns = columns
                row = 0
                splits = self._split_column
                wanted = [columns.image, columns.label, *([splits.name] if splits else [])]
                names = _names_of(_features(file.schema_arrow), splits.name) if splits else None
                for batch in file.iter_batches(_ROWS, columns=wanted):
                    images, labels, *cells = (batch.column(name).to_pylist() for name in wanted)
                    told = [splits.read(_name(cell, names)) for cell in cells[0]] if splits else [split] * len(labels)
                    for image, label, split in zip(images, labels, told, strict=True):
                        key = f"{path.relative_to(self._root)}, row {row}"
                        row += 1
                        data = _image_bytes(image, f"{self._source.path}: {key}", columns.image)
                        if label is None:
                            raise DataError(f"{self._source.path}: {key}: the label is empty; fill it in.")
                        self._labelled.setdefault(key, Labelled(key, label, split))
                        yield key, data

    def arrange(self) -> Layout:
        columns = self._columns
        names = (columns.names if columns else None) or read_class_names(self._root)
        remarks = [f"{len(self._labelled)} rows of {len(self._files)} Parquet files", *self._remarks]
        remarks += columns.remarks if columns else ()
        asked = self._source.options.split if self._split_column else None
        layout = arrange_labelled(self._labelled.values(), names, str(self._source.path), remarks, asked)
        return replace(layout, heeds=COLUMN_OPTIONS)


def read_parquet(source: Source) -> RawSet:
    """Read a Parquet file or a folder of them.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: a file is damaged, a column or a split is not there, or as `read_pictures`.
    """
    return read_pictures(source, _Files(source, list_parquet(source.path)))


def _split_of(file: Path, root: Path) -> str:
    stem = file.name.partition(".")[0]
    words = (stem, stem.split("-")[0], stem.split("_")[0], *reversed(file.relative_to(root).parts[:-1]))
    return next((word for word in words if split_role(word)), "")


def _opened(path: Path) -> "pyarrow.parquet.ParquetFile":
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "read Parquet files") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({describe_error(error)}).") from error


def _choose_columns(schema: "pyarrow.Schema", source: Source, where: str, split: str) -> _Columns:
    features, asked = _features(schema), source.options
    typed = {
        kind: [name for name in schema.names if features.get(name, {}).get("_type") == kind and name != split]
        for kind in ("Image", "ClassLabel")
    }
    image, doubts = choose_typed_column(schema.names, typed["Image"], asked.image_column, IMAGE_COLUMNS, "image", where)
    label, more = choose_typed_column(
        schema.names, typed["ClassLabel"], asked.label_column, LABEL_COLUMNS, "label", where
    )
    names = features.get(label, {}).get("names")
    return _Columns(image, label, tuple(map(str, names)) if isinstance(names, list) else None, (*doubts, *more))


def _features(schema: "pyarrow.Schema") -> dict[str, dict[str, Any]]:
    """Return the Hugging Face features by column; none where the file has no such metadata."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def _names_of(features: dict[str, dict[str, Any]], column: str) -> list[str] | None:
    names = features.get(column, {}).get("names")
    return [str(name) for name in names] if isinstance(names, list) else None


def _name(value: Any, names: list[str] | None) -> Any:
    """Return the name that a number stands for, where there are names."""
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _list_values(path: Path, column: str, features: dict[str, dict[str, Any]]) -> list[Any]:
    """List the different values of a column of numbers, text or yes and no; none of another."""
    with _opened(path) as file:
        if column not in file.schema_arrow.names or file.schema_arrow.field(column).type.num_fields:
            return []
        if str(file.schema_arrow.field(column).type) in ("binary", "large_binary"):
            return []
        values = file.read(columns=[column]).column(0).unique().to_pylist()
    return [_name(value, _names_of(features, column)) for value in values]


def _image_bytes(value: Any, where: str, column: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        if len(data) > MAX_FILE_BYTES:
            raise DataError(f"{where}: more than {MAX_FILE_BYTES} bytes, which is the limit for one file.")
        return data
    kind = "a path without bytes" if isinstance(value, dict) else type(value).__name__
    raise DataError(
        f"{where}: the column '{column}' holds {kind}, expected encoded images; say another --image-column."
    )
