"""The gallery's server: who may ask, what it sends, how it ends."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dim.runtime.bundle import Bundle
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import OutputError
from dim.runtime.gallery.answers import Answers
from dim.runtime.gallery.server import MAX_BODY_BYTES, Gallery


@pytest.fixture
def gallery(tiny_bundle: Path, tmp_path: Path) -> Iterator[Gallery]:
    bundle = Bundle(tiny_bundle, EngineOptions(engine="onnxruntime-cpu"))
    with Gallery(bundle, folder=tmp_path) as opened:
        yield opened


def ask(
    gallery: Gallery, name: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request; headers are named with underscores."""
    place = urlsplit(gallery.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    path = name if name.startswith("/") else place.path + name
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in given)
    for key, value in given.items():
        connection.putheader(key, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def error_of(answer: tuple[int, dict[str, str], bytes]) -> str:
    assert answer[1]["Content-Type"] == "application/json"
    return str(json.loads(answer[2])["error"])


def test_the_address_is_on_loopback_with_a_token(gallery: Gallery) -> None:
    place = urlsplit(gallery.url)
    assert place.hostname == "127.0.0.1" and len(place.path.strip("/")) >= 20


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", "text/html; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("gallery.css", "text/css; charset=utf-8"),
        ("gallery.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("facts.json", "application/json"),
        ("command.json", "application/json"),
        ("images.png?labels=1&count=2", "image/png"),
        ("between.png?labels=1&end=3&steps=4", "image/png"),
    ],
)
def test_every_answer_says_what_it_is_and_forbids_the_rest(gallery: Gallery, name: str, kind: str) -> None:
    status, headers, body = ask(gallery, name)
    assert status == 200 and headers["Content-Type"] == kind and len(body) == int(headers["Content-Length"])
    policy = headers["Content-Security-Policy"].split("; ")
    assert policy[0] == "default-src 'self'" and "unsafe" not in headers["Content-Security-Policy"]
    assert "script-src" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store" and headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("method", ["PUT", "HEAD", "OPTIONS", "<script>"])
def test_what_is_no_request_for_a_page_is_refused_like_any_other(gallery: Gallery, method: str) -> None:
    status, headers, body = ask(gallery, "", method=method)
    assert status == 501 and headers["Content-Type"] == "application/json" and b"script" not in body
    assert headers["X-Content-Type-Options"] == "nosniff" and "Content-Security-Policy" in headers


def test_an_error_of_the_gallery_itself_is_an_answer(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(answers: Answers) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Answers, "facts", fail)
    assert ask(gallery, "facts.json")[0] == 500
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:80", "", "0.0.0.0:1"])
def test_another_host_is_refused(gallery: Gallery, host: str) -> None:
    answer = ask(gallery, "facts.json", Host=host)
    assert answer[0] == 421 and error_of(answer) == "This server answers to 127.0.0.1 and localhost alone."


def test_a_forwarded_port_is_no_other_host(gallery: Gallery) -> None:
    assert ask(gallery, "facts.json", Host="localhost:9999")[0] == 200


@pytest.mark.parametrize("path", ["/", "/facts.json", "/x/facts.json", "//facts.json", "/%2e%2e/", "/%C3%A9/"])
def test_without_the_token_there_is_nothing(gallery: Gallery, path: str) -> None:
    answer = ask(gallery, path)
    assert answer[0] == 404
    assert error_of(answer) == "There is nothing here: open the address that dim view printed."


@pytest.mark.parametrize("name", ["other", "../facts.json", "page/style.css", "gallery.py", "%2e%2e/server.py", "set"])
def test_nothing_else_is_served(gallery: Gallery, name: str) -> None:
    answer = ask(gallery, name)
    assert answer[0] == 404 and error_of(answer) == "The gallery has no such page."


def test_a_wrong_value_is_one_sentence(gallery: Gallery) -> None:
    answer = ask(gallery, "images.png?labels=9")
    assert answer[0] == 400 and error_of(answer) == "The class is '9'; it must be a whole number from 0 to 2."


@pytest.mark.parametrize(
    ("query", "name"), [("seed=", "seed"), ("count=", "number of images per class"), ("start=", "first index")]
)
def test_an_empty_field_is_told(gallery: Gallery, query: str, name: str) -> None:
    answer = ask(gallery, f"images.png?{query}")
    assert answer[0] == 400 and error_of(answer).startswith(f"The {name} is ''; it must be a whole number from ")


def save(gallery: Gallery, wish: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
    usual = {"Origin": gallery.url.rpartition("/")[0].rpartition("/")[0], "Content_Type": "application/json"}
    return ask(gallery, "set", method="POST", body=json.dumps(wish).encode(), **usual | headers)


def test_the_page_saves_a_set(gallery: Gallery, tmp_path: Path) -> None:
    status, _, body = save(gallery, {"count": "2", "out": "set"})
    assert status == 200 and json.loads(body)["images"] == 6
    assert len(list((tmp_path / "set").rglob("*.png"))) == 6
    answer = save(gallery, {"count": "3", "out": "set"})
    assert answer[0] == 400 and "holds another set" in error_of(answer)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_another_page_may_not_save(gallery: Gallery, tmp_path: Path, origin: str) -> None:
    answer = save(gallery, {"count": "2", "out": "set"}, Origin=origin)
    assert answer[0] == 403 and error_of(answer) == "Only the gallery's own page may save a set."
    assert list(tmp_path.iterdir()) == []


def test_a_form_may_not_save(gallery: Gallery, tmp_path: Path) -> None:
    assert save(gallery, {"out": "set"}, Content_Type="text/plain")[0] == 404
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wish", [[], "x", {"count": 2}, {"out": None}, {"out": {"a": "b"}}])
def test_what_is_no_wish_is_refused(gallery: Gallery, wish: Any) -> None:
    answer = save(gallery, wish)
    assert answer[0] == 400 and error_of(answer) == "The request is no JSON object of texts."


def test_a_long_request_is_refused_unread(gallery: Gallery) -> None:
    assert save(gallery, {"out": "x" * MAX_BODY_BYTES})[0] == 413


def test_requests_at_once_get_their_own_answers(gallery: Gallery) -> None:
    found: dict[int, bytes] = {}

    def draw(seed: int) -> None:
        found[seed] = ask(gallery, f"images.png?labels=1&count=3&seed={seed}")[2]

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found.values())) == 8
    assert all(ask(gallery, f"images.png?labels=1&count=3&seed={seed}")[2] == found[seed] for seed in (0, 5))


def test_a_port_in_use_and_a_port_that_is_none(tiny_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OutputError) as refused:
            Gallery(Bundle(tiny_bundle), port=port)
    assert str(refused.value) == f"Port {port} is in use: choose another, or leave it out for any free one."
    with pytest.raises(OutputError, match="Port 70000 is none: choose one from 1024 to 65535"):
        Gallery(Bundle(tiny_bundle), port=70000)


def test_closing_stops_the_server_and_the_bundle(tiny_bundle: Path) -> None:
    gallery = Gallery(Bundle(tiny_bundle))
    gallery.close()
    gallery.close()
    gallery.wait()
    with pytest.raises(ConnectionError):
        ask(gallery, "facts.json")


def test_a_notebook_shows_the_page(gallery: Gallery) -> None:
    html = gallery._repr_html_()
    assert f'<iframe src="{gallery.url}"' in html and "on the machine that runs the notebook" in html
    assert "http://127.0.0.1:*" in ask(gallery, "")[1]["Content-Security-Policy"]


def test_the_page_has_no_inline_code() -> None:
    page = (Path(__file__).parents[2] / "runtime" / "gallery" / "page" / "gallery.html").read_text()
    script = (Path(__file__).parents[2] / "runtime" / "gallery" / "page" / "gallery.js").read_text()
    assert " style=" not in page and " on" + "click=" not in page and page.count("<script") == 1
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in script
