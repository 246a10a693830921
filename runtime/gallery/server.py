"""The gallery's server: a page and its answers on 127.0.0.1, behind a random token.

Who may ask: whoever knows the address with its token, from a page of this server, by a loopback name. The page loads
nothing from elsewhere and runs no text of a bundle: all of it arrives as JSON and is shown as text.
"""

import base64
import errno
import hmac
import json
import secrets
import threading
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dim.runtime.bundle import Bundle
from dim.runtime.errors import DimError, OutputError, describe_error, printable
from dim.runtime.gallery.answers import Answers, RealImages

LOOPBACK = "127.0.0.1"
MAX_BODY_BYTES = 2**16
_HOSTS = (LOOPBACK, "localhost")
_PAGE = Path(__file__).with_name("page")
_PAGE_FILES = {
    "": ("gallery.html", "text/html; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "gallery.css": ("gallery.css", "text/css; charset=utf-8"),
    "gallery.js": ("gallery.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_FRAMES = " ".join(f"http://{host}:* https://{host}:*" for host in _HOSTS)
_HEADERS = {
    # A notebook on this machine may show the page in a frame.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; object-src 'none'; "
    f"frame-ancestors 'self' {_FRAMES}",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_FRAME_HEIGHT_PX = 900


class Gallery:
    """A bundle's page, served from a thread until `close`; a notebook shows it below the cell.

    Args:
        bundle: open; closed with the gallery.
        real: the source's training images, or None.
        port: 0 for any that is free.
        folder: where the page's sets are saved; None for the current folder.

    Raises:
        OutputError: the port cannot be used.
    """

    def __init__(
        self, bundle: Bundle, real: RealImages | None = None, *, port: int = 0, folder: Path | None = None
    ) -> None:
        self._bundle = bundle
        self._token = secrets.token_urlsafe(16)
        answers = Answers(bundle, real, (folder or Path.cwd()).absolute())
        try:
            self._server = _Server((LOOPBACK, port), _Handler)
        except OverflowError:
            raise OutputError(f"Port {port} is none: choose one from 1024 to 65535, or 0 for any free one.") from None
        except OSError as error:
            what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({describe_error(error)})"
            raise OutputError(f"Port {port} {what}: choose another, or leave it out for any free one.") from None
        self._server.answers, self._server.token = answers, self._token
        self._stopped = threading.Event()
        threading.Thread(target=self._server.serve_forever, name="dim-gallery", daemon=True).start()

    @property
    def url(self) -> str:
        """The page's address, with the token that opens it."""
        return f"http://{LOOPBACK}:{self._server.server_port}/{self._token}/"

    def wait(self) -> None:
        """Return when the gallery is closed, or raise KeyboardInterrupt on Ctrl-C."""
        self._stopped.wait()

    def close(self) -> None:
        """Stop serving and close the bundle; harmless when called twice."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._server.shutdown()
            self._server.server_close()
            self._bundle.close()

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Gallery of {printable(self._bundle.manifest.name)} at {self.url}>"

    def _repr_html_(self) -> str:
        """Show the page in a notebook that runs on this machine."""
        address = escape(self.url, quote=True)
        return (
            f'<iframe src="{address}" width="100%" height="{_FRAME_HEIGHT_PX}" style="border:0" '
            f'title="Gallery of a bundle"></iframe><p>If nothing is shown here, open <a href="{address}">{address}</a> '
            "on the machine that runs the notebook.</p>"
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False
    answers: Answers
    token: str


class _Handler(BaseHTTPRequestHandler):
    """One request: who asks is checked, then the answer is looked up."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dim", ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer with a file of the page, JSON or PNG."""
        self._answer(self._find)

    def do_POST(self) -> None:
        """Save a set: the one request that writes."""
        self._answer(self._save)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the address holds the token."""

    def _answer(self, find: Callable[[str, dict[str, str]], tuple[str, bytes]]) -> None:
        """Send what is found, or a sentence."""
        status = HTTPStatus.OK
        try:
            name, query = self._check()
            kind, body = find(name, query)
        except _RefusedError as refused:
            status, (kind, body) = refused.status, _to_json({"error": str(refused)})
        except DimError as error:
            status, (kind, body) = HTTPStatus.BAD_REQUEST, _to_json({"error": str(error)})
        except Exception as error:
            status, (kind, body) = HTTPStatus.INTERNAL_SERVER_ERROR, _to_json({"error": f"{describe_error(error)}."})
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or self.command == "POST":
            self.close_connection = True
        self._send(status, kind, body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request for a page, such as another method, with the same headers as any answer."""
        self.close_connection = True
        self._send(HTTPStatus(code), *_to_json({"error": "The gallery does not answer such a request."}))

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        try:
            self.send_response(status)
            for header, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True  # the page went away

    def _check(self) -> tuple[str, dict[str, str]]:
        """Check host and token; return what is asked for, without the token, and the query."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in _HOSTS:
            raise _RefusedError(HTTPStatus.MISDIRECTED_REQUEST, "This server answers to 127.0.0.1 and localhost alone.")
        address = urlsplit(self.path)
        token, slash, name = address.path.removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here: open the address that dim view printed.")
        return name, dict(parse_qsl(address.query, keep_blank_values=True, max_num_fields=32))

    def _find(self, name: str, query: dict[str, str]) -> tuple[str, bytes]:
        answers = self.server.answers
        if name in _PAGE_FILES:
            file, kind = _PAGE_FILES[name]
            return kind, (_PAGE / file).read_bytes()
        if name == "nearest.json":
            found, sheet = answers.nearest(query)
            neighbours = [{"label": each.label, "distance": round(each.distance, 2)} for each in found]
            return _to_json({"neighbours": neighbours, "png": base64.b64encode(sheet).decode()})
        if name in ("facts.json", "command.json"):
            return _to_json(answers.facts() if name == "facts.json" else answers.command(query))
        pictures = {"images.png": answers.images, "between.png": answers.between, "real.png": answers.real}
        if name not in pictures:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "The gallery has no such page.")
        return "image/png", pictures[name](query)

    def _save(self, name: str, query: dict[str, str]) -> tuple[str, bytes]:
        """Save, if the page itself asks: another site's page may send a request here, but not with this header."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            raise _RefusedError(HTTPStatus.FORBIDDEN, "Only the gallery's own page may save a set.")
        if name != "set" or self.headers.get("Content-Type") != "application/json":
            raise _RefusedError(HTTPStatus.NOT_FOUND, "The gallery has no such page.")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request is too long.")
        try:
            wish = json.loads(self.rfile.read(int(length)))
        except ValueError:
            wish = None
        if not isinstance(wish, dict) or not all(isinstance(value, str) for value in wish.values()):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "The request is no JSON object of texts.")
        return _to_json(self.server.answers.save(wish))


class _RefusedError(Exception):
    """A request that gets a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def _to_json(value: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(value, allow_nan=False).encode()
