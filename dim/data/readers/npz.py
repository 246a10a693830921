"""Arrays in NumPy's files, NPZ and NPY, read without pickle and without trusting their headers.

An `.npz` holds images and labels under their usual names (`images` and `labels`, `x_train` and `y_train`, `data` and
`target`, ...) or those that the user gives. It may hold a test split and `classes`, text `[K]`.
`dim.data.images.arrays` and `dim.data.classes.labels` describe the allowed arrays. The header of each array is matched
against the one form that NumPy writes (numpy.lib.format, versions 1 to 3); objects, which would need pickle, are
refused.
"""

import math
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dim.data.classes.class_names import read_class_names
from dim.data.classes.columns import COLUMN_OPTIONS, choose_column
from dim.data.classes.labels import name_labels
from dim.data.classes.layout import find_asked_splits
from dim.data.files.entries import named_failure
from dim.data.files.zip import open_zip, open_zip_member
from dim.data.image_set import RawSet, Source
from dim.data.images.arrays import find_form, has_wide_values, read_pixels
from dim.data.limits import MAX_ARRAY_DIMS, MAX_CLASS_NAME_BYTES, MAX_LABELS, MAX_SET_BYTES
from dim.data.options import DataOptions
from dim.runtime.bundle_format.schema import MAX_CLASSES
from dim.runtime.errors import DataError

_HEADER = re.compile(
    r"\{'descr': '([<>|=]?[a-zA-Z][0-9]{0,9})', 'fortran_order': (True|False), "
    r"'shape': \(((?:N,|N(?:, N){1,9})?)\),? ?\} *\n?".replace("N", "(?:0|[1-9][0-9]{0,18})")
)
_STEMS = (
    ("train_images", "train_labels"),
    ("x_train", "y_train"),
    ("train_x", "train_y"),
    ("train_data", "train_labels"),
)
_PAIRS = (
    ("images", "labels"),
    *_STEMS,
    *(("data", labels) for labels in ("target", "targets", "labels", "label", "y")),
    ("x", "y"),
    ("image", "label"),
    ("imgs", "labels"),
    ("images", "target"),
    ("arr_0", "arr_1"),
)
"""Names of images and labels, in small letters; the first pair that is there is read."""
_SPLITS = ("train", "test", "val", "valid")


def _name_pairs(split: str) -> tuple[tuple[str, str], ...]:
    return tuple((images.replace("train", split), labels.replace("train", split)) for images, labels in _STEMS)


_TEST_PAIRS = tuple(pair for split in _SPLITS[1:] for pair in _name_pairs(split))
_CLASS_NAMES = ("classes", "class_names", "label_names", "target_names", "names")
_MAX_HEADER_BYTES = 2**12
_CHUNK_BYTES = 2**24


def is_npz(path: Path) -> bool:
    """Whether a path is an `.npz` file, or a folder with such files and no other arrays of ours."""
    return bool(_list_npz(path))


def _list_npz(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() == ".npz" and file.is_file())
    return [path] if path.suffix.lower() == ".npz" and path.is_file() else []


def read_npz(source: Source) -> RawSet:
    """Read a labelled image set from an `.npz` file, or from the parts of one in a folder.

    Raises:
        DataError: damaged, truncated, an array missing, of the wrong type or shape, or beyond the limits.
    """
    paths = _list_npz(source.path) or [source.path]
    found = [_read_arrays(path, source.options) for path in paths]
    parts = [arrays for arrays, _ in found]
    for remark in found[0][1]:
        source.say(f"{source.name}: {remark}")
    if any(part.keys() != parts[0].keys() for part in parts):
        raise DataError(f"{source.path}: its .npz files hold different arrays; name one of them, or make them alike.")
    arrays = {key: _join([part[key] for part in parts], key, paths, source.path) for key in parts[0]}
    return make_raw_set(arrays, source, f"arrays of {source.path.name}", heeds=COLUMN_OPTIONS)


def is_npy_folder(path: Path) -> bool:
    """Whether a path is a folder with `images*.npy` and `labels*.npy`, as `dim generate` writes them."""
    return path.is_dir() and bool(list(path.glob("images*.npy"))) and bool(list(path.glob("labels*.npy")))


def read_npy_folder(source: Source) -> RawSet:
    """Read `images*.npy` and `labels*.npy` of a folder, part by part in the order of their names.

    Raises:
        DataError: as `read_npz`.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for key in ("images", "labels"):
        parts, paths = [], sorted(source.path.glob(f"{key}*.npy"))
        for path in paths:
            with named_failure(path), open(path, "rb") as file:
                parts.append(read_npy(file, str(path), max_bytes=_max_bytes(key)))
        arrays[key] = _join(parts, key, paths, source.path)
    return make_raw_set(arrays, source, f"arrays of {source.path.name}", read_class_names(source.path))


def make_raw_set(
    arrays: Mapping[str, NDArray[Any]],
    source: Source,
    note: str,
    classes: tuple[str, ...] | None = None,
    heeds: frozenset[str] = frozenset(),
) -> RawSet:
    """Make a set of `images`, `labels` and optional `classes`, `test_images` and `test_labels`.

    Args:
        arrays: as `dim.data.images.arrays` and `dim.data.classes.labels` take them.
        source: stands for them in messages, and gives the number of bits.
        note: where they came from.
        classes: names that stand elsewhere.
        heeds: options that had a say so far.

    Raises:
        DataError: from those.
    """
    where = str(source.path)
    images = [arrays[key] for key in ("images", "test_images") if key in arrays]
    names = _to_classes(arrays["classes"], where) if "classes" in arrays else classes
    source.heed(heeds | {"bits"} if source.options.bits is not None and has_wide_values(images) else heeds)
    pixels, changes = read_pixels(images, where, source.options.bits)
    classes, labels, test_labels, renamed = name_labels(arrays["labels"], arrays.get("test_labels"), names, where)
    for remark in (*changes, *renamed):
        source.say(f"{source.name}: {remark}")
    return RawSet(
        name=source.name,
        classes=classes,
        train_images=pixels[0],
        train_labels=labels,
        test_images=pixels[1] if test_labels is not None else None,
        test_labels=test_labels,
        notes=(note, *changes, *renamed),
    )


def _join(parts: list[NDArray[Any]], key: str, paths: list[Path], where: Path) -> NDArray[Any]:
    """Join the parts of an array, all of one kind: NumPy would turn numbers into text, and bytes into floats."""
    if len(parts) == 1:
        return parts[0]
    if key == "classes":
        if any(not np.array_equal(part, parts[0]) for part in parts):
            raise DataError(f"{where}: its .npz files name different classes; make them alike.")
        return parts[0]
    if key.endswith("images"):
        find_form({f"those of {path.name}": part for path, part in zip(paths, parts, strict=True)}, f"{where}: {key}")
    else:
        is_text = [part.dtype.kind in "SU" for part in parts]
        if len(set(is_text)) > 1:
            text, numbers = paths[is_text.index(True)].name, paths[is_text.index(False)].name
            raise DataError(f"{where}: {key} are text in {text} and numbers in {numbers}; write all alike.")
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise DataError(f"{where}: the parts of '{key}' do not fit together ({error}).") from error


def _read_arrays(path: Path, options: DataOptions) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Read the arrays of one file by the names that people give them, under ours; and remarks."""
    with named_failure(path), open(path, "rb") as file, open_zip(file, str(path)) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        chosen, remarks = _choose_members(members, path, options)
        arrays = {}
        for key, info in chosen.items():
            with open_zip_member(archive, info, str(path)) as member:
                arrays[key] = read_npy(member, f"{path}: {key}", max_bytes=_max_bytes(key))
    return arrays, remarks


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")


def _name_test(train: str, split: str) -> str:
    """Return what an array of another split is called, by the name of the training array."""
    return train.replace("train", split) if "train" in train else f"{split}_{train}"


def _choose_named(names: Iterable[str], path: Path, options: DataOptions) -> tuple[str, str]:
    """Choose images and labels where the user named either or both."""
    images, labels = (tuple(pair[place] for pair in _PAIRS) for place in (0, 1))
    return (
        choose_column(names, options.image_column, images, "image", str(path)),
        choose_column(names, options.label_column, labels, "label", str(path)),
    )


_Pair = tuple[zipfile.ZipInfo, zipfile.ZipInfo]


def _choose_members(
    members: Mapping[str, zipfile.ZipInfo], path: Path, options: DataOptions
) -> tuple[dict[str, zipfile.ZipInfo], list[str]]:
    """Return the members to read under our names, and remarks on what else the choice meant."""
    by_name = {_plain(name): info for name, info in members.items()}
    found = ", ".join(sorted(members)[:8]) or "nothing"

    def pair(names: Iterable[tuple[str, str]]) -> _Pair | None:
        return next(((by_name[x], by_name[y]) for x, y in names if x in by_name and y in by_name), None)

    split, named = options.split, (options.image_column, options.label_column) != (None, None)
    train, test = pair(_PAIRS), pair(_TEST_PAIRS)
    if named:
        if split is not None:
            raise DataError(f"{path}: --split and names of arrays do not go together; leave out one of them.")
        chosen_names = _choose_named(members, path, options)
        train = members[chosen_names[0]], members[chosen_names[1]]
        plain = [_plain(name) for name in chosen_names]
        test = pair((_name_test(plain[0], part), _name_test(plain[1], part)) for part in _SPLITS[1:])
    elif split is not None:
        by_split = {name: both for name in _SPLITS if (both := pair(_name_pairs(name)))}
        asked = find_asked_splits(by_split, split, str(path))
        train, test = by_split[asked[0]], by_split[asked[1]] if len(asked) > 1 else None
    if train is None:
        raise DataError(
            f"{path}: no images with labels beside them (found: {found}); name two arrays images and labels."
        )
    lonely = [name for pairs in _TEST_PAIRS for name in pairs if name in by_name]
    if test is None and lonely and split is None and not named:
        raise DataError(f"{path}: '{lonely[0]}' is there and what belongs to it is not (found: {found}).")
    chosen = {"images": train[0], "labels": train[1]}
    if test is not None:
        chosen |= {"test_images": test[0], "test_labels": test[1]}
    if names := next((by_name[name] for name in _CLASS_NAMES if name in by_name), None):
        chosen["classes"] = names
    remarks = []
    if test is not None and split is None and "val" in test[0].filename.casefold():
        remarks.append(f"'{test[0].filename.removesuffix('.npy')}' serves as test split")
    taken = [info.filename for info in chosen.values()]
    if others := sorted(name for name, info in members.items() if info.filename not in taken):
        remarks.append(f"arrays passed over: {', '.join(others[:5])}")
    return chosen, remarks


def _max_bytes(key: str) -> int:
    if key == "classes":
        return 4 * MAX_CLASSES * MAX_CLASS_NAME_BYTES
    return 8 * MAX_LABELS if key.endswith("labels") else MAX_SET_BYTES


def read_npy(file: BinaryIO, name: str, *, max_bytes: int = MAX_SET_BYTES) -> NDArray[Any]:
    """Read one array in NumPy's format, of numbers or text; memory grows only with the bytes that arrive.

    Args:
        file: at the start of the array.
        name: stands for it in messages.
        max_bytes: of all values together.

    Raises:
        DataError: not such an array, truncated, or larger than `max_bytes`.
    """
    start = file.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3) or start[7] != 0:
        raise DataError(f"{name}: not an array in NumPy's format (versions 1 to 3).")
    width = 2 if start[6] == 1 else 4
    size_field = file.read(width)
    if len(size_field) < width:
        raise DataError(f"{name}: truncated: fetch the file again.")
    (header_bytes,) = struct.unpack("<H" if width == 2 else "<I", size_field)
    header = file.read(min(header_bytes, _MAX_HEADER_BYTES))
    match = _HEADER.fullmatch(header.decode("latin-1")) if len(header) == header_bytes else None
    if match is None:
        raise DataError(f"{name}: an array header that NumPy does not write for plain arrays: {header[:60]!r}.")
    descr, fortran_order, shape_text = match.groups()
    dtype = _parse_dtype(descr, name)
    shape = tuple(int(number) for number in shape_text.replace(" ", "").split(",") if number)
    wanted = math.prod(shape) * dtype.itemsize
    if len(shape) > MAX_ARRAY_DIMS or wanted > max_bytes:
        raise DataError(
            f"{name}: shape {list(shape)} needs {wanted} bytes in {len(shape)} dimensions; "
            f"the limits are {max_bytes} and {MAX_ARRAY_DIMS}."
        )
    if not wanted:
        raise DataError(f"{name}: shape {list(shape)} holds no values.")
    data = bytearray()
    while len(data) < wanted:
        chunk = file.read(min(_CHUNK_BYTES, wanted - len(data)))
        if not chunk:
            raise DataError(f"{name}: truncated: {len(data)} of {wanted} bytes: fetch the file again.")
        data += chunk
    if file.read(1):  # at the end of a member this also checks zip's checksum
        raise DataError(f"{name}: more bytes than shape {list(shape)} needs.")
    array = np.frombuffer(data, dtype=dtype, count=math.prod(shape))
    return array.reshape(shape[::-1]).T if fortran_order == "True" else array.reshape(shape)


def _parse_dtype(descr: str, name: str) -> np.dtype[Any]:
    kind, digits = descr.lstrip("<>|=")[:1], descr.lstrip("<>|=")[1:]
    if kind == "O":
        raise DataError(f"{name}: holds Python objects, which are never read; save plain arrays.")
    number = kind + digits in ("b1", "f2", "f4", "f8") or (kind in "iu" and digits in ("1", "2", "4", "8"))
    if not number and not (kind in "US" and 0 < int(digits or 0) <= 2**16):
        raise DataError(f"{name}: the type '{descr}' is not read; save uint8 images, int64 labels and text classes.")
    return np.dtype(descr)


def _to_classes(array: NDArray[Any], path: str) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise DataError(f"{path}: classes are {array.dtype} {list(array.shape)}, expected text [K].")
    try:
        return tuple(text.decode() if isinstance(text, bytes) else str(text) for text in array.tolist())
    except ValueError as error:
        raise DataError(f"{path}: a class name is not valid text ({error}); save classes as text.") from error
