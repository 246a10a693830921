"""Finds the bundle: by a path, a URL or a name, or the default."""

import difflib
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from dim.runtime.bundle_format.names import MANIFEST_NAME
from dim.runtime.errors import BundleError, hide_secrets
from dim.runtime.messages import say_to_log

SHIPPED = Path(__file__).parents[1] / "shipped" / "mnist.dim"
"""The bundle that comes with the package, and the default."""
AS_NAMED = "as named"


def find_bundle(
    wanted: str | Path | None = None, sha256: str | None = None, say: Callable[[str], None] = say_to_log
) -> tuple[Path, str]:
    """Find a bundle: the one wanted, else that of `$DIM_BUNDLE`, else the one that comes with the package.

    What lies in the current folder never matters.

    Args:
        wanted: a path, which has a slash, ends in `.dim` or begins with a dot; a URL, which has `://` and is fetched
            into the private cache; or the name of a bundle that comes with the package. A `Path` is always a path.
        sha256: the `manifest_sha256` that is expected, or None for any.
        say: gets one sentence about what is fetched.

    Returns:
        the bundle's folder, and why it is this one, as a phrase.

    Raises:
        BundleError: there is none, or it is not the one that was pinned.
    """
    reason = AS_NAMED
    if wanted is None and (wanted := os.environ.get("DIM_BUNDLE") or None) is not None:
        reason = "from $DIM_BUNDLE"
    path, reason = _shipped() if wanted is None else _find(wanted, reason, sha256, say)
    if sha256 is not None:
        from dim.runtime.bundle_format.fetch import check_pin
        from dim.runtime.bundle_format.files import load_manifest

        check_pin(load_manifest(path), sha256, str(path))
    return path, reason


def list_names() -> dict[str, Path]:
    """List the bundles that come with the package: name -> folder."""
    return {path.stem: path for path in sorted(SHIPPED.parent.glob("*.dim")) if (path / MANIFEST_NAME).is_file()}


def _shipped() -> tuple[Path, str]:
    if (SHIPPED / MANIFEST_NAME).is_file():
        return SHIPPED, "the one that comes with dim"
    raise BundleError(
        "There is no bundle: none is named, $DIM_BUNDLE is not set, and none came with this installation; pass "
        "--bundle PATH or make one with dim distill and dim export."
    )


def _find(wanted: str | Path, reason: str, sha256: str | None, say: Callable[[str], None]) -> tuple[Path, str]:
    if isinstance(wanted, Path) or _is_path(wanted):
        return _existing(Path(wanted).expanduser(), reason)
    if "://" in wanted:
        from dim.runtime.bundle_format.fetch import fetch_bundle

        return fetch_bundle(wanted, sha256=sha256, say=say), f"from {hide_secrets(wanted)}"
    names = list_names()
    if wanted not in names:
        source = "" if reason == AS_NAMED else f" ({reason})"
        near = difflib.get_close_matches(wanted.lower(), names, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise BundleError(
            f"There is no bundle named {wanted!r}{source}{meant}: choose {' or '.join(names) or 'a bundle'}, a folder "
            f"(with a slash or .dim, as in ./{wanted}) or a URL."
        )
    return names[wanted], f"{wanted} as it comes with dim"


def _is_path(wanted: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return "://" not in wanted and (
        any(separator in wanted for separator in separators) or wanted.startswith(".") or wanted.endswith(".dim")
    )


def _existing(path: Path, reason: str) -> tuple[Path, str]:
    if not (path / MANIFEST_NAME).is_file():
        found = "has no " + MANIFEST_NAME if path.is_dir() else "is a file" if path.exists() else "does not exist"
        source = "" if reason == AS_NAMED else f" ({reason})"
        raise BundleError(f"There is no bundle at {path}{source}: it {found}{_suggest_command(path)}.")
    return path, reason


def _suggest_command(path: Path) -> str:
    """Say what a folder without a manifest is, where its files tell, and which command reads it."""
    quoted = shlex.quote(str(path))
    if (path / "dataset.json").is_file():
        return f"; it is a training set, which  dim verify {quoted}  checks and --data reads"
    if (path / "config.json").is_file():
        return f"; it is a run, of which  dim export {quoted}  makes a bundle"
    if path.is_dir() and (bundles := sorted(path.glob(f"*.dim/{MANIFEST_NAME}"))):
        return f"; a bundle lies in it: {bundles[0].parent}"
    holds_folders = path.is_dir() and any(child.is_dir() for child in path.iterdir())
    return "; folders of images are read by  dim distill --data" if holds_folders else ""
