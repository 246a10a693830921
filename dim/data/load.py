"""Source datasets by name or by path, as uint8 arrays in memory: everything behind `--data`.

Names: `digits` (scikit-learn's real 8x8 digits), `mnist`, `fashion-mnist`, `svhn`, `cifar10`, `cifar100` (the official
files, from a folder or downloaded with a checksum). Paths: class folders (`dim.data.folders`), the same in a zip, tar,
tar.gz or tar.xz, or an `.npz` (`dim.data.npz`). The limits under which files are read stand in `dim.data.limits`.
"""

import os
from collections.abc import Callable
from pathlib import Path

from dim.data.cautions import find_cautions
from dim.data.folders import read_class_folders
from dim.data.image_set import ImageSet, RawSet, Say, Source
from dim.data.known import KNOWN, name_jpeg_copy, read_known
from dim.data.layout import AUTO, check_layout
from dim.data.npz import read_npz
from dim.data.prepare import check_options, make_image_set
from dim.runtime.errors import DataError
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import ProgressOption, show_progress

__all__ = ["ImageSet", "load_data"]

_READERS: tuple[tuple[Callable[[Path], bool], Callable[[Source], RawSet]], ...] = (
    (lambda path: path.suffix.lower() == ".npz" and path.is_file(), read_npz),
    (lambda path: True, lambda source: name_jpeg_copy(read_class_folders(source))),
)
"""Whether a path is of a layout, and the layout's reader; the first that fits reads."""

_SUFFIXES = (".tar.gz", ".tar.xz", ".tgz", ".txz", ".tar", ".zip", ".npz")


def load_data(
    name_or_path: str,
    *,
    data_dir: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    channels: int | None = None,
    layout: str = AUTO,
    bits: int | None = None,
    follow_links: bool = False,
    say: Say = say_to_log,
    progress: ProgressOption = None,
) -> ImageSet:
    """Load a labelled image set into memory.

    Args:
        name_or_path: a known name, or the path of a folder, an archive or an `.npz` file. A name wins over a path;
            write `./mnist` for a folder called like a known set.
        data_dir: where the official files of a known name lie, or go when they are downloaded; default `$DIM_DATA`,
            else the user's cache folder.
        size: side of the images in pixels, 8..128; None keeps square images of one size in that range, and else takes
            the median of the shorter sides, at most 64.
        seed: fixes the test split of a source that has none, 0..2**64-1.
        skip_unreadable: leave out images that cannot be read (counted in the note) instead of stopping at the first.
        channels: 1 turns colour into grey, 3 repeats grey; None keeps grey where every image is grey, else colour.
        layout: where splits and classes lie in a tree of images: `auto`, `classes`, `splits/classes`, `classes/splits`
            or `groups/classes` (folders of one name in every top folder are one class).
        bits: that 16-bit images use, 8 to 16; None takes the smallest of 8, 10, 12, 14 and 16 that holds all values.
        follow_links: follow symbolic links that leave the folder; those within it are always followed.
        say: receives sentences about choices made on the way.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`. Downloads and decoding.

    Raises:
        BadValueError: size, channels, seed, layout or bits out of range.
        DataError: the source is unknown, missing, damaged, inconsistent or beyond the limits.

    Example:
        >>> digits = load_data("digits")
        >>> digits.train_images.shape[1:], len(digits.classes)
        ((8, 8, 1), 10)
    """
    check_options(size, channels, seed, bits)
    check_layout(layout)
    with show_progress(progress) as report:
        if name_or_path in KNOWN:
            folder = data_dir if data_dir is not None else os.environ.get("DIM_DATA") or None
            raw = read_known(name_or_path, None if folder is None else Path(folder), say, report)
        else:
            path = _existing(name_or_path)
            source = Source(
                path=path,
                name=_set_name(path),
                size=size,
                channels=channels,
                skip_unreadable=skip_unreadable,
                layout=layout,
                bits=bits,
                follow_links=follow_links,
                say=say,
                progress=report,
            )
            read = next(reader for fits, reader in _READERS if fits(path))
            raw = read(source)
    images = make_image_set(raw, size=size, channels=channels, seed=seed, say=say)
    for caution in find_cautions(images):
        say(f"{images.name}: caution: {caution}")
    return images


def _existing(name_or_path: str) -> Path:
    path = Path(name_or_path).expanduser()
    if not name_or_path or not path.exists():
        raise DataError(
            f"'{name_or_path}' is neither a known dataset ({', '.join(sorted(KNOWN))}) nor an existing path"
        )
    return path


def _set_name(path: Path) -> str:
    name = path.resolve().name
    stem = next((name[: -len(s)] for s in _SUFFIXES if name.lower().endswith(s) and len(name) > len(s)), name)
    return "".join(letter if letter.isprintable() else "_" for letter in stem)[:100].strip() or "data"
