"""Sets in datasets of the Hugging Face Hub: `hf://datasets/USER/NAME[@BRANCH][/FOLDER]`.

Every write to the Hub is a commit, of which it allows few in an hour. So files are collected and committed together,
in the order of a set's own writing: a commit appears whole or not at all, and a small set is one commit.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dim.runtime.errors import BadValueError, DimError, OutputError, describe_error
from dim.runtime.storage.local_store import STATE, make_altered_error
from dim.runtime.storage.object_store import explain_failure
from dim.runtime.storage.remote_store import RemoteStore, T

COMMIT_BYTES = 2**27
"""Files of a finished part wait until they have so many bytes together."""
_OF_THE_HUB = ".gitattributes"
_PASSING = (408, 409, 412, 429)  # answers of a server after which trying again may help


class HubStore(RemoteStore):
    """A folder of a dataset of the Hub; the interface is that of `dim.runtime.storage.local_store.Store`.

    Args:
        url: as above.

    Raises:
        BadValueError: the URL names no dataset.
        MissingExtraError: huggingface_hub is not installed.
        OutputError: there is no such dataset, or the Hub cannot be reached.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        try:
            self._place = self._resolve()
            self._folder = f"{self._place.path_in_repo}/" if self._place.path_in_repo else ""
            self._there = self._list_tree()
        except BaseException:
            super().close()
            raise
        # By name: what to write, a file in the making, or None for what is to be removed.
        self._waiting: dict[str, bytes | Path | None] = {}
        self._waiting_bytes = self._made = 0

    def read(self, name: str) -> bytes | None:
        if name in self._waiting:
            found = self._waiting[name]
            return found.read_bytes() if isinstance(found, Path) else found
        return super().read(name) if name in self._there else None

    def put(self, name: str, data: bytes, durable: bool = False) -> None:
        self._waiting[name] = data
        self._waiting_bytes += len(data)

    def create(self, name: str, data: bytes) -> bool:
        if name in self._names():
            return False
        self.put(name, data)
        return True

    def digest(self, name: str) -> str | None:
        if name in self._waiting:
            data = self.read(name)
            return None if data is None else hashlib.sha256(data).hexdigest()
        return super().digest(name) if name in self._there else None

    def publish(self, made: str, name: str, sha256: str) -> None:
        local = self.scratch_folder / made
        if name in self._names():
            if self.digest(name) != sha256:
                raise make_altered_error(self, name)
            local.unlink()
            return
        # The name is free for the next part, while the file waits for its commit.
        self._made += 1
        self._waiting[name] = local.rename(self.scratch_folder / f"ready-{self._made}")
        self._waiting_bytes += self._waiting[name].stat().st_size  # type: ignore[union-attr]

    def list(self, folder: str = "") -> list[str]:
        if folder.startswith(STATE):  # other workers note their parts there
            self._there = self._list_tree()
        start = f"{folder}/" if folder else ""
        below = {name[len(start) :].partition("/")[0] for name in self._names() if name.startswith(start)}
        return sorted(below - {_OF_THE_HUB})

    def remove(self, name: str, with_contents: bool = False) -> None:
        for found in self._names():
            if found == name or (with_contents and found.startswith(f"{name}/")):
                self._waiting[found] = None

    def flush(self) -> None:
        """Commit, once enough is waiting: until then it goes together with what follows."""
        if self._waiting_bytes >= COMMIT_BYTES:
            self.commit()

    @contextlib.contextmanager
    def lock(self, name: str, refusal: str | None = None) -> Iterator[None]:
        self._there = self._list_tree()
        yield

    def commit(self) -> None:
        """Commit everything that waits.

        Raises:
            OutputError: the Hub refused it or cannot be reached; it still waits.
        """
        if any(data is not None or name in self._there for name, data in self._waiting.items()):
            super()._try(self._send)
        for name, data in self._waiting.items():
            if isinstance(data, Path):
                data.unlink()
            self._there.discard(name) if data is None else self._there.add(name)
        self._waiting, self._waiting_bytes = {}, 0
        self._fs.invalidate_cache()

    def _try(self, action: Callable[[], T]) -> T:
        """Read something: the Hub's own client tries again."""
        try:
            return action()
        except (FileNotFoundError, DimError):
            raise
        except Exception as error:
            raise explain_failure(error, self.url) from error

    def _names(self) -> set[str]:
        """Name everything that is there once the commit is made."""
        return (self._there | self._waiting.keys()) - {name for name, data in self._waiting.items() if data is None}

    def _send(self) -> None:
        import huggingface_hub as hub

        operations: list[Any] = []
        for name, data in self._waiting.items():
            path = self._folder + name
            if data is not None:
                operations.append(hub.CommitOperationAdd(path, str(data) if isinstance(data, Path) else data))
            elif name in self._there:
                operations.append(hub.CommitOperationDelete(path, is_folder=False))
        with _explaining_refusals(self.url):
            hub.HfApi(endpoint=self._fs.endpoint).create_commit(
                self._place.repo_id,
                operations,
                commit_message="A training set, or a part of one, by dim",
                repo_type="dataset",
                revision=self._place.revision,
            )

    def _resolve(self) -> Any:
        """Return the dataset, revision and folder that the URL names."""
        try:
            place = self._fs.resolve_path(self._root)
        except FileNotFoundError:
            name = self.url.removeprefix("hf://datasets/").partition("@")[0]
            raise OutputError(
                f"{self.url} cannot be written: there is no such dataset or branch on the Hub, or this login may not "
                f"see it; make it with  hf repos create {'/'.join(name.split('/')[:2])} --repo-type dataset  or log in "
                "with  hf auth login"
            ) from None
        except (ValueError, NotImplementedError):
            raise _make_name_error(self.url) from None
        except Exception as error:
            raise explain_failure(error, self.url) from error
        if getattr(place, "repo_type", None) != "dataset":
            raise _make_name_error(self.url)
        return place

    def _list_tree(self) -> set[str]:
        """Name all files that were committed to the folder."""
        self._fs.invalidate_cache()
        try:
            found: list[str] = self._try(lambda: self._fs.find(self._place.unresolve()))
        except FileNotFoundError:
            return set()
        root = self._place.unresolve()
        return {path[len(root) + 1 :] for path in found}


def _make_name_error(url: str) -> BadValueError:
    return BadValueError(f"{url} names no dataset of the Hub: write  hf://datasets/USER/NAME  for a set.")


@contextlib.contextmanager
def _explaining_refusals(url: str) -> Iterator[None]:
    """Turn an answer of the Hub that will not change into a sentence; others pass, to be tried again."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise OutputError(
                f"{url} cannot be written: the Hub answered {status}; log in with  hf auth login  and a token that "
                "may write, or set HF_TOKEN to one."
            ) from None
        if 400 <= status < 500 and status not in _PASSING:
            raise OutputError(
                f"{url} cannot be written: the Hub answered {status} ({describe_error(error)})."
            ) from None
        raise
    except ValueError as error:  # the Hub found the card malformed
        raise OutputError(f"{url} cannot be written: {describe_error(error)}.") from None
