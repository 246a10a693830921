"""Sets in object stores (`s3://`, `gs://`, `memory://` and whatever else fsspec reaches): whole objects only, retried.

A part is made in a local temporary folder, or for ImageFolder in memory, and uploaded whole: an object store shows an
object once it is complete. There are no locks; two writers of one shard write the same bytes twice.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from dim.runtime.errors import DimError, OutputError, describe_error, hide_secrets
from dim.runtime.storage.local_store import WRITE, make_altered_error
from dim.runtime.storage.object_store import explain_failure, join_slashes, lacks_credentials, open_file_system

T = TypeVar("T")
TRIES, FIRST_PAUSE_S = 5, 0.2
READ_BYTES = 2**22
READS_AT_ONCE = 16
# Trying again does not help against these.
_FINAL = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, DimError)


class RemoteStore:
    """A prefix in an object store; the interface is that of `dim.runtime.storage.local_store.Store`.

    Args:
        url: for example `s3://bucket/set`.

    Raises:
        BadValueError: the scheme is unknown.
        MissingExtraError: the scheme's package is not installed.
        OutputError: there is no local folder for files in the making.
    """

    def __init__(self, url: str) -> None:
        self.url = join_slashes(url)
        self._fs, root = open_file_system(self.url)
        self._root = root.rstrip("/")
        try:
            self.scratch_folder = Path(tempfile.mkdtemp(prefix="dim-"))
        except OSError as error:
            raise OutputError(
                f"Files for {self.url} are made in a temporary folder first, and none can be had "
                f"({describe_error(error)}): set TMPDIR to a folder that can be written."
            ) from error

    def __str__(self) -> str:
        return hide_secrets(self.url)

    def read(self, name: str) -> bytes | None:
        try:
            data: bytes = self._try(lambda: self._fs.cat_file(self._path(name)))
        except (FileNotFoundError, IsADirectoryError):
            return None
        return data

    def put(self, name: str, data: bytes, durable: bool = False) -> None:
        self._try(lambda: self._fs.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool:
        if self._size(name) is not None:
            return False
        try:
            self._fs.pipe_file(self._path(name), data, mode="create")
        except FileExistsError:
            return False
        except _FINAL:
            raise
        except Exception:
            # A store without conditional writes, or a failure that a plain write will meet again.
            self.put(name, data)
        return True

    def digest(self, name: str) -> str | None:
        try:
            return self._try(lambda: self._digest(name))
        except (FileNotFoundError, IsADirectoryError):
            return None

    def digest_small(self, names: Sequence[str]) -> list[str | None]:
        # One request after the other would take minutes where the store is far away.
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            return list(pool.map(self._digest_small, names))

    def _digest_small(self, name: str) -> str | None:
        data = self.read(name)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def publish(self, made: str, name: str, sha256: str) -> None:
        local = self.scratch_folder / made
        if self._size(name):
            if self.digest(name) != sha256:
                raise make_altered_error(self, name)
        else:
            self._try(lambda: self._fs.put_file(str(local), self._path(name)))
        local.unlink()

    def list(self, folder: str = "") -> list[str]:
        path = self._path(folder) if folder else self._root
        try:
            found: list[str] = self._try(lambda: self._fs.ls(path, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Some stores list the folder itself, as an empty object.
        return sorted({entry.rstrip("/").rpartition("/")[2] for entry in found if entry.strip("/") != path.strip("/")})

    def remove(self, name: str, with_contents: bool = False) -> None:
        # Folders are only parts of names here; one that cannot be listed has nothing in it.
        if with_contents and not self.list(name):
            return
        remove = self._fs.rm if with_contents else self._fs.rm_file
        more = {"recursive": True} if with_contents else {}
        with contextlib.suppress(FileNotFoundError):
            self._try(lambda: remove(self._path(name), **more))

    def open_scratch(self, name: str) -> int:
        return os.open(self.scratch_folder / name, WRITE, 0o644)

    def flush(self) -> None:
        """An object that was uploaded is durable."""

    @contextlib.contextmanager
    def lock(self, name: str, refusal: str | None = None) -> Iterator[None]:
        yield

    def close(self) -> None:
        shutil.rmtree(self.scratch_folder, ignore_errors=True)

    def check_bucket(self) -> None:
        """Raise OutputError if the bucket is not there, where that can be told without writing."""
        # Of S3 alone it is known what it says of a bucket without looking into it.
        if self.url.partition("://")[0] not in ("s3", "s3a"):
            return
        bucket = self._root.partition("/")[0]
        try:
            self._try(lambda: self._fs.info(bucket))
        except FileNotFoundError:
            raise OutputError(
                f"{self.url} cannot be written: there is no bucket '{bucket}'; make it first, or fix its name."
            ) from None
        except OSError:
            pass  # a policy may forbid this question and allow to write

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _size(self, name: str) -> int | None:
        try:
            info: dict[str, Any] = self._try(lambda: self._fs.info(self._path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._fs.open(self._path(name), "rb", block_size=READ_BYTES) as file:
            while piece := file.read(READ_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def _try(self, action: Callable[[], T]) -> T:
        """Run an action on the store, again after growing pauses where it fails for a reason that may pass."""
        for attempt in range(TRIES):
            try:
                return action()
            except _FINAL:
                raise
            except Exception as error:
                if attempt == TRIES - 1 or lacks_credentials(error):
                    raise explain_failure(error, self.url) from error
                time.sleep(FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("every attempt returns or raises")
