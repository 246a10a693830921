"""Bundles by URL: few schemes at every hop, bounded in time, every oddity of a server one sentence without secrets."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dim.runtime.bundle_format import download as download_module
from dim.runtime.bundle_format.download import check_url, download, join_url
from dim.runtime.bundle_format.fetch import fetch_bundle
from dim.runtime.bundle_format.locate import find_bundle
from dim.runtime.errors import BundleError

Answer = Callable[[str], list[bytes | float]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Start a server that sends what a function returns for a path: bytes, and seconds to wait between them."""
    listeners: list[socket.socket] = []

    def start(answer: Answer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    request = client.recv(65536).decode("latin-1").split(" ")
                    try:
                        for item in answer(request[1] if len(request) > 1 else ""):
                            time.sleep(item) if isinstance(item, float) else client.sendall(item)
                    except OSError:
                        pass

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-server \x1b[2J\r\n", "the server does not speak HTTP properly (SSH-2.0-server ?[2J)"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\nabc\r\n", "the server does not speak HTTP properly"),
        (OK + b"X: y\r\n" * 300 + b"\r\n{}", "the server does not speak HTTP properly (got more than 100 headers)"),
        (OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n", "the server does not speak HTTP properly"),
        (OK + b"Content-Length: 5000\r\n\r\n{", "the connection ended 4,999 bytes early"),
        (b"HTTP/1.1 404 \x1b[2J\x1b]0;title\x07\r\n\r\n", "answered 404 ?[2J?]0;title?; check the address"),
        (b"HTTP/1.1 401 No\r\n\r\n", "answered 401 No; it wants a login, which dim does not send: fetch the folder"),
        (b"HTTP/1.1 403 No\r\n\r\n", "answered 403 No; it wants a login, which dim does not send: fetch the folder"),
        (b"HTTP/1.1 429 No\r\n\r\n", "answered 429 No; it was asked too often: wait a few minutes and try again."),
        (b"HTTP/1.1 503 No\r\n\r\n", "answered 503 No; it is out of order: try again later."),
        (OK + b"\r\n \n<!doctype html><html>", "sends a web page instead of manifest.json; give the address"),
        (b"", "the server does not speak HTTP properly (Remote end closed connection without response)"),
        (b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\n\r\n", "a server may send on to https:// alone"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "a server may send on to https:// alone"),
        (b"HTTP/1.1 307 Moved\r\nLocation: s3://bucket/x\r\n\r\n", "a server may send on to https:// alone"),
        (b"HTTP/1.1 308 Moved\r\nLocation: http://example.invalid/x\r\n\r\n", "would come unprotected: use https"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[bad\r\n\r\n", "Invalid IPv6 URL"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://a:b@example.invalid/\r\n\r\n", "holds a user name or a password"),
        (b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n", "sends from one address to the next without end"),
    ],
)  # fmt: skip
def test_every_oddity_of_a_server_is_one_sentence(serve: Callable[[Answer], str], answer: bytes, words: str) -> None:
    url = serve(lambda path: [answer])
    with pytest.raises(BundleError) as caught:
        fetch_bundle(f"{url}/b.dim")
    said = str(caught.value)
    assert words in said and said.isprintable() and said.endswith(".")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.invalid/b.dim", "is not fetched: a bundle's URL begins with https://, http://, s3://, s3a://,"),
        ("file:///tmp/b.dim", "name a folder of this machine by its path"),
        ("simplecache::http://127.0.0.1/b.dim", "is not fetched"),
        ("zip://x::/etc/passwd", "is not fetched"),
        ("https://a::b://c", "is no URL"),
        ("reference:///etc/passwd", "is not fetched"),
        ("data://x", "is not fetched"),
        ("memory://x", "is not fetched"),
        ("https://[bad/x.dim", "is no URL: Invalid IPv6 URL"),
        ("https://127.0.0.1:abc/x", "is no URL: Port could not be cast"),
        ("https://127.0.0.1:99999/x", "is no URL: Port out of range"),
        ("https:///x", "is no URL: it names no host"),
        ("s3:///x", "is no URL: it names no bucket"),
        ("https://127.0.0.1:1/a b.dim", "holds a blank or a control character: write %20 for a blank"),
        ("https://127.0.0.1/\x01x", "holds a blank or a control character"),
        ("https://me:secret@127.0.0.1/x", "https://***@127.0.0.1/x holds a user name or a password"),
    ],
)
def test_other_urls_are_refused_before_anything_is_asked(url: str, words: str) -> None:
    with pytest.raises(BundleError) as caught:
        find_bundle(url)
    said = str(caught.value)
    assert words in said and said.isprintable() and "secret" not in said


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.2", "127.1", "2130706433", "0x7f.1", "0.0.0.0", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]"]
    + ["localhost", "LOCALHOST."],
)
def test_a_redirect_from_elsewhere_does_not_lead_to_this_machine(host: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(BundleError, match="a server may not send on to this machine"):
            download_module._check_hop(f"{scheme}://{host}:1/x", pinned=True, local=False)


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1", "localhost.example.org", "[2001:db8::1]", "1.example"])
def test_another_machine_may_be_sent_on_to(host: str) -> None:
    download_module._check_hop(f"https://{host}/x", pinned=False, local=False)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "simplecache::https://x/y", "s3://b/x"])
def test_a_redirect_to_another_scheme_blames_the_server(url: str) -> None:
    with pytest.raises(BundleError, match=r"is not fetched: a server may send on to https:// alone\."):
        download_module._check_hop(url, pinned=True, local=True)


def test_a_server_that_drips_is_given_up(serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its every byte arrives well within the timeout of a socket; in the body, and before."""
    monkeypatch.setattr(download_module, "TIMEOUT_S", 1)
    dripping: list[bytes | float] = [item for _ in range(40) for item in (b" ", 0.1)]
    for answer in ([OK + b"\r\n", *dripping], [b"HTTP/1.1 200 O", *dripping]):
        url, start = serve(lambda path, answer=answer: answer), time.monotonic()  # type: ignore[misc]
        with pytest.raises(BundleError, match=r"the server sends less than 16,384 bytes per second; try again later\."):
            fetch_bundle(f"{url}/b.dim")
        assert time.monotonic() - start < 15
        for thread in threading.enumerate():
            if thread.name == "dim-download":
                thread.join()


def test_a_slow_and_steady_server_is_waited_for(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "TIMEOUT_S", 1)
    steady: list[bytes | float] = [item for _ in range(8) for item in (bytes(16384), 0.2)]
    url = serve(lambda path: [OK + b"\r\n", *steady])
    assert len(b"".join(download(f"{url}/x", 2**20, pinned=False))) == 8 * 16384


def test_no_secret_of_a_url_is_shown(serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    asked: list[str] = []
    url = serve(lambda path: asked.append(path) or [b"HTTP/1.1 403 Forbidden\r\n\r\n"])  # type: ignore[func-returns-value]
    monkeypatch.setenv("DIM_BUNDLE", f"{url}/nope.dim?X-Signature=TOKEN&b=SECRET#PART")
    with pytest.raises(BundleError) as caught:
        find_bundle(say=said.append)
    text = f"{caught.value} {said}"
    assert "/nope.dim/manifest.json?*** cannot be fetched: the server answered 403 Forbidden; it wants" in text
    assert not any(secret in text for secret in ("TOKEN", "SECRET", "PART"))
    assert asked[0].startswith("/nope.dim/manifest.json?X-Signature=TOKEN&b=SECRET")
    monkeypatch.delenv("DIM_BUNDLE")
    with pytest.raises(BundleError) as caught:
        find_bundle("https://127.0.0.1:1/b.dim?sig=TOKEN", say=said.append)
    assert "TOKEN" not in str(caught.value)


def test_urls_are_joined_before_their_query() -> None:
    assert join_url("https://h/b.dim/?a=1", "x y.onnx") == "https://h/b.dim/x%20y.onnx?a=1"
    check_url("HTTPS://example.invalid/b.dim")


def test_the_command_says_one_sentence(serve: Callable[[Answer], str]) -> None:
    url = serve(lambda path: [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n"])
    done = subprocess.run(
        [sys.executable, "-m", "dim", "inspect", f"{url}/b.dim?token=TOKEN"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: http://127.0.0.1:") and "TOKEN" not in done.stderr
