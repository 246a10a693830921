"""Class folders, on disk or in an archive: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone.

A single top folder around them is looked through. `val` or `validation` serves as test split where there is no `test`.
Class folders are sorted by name, images by path, whatever the order of the archive. Images may lie in folders below
their class. Hidden files and the droppings of file managers are passed over; text files beside images are, too, and
said; anything else in a class folder must be an image.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.data.archive import iterate_entries
from dim.data.decode import EXTENSIONS, ImageHeader, Images, decode_files, decode_image, read_header
from dim.data.image_set import Labels, RawSet, Source
from dim.data.limits import MAX_FILE_BYTES, MAX_KEPT_BYTES
from dim.data.prepare import check_set_bytes, choose_size
from dim.runtime.errors import DataError

_TRAIN_NAMES = ("train", "training")
_TEST_NAMES = ("test", "testing", "val", "valid", "validation")
_PASSED_OVER = ("__MACOSX", "Thumbs.db", "desktop.ini")
_SIDECARS = frozenset((".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html"))


@dataclass(frozen=True)
class Layout:
    """Where the images of a tree lie: per split, per class, their sorted paths."""

    train: dict[str, list[str]]
    test: dict[str, list[str]]
    remarks: tuple[str, ...]


@dataclass
class _Scan:
    headers: dict[str, ImageHeader | None]
    """Of every file, None where it is not a readable image."""
    problems: dict[str, str]
    folders: list[str]
    kept: dict[str, bytes] | None
    """The files' bytes, or None when they are too many to keep."""


def read_class_folders(source: Source) -> RawSet:
    """Read class folders from a folder, zip, tar, tar.gz or tar.xz.

    Two passes: the first reads every header (so that size, channels and memory are known), the second decodes. Files
    of up to `MAX_KEPT_BYTES` together are kept between the two, which saves unpacking an archive twice.

    Args:
        source: a folder or archive. Without a size `choose_size`'s rule holds; without a channel count it is 1 where
            every image is grey and else 3.

    Raises:
        DataError: see `iterate_entries`, `find_layout` and `decode_image`.
    """
    with warnings.catch_warnings():
        # Pillow's remarks on oddities of single files (it would also guard sizes, by a limit of the whole process).
        warnings.filterwarnings("ignore", module=r"PIL\.")
        scan = _scan(source)
        layout = find_layout(list(scan.headers), scan.folders, str(source.path))
        for remark in layout.remarks:
            source.say(f"{source.name}: {remark}")
        rows = _number_rows(layout)
        good = _select_readable(scan, rows, source)
        size, channels, notes = _choose_form(good, len(rows), source)
        images, decoded = _decode(scan, rows, good, size, channels, source)
    if num_skipped := len(rows) - int(decoded.sum()):
        notes.append(f"{num_skipped} unreadable images were left out")
    for note in notes[1:]:
        source.say(f"{source.name}: {note}")
    return _assemble(source.name, layout, images, decoded, (*notes, *layout.remarks))


def _select_readable(scan: _Scan, rows: dict[str, int], source: Source) -> dict[str, ImageHeader]:
    """Choose the files whose headers were read; refuse others unless they may be skipped."""
    bad = [_describe_problem(scan, file, source.path) for file in rows if scan.headers[file] is None]
    if bad and not source.skip_unreadable:
        raise DataError(bad[0] if len(bad) == 1 else f"{bad[0]} ({len(bad) - 1} more like it)")
    good = {file: header for file in rows if (header := scan.headers[file]) is not None}
    if not good:
        raise DataError(f"{source.path}: no image that can be read")
    return good


def _choose_form(good: dict[str, ImageHeader], num_rows: int, source: Source) -> tuple[int, int, list[str]]:
    """Choose size and channels, and say in notes what the files are and how they are changed."""
    size, resized = choose_size(Counter((header.height, header.width) for header in good.values()), source.size)
    num_grey = sum(header.is_grey for header in good.values())
    channels = source.channels or (1 if num_grey == len(good) else 3)
    check_set_bytes(num_rows, size, channels, source.name)
    notes = [_describe_files(good), *filter(None, [resized])]
    if 0 < num_grey < len(good):
        kept = "made grey" if channels == 1 else "repeated over three channels"
        which = len(good) - num_grey if channels == 1 else num_grey
        notes.append(f"{which} of {len(good)} images ({'colour' if channels == 1 else 'grey'}) were {kept}")
    if num_alpha := sum(header.has_alpha for header in good.values()):
        notes.append(f"{num_alpha} images with transparency were composited on white")
    return size, channels, notes


def _decode(
    scan: _Scan, rows: dict[str, int], good: dict[str, ImageHeader], size: int, channels: int, source: Source
) -> tuple[Images, NDArray[np.bool_]]:
    """Decode all good files: images by row, and which rows have one."""
    images = np.zeros((len(rows), size, size, channels), dtype=np.uint8)
    decoded = np.zeros(len(rows), dtype=bool)
    done = 0

    def decode(row: int, file: str, data: bytes) -> None:
        try:
            images[row] = decode_image(data, f"{source.path}: {file}", size=size, channels=channels)
            decoded[row] = True
        except DataError:
            if not source.skip_unreadable:
                raise

    def count(number: int) -> None:
        nonlocal done
        done += number
        source.progress(f"{source.name}: decoding", done, len(good))

    files = _read_files(source.path) if scan.kept is None else iter(scan.kept.items())
    decode_files(((rows[file], file, data) for file, data in files if file in good), decode, count)
    if done < len(good):
        raise DataError(f"{source.path}: {len(good) - done} files went away while they were read; run it again")
    return images, decoded


def _scan(source: Source) -> _Scan:
    path, name, progress = source.path, source.name, source.progress
    scan = _Scan({}, {}, [], {})
    num_bytes = 0
    for entry in iterate_entries(path):
        if entry.is_folder:
            scan.folders.append(entry.path)
        elif not _is_passed_over(entry.path):
            scan.headers[entry.path] = None
            if _extension(entry.path) in EXTENSIONS:
                data = entry.read(MAX_FILE_BYTES)
                num_bytes += len(data)
                if num_bytes > MAX_KEPT_BYTES:
                    scan.kept = None
                elif scan.kept is not None:
                    scan.kept[entry.path] = data
                try:
                    scan.headers[entry.path] = read_header(data, f"{path}: {entry.path}")
                except DataError as error:
                    scan.problems[entry.path] = str(error)
            if len(scan.headers) % 256 == 0:
                progress(f"{name}: reading headers", len(scan.headers), 0)
    progress(f"{name}: reading headers", len(scan.headers), 0)
    return scan


def _describe_problem(scan: _Scan, file: str, path: Path) -> str:
    by_name = f"{path}: {file}: not an image by its name; remove it or move it out of the class folder"
    return scan.problems.get(file, by_name)


def find_layout(files: list[str], folders: list[str], source: str) -> Layout:
    """Find splits and classes among the paths of a tree.

    Args:
        files: relative paths of all files.
        folders: relative paths of folders, to find classes without images; may be incomplete.
        source: stands for the tree in messages.

    Raises:
        DataError: no class folders, an image outside of them, a class without images, splits of different classes.
    """
    paths = [tuple(p.split("/")) for p in sorted(files) if not _is_passed_over(p)]
    inner = {tuple(p.split("/")) for p in folders if not _is_passed_over(p)} | {p[:-1] for p in paths if len(p) > 1}
    depth, tops = 0, _names_at(inner, 0)
    while len(tops) == 1 and not tops & {*_TRAIN_NAMES, *_TEST_NAMES}:
        depth += 1
        tops = _names_at(inner, depth)
    if not tops:
        raise DataError(f"{source}: no class folders found; expected train/<class>/<images> or <class>/<images>")
    train = next((n for n in _TRAIN_NAMES if n in tops), None)
    test = next((n for n in _TEST_NAMES if n in tops), None)
    if train is None:
        if tops & {"test", "testing"}:
            raise DataError(f"{source}: a test folder without a train folder beside it; name the other one 'train'")
        classes, remarks = _find_classes(paths, inner, depth, source)
        return Layout(classes, {}, tuple(remarks))
    train_classes, remarks = _find_classes(*_select_below(paths, inner, depth, train), depth + 1, source)
    test_classes: dict[str, list[str]] = {}
    if test is not None:
        test_classes, more = _find_classes(*_select_below(paths, inner, depth, test), depth + 1, source)
        remarks += more
        if test not in ("test", "testing"):
            remarks.append(f"the folder '{test}' serves as test split")
    if others := sorted(tops - {train, test}):
        remarks.append(f"passed over beside the splits: {', '.join(others[:5])}")
    if test_classes and train_classes.keys() != test_classes.keys():
        odd = sorted(train_classes.keys() ^ test_classes.keys())[0]
        where = f"'{train}' only" if odd in train_classes else f"'{test}' only"
        raise DataError(f"{source}: the class '{odd}' is in {where}; both splits need the same class folders")
    return Layout(train_classes, test_classes, tuple(remarks))


_Parts = tuple[str, ...]


def _names_at(folders: set[_Parts], depth: int) -> set[str]:
    return {parts[depth] for parts in folders if len(parts) > depth}


def _select_below(paths: list[_Parts], inner: set[_Parts], depth: int, name: str) -> tuple[list[_Parts], set[_Parts]]:
    return (
        [p for p in paths if len(p) > depth + 1 and p[depth] == name],
        {p for p in inner if len(p) > depth + 1 and p[depth] == name},
    )


def _find_classes(
    paths: list[_Parts], inner: set[_Parts], depth: int, source: str
) -> tuple[dict[str, list[str]], list[str]]:
    classes: dict[str, list[str]] = {name: [] for name in sorted(_names_at(inner, depth))}
    sidecars = []
    for parts in paths:
        file = "/".join(parts)
        extension = _extension(file)
        if len(parts) <= depth + 1:
            if len(parts) == depth + 1 and extension in EXTENSIONS:
                raise DataError(f"{source}: {file}: an image outside of any class folder; move it into its class")
        elif extension in _SIDECARS:
            sidecars.append(file)
        else:
            classes[parts[depth]].append(file)
    for name, files in classes.items():
        if not files:
            raise DataError(f"{source}: the class folder '{name}' has no images; add some or remove it")
    remarks = [f"{len(sidecars)} text files beside images were passed over ({sidecars[0]})"] if sidecars else []
    return classes, remarks


def _number_rows(layout: Layout) -> dict[str, int]:
    """Give every file its row: training split first, classes in order, paths in order."""
    files = [file for split in (layout.train, layout.test) for name in split for file in split[name]]
    return {file: row for row, file in enumerate(files)}


def _read_files(path: Path) -> Iterator[tuple[str, bytes]]:
    for entry in iterate_entries(path):
        if not entry.is_folder and _extension(entry.path) in EXTENSIONS:
            yield entry.path, entry.read(MAX_FILE_BYTES)


def _assemble(
    name: str,
    layout: Layout,
    images: Images,
    decoded: NDArray[np.bool_],
    notes: tuple[str, ...],
) -> RawSet:
    train_labels, test_labels = _make_labels(layout.train), _make_labels(layout.test)
    split = len(train_labels)
    train, test = images[:split], images[split:]
    if not decoded.all():
        train, train_labels = train[decoded[:split]], train_labels[decoded[:split]]
        test, test_labels = test[decoded[split:]], test_labels[decoded[split:]]
    return RawSet(
        name=name,
        classes=tuple(layout.train),
        train_images=train,
        train_labels=train_labels,
        test_images=test if layout.test else None,
        test_labels=test_labels if layout.test else None,
        notes=notes,
    )


def _make_labels(split: dict[str, list[str]]) -> Labels:
    return np.repeat(np.arange(len(split), dtype=np.int64), [len(files) for files in split.values()])


def _describe_files(good: dict[str, ImageHeader]) -> str:
    kinds = Counter(_extension(file).removeprefix(".").replace("jpg", "jpeg") for file in good)
    return " and ".join(f"{count} {kind.upper()} files" for kind, count in kinds.most_common())


def _extension(path: str) -> str:
    stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return "." + suffix.lower() if dot and stem else ""


def _is_passed_over(path: str) -> bool:
    return any(part.startswith(".") or part in _PASSED_OVER for part in path.split("/"))
