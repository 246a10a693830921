"""Tar and zip archives and folders as sequences of checked entries."""

import io
import lzma
import os
import random
import shutil
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_samples import tarred, without_utf8_flag, write_folder, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.data.files.archive import iterate_entries
from dim.data.files.entries import Entry
from dim.data.files.tar import iterate_tar
from dim.runtime.errors import DataError

FILES = {"a/1.bin": b"one", "a/2.bin": b"", "b/" + "n" * 120 + ".bin": b"x" * 1500, "ü/3.bin": bytes(512)}


def _read(path: Path) -> dict[str, bytes]:
    return {entry.path: entry.read(10**6) for entry in iterate_entries(path) if not entry.is_folder}


def _members(data: bytes) -> Iterator[Entry]:
    return iterate_tar(io.BytesIO(data), "f")


def _refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        _read(path)
    text = str(caught.value)
    assert str(path) in text
    return text.replace(str(path), "P")


@pytest.mark.parametrize("kind", ["folder", "zip", "zip stored", "w", "w:gz", "w:xz"])
def test_every_form_gives_the_same_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data"
    if kind == "folder":
        write_folder(path, FILES)
    elif kind.startswith("zip"):
        path.write_bytes(zipped(FILES, zipfile.ZIP_STORED if kind == "zip stored" else zipfile.ZIP_DEFLATED))
    else:
        path.write_bytes(tarred(FILES, kind))
    assert _read(path) == FILES


_PARTS = st.text("abcü. -", min_size=1, max_size=40).filter(lambda part: part not in (".", ".."))
_NAMES = st.lists(_PARTS, min_size=1, max_size=6).map("/".join)


@settings(deadline=None, max_examples=60)
@given(
    files=st.dictionaries(_NAMES, st.binary(max_size=1100), max_size=4),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
)
def test_tar_reads_what_tarfile_writes(files: dict[str, bytes], format: int) -> None:
    files = {name: data for name, data in files.items() if not name.endswith("/")}
    try:
        data = tarred(files, "w", format)
    except ValueError:  # a name too long for ustar
        return
    found = {member.path: member.read(10**6) for member in _members(data)}
    assert found == files


def test_members_may_be_left_unread_or_read_in_part() -> None:
    data = tarred({f"{n}": bytes([n]) * (n * 300) for n in range(9)}, "w:xz")
    read = [member.read(10**6) for member in _members(data) if member.path in "258"]
    assert [len(part) for part in read] == [600, 1500, 2400]


def test_a_concatenated_and_padded_xz_is_read() -> None:
    data = tarred({"a": b"1" * 3000, "b": b"2" * 5000})
    split = lzma.compress(data[:4000]) + bytes(8) + lzma.compress(data[4000:]) + bytes(4)
    assert {m.path: len(m.read(10**6)) for m in _members(split)} == {"a": 3000, "b": 5000}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_every_truncation_of_a_tar_is_refused(mode: str) -> None:
    data = tarred({f"{n}.bin": random.Random(n).randbytes(900) for n in range(3)}, mode)
    # Uncompressed, the end mark is two blocks and padding: one whole block of zeros is enough.
    end = len(data) if mode != "w" else len(data.rstrip(b"\0")) + 512
    for length in range(0, end - 512 if mode == "w" else len(data) - 8, 13):
        with pytest.raises(DataError):
            for member in _members(data[:length]):
                member.read(10**6)


@settings(deadline=None)
@given(data=st.data(), mode=st.sampled_from(["w", "w:gz", "w:xz"]))
def test_an_altered_tar_gives_members_or_a_data_error(data: st.DataObject, mode: str) -> None:
    altered = bytearray(tarred({"d/": b"", "d/a": b"1" * 600, "e" * 200: b"2"}, mode))
    for _ in range(data.draw(st.integers(1, 3))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    try:
        for member in _members(bytes(altered)):
            member.read(10**6)
    except DataError as error:
        assert str(error).startswith("f: ")


@settings(deadline=None)
@given(data=st.data())
def test_an_altered_zip_gives_members_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    altered = bytearray(zipped({"d/a": b"1" * 600, "e": b"2"}))
    for _ in range(data.draw(st.integers(1, 3))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "altered.zip"
    path.write_bytes(bytes(altered))
    try:
        _read(path)
    except DataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil", "P: the member '../evil' climbs out of the archive with '..'; it is not safe to read"),
        ("a/../../evil", "P: the member 'a/../../evil' climbs out of the archive with '..'; it is not safe to read"),
        ("/etc/x", "P: the member '/etc/x' has an absolute path or a backslash; pack it with relative paths"),
        ("a\nb", r"P: the member 'a\nb' has unprintable characters in its path; rename it"),
        ("a/" * 16 + "b", "P: the member 'a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/b' lies 17 folders deep, more than 16"),
        ("x" * 4097, f"P: a member's path of more than 4096 bytes: '{'x' * 80}'"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_path_that_could_leave_the_archive_is_refused(tmp_path: Path, kind: str, name: str, message: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(zipped({name: b"1"}) if kind == "zip" else tarred({name: b"1"}))
    assert _refusal(path) == message + "."


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes, word: str) -> None:
    info = tarfile.TarInfo("a/b")
    info.type, info.linkname = kind, "target"
    (tmp_path / "x").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    how = {"a link": ": pack them again with  tar -h", "a hard link": ": pack them again with  tar --hard-dereference"}
    advice = how.get(word, "")
    assert _refusal(tmp_path / "x") == f"P: the member 'a/b' is {word}; only files and folders are read{advice}."


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a/b")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert _refusal(tmp_path / "x") == "P: the member 'a/b' is a link or a device; only files and folders are read."


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped({"a": b"1"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x").write_bytes(data)
    assert "the member 'a' is encrypted; unpack it and pack it without a password" in _refusal(tmp_path / "x")


def test_a_doubled_path_is_refused(tmp_path: Path) -> None:
    part = tarred({"a": b"1"})[:1024]
    (tmp_path / "x").write_bytes(part + part + bytes(1024))
    assert _refusal(tmp_path / "x") == "P: 'a' is in the archive twice; pack it again."


def test_a_link_out_of_a_folder_is_refused_and_one_inside_followed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", {"a/1": b"one"})
    (folder / "b").symlink_to("a")
    assert _read(folder) == {"a/1": b"one", "b/1": b"one"}
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "a" / "2").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="a link that leaves .*; copy what it leads to, or say --follow-links"):
        _read(folder)
    followed = {
        entry.path: entry.read(99) for entry in iterate_entries(folder, follow_links=True) if not entry.is_folder
    }
    assert followed == {"a/1": b"one", "a/2": b"secret", "b/1": b"one", "b/2": b"secret"}


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", {"a/1": b"one"})
    (folder / "a" / "2").symlink_to(folder / "b")
    assert _refusal(folder) == "P/a/2: a link to P/b, where nothing can be read; remove the link or fix it."


def test_names_in_a_zip_are_those_that_were_packed(tmp_path: Path) -> None:
    """macOS leaves out the flag of UTF-8; some packers of Windows write backslashes; other bytes are code page 437."""
    path = tmp_path / "x"
    path.write_bytes(without_utf8_flag(zipped({"Kätzchen/1": b"1", "猫/2": b"2"})))
    assert _read(path) == {"Kätzchen/1": b"1", "猫/2": b"2"}
    assert not any(entry.is_guessed for entry in iterate_entries(path))
    path.write_bytes(zipped({"K@": b"1", "a": b"2"}).replace(b"K@", b"K\x84"))
    assert _read(path) == {"Kä": b"1", "a": b"2"}
    assert [entry.is_guessed for entry in iterate_entries(path)] == [True, False]
    path.write_bytes(zipped({"a|b|1": b"1", "a|c|": b""}).replace(b"|", b"\\"))
    assert _read(path) == {"a/b/1": b"1"}
    assert [entry.is_folder for entry in iterate_entries(path)] == [False, True]
    assert not any(entry.is_guessed for entry in iterate_entries(path))
    for evil, message in (("..|x", "climbs out of the archive"), ("|x", "has an absolute path or a backslash")):
        path.write_bytes(zipped({evil: b"1"}).replace(b"|", b"\\"))
        assert message in _refusal(path)
    path.write_bytes(tarred({"a\\b": b"1"}))
    assert _refusal(path) == r"P: the member 'a\\b' has an absolute path or a backslash; pack it with relative paths."


def test_loops_and_pipes_in_a_folder_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", {"a/1": b"one"})
    (folder / "a" / "loop").symlink_to(folder)
    with pytest.raises(
        DataError, match=f"^{folder}/a/loop: a link to {folder}, a folder that it lies in itself; remove the link"
    ):
        _read(folder)
    (folder / "a" / "loop").unlink()
    deep = folder / Path(*"bcdefghijklmnopqrs")
    deep.mkdir(parents=True)
    with pytest.raises(DataError, match="more than 16 folders deep, which is the limit"):
        _read(folder)
    shutil.rmtree(folder / "b")
    os.mkfifo(folder / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder; remove it"):
        _read(folder)
    (folder / "pipe").unlink()
    (folder / "dangling").symlink_to("nothing")
    with pytest.raises(
        DataError, match="dangling: a link to nothing, where nothing can be read; remove the link or fix it"
    ):
        _read(folder)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_bomb_is_stopped_at_the_limit(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    bomb = {"a": bytes(50_000_000)}
    path.write_bytes(zipped(bomb) if kind == "zip" else tarred(bomb, "w:xz"))
    assert path.stat().st_size < 60_000
    tracemalloc.start()
    with pytest.raises(DataError, match="a: more than 1000000 bytes, which is the limit for one file"):
        _read(path)
    assert tracemalloc.get_traced_memory()[1] < 16_000_000  # the xz decoder's own 8 MB, and buffers
    tracemalloc.stop()
    if kind == "tar":
        monkeypatch.setattr(f"dim.data.files.{kind}.MAX_UNPACKED_BYTES", 10**6)
        with pytest.raises(DataError, match="unpacks to more than 1000000 bytes, which is the limit"):
            list(iterate_entries(path))


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_zip_may_say_a_name_in_utf8_in_an_extra_field(tmp_path: Path, is_damaged: bool) -> None:
    """As Info-ZIP and WinZip do (field 0x7075); one that is for another name does not count."""
    raw, real = b"K\xe4tze.png", "Kätze.png"
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        info = zipfile.ZipInfo("K@tze.png")
        payload = b"\x01" + (zlib.crc32(raw) ^ is_damaged).to_bytes(4, "little") + real.encode()
        other = b"\x99\x99\x02\x00ab"
        info.extra = other + b"\x75\x70" + len(payload).to_bytes(2, "little") + payload
        archive.writestr(info, b"1")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes().replace(b"K@tze", b"K\xe4tze"))
    (entry,) = iterate_entries(tmp_path / "x")
    assert (entry.path, entry.is_guessed) == (("KΣtze.png", True) if is_damaged else (real, False))


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.data.files.archive.MAX_MEMBERS", 3)
    for data in (zipped({f"{n}": b"" for n in range(4)}), tarred({f"{n}": b"" for n in range(4)})):
        (tmp_path / "x").write_bytes(data)
        assert _refusal(tmp_path / "x") == "P: more than 3 members, which is the limit."
    monkeypatch.setattr("dim.data.files.zip.MAX_MEMBERS", 3)
    (tmp_path / "x").write_bytes(zipped({f"{n}": b"" for n in range(4)}))
    assert "its directory has 188 bytes" in _refusal(tmp_path / "x")


def test_members_that_went_by_leave_no_memory() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(500):
            info = tarfile.TarInfo(f"a/{number}")
            info.pax_headers = {f"comment{number}": "x" * 8000}
            archive.addfile(info)
    tracemalloc.start()
    assert sum(1 for _ in _members(buffer.getvalue())) == 500
    assert tracemalloc.get_traced_memory()[1] - len(buffer.getvalue()) < 1_000_000
    tracemalloc.stop()


def test_an_xz_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    data = bytearray(lzma.compress(tarred({"a": b"1"})))
    block = data[12 : 12 + (data[12] + 1) * 4]  # the first block's header; byte 4 states the dictionary's size
    block[4] = 37  # 1.5 GiB
    block[-4:] = zlib.crc32(block[:-4]).to_bytes(4, "little")
    data[12 : 12 + len(block)] = block
    (tmp_path / "x").write_bytes(data)
    assert "Memory usage limit exceeded" in _refusal(tmp_path / "x")


def test_headers_that_chain_or_lie_are_refused(tmp_path: Path) -> None:
    def header(kind: bytes, size: int, name: str = "a") -> bytes:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, size
        return info.tobuf(tarfile.GNU_FORMAT)

    def pax(text: bytes) -> bytes:
        return header(b"x", len(text)) + text.ljust(512, b"\0") + header(b"0", 0) + bytes(1024)

    def sparse_map(blocks: int) -> bytes:
        text = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
        numbers = b"9" * 4 + b"\n" + b"1\n" * 254
        return header(b"x", len(text)) + text.ljust(512, b"\0") + header(b"0", 0) + numbers.ljust(512, b"1") * blocks

    cases = {
        (header(b"L", 1) + b"a".ljust(512, b"\0")) * 17: "the headers of one member have more than 16384 bytes",
        header(b"x", 2**30): "the headers of one member have more than 16384 bytes, which is the limit; pack it with",
        sparse_map(40): "the headers of one member have more than 16384 bytes",
        header(b"0", 2**60): "a: more than 1000000 bytes, which is the limit for one file",
        header(b"Z", 0): "the member 'a' has the unknown type b'Z'; pack it with a plain tar",
        pax(b"0 path=x\n"): "the archive is damaged or truncated (invalid header): fetch it again",
        pax(b"11 size=-9\n"): "damaged",
        pax(b"22 GNU.sparse.major=1\n"): "the member 'a' is a sparse file; only files and folders are read",
        pax(b"22 GNU.sparse.map=0,x\n"): "the archive is damaged or truncated",
        pax(b"10 path=\xff\n"): "has a path that is not UTF-8; rename it",
        header(b"0", 0) + b"x" * 512: "damaged at byte 512: a header is malformed",
        tarred({"a": b"1"}) + tarred({"b": b"1"}): "more data after the archive's end mark; pack it into one archive",
        b"hello": "neither a folder nor a zip, tar, tar.gz or tar.xz archive",
        b"": "neither a folder nor a zip, tar, tar.gz or tar.xz archive",
    }
    for data, message in cases.items():
        (tmp_path / "x").write_bytes(data)
        assert message in _refusal(tmp_path / "x")


def test_an_empty_archive_has_no_members(tmp_path: Path) -> None:
    for data in (zipped({}), tarred({}), tarred({"./": b""})):
        (tmp_path / "x").write_bytes(data)
        assert list(iterate_entries(tmp_path / "x")) == []
