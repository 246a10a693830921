"""Bundles on the Hugging Face Hub: `hf://USER/NAME.dim[@REVISION][/FOLDER]`, a model there, or `hf://datasets/...`."""

import re
from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from dim.runtime.bundle_format.download import explain_status, find_status
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.names import MANIFEST_NAME
from dim.runtime.errors import BundleError, describe_error
from dim.runtime.storage.object_store import explain_missing_credentials, lacks_credentials, open_file_system

HUB = "hf://"
_COMMIT = re.compile("[0-9a-f]{40}")


def is_on_hub(place: str) -> bool:
    """Say whether a URL names a place of the Hub."""
    return place.lower().startswith(HUB)


def pin_revision(url: str) -> tuple[str, str]:
    """Find the commit that a URL's revision stands for now, so that all files come from one commit.

    Args:
        url: of a bundle on the Hub.

    Returns:
        the URL with the commit as its revision, and the commit.

    Raises:
        BundleError: there is no such place, or the Hub cannot be reached.
        MissingExtraError: huggingface_hub is not installed.
    """
    file_system, place = _resolve(url)
    try:
        found = _api(file_system).repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision)
    except Exception as error:
        raise _explain(error, url) from None
    if not isinstance(found.sha, str) or not _COMMIT.fullmatch(found.sha):
        raise BundleError(_explain_stranger(url))
    kind = "" if place.repo_type == "model" else f"{place.repo_type}s/"
    folder = f"/{place.path_in_repo}" if place.path_in_repo else ""
    return f"{HUB}{kind}{place.repo_id}@{found.sha}{folder}", found.sha


def upload_bundle(path: Path, url: str, *, overwrite: bool, say: Callable[[str], None]) -> None:
    """Put a bundle on the Hub, in one commit.

    Args:
        path: the bundle's folder.
        url: where it goes; the model or dataset must be there.
        overwrite: replace another bundle; its further files stay in the repository and count no more.
        say: gets one sentence about the commit.

    Raises:
        BundleError: another bundle is there and no `overwrite`, the Hub refused, or cannot be reached.
        MissingExtraError: huggingface_hub is not installed.
    """
    manifest = load_manifest(path)
    file_system, place = _resolve(url)
    below = f"{place.path_in_repo}/" if place.path_in_repo else ""
    try:
        address = f"{place.unresolve()}/{MANIFEST_NAME}"
        there = file_system.isfile(address)
        if there and file_system.cat_file(address) == (path / MANIFEST_NAME).read_bytes():
            say(f"{url} holds this bundle already.")
            return
        if there and not overwrite:
            raise BundleError(f"{url} holds another bundle: use --overwrite to replace it, or name another place.")
        import huggingface_hub as hub

        files = [*sorted(manifest.files), MANIFEST_NAME]
        commit = _api(file_system).create_commit(
            place.repo_id,
            [hub.CommitOperationAdd(below + name, str(path / name)) for name in files],
            commit_message=f"The bundle {manifest.name}, by dim",
            repo_type=place.repo_type,
            revision=place.revision,
        )
    except BundleError:
        raise
    except ValueError as error:  # the Hub found the card malformed
        raise BundleError(f"{url} cannot be written: {describe_error(error)}.") from None
    except Exception as error:
        raise _explain(error, url) from None
    say(f"Uploaded {len(files)} files to {url}, commit {str(commit.oid)[:12]}.")


def _api(file_system: Any) -> Any:
    import huggingface_hub

    return huggingface_hub.HfApi(endpoint=file_system.endpoint)


def _resolve(url: str) -> tuple[Any, Any]:
    """Open the Hub's file system and find what a URL names: kind, name, revision, folder."""
    file_system, path = open_file_system(url)
    try:
        place = file_system.resolve_path(path)
    except Exception as error:
        raise _explain(error, url) from None
    if not hasattr(place, "repo_id"):
        raise BundleError(f"{url} names no model or dataset of the Hub: write hf://USER/NAME.dim")
    return file_system, place


def _explain(error: Exception, url: str) -> BundleError:
    status = find_status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return BundleError(
            f"There is no {url} on the Hub, or this login may not see it: check the name, make it with  hf repos "
            "create, or log in with  hf auth login"
        )
    if isinstance(error, JSONDecodeError | LookupError | TypeError | AttributeError):
        return BundleError(_explain_stranger(url))
    if isinstance(error, ValueError | NotImplementedError):
        return BundleError(f"{url} names nothing on the Hub ({describe_error(error)}): write hf://USER/NAME.dim")
    if lacks_credentials(error) or status in (401, 403):
        return BundleError(explain_missing_credentials(url))
    if status is not None:
        return BundleError(explain_status(url, status))
    return BundleError(f"{url} cannot be reached: {describe_error(error)}.")


def _explain_stranger(url: str) -> str:
    return f"{url} cannot be fetched: the server does not answer as the Hub does; see where HF_ENDPOINT leads."
