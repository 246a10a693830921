"""Datasets of the library `datasets`: saved to disk, of the Hugging Face Hub, or in memory.

A dataset of the Hub is `hf://USER/NAME[@REVISION]`. Its revision is resolved to a commit, which the set's note names.
Images are taken as the encoded files that they are, so that they are decoded under this package's own limits.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dim.data.classes.columns import COLUMN_OPTIONS, LABEL_COLUMNS, choose_typed_column
from dim.data.classes.labelled import Labelled, arrange_labelled
from dim.data.classes.layout import Layout, list_first
from dim.data.classes.split_column import find_split_column
from dim.data.classes.splits import choose_splits
from dim.data.image_set import RawSet, Source
from dim.data.images.pictures import read_pictures
from dim.data.limits import MAX_FILE_BYTES
from dim.data.readers.parquet import IMAGE_COLUMNS
from dim.runtime.errors import DataError, MissingExtraError, describe_error

HUB = "hf://"
_ADDRESS = re.compile(r"hf://(?:datasets/)?([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?/?")


def _import_datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "hf", purpose) from None
    return datasets


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def read_saved_dataset(source: Source) -> RawSet:
    """Read a dataset that `save_to_disk` wrote.

    Raises:
        MissingExtraError: the library `datasets` is not installed.
        DataError: it cannot be loaded, or as `read_dataset`.
    """
    datasets = _import_datasets("read a saved dataset")
    try:
        found = datasets.load_from_disk(str(source.path))
    except Exception as error:  # the library raises what its own libraries do
        raise DataError(f"{source.path}: the saved dataset cannot be loaded ({describe_error(error)}).") from error
    return read_dataset(found, source)


def read_hub(source: Source, address: str) -> RawSet:
    """Read a dataset of the Hub.

    Args:
        source: its path stands for the dataset in messages.
        address: `hf://USER/NAME` or `hf://USER/NAME@REVISION`.

    Raises:
        MissingExtraError: the library `datasets` is not installed.
        DataError: the address is malformed, the dataset cannot be had, or as `read_dataset`.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise DataError(f"{address}: expected hf://USER/NAME or hf://USER/NAME@REVISION.")
    name, revision = match.groups()
    datasets = _import_datasets("read a dataset of the Hub")
    source.say(f"{source.name}: reading {name} from the Hugging Face Hub")
    try:
        commit = find_commit(name, revision)
        found = datasets.load_dataset(name, revision=commit)
    except Exception as error:  # as above
        raise DataError(
            f"{address}: cannot be had from the Hub ({describe_error(error)}); check its name and your network."
        ) from error
    note = f"Hugging Face dataset {name} at revision {commit}"
    return read_dataset(found, replace(source, identity=f"{HUB}{name}@{commit}"), note)


def find_commit(name: str, revision: str | None) -> str:
    """Return the commit that a revision of a dataset of the Hub stands for now."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name, revision=revision).sha)


def read_dataset(found: Any, source: Source, note: str = "Hugging Face dataset") -> RawSet:
    """Read a `Dataset` or `DatasetDict` of the library.

    Raises:
        DataError: a column or a split is not there, or as `read_pictures`.
    """
    return read_pictures(source, _Rows(found, source, note))


def _show_names(names: list[str] | None) -> str:
    return list_first(names) if names else "none"


def _name_value(feature: Any, value: Any) -> Any:
    """Return the name that a number of the feature ClassLabel stands for, or the value of another feature."""
    names = getattr(feature, "names", None)
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _list_values(rows: Any, column: str) -> list[Any]:
    """List the different values of a column of numbers, text or yes and no; none of another."""
    feature = rows.features[column]
    if type(feature).__name__ not in ("Value", "ClassLabel") or getattr(feature, "dtype", "") in (
        "binary",
        "large_binary",
    ):
        return []
    return [_name_value(feature, value) for value in rows.unique(column)]


class _Rows:
    """The rows of one or two splits."""

    def __init__(self, found: Any, source: Source, note: str) -> None:
        where = str(source.path)
        remarks: tuple[str, ...] = ()
        splits = {"train": found}
        if isinstance(found, Mapping):
            train, test, remarks = choose_splits(found, source.options.split, where)
            splits = {"train": found[train]} | ({"test": found[test]} if test else {})
        features, asked = splits["train"].features, source.options
        self._split_column = None
        if not isinstance(found, Mapping) or len(found) == 1:
            others = [name for name in features if name not in (asked.image_column, asked.label_column)]
            rows_of_one = splits["train"]
            self._split_column = find_split_column(
                others, lambda name: _list_values(rows_of_one, name), asked.split, where
            )
        if asked.split is not None and not isinstance(found, Mapping) and self._split_column is None:
            raise DataError(f"{where}: the dataset has no splits, so leave out --split.")
        told = self._split_column.name if self._split_column else ""
        if told:
            remarks = (*remarks, f"splits are those of the column '{told}'")
        typed: dict[str, list[str]] = {"Image": [], "ClassLabel": []}
        for name, feature in features.items():
            if name != told:
                typed.setdefault(type(feature).__name__, []).append(str(name))
        image, doubts = choose_typed_column(features, typed["Image"], asked.image_column, IMAGE_COLUMNS, "image", where)
        label, more = choose_typed_column(
            features, typed["ClassLabel"], asked.label_column, LABEL_COLUMNS, "label", where
        )
        names = getattr(features[label], "names", None)
        self._names = tuple(map(str, names)) if names else None
        for split, rows in splits.items():
            if missing := [column for column in (image, label) if column not in rows.features]:
                raise DataError(
                    f"{where}: the {split} split has no column '{missing[0]}' (found: {', '.join(rows.features)}); "
                    "make the splits alike, or say --split TRAIN."
                )
            if type(rows.features[image]).__name__ != "Image":
                raise DataError(f"{where}: the column '{image}' holds no images; say another --image-column.")
            if (theirs := getattr(rows.features[label], "names", None)) != names:
                raise DataError(
                    f"{where}: the class names of the training split ({_show_names(names)}) are not those of the "
                    f"{split} split ({_show_names(theirs)}) in the same order; make them alike."
                )
        decode_later = type(features[image])(decode=False)
        self._splits = {
            split: rows.select_columns([image, label, *([told] if told else [])]).cast_column(image, decode_later)
            for split, rows in splits.items()
        }
        self._image, self._label, self._where = image, label, where
        self._asked = asked.split
        self._remarks = [note, *remarks, *doubts, *more]
        self._labelled: dict[str, Labelled] = {}

    def give(self) -> Iterator[tuple[str, bytes]]:
        column = self._split_column
        for part, rows in self._splits.items():
            for number, row in enumerate(rows):
                key = f"{part}, row {number}"
                split = column.read(_name_value(rows.features[column.name], row[column.name])) if column else part
                label = row[self._label]
                if label is None:
                    raise DataError(f"{self._where}: {key}: the label is empty; fill it in.")
                self._labelled.setdefault(key, Labelled(key, label, split))
                yield key, self._read(row[self._image], key)

    def _read(self, image: Any, key: str) -> bytes:
        data = image.get("bytes") if isinstance(image, Mapping) else None
        path = image.get("path") if isinstance(image, Mapping) else None
        if data is None and path:
            try:
                with open(path, "rb") as file:
                    data = file.read(MAX_FILE_BYTES + 1)
            except OSError as error:
                raise DataError(f"{self._where}: {key}: {path} cannot be read ({describe_error(error)}).") from error
        if not isinstance(data, bytes):
            raise DataError(f"{self._where}: {key}: there is no image; leave the row out.")
        if len(data) > MAX_FILE_BYTES:
            raise DataError(f"{self._where}: {key}: more than {MAX_FILE_BYTES} bytes, which is the limit for one file.")
        return data

    def arrange(self) -> Layout:
        asked = self._asked if self._split_column else None
        layout = arrange_labelled(self._labelled.values(), self._names, self._where, self._remarks, asked)
        return replace(layout, heeds=COLUMN_OPTIONS)
