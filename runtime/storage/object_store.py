"""Object stores (`s3://`, `gs://`, `memory://` and whatever else fsspec reaches): open one, explain what it refuses."""

import re
from pathlib import Path
from typing import Any

from dim.runtime.errors import BadValueError, MissingExtraError, OutputError, describe_error

_EXTRAS = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "hf": ("huggingface_hub", "hf"),
}
_S3_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run  aws configure"
_CREDENTIALS = {
    "s3": _S3_CREDENTIALS,
    "s3a": _S3_CREDENTIALS,
    "gs": "run  gcloud auth application-default login",
    "gcs": "run  gcloud auth application-default login",
    "hf": "run  hf auth login, or set HF_TOKEN",
}
# By name, because importing botocore or google.auth for this would take longer than the whole command.
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "NoAuthTokenError",
    "ProfileNotFound",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
    "DefaultCredentialsError",
    "RefreshError",
    "LocalTokenNotFoundError",
}


def is_remote(place: str | Path) -> bool:
    """Say whether a set's place is a URL rather than a folder of this machine."""
    return "://" in str(place) and not str(place).startswith("file://")


def join_slashes(url: str) -> str:
    """Return a URL whose path has no empty steps and no slash at the end: stores list `a//b` as another folder."""
    scheme, mark, path = url.partition("://")
    return scheme.lower() + mark + re.sub("/+", "/", path).rstrip("/")


def open_file_system(url: str) -> tuple[Any, str]:
    """Open the file system of a URL with fsspec.

    Returns:
        the file system, and the path within it.

    Raises:
        BadValueError: the scheme is unknown or the URL is malformed.
        MissingExtraError: the scheme's package is not installed.
        OutputError: the store cannot be set up, for example without credentials.
    """
    import fsspec

    scheme, _, rest = url.partition("://")
    if "::" in url:
        raise BadValueError(f"{url} is a chain of file systems, which no set is written through: name the store alone.")
    if scheme in _EXTRAS and "@" in rest.partition("/")[0]:
        raise BadValueError(
            f"{url} holds a user name or password, which {scheme}:// does not take: {_CREDENTIALS[scheme]}."
        )
    try:
        # A cached listing would hide what other workers have finished since; the Hub's cache lies in the instance.
        cached = {"skip_instance_cache": True} if scheme == "hf" else {"use_listings_cache": False}
        file_system, path = fsspec.core.url_to_fs(url, **cached)
    except ImportError:
        if scheme not in _EXTRAS:
            raise BadValueError(
                f"{url} needs a package that is not installed: install the one that fsspec takes for {scheme}://."
            ) from None
        package, extra = _EXTRAS[scheme]
        raise MissingExtraError(package, extra, f"reach {scheme}:// URLs") from None
    except ValueError as error:
        raise BadValueError(f"{url} is not a place to write to: {error}.") from None
    except Exception as error:
        raise explain_failure(error, url) from error
    if not path.strip("/"):
        raise BadValueError(f"{url} names no folder; add a bucket and a name, for example  s3://bucket/set.")
    return file_system, path


def explain_remote(error: OSError, place: str) -> OutputError:
    """Turn a refusal of an object store into a sentence that says how to go on."""
    if isinstance(error, PermissionError):
        return OutputError(
            f"{place} cannot be written: permission denied; check the credentials and the bucket's policy."
        )
    if isinstance(error, FileNotFoundError):
        return OutputError(f"{place} cannot be written: {describe_error(error)}; does the bucket exist?")
    return explain_failure(error, place)


def lacks_credentials(error: BaseException | None) -> bool:
    """Say whether an error, or what it came from, is that nobody is logged in to the store."""
    while error is not None:
        if any(kind.__name__ in _NO_CREDENTIALS for kind in type(error).__mro__):
            return True
        error = error.__cause__
    return False


def explain_missing_credentials(url: str) -> str:
    """Say in words how to give the credentials that a store asks for and did not find."""
    how = _CREDENTIALS.get(url.partition("://")[0], "see the manual of the store")
    return f"{url} needs credentials and no valid ones were found: {how}."


def explain_failure(error: Exception, url: str) -> OutputError:
    if lacks_credentials(error):
        return OutputError(explain_missing_credentials(url))
    return OutputError(
        f"{url} cannot be reached or written: {describe_error(error)}; fix it and run the same command again, what is "
        "finished is kept."
    )
