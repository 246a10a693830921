"""Which bundle is meant when nobody names one."""

import os
from collections.abc import Callable
from pathlib import Path

from dim.runtime.bundle_format.names import MANIFEST_NAME
from dim.runtime.errors import BundleError
from dim.runtime.messages import say_to_log

SHIPPED = Path(__file__).parents[1] / "shipped" / "mnist.dim"


def find_bundle(
    explicit: str | None = None, sha256: str | None = None, say: Callable[[str], None] = say_to_log
) -> tuple[Path, str]:
    """Find the bundle: the one named, else `$DIM_BUNDLE`, else the newest here or under `runs/`, else the shipped.

    Args:
        explicit: a path or a URL that the user gave, or None; a bundle from a URL is fetched into the private cache.
        sha256: the `manifest_sha256` that is expected, or None for any.
        say: gets one sentence about what is fetched.

    Returns:
        the bundle's folder, and why it is this one, as a phrase.

    Raises:
        BundleError: there is none, or it is not the one that was pinned.
    """
    path, reason = _find(explicit, sha256, say)
    if sha256 is not None:
        from dim.runtime.bundle_format.fetch import check_pin
        from dim.runtime.bundle_format.files import load_manifest

        check_pin(load_manifest(path), sha256, str(path))
    return path, reason


def _find(explicit: str | None, sha256: str | None, say: Callable[[str], None]) -> tuple[Path, str]:
    if explicit is not None:
        return _named(explicit, "as named", sha256, say)
    if named := os.environ.get("DIM_BUNDLE"):
        return _named(named, "from $DIM_BUNDLE", sha256, say)
    here = [path for pattern in ("*.dim", "runs/*.dim", "runs/*/*.dim") for path in Path().glob(pattern)]
    bundles = [path for path in here if (path / MANIFEST_NAME).is_file()]
    if bundles:
        return max(bundles, key=lambda path: ((path / MANIFEST_NAME).stat().st_mtime_ns, str(path))), "the newest here"
    if (SHIPPED / MANIFEST_NAME).is_file():
        return SHIPPED, "the one that comes with dim"
    raise BundleError(
        "There is no bundle: none is named, $DIM_BUNDLE is not set, no *.dim lies here or under runs/, and none came "
        "with this installation; pass --bundle PATH or make one with dim distill and dim export."
    )


def _named(name: str, reason: str, sha256: str | None, say: Callable[[str], None]) -> tuple[Path, str]:
    if "://" not in name:
        return _existing(Path(name), reason)
    from dim.runtime.bundle_format.fetch import fetch_bundle

    return fetch_bundle(name, sha256=sha256, say=say), f"from {name}"


def _existing(path: Path, reason: str) -> tuple[Path, str]:
    if not (path / MANIFEST_NAME).is_file():
        found = "has no " + MANIFEST_NAME if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise BundleError(f"There is no bundle at {path} ({reason}): it {found}.")
    return path, reason
