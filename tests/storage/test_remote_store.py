"""Sets in object stores and bundles from URLs: memory, a real S3 interface on loopback, a web server on loopback."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from s3_tools import objects
from set_tools import generate, tree

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.bundle_format.fetch import check_pin, fetch_bundle
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.errors import BadValueError, BundleError, MissingExtraError, OutputError
from dim.runtime.set_formats.plan import FORMATS
from dim.runtime.storage import remote_store
from dim.runtime.storage.remote_store import RemoteStore

COUNTS = (20, 9, 3)
# botocore and moto warn about their own insides.
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_s3_holds_the_same_bytes_as_a_folder(bundle: Bundle, tmp_path: Path, s3: Any, format: str) -> None:
    sizes: dict[str, Any] = {} if format == "imagefolder" else {"shard_images": 15}
    generate(bundle, tmp_path / "set", counts=COUNTS, format=format, **sizes)
    summary = generate(bundle, f"s3://bucket/{format}", counts=COUNTS, format=format, **sizes)
    assert summary.complete and summary.out == f"s3://bucket/{format}"
    assert objects(s3, format) == tree(tmp_path / "set")
    again = generate(bundle, f"s3://bucket/{format}", counts=COUNTS, format=format, **sizes)
    assert again.images_drawn == 0


def test_s3_resumes_and_finished_objects_stay(bundle: Bundle, tmp_path: Path, s3: Any) -> None:
    def interrupt(what: str, done: float, total: float | None, note: str) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    wish: dict[str, Any] = {"counts": COUNTS, "format": "webdataset", "shard_images": 8}
    generate(bundle, tmp_path / "set", **wish)
    with pytest.raises(KeyboardInterrupt):
        generate(bundle, "s3://bucket/resumed", progress=interrupt, **wish)
    half = objects(s3, "resumed")
    finished = [name for name in half if name.endswith(".tar")]
    assert 0 < len(finished) < 4 and ".dim/parts/000000.json" in half
    times = {name: s3.head_object(Bucket="bucket", Key=f"resumed/{name}")["LastModified"] for name in finished}
    assert generate(bundle, "s3://bucket/resumed", **wish).images_drawn == 32 - 8 * len(finished)
    assert objects(s3, "resumed") == tree(tmp_path / "set")
    assert {name: s3.head_object(Bucket="bucket", Key=f"resumed/{name}")["LastModified"] for name in finished} == times


def test_s3_shards_and_other_sets(bundle: Bundle, tmp_path: Path, s3: Any) -> None:
    wish: dict[str, Any] = {"counts": COUNTS, "format": "parquet", "shard_images": 8}
    generate(bundle, tmp_path / "set", **wish)
    done = [generate(bundle, "s3://bucket/shards/deep", shard=(i, 3), **wish).complete for i in (2, 0, 1)]
    assert done == [False, False, True]
    assert objects(s3, "shards/deep") == tree(tmp_path / "set")
    with pytest.raises(OutputError, match=r"s3://bucket/shards/deep holds another set \(seed 0 instead of 1\)"):
        generate(bundle, "s3://bucket/shards/deep", seed=1, **wish)
    s3.put_object(Bucket="bucket", Key="shards/deep/notes.txt", Body=b"mine")
    wish["counts"] = (2, 0, 0)
    assert generate(bundle, "s3://bucket/shards/deep", overwrite=True, **wish).complete
    names = set(objects(s3, "shards/deep"))
    assert names == {"notes.txt", "data/train-00000-of-00001.parquet", "dataset.json", "README.md", "croissant.json"}


@pytest.mark.parametrize("url", ["s3://bucket//a//b", "s3://bucket/a///b/", "memory://bucket//a//b//"])
def test_double_slashes_in_a_url_are_one(bundle: Bundle, tmp_path: Path, s3: Any, url: str) -> None:
    wish: dict[str, Any] = {"counts": COUNTS, "format": "npy", "shard_images": 8}
    generate(bundle, tmp_path / "set", **wish)
    summary = generate(bundle, url, **wish)
    assert summary.complete and summary.out == f"{url.partition(':')[0]}://bucket/a/b"
    assert generate(bundle, url, **wish).images_drawn == 0
    if url.startswith("s3"):
        assert objects(s3, "a/b") == tree(tmp_path / "set")


class Flaky:
    """Wraps a file system so that some calls fail."""

    def __init__(self, real: Any, error: Exception, every: int) -> None:
        self._real, self._error, self._every, self.calls = real, error, every, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in ("pipe_file", "put_file", "cat_file", "info", "rm_file"):
            return found

        @functools.wraps(found)
        def call(*given: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls % self._every == 0:
                raise self._error
            return found(*given, **named)

        return call


def flaky_memory(monkeypatch: pytest.MonkeyPatch, error: Exception, every: int) -> Flaky:
    flaky = Flaky(fsspec.filesystem("memory"), error, every)
    monkeypatch.setattr(remote_store, "open_file_system", lambda url: (flaky, url.removeprefix("memory:/")))
    monkeypatch.setattr(remote_store, "FIRST_PAUSE_S", 0.0)
    return flaky


@pytest.fixture(autouse=True)
def _empty_memory() -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("format", FORMATS)
def test_memory(bundle: Bundle, tmp_path: Path, format: str) -> None:
    generate(bundle, tmp_path / "set", counts=COUNTS, format=format)
    assert generate(bundle, "memory://somewhere/set", counts=COUNTS, format=format).complete
    memory = fsspec.filesystem("memory")
    found = {name.removeprefix("/somewhere/set/"): memory.cat_file(name) for name in memory.find("/somewhere/set")}
    assert found == tree(tmp_path / "set")


def test_failures_that_pass_are_tried_again(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = flaky_memory(monkeypatch, ConnectionError("reset"), 3)
    assert generate(bundle, "memory://flaky/set", counts=COUNTS).complete
    assert flaky.calls > 40


def test_failures_that_stay_are_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky_memory(monkeypatch, ConnectionError("reset"), 1)
    with pytest.raises(OutputError) as caught:
        generate(bundle, "memory://broken/set", counts=COUNTS)
    assert str(caught.value) == (
        "memory://broken/set cannot be reached or written: reset; fix it and run the same command again, what is "
        "finished is kept."
    )
    flaky = flaky_memory(monkeypatch, PermissionError("403"), 1)
    with pytest.raises(OutputError, match=r"cannot be written: permission denied; check the credentials"):
        generate(bundle, "memory://broken/set", counts=COUNTS)
    assert flaky.calls == 1


def test_places_that_cannot_be(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadValueError, match="Protocol not known: nosuch"):
        generate(bundle, "nosuch://a/b", counts=COUNTS)
    with pytest.raises(BadValueError, match="names no folder"):
        generate(bundle, "memory://", counts=COUNTS)
    with pytest.raises(MissingExtraError) as caught:
        RemoteStore("gs://bucket/set")
    assert str(caught.value) == (
        "The package 'gcsfs' is not installed and is needed to reach gs:// URLs: run  pip install 'dim-distill[gcs]'"
    )


def test_a_file_url_is_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    assert generate(bundle, f"file://{tmp_path}/set", counts=(1, 1, 1)).complete
    assert (tmp_path / "set" / "one" / "00000000.png").exists()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server on loopback: its URL, its folder, and the paths that were asked for."""
    folder, asked = tmp_path / "www", list[str]()
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/redirect/"):
                self.send_response(302)
                self.send_header("Location", "http://example.invalid/" + self.path)
                self.end_headers()
                return
            super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            """Stay quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")


def test_a_bundle_is_fetched_once_and_draws_the_same(tiny_bundle: Path, web: Any) -> None:
    url, folder, asked = web
    shutil.copytree(tiny_bundle, folder / "tiny.dim")
    said: list[str] = []
    path = fetch_bundle(f"{url}/tiny.dim/", say=said.append)
    assert tree(path) == tree(tiny_bundle)
    assert said[0].startswith(f"Fetching tiny from {url}/tiny.dim: ") and len(asked) == len(tree(tiny_bundle))
    with (
        open_bundle(path, engine="onnxruntime-cpu", threads=1) as fetched,
        open_bundle(tiny_bundle, threads=1) as original,
    ):
        assert np.array_equal(fetched.sample([1], [2]), original.sample([1], [2]))
    asked.clear()
    assert fetch_bundle(f"{url}/tiny.dim", say=said.append) == path
    assert asked == ["/tiny.dim/manifest.json"] and said[-1] == f"Bundle {url}/tiny.dim is in the cache: {path}."
    asked.clear()
    digest = load_manifest(tiny_bundle).manifest_sha256
    assert fetch_bundle(f"{url}/tiny.dim", sha256=f"sha256:{digest}") == path and asked == []


def test_pins(tiny_bundle: Path, web: Any) -> None:
    url, folder, _ = web
    shutil.copytree(tiny_bundle, folder / "tiny.dim")
    manifest = load_manifest(tiny_bundle)
    with pytest.raises(BundleError) as caught:
        fetch_bundle(f"{url}/tiny.dim", sha256="0" * 64)
    assert str(caught.value) == (
        f"The bundle at {url}/tiny.dim has the hash {manifest.manifest_sha256}; {'0' * 64} was pinned: it is another "
        "bundle, or it was altered."
    )
    with pytest.raises(BundleError, match="'abc' is not a SHA-256; it has 64 hexadecimal digits"):
        fetch_bundle(f"{url}/tiny.dim", sha256="abc")
    check_pin(manifest, None, "here")
    check_pin(manifest, manifest.manifest_sha256.upper(), "here")


@pytest.mark.parametrize("damage", ["longer", "shorter", "altered", "missing"])
def test_damaged_bundles_are_refused_and_not_kept(tiny_bundle: Path, web: Any, tmp_path: Path, damage: str) -> None:
    url, folder, _ = web
    shutil.copytree(tiny_bundle, folder / "tiny.dim")
    victim = folder / "tiny.dim" / "generator.fp32.onnx"
    data = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes({"longer": data + b"x", "shorter": data[:-1], "altered": b"x" + data[1:]}[damage])
    words = {"longer": "is longer than the", "missing": "the server answered 404"}.get(damage, "altered or cut short")
    with pytest.raises(BundleError, match=words):
        fetch_bundle(f"{url}/tiny.dim")
    assert not list((tmp_path / "cache" / "bundles").iterdir())


def test_urls_that_are_no_bundle(web: Any) -> None:
    url, folder, _ = web
    with pytest.raises(BundleError, match="cannot be fetched: the server answered 404"):
        fetch_bundle(f"{url}/nothing.dim")
    (folder / "page").mkdir()
    (folder / "page" / "manifest.json").write_text("<html>")
    with pytest.raises(BundleError, match=f"There is no bundle at {url}/page: "):
        fetch_bundle(f"{url}/page")
    with pytest.raises(BundleError, match="would come unprotected: use https, or pin the bundle with --sha256"):
        fetch_bundle("http://example.invalid/b.dim")
    with pytest.raises(BundleError, match=r"cannot be fetched|unprotected"):
        fetch_bundle(f"{url}/redirect/b.dim")
    with pytest.raises(BundleError) as caught:
        fetch_bundle("http://127.0.0.1:9/b.dim")
    assert str(caught.value) == "http://127.0.0.1:9/b.dim/manifest.json cannot be fetched: Connection refused."


def test_opening_by_url_and_by_pin(tiny_bundle: Path, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, folder, _ = web
    shutil.copytree(tiny_bundle, folder / "tiny.dim")
    digest = load_manifest(tiny_bundle).manifest_sha256
    with open_bundle(f"{url}/tiny.dim", sha256=digest, engine="fake") as bundle:
        assert bundle.path.name == f"{digest}.dim"
    monkeypatch.setenv("DIM_BUNDLE", f"{url}/tiny.dim")
    said: list[str] = []
    with open_bundle(engine="fake", say=said.append) as bundle:
        assert said == [f"Bundle: {bundle.path}, from {url}/tiny.dim."]
    with open_bundle(tiny_bundle, sha256=digest, engine="fake"):
        pass
    with pytest.raises(BundleError, match="was pinned: it is another bundle, or it was altered"):
        open_bundle(tiny_bundle, sha256="0" * 64)


def test_a_bundle_from_s3(tiny_bundle: Path, s3: Any) -> None:
    for name, data in tree(tiny_bundle).items():
        s3.put_object(Bucket="bucket", Key=f"bundles/tiny.dim/{name}", Body=data)
    path = fetch_bundle("s3://bucket/bundles/tiny.dim")
    assert tree(path) == tree(tiny_bundle)
    with pytest.raises(BundleError, match="there is no such object"):
        fetch_bundle("s3://bucket/bundles/none.dim")
