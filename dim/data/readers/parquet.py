"""Parquet with a column of encoded images and one of labels: one file, or a folder of them in the Hugging Face layout.

Names of classes are those of the feature ClassLabel in the file's Hugging Face metadata. A file's split is told by how
its name begins (`data/train-00000-of-00002.parquet`) or by its folder.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dim.data.classes.class_names import read_class_names
from dim.data.classes.columns import COLUMN_OPTIONS, LABEL_COLUMNS, choose_typed_column
from dim.data.classes.labelled import Labelled, arrange_labelled
from dim.data.classes.layout import Layout, list_first, split_role
from dim.data.classes.splits import choose_splits
from dim.data.image_set import RawSet, Source
from dim.data.images.pictures import read_pictures
from dim.data.limits import MAX_FILE_BYTES
from dim.runtime.errors import DataError, MissingExtraError, describe_error

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

IMAGE_COLUMNS = ("image", "images", "img", "picture", "pixels", "png", "jpg", "jpeg", "x")
_ROWS = 256
_SHARD = re.compile(r"(.*-)([0-9]{5})-of-([0-9]{5})[.]parquet")
_MAX_SHARDS = 100_000


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
        if "" in by_split and (len(by_split) > 1 or source.options.split is not None):
            raise DataError(
                f"{source.path}: {list_first(str(f.name) for f in by_split[''])} begins with the name of no split, as "
                "train-00000.parquet would; rename it, or name the files of one split alone."
            )
        train, test, self._remarks = choose_splits(by_split, source.options.split, str(source.path))
        if source.path.is_dir():
            self._remarks += _find_missing_shards(files)
        self._files = [(file, "train") for file in by_split[train]]
        self._files += [(file, "test") for file in (by_split[test] if test else [])]
        self._labelled: dict[str, Labelled] = {}
        self._columns: _Columns | None = None

    def give(self) -> Iterator[tuple[str, bytes]]:
        for path, split in self._files:
            with _opened(path) as file:
                columns = _choose_columns(file.schema_arrow, self._source, str(path))
                if self._columns is not None and columns != self._columns:
                    raise DataError(f"{path}: other columns or class names than the file before; make them alike.")
                self._columns = columns
                row = 0
                wanted = [columns.image, columns.label]
                for batch in file.iter_batches(_ROWS, columns=wanted):
                    images, labels = (batch.column(name).to_pylist() for name in wanted)
                    for image, label in zip(images, labels, strict=True):
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
        layout = arrange_labelled(self._labelled.values(), names, str(self._source.path), remarks)
        return replace(layout, heeds=COLUMN_OPTIONS)


def read_parquet(source: Source) -> RawSet:
    """Read a Parquet file or a folder of them.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: a file is damaged, a column or a split is not there, or as `read_pictures`.
    """
    return read_pictures(source, _Files(source, list_parquet(source.path)))


def _find_missing_shards(files: list[Path]) -> tuple[str, ...]:
    """Return a remark where files named as 00000-of-00002 are not all there."""
    numbers = [(file, match) for file in files if (match := _SHARD.fullmatch(file.name))]
    there = {(file.parent, match[1], int(match[2]), int(match[3])) for file, match in numbers}
    absent = [
        f"{stem}{number:05d}-of-{count:05d}.parquet"
        for folder, stem, count in sorted({(folder, stem, count) for folder, stem, _, count in there})
        for number in range(min(count, _MAX_SHARDS))
        if (folder, stem, number, count) not in there
    ]
    return (f"{len(absent)} files of the set are missing ({list_first(absent)})",) if absent else ()


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


def _choose_columns(schema: "pyarrow.Schema", source: Source, where: str) -> _Columns:
    features, asked = _features(schema), source.options
    typed = {
        kind: [name for name in schema.names if features.get(name, {}).get("_type") == kind]
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
