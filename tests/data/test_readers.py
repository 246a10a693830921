"""IDX, NPZ and the pickles of CIFAR: what the formats' own libraries write is read, other bytes give DataError."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import (
    cifar_files,
    idx,
    npz,
    python2_pickle,
    random_images,
    tarred,
    trust_cifar_files,
    write_folder,
    zipped,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.data.image_set import RawSet, Source
from dim.data.load import load_data
from dim.data.readers.cifar import PICKLE_MD5, load_official_pickle
from dim.data.readers.idx import parse_idx
from dim.data.readers.npz import read_npy, read_npz
from dim.runtime.errors import DataError

settings.register_profile("no_deadline", deadline=None)  # the machine's other work is no failure
settings.load_profile("no_deadline")

IMAGES = random_images(3, 8, 1)[..., 0]


def _idx(data: bytes) -> Any:
    return parse_idx(io.BytesIO(data), "f", num_dims=3)


def _npy(data: bytes) -> Any:
    return read_npy(io.BytesIO(data), "f")


def _npz(path: Path) -> RawSet:
    return read_npz(Source(path=path, name="x", say=lambda text: None, progress=lambda *report: None))


def _npy_bytes(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(array), **options)
    return buffer.getvalue()


READERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "idx": (_idx, idx(IMAGES)),
    "idx gzip": (_idx, gzip.compress(idx(IMAGES))),
    "npy": (_npy, _npy_bytes(IMAGES)),
}


def test_labels_have_a_limit_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^f: the header asks for 50000001 bytes, more than the limit of 50000000.$"):
        parse_idx(io.BytesIO(b"\0\0\x08\x01" + struct.pack(">I", 50_000_001)), "f", num_dims=1)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (400000001,), }"
    (tmp_path / "x.npz").write_bytes(zipped({"images.npy": _npy_bytes(IMAGES), "labels.npy": _header(header)}))
    with pytest.raises(DataError, match="needs 400000001 bytes in 1 dimensions; the limits are 400000000 and 4"):
        _npz(tmp_path / "x.npz")


@pytest.mark.parametrize("name", READERS)
@given(data=st.binary(max_size=300))
def test_any_bytes_give_an_array_or_a_data_error(name: str, data: bytes) -> None:
    read, sample = READERS[name]
    for candidate in (data, sample[:16] + data, sample[:128] + data):
        try:
            read(candidate)
        except DataError as error:
            assert str(error).startswith("f: ")


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_an_altered_file_gives_an_array_or_a_data_error(name: str, data: st.DataObject) -> None:
    read, sample = READERS[name]
    altered = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(altered) - 1))
        altered[position] = data.draw(st.integers(0, 255))
    try:
        read(bytes(altered))
    except DataError as error:
        assert str(error).startswith("f: ")


@pytest.mark.parametrize("name", READERS)
def test_every_truncation_is_refused(name: str) -> None:
    read, sample = READERS[name]
    read(sample)
    for length in range(0, len(sample), max(1, len(sample) // 300)):
        with pytest.raises(DataError):
            read(sample[:length])


@given(shape=st.tuples(*[st.integers(1, 5)] * 3), packed=st.booleans())
def test_idx_round_trip(shape: tuple[int, int, int], packed: bool) -> None:
    array = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    data = idx(array)
    assert np.array_equal(_idx(gzip.compress(data, 1) if packed else data), array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "f: not an IDX file: it starts with nothing, expected two zero bytes"),
        (b"PK\x03\x04", "f: not an IDX file: it starts with 504b0304, expected two zero bytes"),
        (b"\0\0\x0d\x03", "f: IDX type 0x0d found, expected 0x08 (unsigned byte)"),
        (idx(IMAGES[0]), "f: an IDX array of 2 dimensions found, expected 3"),
        (b"\0\0\x08\x03\0\0", "f: the IDX header is truncated: fetch the file again"),
        (idx(IMAGES[:0]), "f: shape [0, 8, 8] holds no values"),
        (idx(IMAGES) + b"x", "f: more bytes than shape [3, 8, 8] needs; labels and images may be mixed up"),
        (idx(IMAGES)[:-1], "f: truncated: 191 of 192 bytes of values for shape [3, 8, 8]: fetch the file again"),
        (
            b"\0\0\x08\x03" + b"\xff" * 12,
            "f: the header asks for 79228162458924105385300197375 bytes, more than the limit of 17179869184",
        ),
    ],
)
def test_idx_messages(data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        _idx(data)
    assert str(caught.value) == message + "."


@given(
    values=st.lists(st.integers(0, 255), min_size=1, max_size=60),
    dtype=st.sampled_from(["u1", "i1", "<i4", ">i4", "<i8", ">u2", "<f4", "<f8", "?"]),
    fortran=st.booleans(),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_npy_reads_what_numpy_writes(values: list[int], dtype: str, fortran: bool, version: tuple[int, int]) -> None:
    array = np.array(values).astype(dtype)
    if len(values) % 2 == 0:
        array = array.reshape(2, -1)
    array = np.asfortranarray(array) if fortran else array
    found = _npy(_npy_bytes(array, version=version))
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=1, max_size=9))
def test_npy_reads_text(texts: list[str]) -> None:
    if any(texts):
        assert _npy(_npy_bytes(np.array(texts))).tolist() == np.array(texts).tolist()


def _header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_npy_bytes(np.array([{}], dtype=object), allow_pickle=True), "holds Python objects, which are never read"),
        (_npy_bytes(np.zeros(2, "c8")), "the type '<c8' is not read; save uint8 images, int64 labels and text classes"),
        (_npy_bytes(np.zeros(2, "M8[s]")), "an array header that NumPy does not write for plain arrays"),
        (_npy_bytes(np.zeros(2, [("a", "u1")])), "an array header that NumPy does not write for plain arrays"),
        (_npy_bytes(np.zeros((2, 0))), r"shape \[2, 0\] holds no values"),
        (_npy_bytes(np.zeros((1,) * 5)), "needs 8 bytes in 5 dimensions; the limits are 17179869184 and 4"),
        (
            _header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999,), }"),
            "needs 99999999999 bytes in 1 dimensions; the limits are",
        ),
        (_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (9,), }"), "truncated: 0 of 9 bytes"),
        (_header(b"(" * 4000), "an array header that NumPy does not write"),
        (_npy_bytes(np.zeros(3)) + b"x", r"more bytes than shape \[3\] needs"),
    ],
)
def test_npy_messages(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^f: .*{message}"):
        _npy(data)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.arange(3)}, r"no images with labels beside them \(found: labels\); name two arrays images and"),
        ({"images": IMAGES, "labels": np.array([0, 1.5, 2])}, r"labels are float64 \[3\], expected whole numbers or"),
        ({"images": IMAGES, "labels": np.zeros((3, 2, 2), int)}, r"labels are int64 \[3, 2, 2\], expected whole"),
        ({"images": IMAGES, "labels": np.zeros((3, 2), int)}, r"labels are int64 \[3, 2\] and not one-hot: each row"),
        ({"images": IMAGES, "labels": np.array([0, 1, -1])}, r"1 labels are negative \(-1\), as of images without a"),
        (
            {"images": IMAGES, "labels": np.array([0, 1, 2**62]), "classes": np.array(["a", "b", "c"])},
            "labels run from 0 to 4611686018427387904, expected 0 to 2 for 3 class names",
        ),
        ({"images": IMAGES - 127.5, "labels": np.arange(3)}, "images are float64 from -1.* undo their normalisation"),
        ({"images": IMAGES * 1j, "labels": np.arange(3)}, "the type '<c16' is not read"),
        ({"images": IMAGES[0], "labels": np.arange(3)}, r"images have shape \[8, 8\], expected \[N, H, W\], "),
        ({"images": np.zeros((3, 8, 8, 5), np.uint8), "labels": np.arange(3)}, r"images have shape \[3, 8, 8, 5\]"),
        (
            {"images": IMAGES, "labels": np.arange(3), "classes": np.arange(3)},
            r"classes are int64 \[3\], expected text",
        ),
        ({"images": IMAGES, "labels": np.arange(3), "classes": np.array([b"\xff"] * 3)}, "a class name is not valid"),
        (
            {"images": IMAGES, "labels": np.arange(3), "test_images": IMAGES},
            r"'test_images' is there and what belongs to it is not \(found: images, labels, test_images\)",
        ),
    ],
)
def test_npz_messages(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(npz(**arrays))
    with pytest.raises(DataError, match=message):
        _npz(path)


def test_npz_of_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    path, proof = tmp_path / "x.npz", tmp_path / "executed"
    np.savez(path, images=np.array([_Bomb(proof)], dtype=object), labels=np.arange(1))
    with pytest.raises(DataError, match="holds Python objects, which are never read; save plain arrays"):
        _npz(path)
    assert not proof.exists()


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    data = npz(images=IMAGES, labels=np.arange(3))
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match="damaged or truncated"):
            _npz(path)
    path.write_bytes(zipped({"images.npy": _npy_bytes(IMAGES), "labels.npy": b""}, zipfile.ZIP_LZMA))
    with pytest.raises(DataError, match="uses compression method 14, expected stored or deflate; pack it again"):
        _npz(path)
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        _npz(tmp_path / "missing.npz")


class _Bomb:
    """An object whose unpickling makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.proof,)


def _official(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make these bytes those of the official test batch."""
    monkeypatch.setitem(PICKLE_MD5, "test_batch", hashlib.md5(data, usedforsecurity=False).hexdigest())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_never_executed(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "executed"
    data = pickle.dumps({"data": _Bomb(proof)}, protocol)
    with pytest.raises(DataError) as caught:
        load_official_pickle(data, "test_batch", "f: test_batch", "cifar-10-binary.tar.gz")
    assert str(caught.value) == (
        "f: test_batch: a Python pickle whose MD5 sum is not that of the official file, so it is not read; "
        "use cifar-10-binary.tar.gz, which holds no pickles."
    )
    _official(data, monkeypatch)
    with pytest.raises(DataError, match=r"^f: test_batch: the pickle refers to 'posix.mkdir', which is not loaded\.$"):
        load_official_pickle(data, "test_batch", "f: test_batch", "cifar-10-binary.tar.gz")
    assert not proof.exists()
    pickle.loads(data)
    assert proof.exists()


def _nested_tuples(depth: int, shared: bool) -> bytes:
    """A pickle of tuples in tuples as a type's name; shared ones are worth 2**depth of them."""
    start = b"\x80\x02cnumpy\ndtype\n)"
    if not shared:
        return start + b"\x85" * depth + b"\x85R."
    return start + b"q\x00" + b"".join(b"h%c\x86q%c" % (k - 1, k) for k in range(1, depth)) + b"\x85R."


@pytest.mark.parametrize("data", [_nested_tuples(60, True), _nested_tuples(60_000, False), b"", b"\x80\x02}.", b"("])
def test_a_pickle_without_the_official_checksum_is_refused_unread(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.data.readers.cifar._ArrayUnpickler", None)
    for num_classes, folder in ((10, "cifar-10-batches-py"), (100, "cifar-100-python")):
        files = dict.fromkeys(cifar_files(num_classes, 1, binary=False), data)
        write_folder(tmp_path, files)
        with pytest.raises(DataError, match=f"{folder}: .*: a Python pickle whose MD5 sum is not .*-{num_classes}-bin"):
            load_data(f"cifar{num_classes}", data_dir=tmp_path)
        (tmp_path / folder).rename(tmp_path / f"aside-{num_classes}")
        (tmp_path / f"cifar-{num_classes}-python.tar.gz").write_bytes(tarred(files, "w:gz"))
        with pytest.raises(DataError, match=f"cifar-{num_classes}-binary.tar.gz, which holds no pickles.$"):
            load_data(f"cifar{num_classes}", data_dir=tmp_path)


def test_one_altered_batch_is_refused_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cifar_files(10, 10, binary=False)
    trust_cifar_files(files, monkeypatch)
    write_folder(tmp_path, files)
    load_data("cifar10", data_dir=tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_4"
    batch.write_bytes(batch.read_bytes().replace(b"a.png", b"b.png", 1))
    with pytest.raises(DataError, match="cifar-10-batches-py: data_batch_4: a Python pickle whose MD5 sum"):
        load_data("cifar10", data_dir=tmp_path)


def test_the_pickle_of_python_2_is_read_as_python_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for fortran in (False, True):
        rows = random_images(300, 4, 3).reshape(300, -1)
        value = {
            "data": np.asfortranarray(rows) if fortran else rows,
            "labels": [*range(300), -1, 70000],
            "batch_label": "testing batch 1 of 1",
            "filenames": ["a.png", "x" * 300],
            "none": None,
            "flag": True,
        }
        data = python2_pickle(value)
        _official(data, monkeypatch)
        mine = load_official_pickle(data, "test_batch", "f: test_batch", "cifar-10-binary.tar.gz")
        reference = pickle.loads(data, encoding="bytes")
        assert list(mine) == [key.decode() for key in reference] == list(value)
        assert np.array_equal(mine.pop("data"), reference.pop(b"data")) and np.array_equal(rows, value["data"])
        assert list(mine.values()) == list(reference.values())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("form", ["{}-images-idx3-ubyte", "letters-{}-images.idx3-ubyte"])
def test_any_folder_of_idx_files_is_read(tmp_path: Path, packed: bool, form: str) -> None:
    images = random_images(12, 8, 1)
    labels = np.arange(12, dtype=np.uint8) % 3 + 1
    for split, part in (("train", slice(0, 9)), ("test" if packed else "t10k", slice(9, 12))):
        name = form.format(split) + ".gz" * packed
        for path, array in ((name, images[part, ..., 0]), (_labels_name(name), labels[part])):
            (tmp_path / path).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    data = load_data(tmp_path)
    assert data.classes == ("1", "2", "3") and data.note.startswith(f"IDX files of {tmp_path.name}; labels run from 1")
    assert np.array_equal(data.train_images, images[:9]) and np.array_equal(data.train_labels, np.arange(9) % 3)
    assert np.array_equal(data.test_images, images[9:]) and np.array_equal(data.test_labels, np.arange(3))
    (tmp_path / "classes.json").write_text('["one", "two", "three"]')
    assert load_data(tmp_path).classes == ("one", "two", "three")


def _labels_name(name: str) -> str:
    return name.replace("images", "labels").replace("idx3", "idx1")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a-train-images-idx3-ubyte", "b-train-labels-idx1-ubyte"], "which begin with 'a-', 'b-'; keep one set"),
        (["train-images-idx3-ubyte"], "IDX files without the training labels; put train-images-idx3-ubyte and its"),
        (
            ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"],
            "IDX files without the test images; put",
        ),
    ],
)
def test_idx_files_that_make_no_set(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(idx(IMAGES))
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)
