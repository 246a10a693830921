"""What the clients of object stores raise when a server fails: tried again where it may pass, and then one sentence.

The store is fsspec's one in memory under the names `s3` and `gs`, which raises what s3fs, gcsfs and the libraries below
them let out.
"""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from cli_tools import dim, one_line
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from dim.runtime.storage import remote_store

pytest.importorskip("s3fs")

import aiohttp
import botocore.exceptions
from fsspec.exceptions import FSTimeoutError
from multidict import CIMultiDict, CIMultiDictProxy
from s3fs.errors import translate_boto_error
from yarl import URL

Fault = Callable[[], Exception]
SIGNED = "https://bucket.s3.amazonaws.com/set/dataset.json?X-Amz-Signature=s3cret&X-Amz-Credential=s3cret"


class FailingStore(MemoryFileSystem):  # type: ignore[misc]
    """A store in memory of which every request fails while there is a fault."""

    protocol = ("s3", "gs")
    cachable = False
    fault: ClassVar[Fault | None] = None
    requests: ClassVar[int] = 0
    failures: ClassVar[float] = float("inf")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2] if "://" in path else path

    def _ask(self) -> None:
        cls = type(self)
        cls.requests += 1
        if cls.fault is not None and cls.failures > 0:
            cls.failures -= 1
            raise cls.fault()

    def cat_file(self, *arguments: Any, **named: Any) -> Any:
        self._ask()
        return super().cat_file(*arguments, **named)

    def pipe_file(self, *arguments: Any, **named: Any) -> Any:
        self._ask()
        return super().pipe_file(*arguments, **named)

    def put_file(self, *arguments: Any, **named: Any) -> Any:
        self._ask()
        return super().put_file(*arguments, **named)

    def ls(self, *arguments: Any, **named: Any) -> Any:
        self._ask()
        return super().ls(*arguments, **named)

    def info(self, path: str, **named: Any) -> Any:
        self._ask()
        if path.strip("/") == "bucket":
            return {"name": "bucket", "size": 0, "type": "directory"}
        return super().info(path, **named)

    def open(self, *arguments: Any, **named: Any) -> Any:
        self._ask()
        return super().open(*arguments, **named)


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_store.time, "sleep", lambda seconds: None)
    for name in FailingStore.protocol:
        monkeypatch.setitem(_registry, name, FailingStore)
    FailingStore.fault, FailingStore.requests, FailingStore.failures = None, 0, float("inf")
    FailingStore.store.clear()
    yield
    FailingStore.fault = None
    FailingStore.store.clear()


def of_s3(code: str, message: str, status: int = 503) -> Fault:
    """What s3fs makes of a server's answer."""
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return lambda: translate_boto_error(botocore.exceptions.ClientError(answer, "PutObject"))


class HttpError(Exception):
    """As `gcsfs.retry.HttpError`, which is not installed here: the server's JSON."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message}, {code}")


class RefreshError(Exception):
    """As `google.auth.exceptions.RefreshError`."""


def answered(status: int, message: str) -> Fault:
    request = aiohttp.RequestInfo(URL(SIGNED), "PUT", CIMultiDictProxy(CIMultiDict()), URL(SIGNED))
    return lambda: aiohttp.ClientResponseError(request, (), status=status, message=message)


def unreachable() -> Exception:
    key = SimpleNamespace(host="bucket.s3.amazonaws.com", port=443, is_ssl=True, ssl=True)
    return aiohttp.ClientConnectorError(key, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))  # type: ignore[arg-type]


AGAIN = "fix it and run the same command again, what is finished is kept."
PASSING: dict[str, tuple[Fault, str]] = {
    "s3 slow down": (of_s3("SlowDown", "Please reduce your request rate."), "Please reduce your request rate"),
    "s3 internal error": (
        of_s3("InternalError", "We encountered an internal error.\nPlease try again."),
        "We encountered an internal error",
    ),
    "s3 unavailable": (of_s3("ServiceUnavailable", "Service is unable to handle request"), "Service is unable to"),
    "s3 code of its own": (of_s3("XMinioStorageFull", "Storage \x1b[31mbackend is full"), "Storage ?[31mbackend is"),
    "s3 request time out": (of_s3("RequestTimeout", "Your socket connection was not read", 400), "Your socket"),
    "botocore endpoint": (
        lambda: botocore.exceptions.EndpointConnectionError(endpoint_url=SIGNED),
        'Could not connect to the endpoint URL: "https://bucket.s3.amazonaws.com/set/dataset.json?***"',
    ),
    "botocore time out": (
        lambda: botocore.exceptions.ReadTimeoutError(endpoint_url=SIGNED),
        'Read timeout on endpoint URL: "https://bucket.s3.amazonaws.com/set/dataset.json?***"',
    ),
    "botocore closed": (
        lambda: botocore.exceptions.ConnectionClosedError(endpoint_url=SIGNED),
        "Connection was closed before we received a valid response from endpoint URL",
    ),
    "botocore certificate": (
        lambda: botocore.exceptions.SSLError(endpoint_url=SIGNED, error="certificate verify failed"),
        "SSL validation failed for https://bucket.s3.amazonaws.com/set/dataset.json?***",
    ),
    "botocore region": (lambda: botocore.exceptions.NoRegionError(), "You must specify a region"),
    "botocore answer": (
        lambda: botocore.exceptions.IncompleteReadError(actual_bytes=3, expected_bytes=9),
        "3 read, but total bytes expected is 9",
    ),
    "gcsfs busy": (lambda: HttpError(503, "Service Unavailable"), "Service Unavailable, 503"),
    "gcsfs too many": (lambda: HttpError(429, "The project exceeded the rate limit"), "The project exceeded the rate"),
    "gcsfs retries": (lambda: RuntimeError("Too many retries\nlast: 502"), "Too many retries"),
    "aiohttp 503": (answered(503, "Slow Down"), "503, message='Slow Down', url='https://bucket.s3.amazonaws.com/set/"),
    "aiohttp refused": (unreachable, "Connection refused"),
    "aiohttp cut": (lambda: aiohttp.ClientPayloadError("Response payload is not completed"), "Response payload is not"),
    "aiohttp gone": (lambda: aiohttp.ServerDisconnectedError(), "Server disconnected"),
    "aiohttp reset": (lambda: aiohttp.ClientOSError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
    "aiohttp time out": (lambda: aiohttp.ServerTimeoutError("Timeout on reading data"), "Timeout on reading data"),
    "fsspec time out": (lambda: FSTimeoutError(), "FSTimeoutError"),
    "no text": (lambda: TimeoutError(), "TimeoutError"),
    "bad JSON": (lambda: ValueError("Expecting value: line 1 column 1 (char 0)"), "Expecting value: line 1 column 1"),
    "a key": (lambda: KeyError("ETag"), "'ETag'"),
}
"""By name, what is raised, and what of it the sentence says."""
FINAL: dict[str, tuple[Fault, str]] = {
    "s3 denied": (of_s3("AccessDenied", "Access Denied", 403), "permission denied; check the credentials"),
    "s3 expired": (of_s3("ExpiredToken", "The provided token has expired.", 400), "permission denied; check the cred"),
    "s3 signature": (of_s3("SignatureDoesNotMatch", "The request signature", 403), "permission denied; check the cred"),
    "s3 no credentials": (
        lambda: botocore.exceptions.NoCredentialsError(),
        "needs credentials and no valid ones were found: ",
    ),
    "s3 profile": (
        lambda: botocore.exceptions.ProfileNotFound(profile="work"),
        "needs credentials and no valid ones were fou",
    ),
    "gcs refresh": (
        lambda: RefreshError("invalid_grant: Bad Request", {}),
        "needs credentials and no valid ones were found: ",
    ),
}


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize("what", PASSING)
def test_what_a_server_says_is_one_sentence_after_some_tries(tiny_bundle: Path, what: str, scheme: str) -> None:
    FailingStore.fault, said = PASSING[what]
    line = one_line(dim("generate", "--ipc", 1, "--out", f"{scheme}://bucket/set", "--bundle", tiny_bundle))
    assert line.startswith(f"{scheme}://bucket/set cannot be reached or written: ") and line.endswith(AGAIN)
    assert said in line and "s3cret" not in line and line.isprintable()
    # S3 is asked for the bucket first, which a policy may forbid.
    assert FailingStore.requests in (remote_store.TRIES, 2 * remote_store.TRIES)
    line = one_line(dim("verify", f"{scheme}://bucket/set"))
    assert said in line and "s3cret" not in line and line.isprintable()
    line = one_line(dim("inspect", f"{scheme}://bucket/b.dim"))
    assert line.startswith(f"{scheme}://bucket/b.dim/manifest.json cannot be fetched: ") or "cannot be reached" in line
    assert said in line and "s3cret" not in line and line.isprintable()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize("what", FINAL)
def test_what_no_trying_helps_against_is_told_at_once(tiny_bundle: Path, what: str, scheme: str) -> None:
    FailingStore.fault, said = FINAL[what]
    for command in (
        ("generate", "--ipc", 1, "--out", f"{scheme}://bucket/set", "--bundle", tiny_bundle),
        ("verify", f"{scheme}://bucket/set"),
        ("inspect", f"{scheme}://bucket/b.dim"),
    ):
        FailingStore.requests = 0
        line = one_line(dim(*command))
        assert line.startswith(f"{scheme}://bucket/") and said in line and FailingStore.requests <= 2


@pytest.mark.parametrize("what", PASSING)
def test_what_passes_costs_nothing(tiny_bundle: Path, what: str) -> None:
    """The first requests fail, and then again some in the middle."""
    FailingStore.fault, FailingStore.failures = PASSING[what][0], remote_store.TRIES - 1
    command = ("generate", "--ipc", 2, "--format", "npz", "--out", "s3://bucket/set", "--bundle", tiny_bundle)
    ran = dim(*command)
    assert ran.code == 0, ran.err
    FailingStore.failures = remote_store.TRIES - 1
    assert dim(*command).code == 0
    FailingStore.fault = None
    assert dim("verify", "s3://bucket/set").code == 0
