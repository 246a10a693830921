"""A stand-in of the Hugging Face Hub's HTTP interface on loopback, as far as its own client asks for it.

Repositories are lists of commits, a commit is all files by path. Nothing is checked but what the tests ask of it: the
token, the YAML on top of a card, and that a repository is there.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "aB3" * 12
"""The one token that may write."""


class Hub:
    """What the stand-in holds and has been asked for."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        """By `models/me/name` or `datasets/me/name`, the files after each commit, the oldest first."""
        self.requests: list[str] = []
        self.answers: list[tuple[str, int, str]] = []
        """Answers to give to the next requests whose path holds a word: (word, status, text)."""
        self.url = ""

    def make(self, name: str, files: dict[str, bytes] | None = None) -> None:
        """Make a repository."""
        self.commits[name] = [{".gitattributes": b"", **(files or {})}]

    def files(self, name: str) -> dict[str, bytes]:
        """Return the newest files of a repository but the Hub's own."""
        return {path: data for path, data in self.commits[name][-1].items() if path != ".gitattributes"}

    def sha(self, name: str, number: int = -1) -> str:
        """Return the id of a commit."""
        number %= len(self.commits[name])
        return hashlib.sha1(f"{name} {number}".encode()).hexdigest()

    def find(self, name: str, revision: str) -> dict[str, bytes] | None:
        """Return the files at a revision: main, or a commit."""
        for number, files in enumerate(self.commits.get(name, [])):
            if revision == self.sha(name, number) or (revision == "main" and number == len(self.commits[name]) - 1):
                return files
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for planned in self.hub.answers:
            if planned[0] in path:
                self.hub.answers.remove(planned)
                return self._send(planned[1], planned[2].encode(), {"X-Error-Message": planned[2]})
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._api(f"{found[1]}/{found[2]}", found[3] or "revision/main", body)
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            return self._resolve(f"{found[1] or 'models/'}{found[2]}", found[3], found[4])
        return self._refuse(404, "EntryNotFound", "no such thing")

    def _api(self, name: str, rest: str, body: bytes) -> None:
        what, _, rest = rest.partition("/")
        revision, _, path = rest.partition("/")
        if name not in self.hub.commits:
            return self._refuse(401 if TOKEN not in self._token() else 404, "RepoNotFound", "Repository not found")
        files = self.hub.find(name, revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if what == "revision":
            number = -1 if revision == "main" else [self.hub.sha(name, n) for n in range(99)].index(revision)
            found = {"id": name.partition("/")[2], "sha": self.hub.sha(name, number) if number < 0 else revision}
            return self._json({**found, "siblings": [], "tags": [], "private": False, "downloads": 0, "likes": 0})
        if what == "tree":
            return self._tree(files, path)
        if what == "paths-info":
            asked = json.loads(body)["paths"]
            return self._json([self._entry(each, files[each]) for each in asked if each in files])
        if TOKEN not in self._token():
            return self._refuse(403, "", f"Forbidden: {self._token()} may not write")
        if what == "preupload":
            modes = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self._json({"files": modes})
        return self._commit(name, body)

    def _commit(self, name: str, body: bytes) -> None:
        files = dict(self.hub.commits[name][-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.commits[name].append(files)
        return self._json(
            {"success": True, "commitOid": self.hub.sha(name), "commitUrl": f"{self.hub.url}/{name}/commit/x"}
        )

    def _tree(self, files: dict[str, bytes], folder: str) -> None:
        start = f"{folder}/" if folder else ""
        below = {path: data for path, data in files.items() if path.startswith(start)}
        if folder and not below:
            return self._refuse(404, "EntryNotFound", "no such folder")
        if "recursive=true" not in self.path.casefold():
            folders = {path[: path.index("/", len(start))] for path in below if "/" in path[len(start) :]}
            below = {path: data for path, data in below.items() if "/" not in path[len(start) :]}
        else:
            steps = (path.split("/") for path in below)
            folders = {"/".join(each[:depth]) for each in steps for depth in range(1, len(each))} - {folder}
            folders = {each for each in folders if each.startswith(start)}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": each} for each in sorted(folders)]
        return self._json(entries + [self._entry(path, data) for path, data in sorted(below.items())])

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}

    def _resolve(self, name: str, revision: str, path: str) -> None:
        data = (self.hub.find(name, revision) or {}).get(path)
        if data is None:
            return self._refuse(404, "EntryNotFound", "no such file")
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
            part = data[start:stop]
            return self._send(206, part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"})
        return self._send(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": revision})

    def _validate(self, card: str) -> None:
        found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
        wrong = found is not None and not isinstance(yaml.safe_load(found[1]), dict)
        errors = [{"message": "the YAML on top of the card is no mapping"}] if wrong else []
        return self._send(400 if wrong else 200, json.dumps({"errors": errors, "warnings": []}).encode())

    def _token(self) -> str:
        return str(self.headers.get("Authorization", ""))

    def _refuse(self, status: int, code: str, text: str) -> None:
        self._send(status, json.dumps({"error": text}).encode(), {"X-Error-Code": code, "X-Error-Message": text})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode())

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty Hub, to which this process's client is turned."""
    import os

    import huggingface_hub.constants as constants

    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    before = constants.ENDPOINT, os.environ.get("HF_TOKEN")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.url, template.replace(before[0], hub.url)
    os.environ["HF_TOKEN"] = TOKEN
    try:
        yield hub
    finally:
        constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = before[0], template
        os.environ.pop("HF_TOKEN")
        if before[1] is not None:
            os.environ["HF_TOKEN"] = before[1]
        server.shutdown()
        server.server_close()
        thread.join()
