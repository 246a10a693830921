"""Reads one object of a URL: few schemes, also after redirects; limited in size and time; no secret in a message."""

import contextlib
import http.client
import ipaddress
import queue
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from dim.runtime.errors import BundleError, DimError, describe_error, hide_secrets, printable
from dim.runtime.storage.object_store import explain_missing_credentials, lacks_credentials, open_file_system
from dim.version import __version__

SCHEMES = ("https", "http", "s3", "s3a", "gs", "gcs", "hf")
"""Of a bundle's URL and of every address that a server sends on to; http only where `_check_hop` says."""
TIMEOUT_S = 30
"""Until a server says anything, and what an object may take in all beyond the time of its bytes."""
LEAST_BYTES_PER_S = 16 * 2**10
"""The speed below which a server is given up."""
READ_BYTES = 2**20
_QUEUED_PIECES = 4


def check_url(url: str) -> None:
    """Check that a bundle's URL is one that is fetched.

    Raises:
        BundleError: another scheme, a chain of schemes, no host, a port that is none, a blank, or credentials in it.
    """
    shown = printable(hide_secrets(url))
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES or "::" in url.partition("://")[0]:
        raise BundleError(
            f"{shown} is not fetched: a bundle's URL begins with {', '.join(f'{each}://' for each in SCHEMES)}; "
            "name a folder of this machine by its path."
        )
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        raise BundleError(f"{shown} holds a blank or a control character: write %20 for a blank.")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise BundleError(f"{shown} is no URL: {_without_secrets(describe_error(error), url)}.") from None
    if not host:
        raise BundleError(f"{shown} is no URL: it names no {'host' if scheme.startswith('http') else 'bucket'}.")
    if "@" in parts.netloc:
        raise BundleError(f"{shown} holds a user name or a password, which dim does not send: give a URL without.")


def is_this_machine(host: str) -> bool:
    """Say whether a host is this machine by its name or its address, in any way to write one; no name is asked for.

    Args:
        host: as `urlsplit` gives it: in lower case, an address of version 6 without its brackets.
    """
    name = host.rstrip(".")
    if name == "localhost":
        return True
    try:
        # Also takes 127.1, 0x7f.1 and 2130706433, as the system does.
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv4Address(socket.inet_aton(name))
    except (OSError, ValueError):
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def explain_status(shown: str, status: int, reason: str = "") -> str:
    """Say in one sentence which answer of a server a download ended with, and what to do.

    Args:
        shown: the URL, as messages show it.
        status: of HTTP.
        reason: the server's own word for it.
    """
    if status in (401, 403, 407):
        advice = "it wants a login, which dim does not send: fetch the folder by other means and name its path"
    elif status == 429:
        advice = "it was asked too often: wait a few minutes and try again"
    elif status >= 500:
        advice = "it is out of order: try again later"
    else:
        advice = "check the address, which is that of the bundle's folder"
    said = f"{status} {printable(reason)[:100]}".rstrip()
    return f"{shown} cannot be fetched: the server answered {said}; {advice}."


def join_url(url: str, name: str) -> str:
    """Return the URL of a file in the folder at `url`; a query stays at the end."""
    base, mark, query = url.partition("?")
    return f"{base.rstrip('/')}/{urllib.parse.quote(name)}{mark}{query}"


def download(url: str, max_bytes: int, pinned: bool) -> Iterator[bytes]:
    """Read an object in pieces.

    Args:
        url: as `check_url` allows.
        max_bytes: the most bytes it may have.
        pinned: its hash is known, so it may come unprotected.

    Returns:
        its bytes.

    Raises:
        BundleError: it is longer, takes longer than its size allows, or cannot be had.
    """
    check_url(url)
    pieces = _read_http(url, pinned) if url.lower().startswith(("https://", "http://")) else _read_store(url)
    size = 0
    for piece in _read_in_time(pieces, url):
        size += len(piece)
        if size > max_bytes:
            raise BundleError(f"{hide_secrets(url)} is longer than the {max_bytes:,} bytes it may have.")
        yield piece


def _read_in_time(pieces: Iterator[bytes], url: str) -> Iterator[bytes]:
    """Read in a thread, because no timeout of a socket ends a server that sends a byte now and then."""
    waiting: queue.Queue[bytes | BaseException | None] = queue.Queue(_QUEUED_PIECES)
    ended = threading.Event()

    def put(item: bytes | BaseException | None) -> None:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=0.2)
                return

    def read() -> None:
        try:
            for piece in pieces:
                put(piece)
                if ended.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=read, name="dim-download", daemon=True).start()
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while True:
            try:
                item = waiting.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise BundleError(
                    f"{hide_secrets(url)} cannot be fetched: the server sends less than {LEAST_BYTES_PER_S:,} bytes "
                    "per second; try again later."
                ) from None
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            deadline += len(item) / LEAST_BYTES_PER_S
            yield item
    finally:
        ended.set()


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where the first address might have led."""

    def __init__(self, pinned: bool, local: bool) -> None:
        self._pinned, self._local = pinned, local

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_hop(newurl, self._pinned, self._local)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            # The handler of the library refuses other schemes in words of its own, with the whole address in them.
            for name in ("location", "uri"):
                if headers.get(name):
                    _check_hop(urllib.parse.urljoin(req.full_url, headers[name]), self._pinned, self._local)
            return super().http_error_302(req, fp, code, msg, headers)
        except Exception:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _check_hop(url: str, pinned: bool, local: bool) -> None:
    """Check an address that is about to be asked: https, or http where that is safe."""
    if url.partition("://")[0].lower() not in ("https", "http"):
        raise BundleError(f"{printable(hide_secrets(url))} is not fetched: a server may send on to https:// alone.")
    check_url(url)
    parts = urllib.parse.urlsplit(url)
    here = is_this_machine(parts.hostname or "")
    if here and not local:
        raise BundleError(f"{hide_secrets(url)} is not fetched: a server may not send on to this machine.")
    if parts.scheme == "http" and not pinned and not here:
        raise BundleError(f"{hide_secrets(url)} would come unprotected: use https, or pin the bundle with --sha256.")


def _read_http(url: str, pinned: bool) -> Iterator[bytes]:
    local = is_this_machine(urllib.parse.urlsplit(url).hostname or "")
    _check_hop(url, pinned, local)
    # No handler for ftp, file and data, which the library's own opener has.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _CheckedRedirects(pinned, local),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": f"dim/{__version__}"})
    shown = hide_secrets(url)
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            while piece := response.read1(READ_BYTES):
                yield piece
            if response.length:
                raise BundleError(f"{shown} cannot be fetched: the connection ended {response.length:,} bytes early.")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (301, 302, 303, 307, 308):
            said = "the server sends from one address to the next without end"
            raise BundleError(f"{shown} cannot be fetched: {said}.") from None
        raise BundleError(explain_status(shown, error.code, str(error.reason))) from None
    except http.client.HTTPException as error:
        said = _without_secrets(describe_error(error), url)
        raise BundleError(f"{shown} cannot be fetched: the server does not speak HTTP properly ({said}).") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        said = describe_error(reason) if isinstance(reason, Exception) else printable(str(reason))
        raise BundleError(f"{shown} cannot be fetched: {_without_secrets(said, url)}.") from None


def _read_store(url: str) -> Iterator[bytes]:
    shown = hide_secrets(url)
    try:
        file_system, path = open_file_system(url)
        with file_system.open(path, "rb", block_size=READ_BYTES * 4) as file:
            while piece := file.read(READ_BYTES):
                yield piece
    except FileNotFoundError:
        raise BundleError(f"{shown} cannot be fetched: there is no such object.") from None
    except PermissionError:
        raise BundleError(f"{shown} cannot be fetched: permission denied; check the credentials.") from None
    except DimError as error:
        raise type(error)(_without_secrets(str(error), url)) if type(error) is BundleError else error from None
    except Exception as error:  # every store has errors of its own
        status = find_status(error)
        if lacks_credentials(error) or status in (401, 403):
            raise BundleError(explain_missing_credentials(shown)) from None
        if status is not None:
            raise BundleError(explain_status(shown, status)) from None
        raise BundleError(f"{shown} cannot be fetched: {_without_secrets(describe_error(error), url)}.") from None


def find_status(error: BaseException) -> int | None:
    """Return the status of HTTP that another library's exception carries, or None."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _without_secrets(text: str, url: str) -> str:
    """Take out of another library's text what `hide_secrets` takes out of the URL."""
    parts = url.partition("://")[2]
    query = parts.partition("?")[2]
    user = parts.partition("/")[0].rpartition("@")[0]
    for secret in (query, *query.split("&"), user, *user.split(":")):
        if len(secret) > 2:
            text = text.replace(secret, "...")
    return text
