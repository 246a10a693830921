"""IDX, NPZ, pickle and MATLAB: what the formats' own libraries write is read; other bytes give DataError alone."""

import gzip
import io
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import cifar_files, idx, matlab, npz, python2_pickle, random_images, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.data.idx import parse_idx
from dim.data.matlab import parse_matlab
from dim.data.npz import load_npz, read_npy
from dim.data.pickle import read_pickle
from dim.runtime.errors import DataError

settings.register_profile("no_deadline", deadline=None)  # the machine's other work is no failure
settings.load_profile("no_deadline")

IMAGES = random_images(3, 8, 1)[..., 0]


def _idx(data: bytes) -> Any:
    return parse_idx(io.BytesIO(data), "f", num_dims=3)


def _npy(data: bytes) -> Any:
    return read_npy(io.BytesIO(data), "f")


def _matlab(data: bytes) -> Any:
    return parse_matlab(io.BytesIO(data), "f", {"X": 2**30, "y": 2**20})


def _pickle(data: bytes) -> Any:
    return read_pickle(data, "f")


def _npy_bytes(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(array), **options)
    return buffer.getvalue()


READERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "idx": (_idx, idx(IMAGES)),
    "idx gzip": (_idx, gzip.compress(idx(IMAGES))),
    "npy": (_npy, _npy_bytes(IMAGES)),
    "matlab": (_matlab, matlab({"X": IMAGES, "y": np.arange(3.0)}, compress=False)),
    "matlab compressed": (_matlab, matlab({"X": IMAGES, "y": np.arange(3.0)})),
    "pickle": (_pickle, cifar_files(10, 2, binary=False)["cifar-10-batches-py/test_batch"]),
}


def test_labels_have_a_limit_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^f: the header asks for 50000001 bytes, more than the limit of 50000000$"):
        parse_idx(io.BytesIO(b"\0\0\x08\x01" + struct.pack(">I", 50_000_001)), "f", num_dims=1)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (400000001,), }"
    (tmp_path / "x.npz").write_bytes(zipped({"images.npy": _npy_bytes(IMAGES), "labels.npy": _header(header)}))
    with pytest.raises(DataError, match="needs 400000001 bytes in 1 dimensions; the limits are 400000000 and 4"):
        load_npz(tmp_path / "x.npz", "x")


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
    assert str(caught.value) == message


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
        ({"labels": np.arange(3)}, r"no array 'images' \(found: labels\); an .npz needs images and labels"),
        ({"images": IMAGES, "labels": np.zeros(3)}, r"labels are float64 \[3\], expected integers \[N\]"),
        ({"images": IMAGES, "labels": np.zeros((3, 1), int)}, r"labels are int64 \[3, 1\], expected integers"),
        ({"images": IMAGES, "labels": np.array([0, 1, -1])}, "labels run from -1 to 1, expected 0 to 65535"),
        ({"images": IMAGES, "labels": np.array([0, 1, 2**62])}, "labels run from 0 to 4611686018427387904"),
        ({"images": IMAGES / 255, "labels": np.arange(3)}, "images are float64, expected uint8 from 0 to 255; convert"),
        ({"images": IMAGES[0], "labels": np.arange(3)}, r"images have shape \[8, 8\], expected \[N, H, W\] or"),
        ({"images": np.zeros((3, 8, 8, 4), np.uint8), "labels": np.arange(3)}, r"images have shape \[3, 8, 8, 4\]"),
        (
            {"images": IMAGES, "labels": np.arange(3), "classes": np.arange(3)},
            r"classes are int64 \[3\], expected text",
        ),
        ({"images": IMAGES, "labels": np.arange(3), "classes": np.array([b"\xff"] * 3)}, "a class name is not valid"),
        ({"images": IMAGES, "labels": np.arange(3), "test_images": IMAGES}, "belong together; only one of them is"),
    ],
)
def test_npz_messages(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(npz(**arrays))
    with pytest.raises(DataError, match=message):
        load_npz(path, "x")


def test_npz_of_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    path, proof = tmp_path / "x.npz", tmp_path / "executed"
    np.savez(path, images=np.array([_Bomb(proof)], dtype=object), labels=np.arange(1))
    with pytest.raises(DataError, match="holds Python objects, which are never read; save plain arrays"):
        load_npz(path, "x")
    assert not proof.exists()


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    data = npz(images=IMAGES, labels=np.arange(3))
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match="damaged or truncated"):
            load_npz(path, "x")
    path.write_bytes(zipped({"images.npy": _npy_bytes(IMAGES)}, zipfile.ZIP_LZMA))
    with pytest.raises(DataError, match="uses compression method 14, expected stored or deflate; pack it again"):
        load_npz(path, "x")
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        load_npz(tmp_path / "missing.npz", "x")


class _Bomb:
    """An object whose unpickling makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.proof,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_never_executed(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "executed"
    data = pickle.dumps({"data": _Bomb(proof)}, protocol)
    with pytest.raises(DataError, match=r"^f: the pickle refers to 'posix mkdir'; only the"):
        read_pickle(data, "f")
    assert not proof.exists()
    pickle.loads(data)
    assert proof.exists()


def test_the_pickle_of_python_2_is_read_as_python_reads_it() -> None:
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
        mine, reference = read_pickle(data, "f"), pickle.loads(data, encoding="bytes")
        assert list(mine) == [key.decode() for key in reference] == list(value)
        assert np.array_equal(mine.pop("data"), reference.pop(b"data")) and np.array_equal(rows, value["data"])
        assert list(mine.values()) == list(reference.values())


def test_the_text_form_of_python_2_is_read() -> None:
    data = b"(dp1\nS'num_vis'\np2\nI3072\nsS'label_names'\np3\n(lp4\nS'cat'\np5\naS'dog'\np6\nasS'flag'\nI01\ns."
    assert read_pickle(data, "f") == {"num_vis": 3072, "label_names": [b"cat", b"dog"], "flag": True}
    assert pickle.loads(data, encoding="bytes") == {b"num_vis": 3072, b"label_names": [b"cat", b"dog"], b"flag": True}


_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), _PLAIN, max_size=5), st.sampled_from([3, 4, 5]))
def test_plain_values_of_python_3_are_read_too(value: dict[str, Any], protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol), "f") == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps([1]), "the pickle holds no dictionary"),
        (pickle.dumps({1: 2}), "the pickle has a key of type int"),
        (pickle.dumps({"a": {1, 2}}, 4), "the pickle uses the instruction EMPTY_SET"),
        (python2_pickle({"a": np.zeros(3)}), "the pickle holds an array of something else than unsigned bytes"),
        (
            python2_pickle({"a": np.zeros(3, np.uint8)}).replace(b"(K\x03t", b"(K\x04t"),
            "the pickle is damaged or truncated",
        ),
        (b"\x80\x02}q\x00(U\x01acnumpy\ndtype\nu.", "the pickle is damaged or truncated"),
        (b"\x80\x02cnumpy\nndarray\n(tR.", "the pickle calls something"),
        (b"\x80\x02]b.", "the pickle is damaged or truncated"),
        (b"\x80\x02}}b.", "the pickle fills an object"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", ""),
        (b"(" * 9 + b".", "the pickle is damaged or truncated"),
    ],
)
def test_pickles_that_are_no_batches(data: bytes, message: str) -> None:
    if not message:
        assert read_pickle(data, "f") == {}  # a huge memo index costs nothing here
        return
    with pytest.raises(DataError, match=f"^f: {message}"):
        read_pickle(data, "f")


def test_a_pickle_without_end_costs_a_bounded_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.data.pickle.MAX_PICKLE_STEPS", 1000)
    with pytest.raises(DataError, match="the pickle has more than 1000 instructions"):
        read_pickle(b"\x80\x02" + b"N" * 5000 + b".", "f")


def test_every_instruction_of_pickle_is_known_or_refused() -> None:
    for opcode in pickletools.opcodes:
        try:
            read_pickle(b"\x80\x02}(" + opcode.code.encode("latin-1") + b"\0" * 40 + b"\n\n.", "f")
        except DataError:
            pass


@given(
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"]),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    compress=st.booleans(),
)
def test_matlab_reads_what_scipy_writes(dtype: str, shape: list[int], compress: bool) -> None:
    array = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    extra = {"s": {"a": 1.0, "b": "text"}, "c": np.array(["x", 1], dtype=object), "z": np.array([1j])}
    data = matlab({**extra, "X": array, "text": "abc", "y": np.arange(3)[:, None]}, compress=compress)
    found = _matlab(data)
    assert sorted(found) == ["X", "y"]
    assert np.array_equal(found["X"], array) and found["y"].shape == (3, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a MATLAB 5 file"),
        (b"MATLAB 7.3 MAT-file" + b" " * 109, r"a MATLAB 7.3 file \(HDF5\); save it with  save -v7  instead"),
        (matlab({"X": IMAGES}), "no numeric variable 'y'; fetch the official file again"),
        (matlab({"X": "text", "y": 1.0}), "no numeric variable 'X'"),
        (matlab({"X": IMAGES, "y": 1j}), "the variable 'y' is complex, doubled or has no shape"),
        (matlab({"X": np.zeros((1, 1, 1, 1, 2)), "y": 1.0}), "an element of 20 bytes where at most 16 are expected"),
    ],
)
def test_matlab_messages(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^f: {message}"):
        _matlab(data)


def test_a_matlab_variable_cannot_promise_more_than_it_holds() -> None:
    plain = matlab({"X": IMAGES, "y": np.arange(3.0)}, compress=False)
    start = plain.index(struct.pack("<iii", 3, 8, 8))
    huge = plain[:start] + struct.pack("<iii", 2**31 - 1, 8, 8) + plain[start + 12 :]
    with pytest.raises(DataError, match=r"has shape \[2147483647, 8, 8\]; at most 1073741824 bytes are read"):
        _matlab(huge)
    other = plain[:start] + struct.pack("<iii", 4, 8, 8) + plain[start + 12 :]
    with pytest.raises(DataError, match=r"the variable 'X' has 192 bytes, which does not fit \[4, 8, 8\]"):
        _matlab(other)
    bomb = zlib.compress(struct.pack("<II", 14, 2**32 - 1) + bytes(10**6))
    with pytest.raises(DataError):
        _matlab(plain[:128] + struct.pack("<II", 15, len(bomb)) + bomb)
