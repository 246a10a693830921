"""The official files of a dataset: found in a folder, else downloaded with their published checksum (by pooch)."""

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from dim.data.files.entries import named_failure
from dim.data.image_set import Say
from dim.runtime.errors import DataError, MissingExtraError
from dim.runtime.progress.show import Progress

_CHUNK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """One published file."""

    name: str
    md5: str
    """The MD5 sum that its publishers, or the mirrors that everybody uses, state."""
    unpacked_md5: str = ""
    """For a gzipped IDX file, the sum of what is in it, where published: local copies are often packed anew."""


@dataclass(frozen=True, kw_only=True)
class OfficialFiles:
    """Where the files of one dataset are looked for and downloaded from."""

    name: str
    """The dataset's name, which its folder bears, too."""
    folder: Path | None
    """The data folder that the user named; None for the cache alone."""
    subfolders: tuple[str, ...]
    """Other folders below the data folder that the files are often kept in."""
    mirrors: tuple[str, ...]
    """Folders on the web, each ending in a slash."""
    say: Say
    progress: Progress

    def find(self, *names: str) -> Path | None:
        """Return the first of `names` (files or folders) in the data folder or the cache; None without any."""
        for folder in self._data_folders():
            for place in (folder, *(folder / sub for sub in (self.name, *self.subfolders))):
                for name in names:
                    if (place / name).exists():
                        return place / name
        return None

    def obtain(self, file: OfficialFile) -> Path:
        """Return a file that is there, packed or unpacked, else download it into the data folder.

        Raises:
            DataError, MissingExtraError: as `download`.
        """
        found = self.find(file.name, file.name.removesuffix(".gz"))
        if found is not None:
            return found
        return download(file, self.mirrors, self._data_folders()[0] / self.name, self.say, self.progress)

    def _data_folders(self) -> list[Path]:
        return [*([self.folder] if self.folder else []), default_data_folder()]


def default_data_folder() -> Path:
    """Return where downloads go when no folder is named.

    It is `data` in `$DIM_CACHE`, `$XDG_CACHE_HOME/dim` or `~/.cache/dim`.
    """
    if chosen := os.environ.get("DIM_CACHE"):
        return Path(chosen) / "data"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dim" / "data"


def file_md5(path: Path) -> str:
    """Return the MD5 sum of a file, in hex.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with named_failure(path), open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass
class _ProgressBar:
    """What pooch asks of a progress bar."""

    what: str
    progress: Progress
    total: int = 0
    done: int = field(default=0, init=False)

    def update(self, count: int) -> None:
        self.done += count
        self._report()

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        self.done = self.total
        self._report()

    def _report(self) -> None:
        self.progress(self.what, self.done / 1e6, self.total / 1e6 if self.total else None, "MB")


def download(file: OfficialFile, mirrors: Sequence[str], folder: Path, say: Say, progress: Progress) -> Path:
    """Fetch one file from the first mirror that has it unaltered.

    Args:
        file: what to fetch.
        mirrors: folders on the web, each ending in a slash.
        folder: where it goes; made when missing. A file appears there only when its checksum is right.
        say: is told what is fetched from where.
        progress: is told how far it is, in megabytes.

    Raises:
        MissingExtraError: pooch is not installed.
        DataError: no mirror gives the file, its checksum is wrong, or the folder cannot be written.
    """
    try:
        import pooch
        import requests
    except ImportError as error:
        raise MissingExtraError(error.name or "pooch", "train", f"download {file.name}") from error
    pooch.get_logger().setLevel("WARNING")
    problems = []
    for mirror in mirrors:
        say(f"downloading {mirror}{file.name} to {folder}")
        bar = _ProgressBar(f"downloading {file.name}", progress)
        try:
            fetch = pooch.HTTPDownloader(progressbar=bar, timeout=30)
            pooch.retrieve(mirror + file.name, f"md5:{file.md5}", fname=file.name, path=folder, downloader=fetch)
            return folder / file.name
        except requests.RequestException as error:
            problems.append(f"{mirror}: {_describe(error)}")
        except ValueError:
            problems.append(f"{mirror}: its MD5 sum is not {file.md5}")
        except OSError as error:
            raise DataError(
                f"{folder}: {file.name} cannot be written there ({error.strerror or error}): pass another --data-dir."
            ) from error
    raise DataError(
        f"{file.name} cannot be downloaded ({'; '.join(problems)}): "
        f"fetch it by other means and put it into {folder}, or pass its folder as --data-dir."
    )


def download_archive(address: str, sha256: str, say: Say, progress: Progress) -> Path:
    """Fetch an archive from the web into the cache, once; it appears there only when its checksum is right.

    Args:
        address: `https://...`, whose last part is the file's name.
        sha256: of the file, in hex.
        say, progress: as in `download`.

    Raises:
        MissingExtraError: pooch is not installed.
        DataError: it cannot be fetched or written, or is another file.
    """
    try:
        import pooch
        import requests
    except ImportError as error:
        raise MissingExtraError(error.name or "pooch", "train", "download an archive") from error
    if not re.fullmatch("[0-9a-f]{64}", sha256.lower()):
        raise DataError(f"--sha256 is {sha256[:80]!r}: expected 64 hexadecimal digits, as sha256sum prints them.")
    shown, name = _show_address(address), name_archive(address)
    if not name or not name.isprintable() or "/" in name or name.startswith("."):
        raise DataError(f"{shown}: its last part names no file; give the address of a zip or tar archive.")
    folder = default_data_folder() / "archives" / sha256.lower()[:16]
    if not (folder / name).exists():
        say(f"downloading {shown} to {folder}")
    pooch.get_logger().setLevel("CRITICAL")
    fetch = pooch.HTTPDownloader(progressbar=_ProgressBar(f"downloading {name}", progress), timeout=30)
    try:
        pooch.retrieve(address, f"sha256:{sha256.lower()}", fname=name, path=folder, downloader=fetch)
    except requests.RequestException as error:
        raise DataError(f"{shown} cannot be downloaded ({_describe(error)}): fetch it by other means.") from error
    except ValueError as error:
        raise DataError(f"{shown}: its SHA-256 is not {sha256}: check the address and the sum.") from error
    except OSError as error:
        raise DataError(f"{folder}: {name} cannot be written there ({error.strerror or error}).") from error
    finally:
        with suppress(OSError):  # it holds the archive
            folder.rmdir()
    return folder / name


def name_archive(address: str) -> str:
    """Return the file's name at the end of an address."""
    return unquote(_show_address(address).rpartition("/")[2])


def _show_address(address: str) -> str:
    """Return an address without its question and without a password."""
    return re.sub("//[^/@]*@", "//", address.split("?")[0].split("#")[0])


def _describe(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    return "no connection" if "Connection" in type(error).__name__ else type(error).__name__
