"""Trees of image files, on disk or in an archive; `dim.data.classes` finds their classes by folders or tables.

Class folders are sorted by name, images by path, whatever the order of the archive. Images may lie in folders below
their class. Hidden files and files left by file managers are skipped. Text files beside images are skipped with a
message. Anything else in a class folder must be an image.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from dim.data.classes.class_names import are_numbered, list_class_names, name_numbered
from dim.data.classes.columns import LABEL_COLUMNS
from dim.data.classes.layout import Layout, find_layout, find_only_class, list_first
from dim.data.classes.table_choice import arrange_by_chosen_tables
from dim.data.classes.table_rows import TABLE_EXTENSIONS, parse_json
from dim.data.classes.table_splits import split_by_tables
from dim.data.classes.tables import (
    FoundTable,
    arrange_by_declared_tables,
    arrange_by_tables,
    compare_classes,
    find_tables,
)
from dim.data.files.archive import iterate_entries
from dim.data.files.names import EXTENSIONS, extension_of, is_passed_over
from dim.data.image_set import RawSet, Source
from dim.data.images.pictures import read_pictures
from dim.data.limits import MAX_FILE_BYTES, MAX_TABLE_BYTES
from dim.data.options import AUTO, CLASSES
from dim.runtime.errors import DataError

_SPREADSHEETS = frozenset((".xlsx", ".xls", ".ods"))
_PROBLEMS_SHOWN = 3
_PART = re.compile(r"(part|batch|chunk|shard|images?)[ _-]?\d+$", re.IGNORECASE)


class _Tree:
    """The files of a folder or archive."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._files: dict[str, None] = {}
        self._folders: dict[str, None] = {}
        self._tables: dict[str, bytes] = {}
        self._table_bytes = 0
        self._guessed: list[str] = []

    def give(self) -> Iterator[tuple[str, bytes]]:
        for entry in iterate_entries(self._source.path, follow_links=self._source.options.follow_links):
            if is_passed_over(entry.path):
                continue
            if entry.is_folder:
                self._folders[entry.path] = None
                continue
            self._files[entry.path] = None
            if entry.is_guessed:
                self._guessed.append(entry.path)
            extension = extension_of(entry.path)
            if extension in EXTENSIONS:
                yield entry.path, entry.read(MAX_FILE_BYTES)
            elif extension in TABLE_EXTENSIONS and entry.path not in self._tables and self._may_count(entry.path):
                with suppress(DataError):  # a larger one is no table of ours
                    self._tables[entry.path] = data = entry.read(MAX_TABLE_BYTES - self._table_bytes)
                    self._table_bytes += len(data)

    def _may_count(self, table: str) -> bool:
        """Whether a table is the one asked for, where one is, or holds the names of classes."""
        return self._source.table in ("", table) or _holds_names(table)

    def _read_names(self) -> tuple[str, ...] | None:
        found = [path for path in self._tables if _holds_names(path)]
        if len(found) != 1:
            return None
        where = f"{self._source.path}: {found[0]}"
        return list_class_names(parse_json(self._tables[found[0]], where), where)

    def arrange(self) -> Layout:
        layout = self._arrange()
        if are_numbered(layout) and (names := self._read_names()):
            layout = name_numbered(layout, names, str(self._source.path))
        follows = {"follow_links"} if self._source.path.is_dir() else set()
        return replace(layout, heeds=layout.heeds | follows, remarks=(*layout.remarks, *self._doubt_names(layout)))

    def _doubt_names(self, layout: Layout) -> tuple[str, ...]:
        """Return a caution where names of a zip were read by a guess, which class names show best."""
        if not self._guessed:
            return ()
        parts = {part for path in self._guessed for part in path.split("/")}
        classes = [name for name in layout.train if name in parts and not name.isascii()]
        shown = [f"'{name}'" for name in classes or dict.fromkeys(self._guessed)]
        what = "classes" if classes else "files"
        return (
            f"caution: the zip does not say how its names are encoded; {len(shown)} {what} were read by code page 437 "
            f"({list_first(shown)}): where that is wrong, pack it again with names in UTF-8, as zip on Linux, macOS "
            "and 7-Zip with -mcu=on do",
        )

    def _arrange(self) -> Layout:
        files, folders, source = list(self._files), list(self._folders), self._source
        options, name = source.options, str(source.path)
        images = [file for file in files if extension_of(file) in EXTENSIONS]
        by_columns = options.label_column is not None or options.image_column is not None or bool(source.table)
        if options.image_column is None and (by_columns or options.layout == AUTO):
            declared = arrange_by_declared_tables(self._tables, images, source)
            if declared is not None:
                if not by_columns:
                    self._compare_declared(declared, files, folders)
                return declared
        candidates = {path: data for path, data in self._tables.items() if not _holds_names(path)}
        tables, problems = find_tables(candidates, images, source)
        labels = tables[0] if tables and tables[0].label_column else None
        if by_columns and labels is not None:
            return arrange_by_chosen_tables(tables, images, source)
        if by_columns:
            self._refuse_tables(problems)
        try:
            layout = find_layout(files, folders, name, options.layout, options.split)
        except DataError:
            if labels is not None:
                return arrange_by_chosen_tables(tables, images, source)
            if options.layout == AUTO and options.split is not None and tables:
                plain = None
                with suppress(DataError):
                    plain = find_layout(files, folders, name)
                if plain and (split := split_by_tables(plain, tables, images, source)) is not plain:
                    return split  # a table says the splits of class folders
            if not any("/" in image for image in images):
                self._refuse_tables(problems)
                self._refuse_unread_table(_SPREADSHEETS | {".txt"})
            if options.layout == AUTO and options.split is None and (only := find_only_class(files, folders, name)):
                self._refuse_tables(problems)
                self._refuse_unread_table(
                    _SPREADSHEETS, f", or say --layout {CLASSES} where all images are of one class"
                )
                return only
            raise
        if labels is not None and options.layout == AUTO and _are_parts(layout) and 2 * labels.num_found > len(images):
            return arrange_by_chosen_tables(tables, images, source)
        num_labelled = sum(len(files) for split in (layout.train, layout.test) for files in split.values())
        if not num_labelled or (options.split is None and 2 * num_labelled < len(images)):
            if labels is not None:
                return arrange_by_chosen_tables(tables, images, source)
            if not num_labelled:
                self._refuse_tables(problems)
        if options.layout == AUTO and options.split is None:
            layout = replace(layout, remarks=(*layout.remarks, *self._compare(layout, tables, images)))
            layout = split_by_tables(layout, tables, images, source)
        return layout

    def _compare(self, layout: Layout, tables: list[FoundTable], images: list[str]) -> list[str]:
        """Refuse tables that contradict the class folders; say which one with other labels was passed over."""
        others = []
        have_labels = [table.path for table in tables if table.label_column]
        for table in tables:
            agrees = False
            if table.label_column:
                try:
                    by_table = arrange_by_tables([table], images, self._source)
                except DataError:  # a label is missing, say
                    continue
                if len(have_labels) > 1 and self._source.path.is_dir():
                    by_table = replace(by_table, answer=f"--data {self._source.path / table.path}")
                usual = table.one_hot or table.label_column.casefold().strip() in LABEL_COLUMNS
                agrees = compare_classes(layout, by_table, str(self._source.path), same_names=not usual)
            if not agrees and 2 * table.num_found > len(images) and table.has_other_columns(self._source.options.split):
                others.append(table.path)
        return [f"classes are those of the folders; --label-column NAME reads those of {path}" for path in others[:1]]

    def _compare_declared(self, declared: Layout, files: list[str], folders: list[str]) -> None:
        """Refuse a declared table whose classes have the names of class folders and other images."""
        try:
            layout = find_layout(files, folders, str(self._source.path))
        except DataError:  # folders name no classes
            return
        compare_classes(layout, declared, str(self._source.path), same_names=True)

    def _refuse_tables(self, problems: tuple[str, ...]) -> None:
        """Tell what is wrong with the tables, where nothing else says the classes."""
        if problems:
            more = f"; and {len(problems) - _PROBLEMS_SHOWN} more tables" if len(problems) > _PROBLEMS_SHOWN else ""
            raise DataError(f"{self._source.path}: {'; also '.join(problems[:_PROBLEMS_SHOWN])}{more}.")

    def _refuse_unread_table(self, extensions: frozenset[str], more: str = "") -> None:
        """Refuse images without classes where a file of another format may hold their labels."""
        for file in self._files:
            if extension_of(file) in extensions and not file.casefold().startswith(("readme", "licen")):
                raise DataError(
                    f"{self._source.path}: no folders name the classes, and {file} is not read as a table: save it as "
                    f"CSV there, its first line such as  file,label{more}."
                )


def _holds_names(path: str) -> bool:
    return path.rpartition("/")[2] == "classes.json"


def _are_parts(layout: Layout) -> bool:
    """Whether folders are named like parts of one set, as `images_part_1` and `images_part_2`."""
    return all(_PART.search(name) for split in (layout.train, layout.test) for name in split)


def read_class_folders(source: Source) -> RawSet:
    """Read a tree of images from a folder, zip, tar, tar.gz or tar.xz.

    Raises:
        DataError: see `iterate_entries`, `find_layout`, `dim.data.classes.tables` and `read_pictures`.
    """
    return read_pictures(source, _Tree(source))
