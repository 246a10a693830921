"""Decodes labelled image files of any source to arrays, in two passes over the files.

The first pass reads every header, so that size, channels and memory are known; the second decodes. Files of up to
`MAX_KEPT_BYTES` together are kept between the two, which saves unpacking an archive twice. All faults of a source are
reported at once.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dim.data.classes.layout import Fault, Layout
from dim.data.files.names import EXTENSIONS, extension_of
from dim.data.image_set import Images, Labels, RawSet, Source
from dim.data.images.decode import (
    WORD_BITS,
    ImageHeader,
    choose_bits,
    decode_files,
    decode_image,
    find_largest_value,
    read_header,
)
from dim.data.images.decoded import KEPT_FROM_BYTES, NO_ROOM, NewEntry, find_key, new_entry, open_decoded
from dim.data.images.sizes import check_set_bytes, choose_size
from dim.data.limits import MAX_KEPT_BYTES
from dim.execution.large_images import select_images
from dim.runtime.errors import DataError

_NO_IMAGE = "not an image by its name; remove it or move it out of the class folder"
_FAULTS_SHOWN = 8


class Pictures(Protocol):
    """A source of encoded images."""

    def give(self) -> Iterator[tuple[str, bytes]]:
        """Give the key and the bytes of every image file; called twice, and the same both times."""

    def arrange(self) -> Layout:
        """Say which key is of which split and class, once all were given; keys that were not given are no images."""


@dataclass
class _Scan:
    """What the first pass found."""

    pictures: Pictures
    headers: dict[str, ImageHeader]
    """Of every image that can be read."""
    problems: dict[str, str]
    """Why a file's header cannot be read."""
    kept: dict[str, bytes] | None
    """The files' bytes, or None when they are too many to keep."""

    def give(self) -> Iterator[tuple[str, bytes]]:
        """Give the image files once more: those kept in memory, or by reading the source again."""
        return self.pictures.give() if self.kept is None else iter(self.kept.items())


def read_pictures(source: Source, pictures: Pictures) -> RawSet:
    """Decode a source of encoded images.

    Args:
        source: what the user wishes. Without a size `choose_size`'s rule holds; without a channel count it is 1 where
            every image is grey and else 3.
        pictures: the files and their order.

    Raises:
        DataError: from `pictures`, or images that cannot be read.
    """
    key = find_key(source)
    if key is not None and (raw := open_decoded(key, source)) is not None:
        return raw
    said: list[str] = []

    def remember(sentence: str) -> None:
        said.append(sentence.removeprefix(f"{source.name}: "))
        source.say(sentence)

    with warnings.catch_warnings():
        # Pillow's remarks on oddities of single files (it would also guard sizes, by a limit of the whole process).
        warnings.filterwarnings("ignore", module=r"PIL\.")
        plan = _plan(replace(source, say=remember), pictures)
        source.heed(plan.heeds)
        if key is None or plan.num_bytes < KEPT_FROM_BYTES:
            return _decode_in_memory(plan, source)
        with new_entry(key, plan.shape, source) as entry:
            if entry is not None:
                _decode_into(entry, plan, replace(source, say=remember), said)
        # Where there is no entry now, another process's has gone again, or the disk refused.
        return open_decoded(key, source, again=False) or _decode_in_memory(plan, source)


@dataclass
class _Plan:
    """What is to be decoded, into what."""

    scan: _Scan
    layout: Layout
    rows: dict[str, int]
    """The row of every file."""
    good: dict[str, ImageHeader]
    """The files that can be read."""
    shape: tuple[int, int, int, int]
    """`[N, H, W, C]` of the images."""
    bits: int
    notes: list[str]
    heeds: frozenset[str]
    """Options that have a say in it."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape)

    @property
    def num_train(self) -> int:
        return sum(map(len, self.layout.train.values()))


def _plan(source: Source, pictures: Pictures) -> _Plan:
    """Read all headers, and find out what the images will be."""
    scan = _scan(source, pictures)
    layout = pictures.arrange()
    rows = _number_rows(layout)
    good = _select_readable(scan, rows, source, layout.faults)
    for remark in layout.remarks:
        source.say(f"{source.name}: {remark}")
    size, channels, notes = _choose_form(good, source)
    bits = _find_bits(scan, rows, good, source, notes)
    deep = any(header.bits == WORD_BITS for header in good.values())
    heeds = layout.heeds | {"skip_unreadable"} | ({"bits"} if deep else set())
    return _Plan(scan, layout, rows, good, (len(rows), size, size, channels), bits, notes, heeds)


def _decode_in_memory(plan: _Plan, source: Source) -> RawSet:
    count, size, _, channels = plan.shape
    check_set_bytes(count, size, channels, source.name, NO_ROOM)
    images = np.zeros(plan.shape, dtype=np.uint8)
    decoded = np.zeros(len(images), dtype=bool)
    _decode(plan, images, decoded, source)
    return _assemble(plan, images, decoded, source)


def _decode_into(entry: NewEntry, plan: _Plan, source: Source, said: list[str]) -> None:
    """Decode what an entry of the cache lacks, and publish it; what is decoded survives an interruption."""
    decoded = entry.done
    try:
        _decode(plan, entry.images, decoded, source, entry.save)
    except DataError:
        entry.remove()
        raise
    except BaseException:
        entry.save(decoded, now=True)
        source.say(
            f"{source.name}: {int(decoded.sum())} of {len(decoded)} images are decoded and kept; "
            "the same command goes on"
        )
        raise
    entry.publish(_assemble(plan, entry.images, decoded, source), plan.num_train, decoded, said, plan.heeds)


def _select_readable(
    scan: _Scan, rows: dict[str, int], source: Source, faults: tuple[Fault, ...]
) -> dict[str, ImageHeader]:
    """Choose the files whose headers were read; refuse faults, all at once, but for files that may be skipped."""
    by_reason: dict[str, list[str]] = {}
    for file in rows:
        if file not in scan.headers and not source.options.skip_unreadable:
            by_reason.setdefault(scan.problems.get(file, _NO_IMAGE), []).append(file)
    bad = [Fault(f"{files[0]}: {reason}", tuple(files[1:])) for reason, files in by_reason.items()]
    if told := [*faults, *bad]:
        skip = "; --skip-unreadable leaves out what cannot be read" if bad and not faults else ""
        raise DataError(f"{source.path}: {'; also '.join(map(str, told[:_FAULTS_SHOWN]))}{_count_more(told)}{skip}.")
    good = {file: header for file in rows if (header := scan.headers.get(file)) is not None}
    if not good:
        raise DataError(f"{source.path}: no image that can be read.")
    return good


def _count_more(faults: list[Fault]) -> str:
    more = len(faults) - _FAULTS_SHOWN
    return f"; and {more} other kinds of fault" if more > 0 else ""


def _choose_form(good: dict[str, ImageHeader], source: Source) -> tuple[int, int, list[str]]:
    """Choose size and channels, and say in notes what the files are and how they are changed."""
    size, resized = choose_size(Counter((header.height, header.width) for header in good.values()), source.options.size)
    num_grey = sum(header.is_grey for header in good.values())
    channels = source.options.channels or (1 if num_grey == len(good) else 3)
    notes = [_describe_files(good), *filter(None, [resized])]
    if 0 < num_grey < len(good):
        kept = "made grey" if channels == 1 else "repeated over three channels"
        which = len(good) - num_grey if channels == 1 else num_grey
        notes.append(f"{which} of {len(good)} images ({'colour' if channels == 1 else 'grey'}) were {kept}")
    if num_alpha := sum(header.has_alpha for header in good.values()):
        notes.append(f"{num_alpha} images with transparency were composited on white")
    if num_animated := sum(header.is_animated for header in good.values()):
        hold = "1 file holds" if num_animated == 1 else f"{num_animated} files hold"
        notes.append(f"{hold} several pictures: the first of each was taken")
    return size, channels, notes


def _find_bits(
    scan: _Scan, rows: dict[str, int], good: dict[str, ImageHeader], source: Source, notes: list[str]
) -> int:
    """Find how many bits 16-bit images use, over both splits together, and say it where it is not all of them."""
    deep = {file for file, header in good.items() if header.bits == WORD_BITS}
    if not deep:
        return WORD_BITS
    largest: list[int] = []

    def look(row: int, file: str, data: bytes) -> None:
        with suppress(DataError):  # told when it is decoded
            largest.append(find_largest_value(data, f"{source.path}: {file}"))

    decode_files(((rows[file], file, data) for file, data in scan.give() if file in deep), look, _ignore)
    bits = choose_bits(max(largest, default=0), source.options.bits, source.name)
    if bits < WORD_BITS:
        found = f"their largest value is {max(largest, default=0)}" if source.options.bits is None else "as asked for"
        notes.append(f"{len(deep)} images of 16 bits were read as using {bits} of them ({found})")
    return bits


def _decode(
    plan: _Plan,
    images: Images,
    decoded: NDArray[np.bool_],
    source: Source,
    save: Callable[[NDArray[np.bool_]], None] | None = None,
) -> None:
    """Decode all good files that are not decoded yet into their rows of `images`, and mark those in `decoded`."""
    size, channels = plan.shape[2:]
    done = already = int(decoded.sum())

    def decode(row: int, file: str, data: bytes) -> None:
        try:
            images[row] = decode_image(data, f"{source.path}: {file}", size=size, channels=channels, bits=plan.bits)
            decoded[row] = True
        except DataError:
            if not source.options.skip_unreadable:
                raise

    def count(number: int) -> None:
        nonlocal done
        done += number
        source.progress(f"{source.name}: decoding", done, len(plan.good), "")
        if save is not None:
            save(decoded)

    wanted = {file: row for file, row in plan.rows.items() if file in plan.good and not decoded[row]}
    count(0)
    decode_files(((wanted[file], file, data) for file, data in plan.scan.give() if file in wanted), decode, count)
    if done - already < len(wanted):
        raise DataError(
            f"{source.path}: {len(wanted) - done + already} files went away while they were read; run it again."
        )


def _scan(source: Source, pictures: Pictures) -> _Scan:
    scan = _Scan(pictures, {}, {}, {})
    num_bytes = count = 0
    for count, (key, data) in enumerate(pictures.give(), start=1):
        num_bytes += len(data)
        if num_bytes > MAX_KEPT_BYTES:
            scan.kept = None
        elif scan.kept is not None:
            scan.kept[key] = data
        where = f"{source.path}: {key}"
        try:
            scan.headers[key] = read_header(data, where)
        except DataError as error:
            scan.problems[key] = str(error).removeprefix(f"{where}: ").removesuffix(".")
        if count % 256 == 0:
            source.progress(f"{source.name}: reading headers", count, None, "")
    source.progress(f"{source.name}: reading headers", count, None, "")
    return scan


def _number_rows(layout: Layout) -> dict[str, int]:
    """Give every file its row: training split first, classes in order, paths in order."""
    files = [file for split in (layout.train, layout.test) for name in split for file in split[name]]
    return {file: row for row, file in enumerate(files)}


def _assemble(plan: _Plan, images: Images, decoded: NDArray[np.bool_], source: Source) -> RawSet:
    notes = list(plan.notes)
    if num_skipped := len(decoded) - int(decoded.sum()):
        notes.append(f"{num_skipped} unreadable images were left out")
    for note in notes[1:]:
        source.say(f"{source.name}: {note}")
    train_labels, test_labels = _make_labels(plan.layout.train), _make_labels(plan.layout.test)
    train, test = images[: plan.num_train], images[plan.num_train :]
    if num_skipped:
        good_train, good_test = decoded[: plan.num_train], decoded[plan.num_train :]
        train, train_labels = select_images(train, good_train), train_labels[good_train]
        test, test_labels = select_images(test, good_test), test_labels[good_test]
    return RawSet(
        name=source.name,
        classes=tuple(plan.layout.train),
        train_images=train,
        train_labels=train_labels,
        test_images=test if plan.layout.test else None,
        test_labels=test_labels if plan.layout.test else None,
        notes=(*notes, *plan.layout.remarks),
    )


def _make_labels(split: dict[str, list[str]]) -> Labels:
    return np.repeat(np.arange(len(split), dtype=np.int64), [len(files) for files in split.values()])


def _describe_files(good: dict[str, ImageHeader]) -> str:
    extensions = (extension_of(file) for file in good)  # rows of a table have none
    kinds = Counter(
        each.removeprefix(".").replace("jpg", "jpeg").upper() if each in EXTENSIONS else "" for each in extensions
    )
    return " and ".join(f"{count} {kind} files" if kind else f"{count} images" for kind, count in kinds.most_common())


def _ignore(count: int) -> None:
    """Show no progress."""
