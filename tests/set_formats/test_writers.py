"""The writers' formats: PNG, stored zip archives, NPZ and NPY, read back by the libraries that their users use."""

import hashlib
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, features

from dim.runtime.set_formats import zip_stream as stored_zip
from dim.runtime.set_formats.file_sizes import largest_image_bytes
from dim.runtime.set_formats.npz import npy_header
from dim.runtime.set_formats.part import PartRecord, read_pieces
from dim.runtime.set_formats.plan import FORMATS
from dim.runtime.set_formats.png import encode_png, encoder_version
from dim.runtime.set_formats.zip_stream import ZipIndex

shapes = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))


@given(shapes.flatmap(lambda shape: hnp.arrays(np.uint8, shape)))
@settings(max_examples=60, deadline=None)
def test_png_holds_the_pixels(images: np.ndarray) -> None:
    for data, image in zip(encode_png(images), images, strict=True):
        opened = Image.open(io.BytesIO(data))
        assert opened.mode == ("RGB" if image.shape[2] == 3 else "L") and opened.format == "PNG"
        assert np.array_equal(np.asarray(opened).reshape(image.shape), image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("px", [8, 32, 128])
def test_noise_stays_below_the_bound_that_shards_are_cut_by(px: int, channels: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, px, px, channels), dtype=np.uint8)
    bound = largest_image_bytes("imagefolder", (px, px, channels))
    assert max(len(data) for data in encode_png(noise)) <= bound
    assert all(largest_image_bytes(format, (px, px, channels)) >= px * px * channels for format in FORMATS)


def test_png_bytes_do_not_depend_on_the_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    assert encode_png(images) == [data for image in images for data in encode_png(image[None])]
    assert encode_png(images[:, ::-1, :, :1]) == [encode_png(image[None])[0] for image in images[:, ::-1, :, :1].copy()]


def test_the_plan_names_pillow_and_the_zlib_it_loads() -> None:
    assert encoder_version() == f"Pillow {PIL.__version__}, zlib {features.version_codec('zlib')}"


def archive_of(members: dict[str, bytes]) -> bytes:
    index, out = ZipIndex(), b""
    for name, data in members.items():
        start = len(out)
        out += index.header(name, len(data)) + data
        out += index.descriptor(name, len(data), zlib.crc32(data), start)
    return out + index.directory(len(out))


def test_zip_is_read_by_zipfile_and_pinned() -> None:
    members = {"images.npy": b"pixels" * 10, "labels.npy": b"", "classes.npy": b"abc"}
    data = archive_of(members)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == members
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert hashlib.sha256(data).hexdigest() == "4d06e0cffba3819b612d76fe7be1cd3aa1bdb45e40495d27cc5c4b1c5ed16bdc"


def test_zip64_where_sizes_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_zip, "_LIMIT", 40)
    members = {"images.npy": b"pixels" * 10, "labels.npy": b"small", "classes.npy": b"abc"}
    with zipfile.ZipFile(io.BytesIO(archive_of(members))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == members


def test_npy_header_is_numpys_own() -> None:
    stream = io.BytesIO(npy_header("|u1", (2, 3, 4, 1)) + bytes(24))
    assert np.load(stream).shape == (2, 3, 4, 1)
    stream = io.BytesIO()
    np.save(stream, np.zeros(5, np.int64))
    assert stream.getvalue() == npy_header("<i8", (5,)) + bytes(40)


def test_pieces(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(200)) * 20_000)
    assert b"".join(read_pieces(tmp_path / "file", 5, 3_000_000)) == (bytes(range(200)) * 20_000)[5:3_000_000]
    assert list(read_pieces(tmp_path / "file", 5, 5)) == []


def test_part_record_round_trip_and_garbage() -> None:
    record = PartRecord(part=1, images=2, bytes=3, sha256="0" * 64, files=())
    assert PartRecord.from_dict(record.to_dict()) == record
    for garbage in (None, [], {}, {"part": "1"}, record.to_dict() | {"bytes": -1}, record.to_dict() | {"files": [1]}):
        with pytest.raises(Exception, match="A record of a finished part is malformed"):
            PartRecord.from_dict(garbage)
