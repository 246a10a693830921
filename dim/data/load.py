"""Loads source datasets, by name or path, as uint8 arrays: the values of `--data`.

Names: `digits` (scikit-learn's real 8x8 digits), `mnist`, `fashion-mnist`, `svhn`, `cifar10`, `cifar100` (the official
files, from a folder or downloaded with a checksum). Places: what `_READERS` lists, datasets of the Hub, archives on the
web. The limits under which files are read stand in `dim.data.limits`.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from dim.data.cautions import find_cautions
from dim.data.classes.table_rows import TABLE_EXTENSIONS
from dim.data.files.archive import iterate_entries
from dim.data.files.names import EXTENSIONS, extension_of, is_passed_over
from dim.data.files.official_files import download_archive, name_archive
from dim.data.image_set import ImageSet, RawSet, Say, Source
from dim.data.options import AUTO, DataOptions
from dim.data.prepare import make_image_set
from dim.data.readers.folders import read_class_folders
from dim.data.readers.hugging_face import HUB, is_saved_dataset, read_hub, read_saved_dataset
from dim.data.readers.idx import is_idx_folder, read_idx_folder
from dim.data.readers.known import KNOWN, find_known, name_jpeg_copy, read_known, suggest_known
from dim.data.readers.memory import read_memory
from dim.data.readers.npz import is_npy_folder, is_npz, read_npy_folder, read_npz
from dim.data.readers.parquet import list_parquet, read_parquet
from dim.data.readers.replay import is_bundle, read_bundle
from dim.data.readers.webdataset import is_webdataset, read_webdataset
from dim.data.unite import join_names, unite
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
    (is_idx_folder, read_idx_folder),
    (is_npz, read_npz),
    (is_npy_folder, read_npy_folder),
    (lambda path: bool(list_parquet(path)), read_parquet),
    (is_webdataset, read_webdataset),
    (lambda path: True, lambda source: name_jpeg_copy(read_class_folders(source))),
)
"""Whether a path is of a layout, and the layout's reader; the first that fits reads."""

_SUFFIXES = (".tar.gz", ".tar.xz", ".tgz", ".txz", ".tar", ".zip", ".npz", ".parquet", ".dim")
_LOOKED_AT = 20_000
_AS_FOUND = DataOptions()
_ALWAYS_HEEDED = frozenset(("size", "channels", "seed"))
_NO_USE = {
    "skip_unreadable": "has no image files",
    "layout": "takes no classes from folders",
    "bits": "has no images of more than 8 bits",
    "follow_links": "is no folder of images",
    "image_column": "takes no images from a column",
    "label_column": "takes no labels from a column",
    "split": "names no splits",
    "sha256": "is no https:// archive",
    "replay_ipc": "is no bundle",
}
"""What is said of a source that has no use for an option."""
_SAVE_NPZ = "numpy.savez(FILE, images=..., labels=...)"
_NO_SOURCE = {
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt", ".pth"), f"a pickle runs code when it is read; save arrays by {_SAVE_NPZ}"
    ),
    **dict.fromkeys(
        (".h5", ".hdf5", ".mat", ".tfrecord", ".tfrecords", ".beton", ".mdb"),
        f"this format is not read; save arrays by {_SAVE_NPZ}, or images in class folders",
    ),
    **dict.fromkeys(
        (".csv", ".tsv", ".json", ".jsonl"), "a table without images beside it; name the folder that holds both"
    ),
    ".npy": "an array alone; put labels.npy beside images.npy and name their folder",
    ".arrow": "name the folder that save_to_disk wrote, not a file in it",
    ".rar": "RAR is not read; pack the images as zip or tar",
    ".7z": "7z is not read; pack the images as zip or tar",
    **dict.fromkeys(EXTENSIONS, "one image; name the folder that holds the class folders"),
}
"""What is said of files that no reader takes."""


def load_data(
    data: Any,
    options: DataOptions = _AS_FOUND,
    *,
    name: str | None = None,
    data_dir: str | Path | None = None,
    say: Say = say_to_log,
    progress: ProgressOption = None,
    asked: Collection[str] | None = None,
) -> ImageSet:
    """Load a labelled image set into memory.

    Args:
        data: a known name; the path of a folder, an archive, a file or a bundle; `hf://USER/NAME[@REVISION]`; or the
            `https://` address of an archive. Several of these in a list are united by the names of their classes. Or
            what is in memory: `(images, labels)`, a dataset of `(image, label)` pairs, or two of either as training and
            test split. A name wins over a path; write `./mnist` for a folder called like a known set.
        options: how it is read: size, channels, columns, splits and more.
        name: of the set; None for that of the file or folder.
        data_dir: where the official files of a known name lie, or go when they are downloaded; default `$DIM_DATA`,
            else the user's cache folder.
        say: receives sentences about choices made on the way.
        progress: shows bars where a person looks; see `dim.runtime.progress.show`. Downloads and decoding.
        asked: fields of `options` that are refused where they do nothing; None for those that are not at their
            defaults. Of several sources one is enough that has a use for an option.

    Returns:
        the images as uint8 arrays, with their labels and class names.

    Raises:
        BadValueError: `data` is of another kind, or an option does nothing for it.
        DataError: the source is unknown, missing, damaged, inconsistent or beyond the limits.
        MissingExtraError: a package that reads this kind of source is not installed.

    Examples:
        >>> digits = load_data("digits", DataOptions(size=16))
        >>> digits.train_images.shape[1:], len(digits.classes)
        ((16, 16, 1), 10)
    """
    places = _list_places(data)
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise BadValueError(f"the source {twice} is named twice; name it once.")
    folder = data_dir if data_dir is not None else os.environ.get("DIM_DATA") or None

    called = name or join_names(map(_name_place, places)) or "data"
    idle = set(options.changes() if asked is None else asked) - _ALWAYS_HEEDED
    idle -= {"layout"} if options.layout == AUTO else set()
    idle -= {"sha256"} if any(place.startswith("https://") for place in places) else set()

    def heed(heeded: frozenset[str], *, is_last: bool = True) -> None:
        idle.difference_update(heeded)
        if is_last and idle:
            raise BadValueError(_describe_idle(idle, called))

    with show_progress(progress) as report:
        wish = Source(path=Path("data"), name=name or "data", options=options, say=say, progress=report, heed=heed)

        def finish(raw: RawSet) -> ImageSet:
            return make_image_set(raw, options, say)

        sets = []
        for place in places:
            part = replace(wish, heed=partial(heed, is_last=place == places[-1]))
            sets.append(finish(_read_place(place, part, None if folder is None else Path(folder))))
        images = unite(sets, say) if len(sets) > 1 else sets[0] if sets else finish(read_memory(data, wish))
    images = replace(
        images,
        name=name or images.name,
        places=tuple(map(_make_absolute, places)),
        data_dir="" if folder is None else os.path.abspath(folder),
    )
    for caution in find_cautions(images):
        say(f"{images.name}: caution: {caution}")
    return images


def name_source(data: Any) -> str | None:
    """Return what `load_data` calls a source without reading it; None for one that is in memory."""
    names = [_name_place(place) for place in _list_places(data)]
    return join_names(names) if names else None


def _make_absolute(place: str) -> str:
    """The path of a place that is one, from wherever it is read again; a name or an address stays."""
    path = Path(place).expanduser()
    return str(path.absolute()) if place not in KNOWN and "://" not in place and path.exists() else place


def _list_places(data: Any) -> list[str]:
    """List the names, paths and addresses; none where `data` is in memory."""
    if isinstance(data, str | Path):
        return [str(data)]
    if isinstance(data, list | tuple) and all(isinstance(place, str | Path) for place in data):
        return [str(place) for place in data]
    return []


def _read_place(place: str, wish: Source, data_dir: Path | None) -> RawSet:
    source = replace(wish, name=_name_place(place))
    if place in KNOWN:
        source.heed(frozenset())
        return read_known(place, data_dir, wish.say, wish.progress)
    if place.startswith(HUB):
        return read_hub(replace(source, path=Path(_strip_revision(place))), place)
    if re.match("[a-z][a-z0-9+.-]*://", place):
        path = _fetch(place, wish)
    else:
        path = Path(place).expanduser()
        if not place or not path.exists():
            if known := find_known(place):
                source.heed(frozenset())
                return read_known(known, data_dir, wish.say, wish.progress)
            raise DataError(_describe_missing(place))
    if _is_table_of_images(path):
        return read_class_folders(replace(source, path=path.parent, table=path.name))
    if path.is_file() and (sentence := _NO_SOURCE.get(extension_of(path.name))):
        raise DataError(f"{path}: {sentence}.")
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: neither a file nor a folder; name one of these.")
    return next(reader for fits, reader in _READERS if fits(path))(replace(source, path=path))


def _describe_idle(options: Iterable[str], called: str) -> str:
    """Say which options do nothing for a source, and why."""
    flags = {name: "--" + name.replace("_", "-") for name in options}
    if "sha256" in flags:
        flags["sha256"] += " (in dim eval --data-sha256)"
    whys = [f"{_NO_USE[name]}, so {flag} does nothing" for name, flag in sorted(flags.items())]
    return f"{called} {'; it '.join(whys)}: leave {'it' if len(whys) == 1 else 'them'} out."


def _fetch(address: str, wish: Source) -> Path:
    if not address.startswith("https://"):
        scheme = address.partition("://")[0]
        raise DataError(
            f"{scheme}:// is not read; give a path, hf://USER/NAME, or an https:// archive with its SHA-256."
        )
    if wish.options.sha256 is None:
        raise DataError(
            "An https:// archive needs its SHA-256, as sha256sum FILE prints it: say --sha256 HASH, in dim eval "
            "--data-sha256 HASH."
        )
    return download_archive(address, wish.options.sha256, wish.say, wish.progress)


def _name_place(place: str) -> str:
    """Return what the set at a place is called."""
    if place in KNOWN:
        return place
    if place.startswith(HUB):
        return _clean_name(_strip_revision(place).rpartition("/")[2])
    if "://" in place:
        return _clean_name(_strip_suffix(name_archive(place)))
    path = Path(place).expanduser()
    if not place or not path.exists():
        return find_known(place) or "data"
    path = path.resolve()
    return _clean_name(_strip_suffix(path.parent.name if _is_table_of_images(path) else path.name))


def _is_table_of_images(path: Path) -> bool:
    """Whether a path is a table with images beside it."""
    return extension_of(path.name) in TABLE_EXTENSIONS and path.is_file() and _has_image_files(path.parent)


def _strip_revision(address: str) -> str:
    return address.removeprefix(HUB).partition("@")[0].strip("/")


def _describe_missing(place: str) -> str:
    hub = ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not place.startswith("."):
        hub = f"; a dataset of the Hugging Face Hub is hf://{place}"
    known = ", ".join(sorted(KNOWN))
    return f"'{place}' is neither a known dataset ({known}) nor an existing path{suggest_known(place)}{hub}."


def _strip_suffix(name: str) -> str:
    """Return a file's name without the endings of archives, arrays and bundles."""
    return next((name[: -len(s)] for s in _SUFFIXES if name.lower().endswith(s) and len(name) > len(s)), name)


def _clean_name(text: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in text)[:100].strip() or "data"
