"""WebDataset: tar files in which files of one key belong together, `<key>.png` and `<key>.cls`, `.json` or `.txt`.

A source is one such tar, or a folder of them. A shard's split is told by how its name begins (`train-000000.tar`).
Integer labels are named by `classes.json` in the same folder, where there is one.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from dim.data.classes.class_names import read_class_names
from dim.data.classes.columns import LABEL_COLUMNS, choose_column, name_other_columns
from dim.data.classes.labelled import Labelled, arrange_labelled, is_whole, name_split, read_numbers
from dim.data.classes.layout import Layout, list_first
from dim.data.files.archive import iterate_entries
from dim.data.files.names import EXTENSIONS, list_missing_shards
from dim.data.image_set import RawSet, Source
from dim.data.images.pictures import read_pictures
from dim.data.limits import MAX_FILE_BYTES
from dim.runtime.errors import DataError

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
_LABELS = (".cls", ".json", ".txt")
_MAX_LABEL_BYTES = 2**20
_PEEKED = 64


def is_webdataset(path: Path) -> bool:
    """Whether a path is a tar, or a folder of tars, whose files come in pairs of image and label."""
    if path.is_dir():
        shards = list_shards(path)
        return bool(shards) and is_webdataset(shards[0])
    if not path.name.lower().endswith(_TAR_SUFFIXES):
        return False
    found: dict[str, set[str]] = {}
    try:
        for entry in islice(iterate_entries(path), _PEEKED):
            if not entry.is_folder:
                key, extension = _split_key(entry.path)
                found.setdefault(key, set()).add(extension)
    except DataError:
        return False
    return any(kinds & EXTENSIONS and kinds & set(_LABELS) for kinds in found.values())


def list_shards(folder: Path) -> list[Path]:
    """List the tar files in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(_TAR_SUFFIXES) and path.is_file())


def _split_key(path: str) -> tuple[str, str]:
    """Split at the first dot of the file's name, as WebDataset does."""
    folder, slash, name = path.rpartition("/")
    key, dot, extension = name.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{extension.lower()}"


class _Shards:
    """The images of all shards, and the labels beside them."""

    def __init__(self, source: Source, shards: list[Path]) -> None:
        self._source, self._shards = source, shards
        self._images: dict[str, str] = {}
        self._labels: dict[str, int | str] = {}
        self._origins: dict[str, str] = {}
        """The extension of the file that a label is from."""
        self._column, self._others = "", ""  # of the labels in JSON

    def give(self) -> Iterator[tuple[str, bytes]]:
        for shard in self._shards:
            for entry in iterate_entries(shard):
                if entry.is_folder:
                    continue
                key, extension = _split_key(entry.path)
                sample = f"{shard.name}/{key}"
                if extension in EXTENSIONS:
                    if self._images.setdefault(sample, sample + extension) != sample + extension:
                        raise DataError(f"{shard}: the key '{key}' has two images; leave one out.")
                    yield sample + extension, entry.read(MAX_FILE_BYTES)
                elif extension in _LABELS:
                    where, data = f"{shard}: {entry.path}", entry.read(_MAX_LABEL_BYTES)
                    if sample not in self._labels:
                        self._note_label(sample, extension, data, where)
                        self._origins[sample] = extension
                    elif {extension, self._origins[sample]} == {".cls", ".json"}:
                        self._compare_label(sample, extension, data, where)

    def _note_label(self, sample: str, extension: str, data: bytes, where: str) -> None:
        try:
            text = data.decode().strip()
            if extension == ".json":
                row = json.loads(text)
                if not isinstance(row, dict):
                    raise DataError(f"{where}: {text[:40]!r}, expected an object with the label.")
                value = row[self._choose_column(row, where)]
                if isinstance(value, bool) or not isinstance(value, int | str):
                    raise DataError(f"{where}: the label is {str(value)[:40]!r}, expected a whole number or text.")
                self._labels[sample] = value
            else:
                self._labels[sample] = text
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: the label cannot be read ({str(error)[:80]}).") from error

    def _compare_label(self, sample: str, extension: str, data: bytes, where: str) -> None:
        """Refuse a second label that is of the kind of the first, and another."""
        first, text = str(self._labels[sample]).strip(), data.decode(errors="replace").strip()
        if extension == ".json":
            try:
                row = json.loads(text)
                usual = (*LABEL_COLUMNS, "cls")
                text = str(row[choose_column(row, self._source.options.label_column, usual, "label", where)]).strip()
            except (DataError, ValueError, RecursionError, TypeError):
                return  # no label
        numbers = is_whole(first), is_whole(text)
        if (int(first) != int(text)) if all(numbers) else (first != text and not any(numbers)):
            raise DataError(
                f"{where}: the label is '{text}', and that in {self._origins[sample]} is '{first}'; fix or remove one."
            )

    def _choose_column(self, row: dict[str, Any], where: str) -> str:
        asked, usual = self._source.options.label_column, (*LABEL_COLUMNS, "cls")
        column = choose_column(row, asked, usual, "label", where)
        if column != (self._column or column):
            raise DataError(
                f"{where}: its label is in '{column}', and those before are in '{self._column}'; say --label-column."
            )
        self._column, self._others = column, name_other_columns(row, column, asked, usual, "label")
        return column

    def _refuse_unlike_shards(self, where: str) -> None:
        """Refuse shards whose text labels are all numbers beside shards where none is."""
        kinds: dict[str, set[bool]] = {}
        for sample, label in self._labels.items():
            if isinstance(label, str):
                kinds.setdefault(sample.partition("/")[0], set()).add(is_whole(label))
        numbers, texts = ([shard for shard, kind in kinds.items() if kind == {one}] for one in (True, False))
        if numbers and texts:
            raise DataError(
                f"{where}: labels are numbers in {len(numbers)} shards ({list_first(numbers)}) and text in "
                f"{len(texts)} ({list_first(texts)}); write all alike."
            )

    def arrange(self) -> Layout:
        where = str(self._source.path)
        bare = [image for sample, image in self._images.items() if sample not in self._labels]
        if bare:
            raise DataError(
                f"{where}: {len(bare)} images have no label beside them ({bare[0]}); expected .cls, .json or .txt."
            )
        asked = self._source.options.split
        remarks = [f"{len(self._shards)} WebDataset shards"]
        if self._source.path.is_dir() and (absent := list_missing_shards(self._shards)):
            remarks.append(f"{len(absent)} files of the set are missing ({list_first(absent)})")
        if lonely := [sample for sample in self._labels if sample not in self._images]:
            remarks.append(f"{len(lonely)} labels have no image beside them ({lonely[0]}) and were passed over")
        if self._others:
            remarks.append(f"labels are those of '{self._column}' in JSON{self._others}")
        self._refuse_unlike_shards(where)
        images = [
            Labelled(image, self._labels[sample], _split_of_shard(sample.partition("/")[0], asked))
            for sample, image in sorted(self._images.items())
        ]
        folder = self._source.path if self._source.path.is_dir() else self._source.path.parent
        layout = arrange_labelled(read_numbers(images), read_class_names(folder), where, remarks, asked)
        return replace(layout, heeds=frozenset(("split", "label_column") if self._column else ("split",)))


def _split_of_shard(name: str, asked: str | None) -> str:
    stem = name.partition(".")[0]
    return name_split((stem, stem.split("-")[0], stem.split("_")[0]), asked)


def read_webdataset(source: Source) -> RawSet:
    """Read a WebDataset tar or a folder of them.

    Raises:
        DataError: an archive is damaged, an image has no label, or as `read_pictures`.
    """
    shards = list_shards(source.path) if source.path.is_dir() else [source.path]
    return read_pictures(source, _Shards(source, shards))
