"""Trees of image files, on disk or in an archive; `dim.data.classes` finds their classes by folders or tables.

Class folders are sorted by name, images by path, whatever the order of the archive. Images may lie in folders below
their class. Hidden files and what file managers leave behind are passed over; text files beside images are, too, and
said; anything else in a class folder must be an image.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from dim.data.classes.layout import Layout, find_layout, find_only_class
from dim.data.classes.tables import (
    TABLE_EXTENSIONS,
    arrange_by_declared_tables,
    arrange_by_other_tables,
    find_passed_over_table,
)
from dim.data.files.archive import iterate_entries
from dim.data.files.names import EXTENSIONS, extension_of, is_passed_over
from dim.data.image_set import RawSet, Source
from dim.data.images.pictures import read_pictures
from dim.data.limits import MAX_FILE_BYTES, MAX_TABLE_BYTES
from dim.data.options import AUTO, CLASSES
from dim.runtime.errors import DataError

_SPREADSHEETS = frozenset((".xlsx", ".xls", ".ods"))


class _Tree:
    """The files of a folder or archive."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._files: dict[str, None] = {}
        self._folders: dict[str, None] = {}
        self._tables: dict[str, bytes] = {}
        self._table_bytes = 0

    def give(self) -> Iterator[tuple[str, bytes]]:
        for entry in iterate_entries(self._source.path, follow_links=self._source.options.follow_links):
            if is_passed_over(entry.path):
                continue
            if entry.is_folder:
                self._folders[entry.path] = None
                continue
            self._files[entry.path] = None
            extension = extension_of(entry.path)
            if extension in EXTENSIONS:
                yield entry.path, entry.read(MAX_FILE_BYTES)
            elif extension in TABLE_EXTENSIONS and entry.path not in self._tables:
                with suppress(DataError):  # a larger one is no table of ours
                    self._tables[entry.path] = data = entry.read(MAX_TABLE_BYTES - self._table_bytes)
                    self._table_bytes += len(data)

    def arrange(self) -> Layout:
        files, folders, name = list(self._files), list(self._folders), str(self._source.path)
        options = self._source.options
        images = [file for file in files if extension_of(file) in EXTENSIONS]
        if layout := arrange_by_declared_tables(self._tables, images, self._source):
            return layout
        if options.label_column is not None and (
            by_table := arrange_by_other_tables(self._tables, images, self._source)
        ):
            return by_table
        try:
            layout = find_layout(files, folders, name, options.layout, options.split)
        except DataError:
            if by_table := arrange_by_other_tables(self._tables, images, self._source):
                return by_table
            if options.layout == AUTO and options.split is None and (only := find_only_class(files, folders, name)):
                self._refuse_spreadsheet()
                return only
            raise
        num_labelled = sum(len(files) for split in (layout.train, layout.test) for files in split.values())
        by_table = (
            arrange_by_other_tables(self._tables, images, self._source)
            if options.split is None and 2 * num_labelled < len(images)
            else None
        )
        if by_table:
            return by_table
        table = None
        if options.layout == AUTO and options.split is None:
            table = find_passed_over_table(self._tables, images, self._source)
        more = (f"classes are those of the folders; --label-column NAME reads those of {table}",) if table else ()
        return replace(layout, remarks=(*layout.remarks, *more))

    def _refuse_spreadsheet(self) -> None:
        """Refuse to take all images for one class where a spreadsheet may hold their labels."""
        for file in self._files:
            if extension_of(file) in _SPREADSHEETS:
                raise DataError(
                    f"{self._source.path}: the images lie in one folder, and {file} is a spreadsheet, which is not "
                    f"read: save it as CSV there, or say --layout {CLASSES} where all images are of one class."
                )


def read_class_folders(source: Source) -> RawSet:
    """Read a tree of images from a folder, zip, tar, tar.gz or tar.xz.

    Raises:
        DataError: see `iterate_entries`, `find_layout`, `dim.data.classes.tables` and `read_pictures`.
    """
    return read_pictures(source, _Tree(source))
