"""`latents.npz`: a round trip, stable bytes, and hostile archives."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim.runtime.bundle_format import fixed_latents
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.fixed_latents import read_fixed_latents, write_fixed_latents
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.errors import BundleError

GOOD = np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return load_manifest(tiny_bundle)


def archive(content: bytes, name: str = "latents.npy", compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as writer:
        for member, data in ({name: content} | more).items():
            writer.writestr(member, data)
    return stream.getvalue()


def array_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=allow_pickle)
    return stream.getvalue()


def test_round_trip(manifest: Manifest) -> None:
    written = write_fixed_latents(GOOD)
    assert np.array_equal(read_fixed_latents(written, manifest), GOOD)
    assert written == write_fixed_latents(GOOD.copy())
    assert np.array_equal(np.load(io.BytesIO(written))["latents"], GOOD)


def test_what_numpy_writes_is_read(manifest: Manifest) -> None:
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, latents=GOOD)
        assert np.array_equal(read_fixed_latents(stream.getvalue(), manifest), GOOD)


class Evil:
    def __reduce__(self) -> tuple:
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an archive"),
        (b"PK\x05\x06" + b"\0" * 18, "it holds 0 files"),
        (archive(array_bytes(GOOD), name="other.npy"), "must hold latents.npy alone"),
        (archive(array_bytes(GOOD), more=b"x"), "it holds 2 files"),
        (archive(b"x"), "is not an archive of NumPy arrays"),
        (archive(array_bytes(GOOD)[:40]), "is not an archive of NumPy arrays"),
        (archive(array_bytes(GOOD).replace(b"(3, 4, 16)", b"((((((((((")), "has no header of format 1.0"),
        (archive(array_bytes(GOOD).replace(b"(3, 4, 16)", b"(3, 4,  6)")), r"has the shape \(3, 4, 6\)"),
        (archive(array_bytes(GOOD).replace(b"\x76\x00{", b"\x77\x00{")), "truncated or longer"),
        (archive(array_bytes(GOOD), compression=zipfile.ZIP_BZIP2), "by a method that NumPy does not write"),
        (archive(array_bytes(GOOD)[:-1]), "truncated or longer"),
        (archive(array_bytes(GOOD) + b"x"), "truncated or longer"),
        (archive(array_bytes(GOOD[:2])), r"has the shape \(2, 4, 16\); it must be \(3, images, 16\)"),
        (archive(array_bytes(GOOD[:, :0])), r"has the shape \(3, 0, 16\)"),
        (archive(array_bytes(GOOD[0])), r"has the shape \(4, 16\)"),
        (archive(array_bytes(GOOD.astype(np.float64))), "holds <f8 values"),
        (archive(array_bytes(GOOD.astype(">f4"))), "holds >f4 values"),
        (archive(array_bytes(np.asfortranarray(GOOD))), "in C order"),
        (archive(array_bytes(GOOD * np.nan)), "not finite"),
        (archive(array_bytes(np.array([[[Evil()] * 16] * 4] * 3), allow_pickle=True)), r"holds \|O values"),
        (archive(pickle.dumps(Evil())), "is not an archive of NumPy arrays"),
    ],
)  # fmt: skip
def test_hostile_archives_are_refused(manifest: Manifest, data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_fixed_latents(data, manifest)


def test_a_bomb_is_refused_before_it_is_unpacked(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_latents, "MAX_LATENTS_BYTES", 10_000)
    with pytest.raises(BundleError, match="unpacks to 100,000 bytes; at most 10,000 are read"):
        read_fixed_latents(archive(b"\0" * 100_000, compression=zipfile.ZIP_DEFLATED), manifest)


def test_a_vast_directory_is_refused_before_it_is_read(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    many = archive(array_bytes(GOOD), **{f"{i}.npy": b"" for i in range(100)})
    commented = archive(array_bytes(GOOD)) + b"comment"
    monkeypatch.setattr(fixed_latents.zipfile, "ZipFile", lambda *args: pytest.fail("the directory was read"))
    for data in (many, commented, many[:-22] + b"PK\x06\x07" + b"\0" * 16 + many[-22:]):
        with pytest.raises(BundleError, match="that holds latents.npy alone"):
            read_fixed_latents(data, manifest)


def test_a_damaged_deflate_stream_is_refused(manifest: Manifest) -> None:
    data = archive(array_bytes(GOOD), compression=zipfile.ZIP_DEFLATED)
    start = data.index(b"latents.npy") + len("latents.npy")
    with pytest.raises(BundleError, match="is not an archive of NumPy arrays"):
        read_fixed_latents(data[:start] + b"\xff" * 20 + data[start + 20 :], manifest)


def test_a_lie_about_the_size_is_noticed(manifest: Manifest) -> None:
    data = bytearray(archive(b"\0" * 100_000, compression=zipfile.ZIP_DEFLATED))
    directory = data.rindex(b"PK\x01\x02")
    for offset in (directory + 24, data.index(b"PK\x03\x04") + 22):
        data[offset : offset + 4] = (50).to_bytes(4, "little")
    with pytest.raises(BundleError):
        read_fixed_latents(bytes(data), manifest)


@given(st.integers(0, len(write_fixed_latents(GOOD)) * 8 - 1))
def test_a_flipped_bit_is_refused_or_harmless(manifest: Manifest, bit: int) -> None:
    data = bytearray(write_fixed_latents(GOOD))
    data[bit // 8] ^= 1 << bit % 8
    try:
        assert np.array_equal(read_fixed_latents(bytes(data), manifest), GOOD)
    except BundleError:
        pass
