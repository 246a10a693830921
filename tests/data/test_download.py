"""Downloads from a server on loopback: checksums, mirrors, progress, and what is said when it fails."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from data_samples import idx, image_file, random_images, without_cautions, zipped

from dim.data.files.official_files import OfficialFile, download, download_archive
from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.data.readers.known import KNOWN
from dim.runtime.errors import BadValueError, DataError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


PNG = image_file(random_images(1, 8, 3)[0])


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _nothing(*report: object) -> None:
    """Ignore what is said."""


def test_a_named_set_is_downloaded_once(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, address = mirror
    files = []
    for file, count in zip(KNOWN["mnist"].files, (20, 20, 10, 10), strict=True):
        array = random_images(count, 28, 1)[..., 0] if "idx3" in file.name else (np.arange(count) % 10).astype(np.uint8)
        data = gzip.compress(idx(array), mtime=0)
        (served / file.name).write_bytes(data)
        files.append(OfficialFile(name=file.name, md5=_md5(data)))
    known = KNOWN["mnist"]
    monkeypatch.setitem(KNOWN, "mnist", type(known)(**(vars(known) | {"files": tuple(files), "mirrors": (address,)})))
    said: list[str] = []
    seen: list[tuple[str, float, float | None, str]] = []
    first = load_data("mnist", data_dir=tmp_path / "new", say=said.append, progress=lambda *report: seen.append(report))
    assert (
        len(without_cautions(said)) == 4
        and said[0] == f"downloading {address}{files[0].name} to {tmp_path / 'new' / 'mnist'}"
    )
    total = (served / files[0].name).stat().st_size
    assert seen[0][0] == f"downloading {files[0].name}" and (seen[0][0], total / 1e6, total / 1e6, "MB") in seen
    assert first.note == "MNIST, official files (MD5 sums match)"
    for file in served.iterdir():
        file.unlink()
    assert load_data("mnist", data_dir=tmp_path / "new").fingerprint() == first.fingerprint()


def test_an_altered_file_is_refused_and_the_next_mirror_asked(tmp_path: Path, mirror: tuple[Path, str]) -> None:
    served, address = mirror
    for name, data in (("bad", b"altered"), ("good", b"right")):
        (served / name).mkdir()
        (served / name / "x.bin").write_bytes(data)
    file = OfficialFile(name="x.bin", md5=_md5(b"right"))
    assert download(file, (address + "bad/", address + "good/"), tmp_path / "to", _nothing, _nothing).read_bytes() == (
        b"right"
    )
    with pytest.raises(DataError) as caught:
        download(file, (address + "bad/", address + "gone/"), tmp_path / "other", _nothing, _nothing)
    assert str(caught.value) == (
        f"x.bin cannot be downloaded ({address}bad/: its MD5 sum is not {file.md5}; {address}gone/: HTTP 404): "
        f"fetch it by other means and put it into {tmp_path / 'other'}, or pass its folder as --data-dir."
    )
    assert list((tmp_path / "other").iterdir()) == []


def test_a_connection_that_breaks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"the first bytes")

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/"
        file = OfficialFile(name="x.bin", md5="0" * 32)
        with pytest.raises(DataError, match=r"^x.bin cannot be downloaded \(.*\): fetch it by other means"):
            download(file, (address,), tmp_path / "to", _nothing, _nothing)
        with pytest.raises(DataError, match=r"^.*pets.zip cannot be downloaded \(.*\): fetch it by other means\.$"):
            download_archive(address + "pets.zip", "0" * 64, _nothing, _nothing)
        server.shutdown()
        thread.join()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_connection_is_said_in_one_sentence(tmp_path: Path, mirror: tuple[Path, str]) -> None:
    file = OfficialFile(name="x.bin", md5="0" * 32)
    with pytest.raises(
        DataError, match=r"^x.bin cannot be downloaded \(http://127.0.0.1:9/: no connection\): fetch it"
    ):
        download(file, ("http://127.0.0.1:9/",), tmp_path / "to", _nothing, _nothing)


def test_a_folder_that_cannot_be_written(tmp_path: Path, mirror: tuple[Path, str]) -> None:
    served, address = mirror
    (served / "x.bin").write_bytes(b"right")
    (tmp_path / "to").write_bytes(b"a file where the folder should be")
    with pytest.raises(DataError, match=r"x.bin cannot be written there \(.*\): pass another --data-dir\.$"):
        download(OfficialFile(name="x.bin", md5=_md5(b"right")), (address,), tmp_path / "to", _nothing, _nothing)


def test_an_archive_is_fetched_once_and_only_with_its_checksum(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, address = mirror
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    data = zipped({f"{label}/{number}.png": PNG for label in "ab" for number in range(4)})
    (served / "my pets.zip").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    said: list[str] = []

    def fetch(name: str, sum_: str = sha256) -> Path:
        return download_archive(address + name, sum_, said.append, lambda *report: None)

    path = fetch("my%20pets.zip?token=secret")
    assert path == tmp_path / "cache" / "data" / "archives" / sha256[:16] / "my pets.zip"
    assert load_data(path).classes == ("a", "b")
    assert len(said) == 1 and "secret" not in said[0]
    (served / "my pets.zip").unlink()
    assert fetch("my%20pets.zip") == path and len(said) == 1
    (served / "other.zip").write_bytes(b"other")
    with pytest.raises(DataError, match=f"other.zip: its SHA-256 is not {'0' * 64}: check the address and the sum"):
        fetch("other.zip", "0" * 64)
    with pytest.raises(DataError, match=r"gone.zip cannot be downloaded \(HTTP 404\): fetch it by other means"):
        fetch("gone.zip", "0" * 64)
    assert [each.name for each in (tmp_path / "cache" / "data" / "archives").rglob("*")] == [sha256[:16], path.name]
    with pytest.raises(DataError, match="^--sha256 is 'abc': expected 64 hexadecimal digits, as sha256sum prints them"):
        fetch("other.zip", "abc")
    with pytest.raises(DataError, match="its last part names no file"):
        fetch("", "0" * 64)


def test_addresses_that_are_not_read() -> None:
    with pytest.raises(DataError, match="^An https:// archive needs its SHA-256, as sha256sum FILE prints it: say"):
        load_data("https://example.org/x.zip")
    with pytest.raises(DataError, match="^ftp:// is not read; give a path, hf://USER/NAME, or an https:// archive"):
        load_data("ftp://example.org/x.zip")
    with pytest.raises(BadValueError, match="^digits is no https:// archive, so --sha256 "):
        load_data("digits", DataOptions(sha256="0" * 64))
