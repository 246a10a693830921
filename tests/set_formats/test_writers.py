"""The writers' formats: PNG, stored zip archives, NPZ and NPY, read back by the libraries that their users use."""

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, features
from plans import PLAN

from dim.runtime.errors import BundleError
from dim.runtime.set_formats import npz
from dim.runtime.set_formats.file_sizes import bound_image_bytes
from dim.runtime.set_formats.npz import Npz, encode_npy_header
from dim.runtime.set_formats.part import Batch, PartRecord
from dim.runtime.set_formats.plan import FORMATS
from dim.runtime.set_formats.png import encode_png, encoder_version
from dim.runtime.storage.local_store import LocalStore
from dim.runtime.storage.place import make_place
from dim.runtime.storage.records import from_plain, to_plain

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
    bound = bound_image_bytes("imagefolder", (px, px, channels))
    assert max(len(data) for data in encode_png(noise)) <= bound
    assert all(bound_image_bytes(format, (px, px, channels)) >= px * px * channels for format in FORMATS)


def test_png_bytes_do_not_depend_on_the_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    assert encode_png(images) == [data for image in images for data in encode_png(image[None])]
    assert encode_png(images[:, ::-1, :, :1]) == [encode_png(image[None])[0] for image in images[:, ::-1, :, :1].copy()]


def test_the_plan_names_pillow_and_the_zlib_it_loads() -> None:
    assert encoder_version() == f"Pillow {PIL.__version__}, zlib {features.version_codec('zlib')}"


def write_npz(folder: Path) -> Path:
    """Write a plan's only part as NPZ."""
    store = LocalStore(folder)
    make_place(store)
    plan = replace(PLAN, format="npz", part_images=7)
    writer = Npz().open(plan, store, 0)
    labels, indices = plan.samples(0, 7)
    images = np.arange(7 * 8 * 8 * 3).astype(np.uint8).reshape(7, 8, 8, 3)
    writer.write(writer.encode(Batch(images=images, labels=labels, indices=indices)))
    record = writer.finish()
    assert record.files[0].sha256 == hashlib.sha256((folder / "train.npz").read_bytes()).hexdigest()
    return folder / "train.npz"


def test_npz_is_read_by_zipfile_and_pinned(tmp_path: Path) -> None:
    path = write_npz(tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["images.npy", "labels.npy", "classes.npy"]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert (
        hashlib.sha256(path.read_bytes()).hexdigest()
        == "bc88c88c7595fe0451961ddfc7e3a1010bea7605748c9e969b6f0236d5ce1b44"
    )


def test_zip64_where_sizes_need_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = write_npz(tmp_path / "small").stat().st_size
    monkeypatch.setattr(npz, "ZIP64_BYTES", 400)
    path = write_npz(tmp_path / "large")
    assert path.stat().st_size > small
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert np.load(path)["labels"].tolist() == [0, 1, 0, 1, 0, 0, 0]


def test_npy_header_is_numpys_own() -> None:
    stream = io.BytesIO(encode_npy_header("|u1", (2, 3, 4, 1)) + bytes(24))
    assert np.load(stream).shape == (2, 3, 4, 1)
    stream = io.BytesIO()
    np.save(stream, np.zeros(5, np.int64))
    assert stream.getvalue() == encode_npy_header("<i8", (5,)) + bytes(40)


def test_part_record_round_trip_and_garbage() -> None:
    record = PartRecord(part=1, images=2, bytes=3, sha256="0" * 64, files=())
    block = to_plain(record)
    assert from_plain(PartRecord, block, "The record") == record
    outside = [{"path": "../x", "bytes": 1, "sha256": "0" * 64}]
    for garbage in (
        None,
        [],
        {},
        {"part": "1"},
        block | {"bytes": -1},
        block | {"files": [1]},
        block | {"files": outside},
    ):
        with pytest.raises(BundleError, match="^The record"):
            from_plain(PartRecord, garbage, "The record")
