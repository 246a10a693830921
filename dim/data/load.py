"""Source datasets by name or by place, as uint8 arrays: everything behind `--data`.

Names: `digits` (scikit-learn's real 8x8 digits), `mnist`, `fashion-mnist`, `svhn`, `cifar10`, `cifar100` (the official
files, from a folder or downloaded with a checksum). Places: what `_READERS` lists, datasets of the Hub, archives on the
web. The limits under which files are read stand in `dim.data.limits`.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from dim.data.archive import iterate_entries
from dim.data.cautions import find_cautions
from dim.data.decode import EXTENSIONS
from dim.data.folders import read_class_folders
from dim.data.hugging_face import HUB, is_saved_dataset, read_hub, read_saved_dataset
from dim.data.image_set import ImageSet, RawSet, Say, Source
from dim.data.known import KNOWN, find_known, name_jpeg_copy, read_known, suggest_known
from dim.data.layout import AUTO, check_layout, extension_of, is_passed_over
from dim.data.memory import read_memory
from dim.data.npz import is_npy_folder, is_npz, read_npy_folder, read_npz
from dim.data.official_files import download_archive
from dim.data.parquet import list_parquet, read_parquet
from dim.data.prepare import check_options, make_image_set
from dim.data.replay import is_bundle, read_bundle
from dim.data.unite import unite
from dim.data.webdataset import is_webdataset, read_webdataset
from dim.runtime.errors import BadValueError, DataError
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import ProgressOption, show_progress

__all__ = ["ImageSet", "load_data"]


def _has_image_files(path: Path) -> bool:
    """Whether image files lie in a folder, so that it is a tree of them whatever else is there."""
    if not path.is_dir():
        return False
    files = (entry.path for entry in iterate_entries(path, follow_links=True) if not entry.is_folder)
    try:
        return any(extension_of(file) in EXTENSIONS and not is_passed_over(file) for file in islice(files, _LOOKED_AT))
    except DataError:
        return True  # the reader of trees tells what is wrong


_Reader = Callable[[Source], RawSet]
_READERS: tuple[tuple[Callable[[Path], bool], _Reader], ...] = (
    (is_bundle, read_bundle),
    (is_saved_dataset, read_saved_dataset),
    (_has_image_files, lambda source: name_jpeg_copy(read_class_folders(source))),
    (is_npz, read_npz),
    (is_npy_folder, read_npy_folder),
    (lambda path: bool(list_parquet(path)), read_parquet),
    (is_webdataset, read_webdataset),
    (lambda path: True, lambda source: name_jpeg_copy(read_class_folders(source))),
)
"""Whether a path is of a layout, and the layout's reader; the first that fits reads."""

_SUFFIXES = (".tar.gz", ".tar.xz", ".tgz", ".txz", ".tar", ".zip", ".npz", ".parquet", ".dim")
_LOOKED_AT = 20_000
_SAVE_NPZ = "numpy.savez(FILE, images=..., labels=...)"
_NO_SOURCE = {
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt", ".pth"), f"a pickle runs code when it is read; save arrays by {_SAVE_NPZ}"
    ),
    **dict.fromkeys(
        (".h5", ".hdf5", ".mat", ".tfrecord", ".tfrecords", ".beton", ".mdb"),
        f"this format is not read; save arrays by {_SAVE_NPZ}, or images in class folders",
    ),
    **dict.fromkeys((".csv", ".tsv", ".json", ".jsonl"), "a table; name the folder that holds it and the images"),
    ".npy": "an array alone; put labels.npy beside images.npy and name their folder",
    ".arrow": "name the folder that save_to_disk wrote, not a file in it",
    ".rar": "RAR is not read; pack the images as zip or tar",
    ".7z": "7z is not read; pack the images as zip or tar",
    **dict.fromkeys(EXTENSIONS, "one image; name the folder that holds the class folders"),
}
"""What is said of files that no reader takes."""


def load_data(
    data: Any,
    *,
    name: str | None = None,
    data_dir: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    channels: int | None = None,
    layout: str = AUTO,
    bits: int | None = None,
    follow_links: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    sha256: str | None = None,
    replay_ipc: int = 1000,
    say: Say = say_to_log,
    progress: ProgressOption = None,
) -> ImageSet:
    """Load a labelled image set into memory.

    Args:
        data: a known name; the path of a folder, an archive, a file or a bundle; `hf://USER/NAME[@REVISION]`; the
            `https://` address of an archive; several of these in a list, united by the names of their classes; or what
            is in memory: `(images, labels)`, a dataset of `(image, label)` pairs, or two of either as training and test
            split. A name wins over a path; write `./mnist` for a folder called like a known set.
        name: of the set; None for that of the file or folder.
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
        image_column: column of the images or file names in a table; None takes one with a usual name.
        label_column: column of the labels.
        split: name of the split to train on, or of that and the test split with a comma, where a source names splits.
        sha256: of the archive behind an `https://` address, in hex.
        replay_ipc: images per class to draw where a source is a bundle.
        say: receives sentences about choices made on the way.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`. Downloads and decoding.

    Raises:
        BadValueError: an option is out of range, or `data` is of another kind.
        DataError: the source is unknown, missing, damaged, inconsistent or beyond the limits.
        MissingExtraError: a package that reads this kind of source is not installed.

    Example:
        >>> digits = load_data("digits")
        >>> digits.train_images.shape[1:], len(digits.classes)
        ((8, 8, 1), 10)
    """
    check_options(size, channels, seed, bits)
    check_layout(layout)
    places = [str(place) for place in _list_places(data)]
    if sha256 is not None and not any(place.startswith("https://") for place in places):
        raise BadValueError("sha256 is for the https:// address of an archive, and there is none")
    folder = data_dir if data_dir is not None else os.environ.get("DIM_DATA") or None

    with show_progress(progress) as report:
        wish = Source(
            path=Path("data"),
            name=name or "data",
            size=size,
            channels=channels,
            skip_unreadable=skip_unreadable,
            layout=layout,
            bits=bits,
            follow_links=follow_links,
            image_column=image_column,
            label_column=label_column,
            split=split,
            replay_ipc=replay_ipc,
            say=say,
            progress=report,
        )

        def finish(raw: RawSet) -> ImageSet:
            return make_image_set(raw, size=size, channels=channels, seed=seed, say=say)

        sets = [finish(_read_place(place, wish, None if folder is None else Path(folder), sha256)) for place in places]
        images = unite(sets, say) if len(sets) > 1 else sets[0] if sets else finish(read_memory(data, wish))
    if name is not None:
        images = replace(images, name=name)
    for caution in find_cautions(images):
        say(f"{images.name}: caution: {caution}")
    return images


def _list_places(data: Any) -> Sequence[str | Path]:
    """List the names, paths and addresses; none where `data` is in memory."""
    if isinstance(data, str | Path):
        return [data]
    if isinstance(data, list | tuple) and data and all(isinstance(place, str | Path) for place in data):
        return data
    return []


def _read_place(place: str, wish: Source, data_dir: Path | None, sha256: str | None) -> RawSet:
    if place in KNOWN:
        return read_known(place, data_dir, wish.say, wish.progress)
    if place.startswith(HUB):
        name = place.removeprefix(HUB).partition("@")[0].strip("/")
        return read_hub(replace(wish, path=Path(name), name=_clean_name(name.rpartition("/")[2])), place)
    if re.match("[a-z][a-z0-9+.-]*://", place):
        path = _fetch(place, sha256, wish)
    else:
        path = Path(place).expanduser()
        if not place or not path.exists():
            if known := find_known(place):
                return read_known(known, data_dir, wish.say, wish.progress)
            raise DataError(_describe_missing(place))
    source = replace(wish, path=path, name=_set_name(path))
    if path.is_file() and (sentence := _NO_SOURCE.get(extension_of(path.name))):
        raise DataError(f"{path}: {sentence}")
    return next(reader for fits, reader in _READERS if fits(path))(source)


def _fetch(address: str, sha256: str | None, wish: Source) -> Path:
    if not address.startswith("https://"):
        scheme = address.partition("://")[0]
        raise DataError(
            f"{scheme}:// is not read; give a path, hf://USER/NAME, or an https:// archive with its SHA-256"
        )
    if sha256 is None:
        raise DataError("An https:// archive needs its SHA-256: say --sha256 HASH, as sha256sum FILE prints it")
    return download_archive(address, sha256, wish.say, wish.progress)


def _describe_missing(place: str) -> str:
    hub = ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not place.startswith("."):
        hub = f"; a dataset of the Hugging Face Hub is hf://{place}"
    known = ", ".join(sorted(KNOWN))
    return f"'{place}' is neither a known dataset ({known}) nor an existing path{suggest_known(place)}{hub}"


def _set_name(path: Path) -> str:
    name = path.resolve().name
    stem = next((name[: -len(s)] for s in _SUFFIXES if name.lower().endswith(s) and len(name) > len(s)), name)
    return _clean_name(stem)


def _clean_name(text: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in text)[:100].strip() or "data"
