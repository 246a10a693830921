"""Error messages for a folder or bucket of a set that is full, missing or not writable."""

import errno
import os
from pathlib import Path

from dim.runtime.errors import OutputError, describe_error
from dim.runtime.storage.local_store import LocalStore
from dim.runtime.storage.object_store import explain_remote
from dim.runtime.storage.remote_store import RemoteStore


def explain_error(store: LocalStore | RemoteStore, error: OSError) -> OutputError:
    """Turn an error of the operating system into a sentence that says how to go on."""
    if isinstance(store, LocalStore):
        return explain_local_error(error, str(store))
    local = store.scratch_folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"The disk under {local.parent}, where files are made before they go to {store}, is full: "
            "free some space or set TMPDIR to a folder on a larger disk, and run the same command again, what is "
            "finished is kept."
        )
    if error.errno in (errno.EROFS, errno.EIO) or _is_below(error.filename, local):
        return OutputError(
            f"The temporary folder {local}, where files are made before they go to {store}, went away or "
            f"stopped working ({describe_error(error)}): run the same command again, what is finished is kept."
        )
    return explain_remote(error, str(store))


def explain_local_error(error: OSError, place: str) -> OutputError:
    again = "run the same command again, what is finished is kept"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"The disk under {place} is full: free some space and {again}.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"{place} cannot be written ({error.strerror}): choose another folder or fix its permissions."
        )
    if error.errno in (
        errno.ENOENT,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ENODEV,
        errno.EIO,
        errno.ETIMEDOUT,
        errno.ENOTDIR,
    ):
        return OutputError(
            f"{place} went away or stopped working while the set was written ({error.strerror}): fix it and {again}."
        )
    return OutputError(f"{place} cannot be written: {error.strerror or error}; fix it and {again}.")


def _is_below(path: object, folder: Path) -> bool:
    return isinstance(path, str | bytes | os.PathLike) and Path(os.fsdecode(path)).is_relative_to(folder)
