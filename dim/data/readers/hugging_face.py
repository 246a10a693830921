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


class _Rows:
    """The rows of one or two splits."""

    def __init__(self, found: Any, source: Source, note: str) -> None:
        where = str(source.path)
        remarks: tuple[str, ...] = ()
        splits = {"train": found}
        if isinstance(found, Mapping):
            train, test, remarks = choose_splits(found, source.options.split, where)
            splits = {"train": found[train]} | ({"test": found[test]} if test else {})
        elif source.options.split is not None:
            raise DataError(f"{where}: the dataset has no splits, so leave out --split.")
        features = splits["train"].features
        asked = source.options
        typed: dict[str, list[str]] = {"Image": [], "ClassLabel": []}
        for name, feature in features.items():
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
            split: rows.select_columns([image, label]).cast_column(image, decode_later)
            for split, rows in splits.items()
        }
        self._image, self._label, self._where = image, label, where
        self._remarks = [note, *remarks, *doubts, *more]
        self._labelled: dict[str, Labelled] = {}

    def give(self) -> Iterator[tuple[str, bytes]]:
        for split, rows in self._splits.items():
            for number, row in enumerate(rows):
                key = f"{split}, row {number}"
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
        layout = arrange_labelled(self._labelled.values(), self._names, self._where, self._remarks)
        return replace(layout, heeds=COLUMN_OPTIONS)
